"""A trial that runs out of memory, by a real allocation that fails, is tried once more with fewer episodes at once."""
from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import pytest
from hungry_space import LARGE, TOO_LARGE
from killable import run_or_resume, table

from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.ledger import Ledger, TrialRow
from metasearch.objectives import parcel
from metasearch.testing.history import problems
from metasearch.track.leaderboard import rows_from_ledger

ROOM = 430 * 2**20  # tries that must fit do with 350 as well, and those that must not fail with 550 still


def study(**changes: Any) -> dict[str, Any]:
    """All four configurations; those of a reasonable appetite fit when they are taken episode by episode."""
    train = {"mode": "vmap", "report_every": 1, "checkpoint_every": 1, **changes.pop("train", {})}
    return table(**{"space": "hungry_space.py", "method": {"name": "grid"}, "budget": {"trials": 4}, "train": train, **changes})


def _child(body: dict[str, Any], home: str, room: int | None, crash_at: str | None) -> None:
    os.environ.pop("HUNGRY_ROOM", None)
    if room is not None:
        os.environ["HUNGRY_ROOM"] = str(room)
    run_or_resume(body, home, crash_at)


@pytest.fixture(scope="module")
def forks() -> Any:
    return forked.server()


def run(
    forks: Any, body: dict[str, Any], home: Path, room: int | None, *, crash_at: str | None = None, code: int = 0
) -> dict[tuple[str, int], TrialRow]:
    """Runs a study in a process of its own; its trials by their configuration."""
    child = forks.Process(target=_child, args=(body, str(home), room, crash_at))
    child.start()
    child.join(120)
    assert child.exitcode == code
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        trials = ledger.trials().values()
        return {(str(t.proposal.config["learner"]), int(t.proposal.config["appetite"])): t for t in trials}


Trials = dict[tuple[str, int], TrialRow]


@pytest.fixture(scope="module")
def short(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trials]:
    """All four in a process that has but little memory."""
    home = tmp_path_factory.mktemp("short")
    return home, run(forks, study(), home, ROOM)


@pytest.fixture(scope="module")
def large(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """The first two where there is enough."""
    return run(forks, study(budget={"trials": 2}), tmp_path_factory.mktemp("large"), None)


def rows(home: Path, trial: int, *kinds: str) -> list[dict[str, Any]]:
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        return [row.body for row in ledger.rows(kinds=kinds, trial=trial)]


@pytest.mark.parametrize("learner", ["maml", "joint"])  # gradients of episodes, and the gradient of a mean over episodes
def test_the_second_try_succeeds_and_computes_what_a_larger_machine_would(
    short: tuple[Path, Trials], large: Trials, learner: str
) -> None:
    home, trials = short
    ours, theirs = trials[learner, LARGE], large[learner, LARGE]
    assert (ours.status, ours.attempts, ours.chunk) == ("done", 2, 1)
    assert (theirs.status, theirs.attempts, theirs.chunk) == ("done", 1, None)
    first, second = rows(home, ours.id, "started")
    assert "chunk" not in first
    assert (second["cause"], second["chunk"]) == ("oom", 1)
    (retry,) = rows(home, ours.id, "retry")
    assert retry["cause"] == "oom"
    assert "can't allocate memory" in retry["reason"], "the allocator's own words"

    assert ours.outcome is not None
    assert theirs.outcome is not None
    assert ours.outcome.score == pytest.approx(theirs.outcome.score, rel=1e-4)
    assert ours.checkpoint is not None
    assert theirs.checkpoint is not None
    weights, wanted = (parcel.read(Path(path))[0] for path in (ours.checkpoint, theirs.checkpoint))
    assert weights.keys() == wanted.keys()
    for key, value in wanted.items():
        assert (weights[key] - value).abs().max() < 1e-5, key


def test_what_does_not_fit_even_so_is_oom_once_and_for_all_and_the_others_go_on(short: tuple[Path, Trials]) -> None:
    home, trials = short
    for learner in ("maml", "joint"):
        row = trials[learner, TOO_LARGE]
        assert (row.status, row.attempts) == ("oom", 2)
        assert row.outcome is not None
        assert "with at most 1 episodes at once, too. Lower the meta-batch" in (row.outcome.reason or "")
    assert problems(home / "t") == []
    shown = {row.trial: row for row in rows_from_ledger(home / "t")}
    assert Counter(row.status for row in shown.values()) == {"done": 2, "oom": 2}
    assert [(shown[n].reason or "")[:22] for n in (1, 2)] == ["after a want of memory"] * 2
    said = json.loads((home / "t" / "status.json").read_text())
    assert (said["done"], said["failed"], said["reason"]) == (2, 2, "strategy")


@pytest.mark.parametrize("point", ["ledger.retry:1", "ledger.started:2"])
def test_a_driver_that_is_killed_around_the_second_try_comes_to_the_same_end(
    forks: Any, large: Trials, tmp_path: Path, point: str
) -> None:
    one = study(budget={"trials": 1})
    run(forks, one, tmp_path, ROOM, crash_at=point, code=137)
    (ours,) = run(forks, one, tmp_path, ROOM).values()
    assert (ours.status, ours.attempts, ours.chunk) == ("done", 2, 1)
    assert problems(tmp_path / "t") == []
    theirs = large["maml", LARGE].outcome
    assert ours.outcome is not None
    assert theirs is not None
    assert ours.outcome.score == pytest.approx(theirs.score, rel=1e-4)


def test_a_mode_that_does_not_fit_is_not_chosen(forks: Any, tmp_path: Path) -> None:
    trials = run(forks, study(train={"mode": "auto"}, budget={"trials": 1}), tmp_path, ROOM)
    assert [(t.status, t.attempts) for t in trials.values()] == [("done", 1)], "one by one, without a try that fails"
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        (mode,) = (row.body for row in ledger.rows(kinds=["mode"]))
    assert mode["mode"] == "loop"
    assert set(mode["seconds"]) == {"loop"}
    assert "does not fit into memory at once" in (tmp_path / "t" / "log.txt").read_text()


@pytest.mark.parametrize("tasks", [
    {"name": "navigation", "horizon": 5, "shots": 10, "queries": 10}, {"name": "sinusoid", "shots": 5, "queries": 5},
], ids=["policy search", "pre-training"])
def test_so_does_one_of_another_fit(forks: Any, tmp_path: Path, tasks: dict[str, Any]) -> None:
    body = study(space="hungry_fits_space.py", tasks=tasks, budget={"trials": 1}, validation={"episodes": 2})
    (ours,) = run(forks, body, tmp_path / "short", ROOM).values()
    assert (ours.status, ours.attempts, ours.chunk) == ("done", 2, 1)
    launch.run(Study.from_json(body), home=tmp_path / "large")
    with Ledger.open(tmp_path / "large" / "t" / "ledger.sqlite") as ledger:
        (theirs,) = ledger.trials().values()
    assert (theirs.status, theirs.attempts) == ("done", 1)
    assert ours.outcome is not None
    assert theirs.outcome is not None
    assert ours.outcome.score == pytest.approx(theirs.outcome.score, rel=1e-3)
