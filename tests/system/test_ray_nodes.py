"""A study on a cluster of several (local) nodes: it connects by address, and a node may be lost."""
from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from killable import HERE, table
from ray_nodes import TOKEN, children, environment, nodes

from metasearch.driver import launch
from metasearch.driver.status import Status
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.records import STATUSES
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
    assert not (tmp_path / "t").exists(), "nothing was begun, so nothing is left"


# -- sixty trials, and a node that is lost in the middle --------------------------------------------------------------------

TRIALS = 60


def sixty(home: Path, address: str) -> dict[str, Any]:
    method = {"name": str(HERE / "counting.py"), "steps": 4, "seconds": 0.1, "log": str(home / "log")}
    return table(
        space="counting_space.py", method=method, budget={"trials": TRIALS}, seed=5,
        driver={"kind": "ray", "lanes": 3, "cpus": 1, "address": address},
        track={"enabled": True, "uri": f"sqlite:///{home / 'mlflow.db'}", "pictures": 0},
    )


def ended(home: Path) -> int:
    try:
        return int(json.loads((home / "t" / "status.json").read_text())["used"])
    except (OSError, ValueError):
        return 0


def all_agree(home: Path) -> None:
    """Every trial has ended once and no more; ledger, MLflow, leaderboard and what trials left behind say the same."""
    seen: dict[int, Counter[str]] = {}
    for what, trial, *_ in (line.split() for line in (home / "log").read_text().splitlines()):
        seen.setdefault(int(trial), Counter())[what] += 1
    launch.sync("t", home=home)
    assert problems(home / "t", effects=seen, tracked=f"sqlite:///{home / 'mlflow.db'}") == []
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        trials = ledger.trials()
        ends = Counter(row.trial for row in ledger.rows(kinds=["ended"]))
        assert ends == Counter(range(1, TRIALS + 1))
        assert {trial.status for trial in trials.values()} == {"done"} < set(STATUSES)
        moved = [trial for trial in trials.values() if trial.attempts > 1]
        causes = [row.body["cause"] for row in ledger.rows(kinds=["started"])]
    assert len(moved) == causes.count("infrastructure") >= 1, "the node had a trial, and that is no failure of the trial's"
    assert "lane" not in causes
    assert len(causes) == TRIALS + len(moved)
    assert all(seen[trial.id]["end"] == 1 for trial in trials.values()), "no finished trial ran again"


def on_a_node(home: Path, node: Any) -> bool:
    """Does a process of this node run a trial now?"""
    below, at = [node], 0
    while at < len(below):
        below += children(below[at])
        at += 1
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        running = [trial.process for trial in ledger.trials().values() if trial.status == "running"]
    return any(int(str(process).partition("-")[0]) in below for process in running)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixty_trials_on_three_nodes_of_which_one_is_lost(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    quiet: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **quiet})
    others = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    lost: list[int] = []
    raylet = others[1].all_processes["raylet"][0].process.pid

    def lose_one(status: Status) -> None:
        if not lost and status.used >= TRIALS // 3 and on_a_node(tmp_path, raylet):
            lost.append(status.used)
            cluster.remove_node(others[1], allow_graceful=False)

    try:
        result = launch.run(Study.from_json(sixty(tmp_path, cluster.address)), home=tmp_path, show=lose_one)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lost
    assert (result.status.done, result.status.failed) == (TRIALS, 0)
    all_agree(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixty_trials_on_nodes_with_a_token_of_which_one_is_killed(tmp_path: Path) -> None:
    """Head and two workers as processes (`ray start`), the study in another; whoever has no token is not let in."""
    run = "import json, sys\nfrom pathlib import Path\nfrom metasearch.driver import launch\n" \
        "from metasearch.driver.study import Study\n" \
        "launch.run(Study.from_json(json.loads(sys.argv[1])), home=Path(sys.argv[2]))"
    with nodes() as made:
        address = made.head(environment(TOKEN), "--num-cpus=1")
        for _ in range(2):
            made.worker(environment(TOKEN))
        study = json.dumps(sixty(tmp_path, address))
        stranger = subprocess.run(
            [sys.executable, "-c", run, study, str(tmp_path / "stranger")], env=environment("0" * 64), cwd=tmp_path,
            capture_output=True, text=True, timeout=200,
        )
        assert "ConnectionError" in stranger.stderr
        assert not (tmp_path / "stranger" / "t" / "ledger.sqlite").exists()
        with (tmp_path / "out").open("wb") as out:
            driver = subprocess.Popen(
                [sys.executable, "-c", run, study, str(tmp_path)], env=environment(TOKEN), cwd=tmp_path, stdout=out, stderr=out,
            )
        try:
            until = time.monotonic() + 300
            while ended(tmp_path) < TRIALS // 3 or not on_a_node(tmp_path, made.processes[2].pid):
                assert time.monotonic() < until, (tmp_path / "out").read_text()
                assert driver.poll() is None, (tmp_path / "out").read_text()
                time.sleep(0.05)
            made.kill(2)
            assert ended(tmp_path) < TRIALS
            assert driver.wait(300) == 0, (tmp_path / "out").read_text()
        finally:
            driver.kill()
            driver.wait()
    written = [tmp_path / "out", *(tmp_path / "t").rglob("*.txt"), *(tmp_path / "t").glob("*.log")]
    assert not [path for path in written if TOKEN in path.read_text()]
    all_agree(tmp_path)
