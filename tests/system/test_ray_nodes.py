"""A study on a cluster of several (local) nodes: it connects by address, and a node may be lost."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
from killable import HERE, table

from metasearch.driver import launch
from metasearch.driver.director import Status
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.testing.history import problems


@pytest.mark.slow
def test_the_trials_of_a_lost_node_go_on_elsewhere_from_their_parcels(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    quiet: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    method = {"name": str(HERE / "counting.py"), "steps": 15, "seconds": 0.2, "log": str(tmp_path / "log")}
    driver = {"kind": "ray", "lanes": 2, "cpus": 1, "address": cluster.address}
    study = Study.from_json(table(space="counting_space.py", method=method, budget={"trials": 5}, driver=driver))
    lost: list[int] = []

    def lose_one(status: Status) -> None:
        with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
            running = [t for t in ledger.trials().values() if t.status == "running" and t.checkpoint is not None]
        if not lost and len(running) == 2:
            lost.append(1)
            cluster.remove_node(nodes[1], allow_graceful=False)

    try:
        result = launch.run(study, home=tmp_path, show=lose_one)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lost
    assert (result.status.done, result.status.failed) == (5, 0)
    assert problems(tmp_path / "t") == []
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        twice = [t for t in ledger.trials().values() if t.attempts == 2]
        assert len(twice) == 1
        assert [r.body["own"] for r in ledger.rows(kinds=["started"], trial=twice[0].id)] == [False, True]
        assert len(list(ledger.rows(kinds=["report"], trial=twice[0].id))) < 20, "it began again"


def test_an_address_where_there_is_no_ray_is_said_in_words_at_once(tmp_path: Path) -> None:
    driver = {"kind": "ray", "address": "127.0.0.1:9"}
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no Ray at 127.0.0.1:9.*refused.*RAY_AUTH_TOKEN"):
        launch.run(Study.from_json(table(driver=driver)), home=tmp_path)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "t" / "ledger.sqlite").exists()
