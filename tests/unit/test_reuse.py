"""What was trained is not trained again: equal and isomorphic configs get the recorded result, unless repeats are asked for."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metasearch.driver import letters
from metasearch.driver.director import Director
from metasearch.driver.messages import Assignment, Ending
from metasearch.driver.status import Status
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.records import Config, Outcome, Proposal
from metasearch.strategies import Strategy
from metasearch.testing.history import problems
from metasearch.track.leaderboard import leaderboard, ranked, rows_from_ledger

COUNTING = Path(__file__).parent.parent / "system" / "counting.py"
EDGES = ("e10", "e20", "e21", "e30", "e31", "e32")


def cell(**edges: str) -> Config:
    return {edge: edges.get(edge, "none") for edge in EDGES}


CONV, ONE, POOL = "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3"
FIRST = cell(e10=CONV, e31=ONE, e20=POOL, e32=CONV)
SWAPPED = cell(e20=CONV, e32=ONE, e10=POOL, e31=CONV)  # its inner nodes in the other order
OTHER = cell(e30=CONV)
DEAD = cell(e30=CONV, e10=ONE)  # OTHER, with weights that nobody reads


def study(trials: int = 4, **more: Any) -> Study:
    return Study.from_json({
        "name": "t", "space": "nasbench201", "method": {"name": str(COUNTING), "parcels": False}, "budget": {"trials": trials},
        "driver": {"kind": "local"}, **more,
    })


class Scripted(Strategy):
    """Proposes a list, and remembers what it was told."""

    def __init__(self, script: list[Config], *, children: bool = False) -> None:
        self.script = [Proposal(dict(config)) for config in script]
        self.told: list[tuple[int, str, float | None]] = []
        self.children = children  # type: ignore[misc]

    def ask(self) -> Proposal | None:
        return self.script.pop(0) if self.script else None

    def tell(self, outcome: Outcome) -> None:
        self.told.append((outcome.trial, outcome.status, outcome.score))


def open_(
    folder: Path, script: list[Config], monkeypatch: pytest.MonkeyPatch, wanted: Study | None = None, **more: Any
) -> Director:
    monkeypatch.setattr(Study, "strategy", lambda self: Scripted(script, **more))
    return Director(wanted or study(), folder)


def kill(director: Director) -> None:
    """What kill -9 leaves behind."""
    director.ledger.close()
    director._lock.close()


def done(said: Assignment, score: float) -> Ending:
    blob = np.float32([score - 1, score + 1]).tobytes()
    return Ending(said.trial, "done", score=score, metrics={"params": 7.0}, step=3, seconds=1.0, episodes=blob, checkpoint="p")


def run(director: Director, process: str = "1") -> list[int]:
    """Works as one lane until there is nothing more; the numbers of the trials it ran. A trial's score is its number."""
    ran, said = [], director.next("a", process)
    while isinstance(said, Assignment):
        ran.append(said.trial)
        said = director.next("a", process, done(said, float(said.trial)))
    return ran


def told(director: Director) -> list[tuple[int, str, float | None]]:
    assert isinstance(director.strategy, Scripted)
    return director.strategy.told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t"


def test_an_isomorphic_cell_gets_the_recorded_result_and_uses_up_a_trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = open_(folder, [FIRST, SWAPPED, OTHER, FIRST, cell()], monkeypatch)
    assert run(director) == [1, 3]
    assert told(director) == [(1, "done", 1.0), (2, "reused", 1.0), (3, "done", 3.0), (4, "reused", 1.0)]
    status = director.status()
    assert (status.done, status.reused, status.used, director.reason) == (2, 2, 4, "trials")
    director.close()
    assert problems(folder) == []
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        trials = ledger.trials()
        one, two, four = (trials[n] for n in (1, 2, 4))
        assert two.proposal.config == SWAPPED
        assert two.outcome is not None
        assert one.episodes is not None
        assert two.episodes is not None
        assert "means the same as trial 1" in (two.outcome.reason or "")
        assert np.array_equal(one.episodes, two.episodes)
        assert (two.checkpoint, four.checkpoint) == (None, "p"), "in an isomorphic cell equal weights have other names"


def test_the_leaderboard_does_not_show_a_reused_result_as_a_trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = open_(folder, [FIRST, SWAPPED, FIRST, OTHER], monkeypatch)
    run(director)
    director.close()
    rows = rows_from_ledger(folder)
    assert [(row.trial, rank) for row, rank, _ in ranked(rows)] == [(4, 1), (1, 2)]
    assert list(leaderboard(rows)["trial"]) == ["t/4", "t/1"]


def test_repeats_are_trained_where_they_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = open_(folder, [FIRST, SWAPPED, FIRST, FIRST], monkeypatch, study(repeats=True))
    assert run(director) == [1, 2, 3, 4]
    seeds = {director.ledger.trials()[n].proposal.seed for n in (1, 2, 3, 4)}
    assert len(seeds) == 4
    assert director.status().reused == 0
    director.close()
    assert len(leaderboard(rows_from_ledger(folder))) == 4


def test_a_study_without_repeats_is_the_one_that_it_was_before_there_was_the_key() -> None:
    table = study().to_json()
    assert study().digest != study(repeats=True).digest
    del table["repeats"]
    assert Study.from_json(table).digest == study().digest


@pytest.mark.parametrize("twin", [FIRST, SWAPPED], ids=["equal", "isomorphic"])
@pytest.mark.parametrize("ends", ["done", "diverged", "error", "infeasible"])
def test_a_duplicate_of_a_running_trial_waits_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, twin: Config, ends: str
) -> None:
    director = open_(folder, [FIRST, twin, OTHER], monkeypatch)
    first, second = director.next("a", "1"), director.next("b", "1")
    assert isinstance(first, Assignment)
    assert isinstance(second, Assignment)
    assert (first.trial, second.trial) == (1, 3), "the second proposal waits, and the lane is given the third"
    more = director.next("a", "1", done(first, 1.0) if ends == "done" else Ending(1, ends, reason="no"))  # type: ignore[arg-type]
    if ends in ("error", "infeasible"):  # that says nothing about what the twin would do
        assert isinstance(more, Assignment)
        assert more.trial == 2
    else:
        assert director.ledger.trials()[2].status == "reused"
        assert (2, "reused", 1.0 if ends == "done" else None) in told(director)
    kill(director)


@pytest.mark.parametrize("twin", [FIRST, SWAPPED], ids=["equal", "isomorphic"])
@pytest.mark.parametrize("letter", [False, True])
def test_a_waiting_duplicate_survives_the_death_of_its_driver(
    folder: Path, monkeypatch: pytest.MonkeyPatch, twin: Config, letter: bool
) -> None:
    script = [FIRST, twin, OTHER, twin]
    director = open_(folder, script, monkeypatch)
    first = director.next("a", "1")
    assert isinstance(first, Assignment)
    assert isinstance(director.next("b", "1"), Assignment)
    if letter:
        letters.write(folder, done(first, 1.0))
    kill(director)
    director = open_(folder, script, monkeypatch)
    assert run(director, "2") == ([3] if letter else [1, 3])
    statuses = {row.id: row.status for row in director.ledger.trials().values()}
    assert statuses == {1: "done", 2: "reused", 3: "done", 4: "reused"}
    assert (2, "reused", 1.0) in told(director)
    assert (4, "reused", 1.0) in told(director)
    director.close()
    assert problems(folder) == []


def test_after_a_resume_what_was_trained_before_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [FIRST, OTHER, SWAPPED, DEAD]
    director = open_(folder, script, monkeypatch)
    said = director.next("a", "1")
    for _ in range(2):
        assert isinstance(said, Assignment)
        said = director.next("a", "1", done(said, float(said.trial)))
    assert said is None, "the rest were answered by the director"
    director.close()
    assert director.status().reused == 2
    longer = study(6)
    script += [SWAPPED, FIRST]
    director = open_(folder, script, monkeypatch, longer)
    assert run(director, "2") == []
    assert director.status().reused == 4
    director.close()


def test_the_limit_that_one_cell_exceeds_is_not_that_of_an_isomorphic_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DEAD has parameters that nobody reads."""
    director = open_(folder, [DEAD, OTHER, DEAD], monkeypatch, study(2))
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    said = director.next("a", "1", Ending(said.trial, "infeasible", reason="params"))
    assert isinstance(said, Assignment)
    assert said.trial == 2
    director.next("a", "1", done(said, 2.0))
    assert [status for _, status, _ in told(director)] == ["infeasible", "done", "reused"]
    kill(director)


def test_where_trials_go_on_from_others_isomorphic_cells_are_trained_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion of the one would start from weights that have the names of the other."""
    director = open_(folder, [FIRST, SWAPPED, FIRST], monkeypatch, children=True)
    assert run(director) == [1, 2]
    assert director.ledger.trials()[3].status == "reused"
    kill(director)


def test_a_reused_result_is_no_coverage(folder: Path) -> None:
    """Random search in nasbench201: 40 draws, of which some are isomorphic to earlier ones."""
    wanted = study(40, method={"name": str(COUNTING), "parcels": False, "inner": {"name": "random"}}, seed=3)
    director = Director(wanted, folder)
    ran = run(director)
    status: Status = director.status()
    assert (status.used, status.done + status.reused) == (40, 40)
    assert status.reused > 0
    assert director.spending.goal is not None
    assert status.coverage == director.spending.goal.reached(len(ran))
    kill(director)


@pytest.mark.parametrize("broken", [lambda config: {}["e10"], lambda config: None, str])
def test_a_canonical_that_fails_or_makes_no_config_leaves_a_config_as_it_is(
    broken: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from search_spaces import nasbench201

    monkeypatch.setattr(nasbench201, "canonical", broken)
    director = open_(folder, [FIRST, SWAPPED, FIRST], monkeypatch)
    assert run(director) == [1, 2]
    assert "canonical(" in caplog.text
    kill(director)


@pytest.mark.slow
def test_a_study_of_isomorphic_cells_comes_back_in_time(folder: Path) -> None:
    wanted = study(2000, method={"name": str(COUNTING), "parcels": False, "inner": {"name": "random"}})
    director = Director(wanted, folder)
    run(director)
    kill(director)
    began = time.process_time()
    director = Director(wanted, folder)
    assert time.process_time() - began < 2
    kill(director)
