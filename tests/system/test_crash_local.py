"""The driver is killed at every named crash point and at random times while a real learner trains; nothing is lost or repeated.

Children are forked from a server that has imported torch once, so a kill and its resume cost a second, not ten.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import pytest
from killable import HERE, run_or_resume, table

from metasearch.crashpoint import POINTS
from metasearch.driver import launch, worker
from metasearch.driver.status import Status
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.testing.history import problems, proposals, results
from metasearch.track.outbox import sync
from metasearch.track.store import TrackingError

ELSEWHERE = {  # points that a run of the local driver does not come by, and who does
    "ledger.opened": "evaluate", "ledger.evaluated": "evaluate", "ledger.note": "test_resuming.py: a replay that differs",
    "ledger.retry": "test_memory.py: a want of memory",
    "outbox.made": "the outbox", "outbox.before": "the outbox", "outbox.after": "the outbox", "outbox.pictured": "the outbox",
}  # fmt: skip


@pytest.fixture(scope="module")
def forks() -> Any:
    return forked.server()


def run(forks: Any, home: Path, crash_at: str | None = None, study: dict[str, Any] | None = None) -> int:
    child = forks.Process(target=run_or_resume, args=(study or table(), str(home), crash_at))
    child.start()
    child.join(120)
    assert child.exitcode is not None, "the study hangs"
    return int(child.exitcode)


@pytest.fixture(scope="module")
def undisturbed(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    assert run(forks, home) == 0
    assert problems(home / "t") == []
    return home / "t"


def test_all_points_are_killed_at_here_or_known_to_be_elsewhere() -> None:
    assert set(ELSEWHERE) <= POINTS


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("point", sorted(POINTS - set(ELSEWHERE)))
def test_a_driver_killed_at_any_point_comes_back_to_the_same_history(
    forks: Any, undisturbed: Path, tmp_path: Path, point: str, count: int
) -> None:
    once = {"ledger.study", "ledger.stopped", "ledger.resumed"}
    if point in once and count > 1:
        pytest.skip("a run comes by this point once")
    count = min(count, 2) if point.startswith("status.") else count  # it is written at the start, at the end, once a second
    study = table()
    if point == "ledger.mode":
        if count > 1:
            pytest.skip("two widths, two modes")
        study["train"] = {**study["train"], "mode": "auto"}
    if point == "ledger.resumed":
        assert run(forks, tmp_path, "letter.written:2", study) == 137
    assert run(forks, tmp_path, f"{point}:{count}", study) == 137, "the run did not come by the point"
    assert run(forks, tmp_path, None, study) == 0
    assert problems(tmp_path / "t") == []
    assert proposals(tmp_path / "t") == proposals(undisturbed)
    if point != "ledger.mode":  # which way is faster is measured; all else is equal to the last bit
        assert results(tmp_path / "t") == results(undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_a_driver_killed_at_random_times_comes_back_to_the_same_history(
    forks: Any, undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    begin = time.monotonic()
    assert run(forks, tmp_path / "whole") == 0
    whole = time.monotonic() - begin
    kills = 0
    for _ in range(60):
        child = forks.Process(target=run_or_resume, args=(table(), str(tmp_path), None))
        child.start()
        child.join(rng.uniform(0.1, 0.6) * whole * 1.1**kills)  # in the middle of it, and in the end it gets there
        if child.exitcode is not None and kills:
            break
        if child.exitcode is not None:  # the machine has become faster since: once more from the beginning
            assert child.exitcode == 0
            shutil.rmtree(tmp_path / "t")
            continue
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    assert child.exitcode == 0, "it never came to its end"
    assert kills > 0
    assert problems(tmp_path / "t") == []
    assert proposals(tmp_path / "t") == proposals(undisturbed)
    assert results(tmp_path / "t") == results(undisturbed)


def test_no_finished_trial_runs_again_by_what_it_leaves_behind(forks: Any, tmp_path: Path) -> None:
    rng = random.Random(7)
    log = tmp_path / "log"
    how = {"3": "error", "5": "diverged"}
    method = {"name": str(HERE / "counting.py"), "steps": 4, "seconds": 0.01, "log": str(log), "misbehave": how}
    study = table(space="counting_space.py", method=method, budget={"trials": 12})
    for attempt in range(60):
        child = forks.Process(target=run_or_resume, args=(study, str(tmp_path), None))
        child.start()
        child.join(rng.uniform(0.1, 0.6) * 1.15**attempt)
        if child.exitcode is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert child.exitcode == 0
    effects: dict[int, Counter[str]] = {}
    for what, trial, *_ in (line.split() for line in log.read_text().splitlines()):
        effects.setdefault(int(trial), Counter())[what] += 1
    assert problems(tmp_path / "t", effects=effects) == []


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_of_two_drivers_that_start_at_once_one_works(forks: Any, tmp_path: Path, rounds: int) -> None:
    method = {"name": str(HERE / "counting.py"), "seconds": 0.05, "log": str(tmp_path / "log")}
    study = table(space="counting_space.py", method=method)
    for round_ in range(rounds):
        home = tmp_path / str(round_)
        both = [forks.Process(target=run_or_resume, args=(study, str(home), None)) for _ in range(2)]
        for child in both:
            child.start()
        for child in both:
            child.join(60)
        assert sorted(child.exitcode for child in both) == [0, 1]
        assert problems(home / "t") == []


@pytest.mark.parametrize("how", ["hang", "spin"])  # asleep, or in C without letting go of the interpreter
def test_a_trial_that_hangs_ends_the_driver_with_its_stacks_and_is_not_tried_again(
    forks: Any, tmp_path: Path, how: str
) -> None:
    method = {"name": str(HERE / "counting.py"), "misbehave": {"2": how}}
    study = table(space="counting_space.py", method=method, driver={"kind": "local", "trial_timeout": 4.0})
    assert run(forks, tmp_path, None, study) == 1
    assert "counting.py" in (tmp_path / "t" / "stacks" / "2-1.txt").read_text()
    assert run(forks, tmp_path, None, study) == 0
    assert [results(tmp_path / "t")[n][0] for n in range(1, 6)] == ["done", "error", "done", "done", "done"]
    assert problems(tmp_path / "t") == []


def with_least(least: float, study: dict[str, Any], home: str) -> None:
    worker.LEAST = least
    run_or_resume(study, home, None)


def by_default(forks: Any, home: Path, least: float, **method: Any) -> int:
    study = table(space="counting_space.py", method={"name": str(HERE / "counting.py"), **method})
    child = forks.Process(target=with_least, args=(least, study, str(home)))
    child.start()
    child.join(60)
    assert child.exitcode is not None, "the study hangs"
    return int(child.exitcode)


def test_a_trial_that_hangs_is_ended_by_default(forks: Any, tmp_path: Path) -> None:
    assert by_default(forks, tmp_path, 3.0, misbehave={"2": "hang"}) == 1
    assert "counting.py" in (tmp_path / "t" / "stacks" / "2-1.txt").read_text()
    assert by_default(forks, tmp_path, 3.0) == 0
    assert [results(tmp_path / "t")[n][0] for n in range(1, 6)] == ["done", "error", "done", "done", "done"]
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        outcome = ledger.trials()[2].outcome
        assert outcome is not None
        assert "10 times the longest time between two reports" in (outcome.reason or "")
    assert problems(tmp_path / "t") == []


def test_a_first_trial_that_hangs_after_its_first_report_is_ended_by_default(forks: Any, tmp_path: Path) -> None:
    assert by_default(forks, tmp_path, 3.0, misbehave={"1": "hang"}) == 1
    assert (tmp_path / "t" / "stacks" / "1-1.txt").stat().st_size > 0


def test_trials_that_are_slow_by_nature_are_not_ended_by_default(forks: Any, tmp_path: Path) -> None:
    """Half a second a report where a tenth is the least: the trial's own reports count."""
    assert by_default(forks, tmp_path, 0.1, seconds=0.5, steps=2) == 0
    assert {status for status, *_ in results(tmp_path / "t").values()} == {"done"}


def _all_is_told(folder: Path, uri: str) -> bool:
    try:
        return problems(folder, tracked=uri) == []
    except TrackingError:
        return False  # the process that tells MLflow has not even made the database yet


def test_what_mlflow_shows_after_a_kill_is_what_the_ledger_says(forks: Any, tmp_path: Path) -> None:
    study = table(track={"enabled": True, "uri": f"sqlite:///{tmp_path}/mlflow.db", "top": 1, "pictures": 0})
    assert run(forks, tmp_path, "ledger.ended:2", study) == 137
    assert run(forks, tmp_path, "letter.written:1", study) == 137
    assert run(forks, tmp_path, None, study) == 0
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    deadline = time.monotonic() + 120
    while not _all_is_told(tmp_path / "t", uri) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert problems(tmp_path / "t", tracked=uri) == []
    assert sync(tmp_path / "t", uri, wait=60).wrong == 0


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGINT, (130, 1, -2)), (signal.SIGTERM, (143,)), (signal.SIGHUP, (143,))])
def test_a_second_signal_blames_no_trial(tmp_path: Path, number: signal.Signals, codes: tuple[int, ...]) -> None:
    """From Python, where no command line stands between."""
    method = {"name": str(HERE / "counting.py"), "steps": 2, "seconds": 600.0, "log": str(tmp_path / "log")}
    study = table(space="counting_space.py", method=method, budget={"trials": 1})
    command = [sys.executable, str(HERE / "killable.py"), json.dumps(study), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None, "one signal is a question"
    process.send_signal(number)
    assert process.wait(60) in codes
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        assert ledger.trials()[1].status == "running"
    assert problems(tmp_path / "t", finished=False) == []


def showing_fails(study: dict[str, Any], home: str) -> None:
    def show(status: Status) -> None:
        if status.done == 1:
            raise OSError("nobody looks any more")

    try:
        launch.run(Study.from_json(study), home=Path(home), show=show)
    except OSError as error:
        sys.exit(9 if "nobody looks" in str(error) else 1)


def test_a_study_that_cannot_be_shown_ends_and_blames_no_trial(forks: Any, tmp_path: Path) -> None:
    method = {"name": str(HERE / "counting.py"), "steps": 3, "seconds": 0.5}
    child = forks.Process(target=showing_fails, args=(table(space="counting_space.py", method=method), str(tmp_path)))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        assert {row.status for row in ledger.trials().values()} <= {"done", "running", "proposed"}
    assert problems(tmp_path / "t", finished=False) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_stops_at_the_next_report_and_the_study_can_be_resumed(
    forks: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    method = {"name": str(HERE / "counting.py"), "steps": 4000, "seconds": 0.05}
    study = table(space="counting_space.py", method=method, budget={"trials": 1})
    command = [sys.executable, str(HERE / "killable.py"), json.dumps(study), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "t" / "parcels").glob("*/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) in (code, -number), "the trial would take 200 s"
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        (stopped,) = ledger.rows(kinds=["stopped"])
        assert (stopped.body["reason"], stopped.body["final"]) == ("interrupted", False)
        assert ledger.trials()[1].status == "running"
        assert ledger.trials()[1].checkpoint is not None
    assert problems(tmp_path / "t", finished=False) == []
