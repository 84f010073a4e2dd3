"""A search does not wait for an MLflow that is down, slow or broken; afterwards `sync` makes it equal the ledger."""
from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killable import HERE, run_or_resume, table

from metasearch.ledger import Ledger
from metasearch.testing.history import problems, results
from metasearch.track.outbox import sync

WHOLE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
HALF = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"experiment": {"exper'


@contextlib.contextmanager
def server(how: str) -> Iterator[str]:
    """An address at which nobody listens, or somebody who is slow, fails, or stops in the middle of an answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if how == "down":
            listening.close()
            yield address
            return
        listening.listen(50)

        def answer(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                time.sleep(30 if how == "slow" else 0)
                client.sendall(WHOLE if how == "failing" else HALF)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield address


def searched(home: Path, **track: Any) -> float:
    """Seconds from the first trial's start to the last one's end: 20 trials that sleep for 0.3 s each, in a process of theirs."""
    method = {"name": str(HERE / "counting.py"), "seconds": 0.1, "parcels": False}
    study = table(space="counting_space.py", method=method, budget={"trials": 20}, track={"pictures": 0, **track})
    child = multiprocessing.get_context("spawn").Process(target=run_or_resume, args=(study, str(home), None))
    child.start()
    child.join(200)
    assert child.exitcode == 0
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        times = [row.at for row in ledger.rows(kinds=["started", "ended"])]
    return max(times) - min(times)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    home = tmp_path_factory.mktemp("alone")
    return home, searched(home, enabled=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["down", "slow", "failing", "half an answer"])
def test_a_search_does_not_wait_for_an_mlflow_that_is_down_slow_or_broken(
    alone: tuple[Path, float], tmp_path: Path, how: str
) -> None:
    quiet, seconds = alone
    with server(how) as uri:
        assert searched(tmp_path, uri=uri) <= 1.1 * seconds + 0.5
    assert results(tmp_path / "t") == results(quiet / "t")
    log = tmp_path / "t" / "log.txt"
    assert (log.read_text().count("metasearch sync t") if log.exists() else 0) <= 2
    back = f"sqlite:///{tmp_path}/mlflow.db"
    found = sync(tmp_path / "t", back, wait=120)  # what sent the rows goes on for a while after its driver
    assert (found.runs, found.wrong) == (21, 0)
    assert problems(tmp_path / "t", tracked=back) == []
