"""The director hands every trial out once, writes before it answers, and comes back from its ledger unchanged."""
from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from metasearch.budget import Coverage
from metasearch.cli.live import Unit, in_a_line
from metasearch.driver import launch, letters
from metasearch.driver.director import CHUNK, Director, trial_seed
from metasearch.driver.folder import LockedError
from metasearch.driver.messages import Assignment, Ending, Line, Lost, Wait
from metasearch.driver.opening import StudyMismatch
from metasearch.driver.snapshot import load_snapshot
from metasearch.driver.study import Study
from metasearch.driver.worker import run_trial
from metasearch.ledger import Ledger, LedgerError
from metasearch.records import Proposal
from metasearch.strategies import Strategy
from metasearch.testing.history import problems, proposals, results
from metasearch.track.leaderboard import leaderboard, rows_from_ledger

HERE = Path(__file__).parent.parent / "system"


def study(trials: int | None = 5, *, space: Path = HERE / "counting_space.py", **tables: Any) -> Study:
    """A study of the counting method; `method` may hold an inner strategy."""
    method = {"name": str(HERE / "counting.py"), "parcels": False, **tables.pop("method", {})}
    budget = tables.pop("budget", {"trials": trials})
    driver = {"kind": "local", **tables.pop("driver", {})}
    told = {"method": method, "budget": budget, "driver": driver, "track": {"enabled": False}, **tables}
    return Study.from_json({"name": "t", "space": str(space), **told})


def kill(director: Director) -> None:
    """What kill -9 leaves behind: nothing is closed in order."""
    director.ledger.close()
    director._lock.close()


def done(said: Assignment, score: float | None = None) -> Ending:
    value = float(said.proposal.config["x"]) if score is None else score  # type: ignore[arg-type]
    blob = np.float32([value - 1, value + 1]).tobytes()
    step = said.proposal.until or 3
    return Ending(said.trial, "done", score=value, metrics={"loss": 0.5}, step=step, seconds=1.0, episodes=blob)


def line(step: int, checkpoint: str | None = None) -> Line:
    return Line(step, {"loss": 1.0 / step}, 0.5, checkpoint, None, time.time(), float(step))


def to_the_end(director: Director, lane: str = "a", process: str = "1", judge: Any = done, said: Any = None) -> list[int]:
    """Works as one lane until there is nothing more; the numbers of the trials it ran."""
    ran = []
    said = director.next(lane, process) if said is None else said
    while isinstance(said, Assignment):
        ran.append(said.trial)
        said = director.next(lane, process, judge(said))
    assert said is None
    return ran


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t"


def rows(folder: Path, *kinds: str) -> list[Any]:
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        return list(ledger.rows(kinds=kinds or None))


# -- one session --------------------------------------------------------------------------------------------------------------


def test_a_study_runs_its_trials_and_stops_with_a_reason_and_its_coverage(folder: Path) -> None:
    director = Director(study(5), folder)
    assert to_the_end(director) == [1, 2, 3, 4, 5]
    assert director.reason == "trials"
    status = director.status()
    assert (status.done, status.used, status.running, status.planned) == (5, 5, 0, 5)
    director.close()
    (stopped,) = rows(folder, "stopped")
    assert (stopped.body["reason"], stopped.body["final"]) == ("trials", True)
    assert 0 < stopped.body["coverage"] < 0.1
    assert problems(folder) == []
    assert json.loads((folder / "status.json").read_text())["done"] == 5


def test_what_goes_on_from_another_trial_uses_up_nothing_of_the_budget(folder: Path) -> None:
    director = Director(study(4, method={"inner": {"name": "asha", "min_steps": 1, "max_steps": 4, "eta": 2}}), folder)
    ran = to_the_end(director)
    status = director.status()
    assert len(ran) == status.done > 4
    assert (status.used, status.planned) == (4, 4)
    director.close()


def test_after_an_orderly_end_nothing_is_said_to_run(folder: Path) -> None:
    director = Director(study(4), folder)
    assert isinstance(director.next("a", "1"), Assignment)
    director.close()
    said = json.loads((folder / "status.json").read_text())
    assert (said["running"], said["lanes"], said["reason"]) == (0, [], None)


def test_a_copy_of_a_study_has_its_own_parcels(folder: Path, tmp_path: Path) -> None:
    director = Director(study(2), folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    parcel = folder / "parcels" / "1" / "3.safetensors"
    parcel.parent.mkdir(parents=True)
    parcel.write_text("one")
    director.next("a", "1", replace(done(said), checkpoint=str(parcel)))
    director.close()
    copy = Path(shutil.copytree(folder, tmp_path / "copy" / "t"))
    director = Director(study(2), copy)  # takes away what is old
    kill(director)
    assert (copy / "parcels" / "1" / "3.safetensors").read_text() == "one"


def test_a_budget_that_a_resume_was_given_holds_for_the_next_one_too(folder: Path) -> None:
    first = Director(study(2), folder)
    to_the_end(first)
    first.close()
    longer = Director(study(5), folder)  # what `resume t budget.trials=5` does
    assert isinstance(longer.next("a", "1"), Assignment)
    kill(longer)
    assert launch.resume("t", home=folder.parent).status.done == 5
    assert launch.resume("t", home=folder.parent, overrides=("budget.trials=6",)).status.done == 6
    again = launch.resume("t", home=folder.parent)
    assert (again.status.done, again.status.planned, again.status.reason) == (6, 6, "trials")


def test_one_call_of_a_lane_is_one_transaction(folder: Path) -> None:
    director = Director(study(9), folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    commits: list[str] = []
    director.ledger._db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    director.next("a", "1", done(said), (line(1), line(2), line(3)))
    assert len(commits) == 1
    kill(director)


def test_the_same_call_twice_gets_the_same_answer_and_counts_once(folder: Path) -> None:
    director = Director(study(9), folder)
    first = director.next("a", "1")
    assert director.next("a", "1") == first
    assert isinstance(first, Assignment)
    second = director.next("a", "1", done(first), (line(1),))
    before = director.ledger.last
    assert director.next("a", "1", done(first), (line(1),)) == second
    director.end("a", "1", done(first))
    assert director.ledger.last == before
    assert director.status().done == 1
    kill(director)


def test_every_trial_has_a_seed_of_its_own_that_depends_on_the_study_alone(folder: Path) -> None:
    director = Director(study(3), folder)
    to_the_end(director)
    director.close()
    seeds = [p["seed"] for p in proposals(folder)]
    assert seeds == [trial_seed(0, n) for n in (1, 2, 3)]
    assert len(set(seeds)) == 3
    assert trial_seed(1, 1) != trial_seed(0, 1)


def test_the_number_of_lanes_does_not_change_what_random_search_tries(tmp_path: Path) -> None:
    for name, lanes in (("one", 1), ("four", 4)):
        director = Director(study(8), tmp_path / name)
        held = {f"{n}": director.next(f"{n}", "1") for n in range(lanes)}
        for lane in itertools.cycle(list(reversed(held))):
            said = held[lane]
            if not any(isinstance(s, Assignment) for s in held.values()):
                break
            if isinstance(said, Assignment):
                held[lane] = director.next(lane, "1", done(said))
        director.close()
    assert proposals(tmp_path / "one") == proposals(tmp_path / "four")
    assert problems(tmp_path / "four") == []


def test_failed_trials_are_replaced_and_are_no_coverage_and_diverged_ones_are_looked_at(folder: Path) -> None:
    director = Director(study(budget={"coverage": 0.02, "top": 1}), folder)
    assert director.spending.planned == 20
    judged = iter(["error", "oom", "oom", "diverged"])

    def judge(said: Assignment) -> Ending:
        status = next(judged, None)
        return done(said) if status is None else Ending(said.trial, status, reason="as asked")  # type: ignore[arg-type]

    assert to_the_end(director, judge=judge) == [1, 2, 2, *range(3, 23)], "a want of memory is tried twice"
    status = director.status()
    assert (status.done, status.diverged, status.failed) == (19, 1, 2)
    assert status.coverage == pytest.approx(20 / 1000)
    assert director.reason == "coverage"


def test_a_study_in_which_everything_fails_ends(folder: Path) -> None:
    director = Director(study(1000), folder)
    ran = to_the_end(director, judge=lambda said: Ending(said.trial, "error", reason="no"))
    assert (len(ran), director.reason) == (10, "errors")


def test_the_person_says_how_many_may_fail(folder: Path) -> None:
    director = Director(study(1000, driver={"max_errors": 2}), folder)
    assert len(to_the_end(director, judge=lambda said: Ending(said.trial, "error", reason="no"))) == 3


NARROW = """
name = "narrow"
space = "sine-mlp"
tasks = { name = "sinusoid", shots = 5 }
limits = { max_params = 10, max_flops = 1e12 }
validation = { episodes = 2 }
budget = { trials = 1000 }
driver = { kind = "local" }
track = { enabled = false }
"""


def test_a_limit_that_nothing_meets_ends_the_study_early_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("metasearch.driver.spending.NEVER", 12)
    result = launch.run(Study.from_text(NARROW), home=tmp_path)
    assert (result.status.reason, result.status.infeasible, result.exit_code) == ("infeasible", 12, 4)
    (note,) = rows(result.folder, "note")
    assert "the last 12 proposals were all infeasible; none meets limits.max_params = 10: the least was" in note.body["what"]
    assert "max_flops" not in note.body["what"], "that one is met"
    assert note.body["what"] in caplog.text
    with Ledger.open(result.folder / "ledger.sqlite") as ledger:
        outcomes = [row.outcome for row in ledger.trials().values()]
    least = min(outcome.metrics["params"] for outcome in outcomes if outcome is not None)
    assert f"the least was {least:,g}" in note.body["what"]


@pytest.mark.parametrize(("feasible", "tries"), [(False, 200), (True, 1000)])
def test_what_was_feasible_once_is_given_more_tries(
    folder: Path, monkeypatch: pytest.MonkeyPatch, feasible: bool, tries: int
) -> None:
    bad = [Proposal({"x": 1000 + n, "y": 0, "kind": "a"}) for n in range(1500)]
    director = scripted(folder, [Proposal(config(1))] * feasible + bad, monkeypatch, trials=5)
    to_the_end(director)
    assert (director.reason, director.status().infeasible) == ("infeasible", tries)
    (note,) = list(director.ledger.rows(kinds=["note"]))
    assert f"the last {tries} proposals were all infeasible; the last one: 'x' must lie in 0..99, but got" in note.body["what"]
    director.close()


class Scripted(Strategy):
    """Proposes a list."""

    inherits = False

    def __init__(self, proposals: list[Proposal], *, children: bool = False) -> None:
        self.script = list(proposals)
        self.told: list[tuple[int, str, float | None]] = []
        self.children = children  # type: ignore[misc]

    def ask(self) -> Proposal | None:
        if self.script and self.script[0].parent is None and self.closed:
            return None
        return self.script.pop(0) if self.script else None

    def tell(self, outcome: Any) -> None:
        self.told.append((outcome.trial, outcome.status, outcome.score))


def config(x: int) -> dict[str, Any]:
    return {"x": x, "y": 0, "kind": "a"}


def scripted(folder: Path, script: list[Proposal], monkeypatch: pytest.MonkeyPatch, trials: int = 5, **more: Any) -> Director:
    monkeypatch.setattr(Study, "strategy", lambda self: Scripted(list(script), **more))
    return Director(study(trials), folder)


def test_the_director_answers_infeasible_proposals_itself_in_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Proposal({"x": 1000, "y": 0, "kind": "a"})
    director = scripted(folder, [bad, Proposal(config(1))], monkeypatch)
    assert to_the_end(director) == [2]
    assert director.strategy.told == [(1, "infeasible", None), (2, "done", 1.0)]  # type: ignore[attr-defined]
    with director.ledger:
        outcome = director.ledger.trials()[1].outcome
        assert outcome is not None
        assert "1000" in (outcome.reason or "")


def test_a_repeated_proposal_is_answered_with_the_first_result_and_uses_up_a_trial(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    director = scripted(folder, [Proposal(config(x)) for x in (1, 2, 1, 2, 3, 4)], monkeypatch)
    assert to_the_end(director) == [1, 2, 5]
    assert director.strategy.told[2:4] == [(3, "reused", 1.0), (4, "reused", 2.0)]  # type: ignore[attr-defined]
    status = director.status()
    assert (status.done, status.reused, status.used, director.reason) == (3, 2, 5, "trials")
    assert director.ledger.trials()[3].episodes is not None
    director.close()
    assert problems(folder) == []


@pytest.mark.parametrize("first_ends", ["done", "diverged", "error"])
def test_a_proposal_that_runs_already_waits_for_its_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first_ends: str
) -> None:
    director = scripted(folder, [Proposal(config(1)), Proposal(config(1)), Proposal(config(2))], monkeypatch)
    first, second = director.next("a", "1"), director.next("b", "1")
    assert isinstance(first, Assignment)
    assert isinstance(second, Assignment)
    assert (first.trial, second.trial) == (1, 3), "the second proposal is the first one's twin"
    again = director.next("a", "1", done(first) if first_ends == "done" else Ending(1, first_ends))  # type: ignore[arg-type]
    if first_ends == "error":
        assert isinstance(again, Assignment)
        assert again.trial == 2, "the first failed, so the second has to find out itself"
    else:
        assert director.ledger.trials()[2].status == "reused"
    kill(director)


def test_a_strategy_that_wants_repeats_gets_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "repeats", True)
    director = scripted(folder, [Proposal(config(1))] * 3, monkeypatch, trials=3)
    assert to_the_end(director) == [1, 2, 3]


def test_children_do_not_use_up_the_budget_and_start_from_their_parents_parcel(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parcel = folder / "parcels" / "1" / "3.safetensors"
    roots = [Proposal(config(1), until=3), Proposal(config(2), until=3)]
    script = [*roots, Proposal(config(1), parent=1, until=9), Proposal(config(3))]
    director = scripted(folder, script, monkeypatch, trials=2, children=True)
    parcel.parent.mkdir(parents=True)
    parcel.write_bytes(b"x")
    said, seen = director.next("a", "1"), []
    while isinstance(said, Assignment):
        seen.append((said.trial, said.proposal.parent, said.starts, said.own))
        said = director.next("a", "1", replace(done(said), checkpoint=str(parcel) if said.trial == 1 else None))
    assert seen == [(1, None, (), False), (2, None, (), False), (3, 1, (str(parcel),), False)]
    assert director.reason == "trials"
    assert director.status().best_trial == 3, "a longer training beats a shorter one"


def test_asha_promotes_after_the_last_root_and_then_ends(folder: Path) -> None:
    inner = {"inner": {"name": "asha", "min_steps": 1, "max_steps": 4, "eta": 2}}
    director = Director(study(8, method=inner), folder)
    to_the_end(director)
    director.close()
    segments = [(p["parent"] is None, p["until"]) for p in proposals(folder)]
    assert segments.count((True, 1)) == 8
    assert segments.count((False, 2)) >= 4  # at least as many as a synchronous halving promotes
    assert segments.count((False, 4)) >= 2
    assert segments.index((False, 4)) < len(segments) - 1 - segments[::-1].index((True, 1)), "nothing waits for a rung to fill"
    assert not segments[-1][0], "the last root has ended, and promotions follow"
    assert problems(folder) == []


def test_a_lane_waits_while_a_strategy_may_still_promote_and_otherwise_leaves(folder: Path, tmp_path: Path) -> None:
    inner = {"inner": {"name": "asha", "min_steps": 1, "max_steps": 4, "eta": 2}}
    director = Director(study(1, method=inner), folder)
    assert isinstance(director.next("a", "1"), Assignment)
    assert isinstance(director.next("b", "1"), Wait)
    kill(director)
    director = Director(study(1), tmp_path / "other" / "t")
    assert isinstance(director.next("a", "1"), Assignment)
    assert director.next("b", "1") is None
    kill(director)


def test_where_children_inherit_the_best_trial_is_that_of_the_best_score(folder: Path) -> None:
    """Lineages of large-scale evolution are as long as they are old: a deeper one is not the better one."""
    inner = {"inner": {"name": "large-scale-evolution", "steps": 3, "evaluations": 40, "population": 6, "founders": "random"}}
    director = Director(study(6, method=inner), folder)
    to_the_end(director)
    status = director.status()
    director.close()
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        done = {t.id: t for t in ledger.trials().values() if t.outcome is not None and t.status == "done"}
    best = max(done.values(), key=lambda t: (t.outcome.score, -t.id))  # type: ignore[union-attr]
    assert best.proposal.until != max(t.proposal.until or 0 for t in done.values()), "the test could not fail"
    assert status.best_trial == best.id
    board = leaderboard(rows_from_ledger(folder))
    assert board["trial"][0] == f"t/{best.id}"
    assert board["rank"].notna().all()
    assert len(board) == len(done)


@pytest.mark.parametrize(("inner", "drawn"), [
    ({"name": "regularized-evolution", "population": 8}, 8), ({"name": "tpe"}, 10),
    ({"name": "guided-evolution", "startup": 5}, 5),
    ({"name": "asha", "min_steps": 1, "max_steps": 4, "eta": 2}, 20), ({"name": "cma-es"}, None),
    ({"name": "reinforce", "bins": 4}, None),
    ({"name": "large-scale-evolution", "steps": 3, "evaluations": 30, "population": 6, "founders": "random"}, 6),
])
def test_a_strategy_that_adapts_shows_the_coverage_of_its_random_part(
    folder: Path, inner: dict[str, Any], drawn: int | None
) -> None:
    """The space is flat and has 1,000 configs, so that draws are counted as those of random search; top is 1 % of them."""
    wanted = study(20, method={"inner": inner})
    director = Director(wanted, folder)
    to_the_end(director)
    status = director.status()
    goal = Coverage(1000, "1%", 0.9)
    assert status.random_part
    assert status.coverage == (None if drawn is None else goal.reached(drawn))
    kill(director)
    again = Director(wanted, folder)
    assert again.status().coverage == status.coverage, "it is in the ledger"
    said = in_a_line(again.status(), Unit("accuracy"))
    assert ("by its random draws alone" in said) == (drawn is not None)
    again.close()


def test_the_first_measurement_of_a_mode_counts(folder: Path) -> None:
    director = Director(study(), folder)
    assert director.mode("s") is None
    assert director.mode("s", {"loop": 0.2, "vmap": 0.1, "compiled": float("inf")}) == "vmap"
    assert director.mode("s", {"loop": 0.1, "vmap": 0.2}) == "vmap"
    kill(director)
    director = Director(study(), folder)
    assert director.mode("s") == "vmap"
    assert director.mode("other") is None
    assert [r.body for r in rows(folder, "mode")] == [{"signature": "s", "mode": "vmap", "seconds": {"loop": 0.2, "vmap": 0.1}}]


def test_hours_are_counted_over_all_sessions_and_not_by_the_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = study(budget={"hours": 1.0})
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    director = Director(wanted, folder)
    said = director.next("a", "1")
    now += 3000
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock jumps back to 1970
    assert isinstance(said, Assignment)
    said = director.next("a", "1", done(said))
    kill(director)
    now += 100_000  # nobody works on it
    director = Director(wanted, folder)
    said = director.next("a", "2")
    assert isinstance(said, Assignment)
    assert said.left == pytest.approx(600.0)
    now += 601
    assert director.next("a", "2", done(said)) is None
    assert director.reason == "hours"


def test_an_interval_comes_with_the_best_score(folder: Path) -> None:
    director = Director(study(2), folder)
    to_the_end(director)
    status = director.status()
    assert status.best_score is not None
    assert status.best_low is not None
    assert status.best_high is not None
    assert status.best_low < status.best_score < status.best_high


# -- stopping and coming back ----------------------------------------------------------------------------------------------------


def test_an_interrupted_study_says_how_far_it_came_and_goes_on(folder: Path) -> None:
    director = Director(study(4), folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    said = director.next("a", "1", done(said))
    assert isinstance(said, Assignment)
    director.stop()
    assert director.report("a", "1", said.trial, (line(1),)) is False
    assert director.next("b", "1") is None
    director.close()
    (stopped,) = rows(folder, "stopped")
    assert (stopped.body["reason"], stopped.body["final"]) == ("interrupted", False)
    director = Director(study(4), folder)
    assert to_the_end(director, process="2") == [2, 3, 4]
    director.close()
    assert problems(folder) == []


def test_a_finished_study_has_nothing_to_do_until_its_budget_grows(folder: Path) -> None:
    director = Director(study(2), folder)
    to_the_end(director)
    director.close()
    before = len(rows(folder))
    director = Director(study(2), folder)
    assert (director.finished, director.reason, director.next("a", "2")) == (True, "trials", None)
    director.close()
    assert len(rows(folder)) == before
    director = Director(study(3), folder)
    assert to_the_end(director, process="3") == [3]


def test_a_letter_that_nobody_opened_is_adopted(folder: Path) -> None:
    director = Director(study(3), folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    letters.write(folder, done(said))
    kill(director)
    director = Director(study(3), folder)
    assert director.ledger.trials()[1].status == "done"
    assert director.ledger.trials()[1].attempts == 1
    assert to_the_end(director, process="2") == [2, 3]


def test_a_torn_letter_is_no_letter(folder: Path) -> None:
    director = Director(study(1), folder)
    director.next("a", "1")
    (folder / "letters").mkdir()
    (folder / "letters" / "1.json").write_text('{"trial": 1, "status": "do')
    kill(director)
    director = Director(study(1), folder)
    assert to_the_end(director, process="2") == [1]
    assert director.ledger.trials()[1].attempts == 2


def test_a_letter_that_the_ledger_does_not_know_of_stops_a_resume(folder: Path) -> None:
    director = Director(study(3), folder)
    to_the_end(director)
    kill(director)
    (folder / "letters").mkdir(exist_ok=True)
    (folder / "letters" / "7.json").write_text("{}")
    for path in (folder / "ledger.sqlite",):
        assert path.exists()
    director = Director(study(3), folder)  # finished: nothing is started, so nothing is looked for
    kill(director)
    with pytest.raises(LedgerError, match="does not know trial 7"):
        Director(study(4), folder)


def test_trials_without_a_ledger_are_never_a_fresh_study(folder: Path) -> None:
    director = Director(study(2), folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    letters.write(folder, done(said))
    kill(director)
    for file in folder.glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(LedgerError, match=r"missing, but .* holds trials"):
        Director(study(2), folder)


def test_another_study_of_the_same_name_is_refused_with_the_difference(folder: Path, tmp_path: Path) -> None:
    Director(study(2), folder).close()
    with pytest.raises(StudyMismatch, match=r'(?s)\+.*"seed": 1'):
        Director(study(2, seed=1), folder)
    changed = tmp_path / "space.py"
    shutil.copy(HERE / "counting_space.py", changed)
    Director(study(2, space=changed), tmp_path / "s").close()
    changed.write_text(changed.read_text().replace("Int(0, 99)", "Int(0, 98)"))
    for name in [n for n in sys.modules if n.startswith("metasearch_user_space")]:
        del sys.modules[name]
    with pytest.raises(StudyMismatch, match=r"(?s)space.*changed.*99.*98"):
        Director(study(2, space=changed), tmp_path / "s")


def test_only_one_driver_works_on_a_study_and_the_other_is_told_who(folder: Path) -> None:
    director = Director(study(2), folder)
    with pytest.raises(LockedError, match=rf"process {os.getpid()} on "):
        Director(study(2), folder)
    kill(director)
    Director(study(2), folder).close()


def _hold(folder: str, held: Any, release: Any) -> None:
    from metasearch.driver.folder import locked

    with locked(Path(folder), owner=2**22 - 1):  # a pid that no process has: its driver is dead
        held.set()
        release.wait(20)


def test_a_lock_that_a_dead_driver_left_to_its_child_is_waited_for(folder: Path) -> None:
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(str(folder), held, release))
    child.start()
    assert held.wait(60)
    began = time.monotonic()
    threading.Timer(1.0, release.set).start()
    Director(study(2), folder).close()
    assert time.monotonic() - began > 0.5
    child.join()


def test_a_lane_that_died_gets_its_trial_back_and_an_old_process_is_told_to_stop(folder: Path) -> None:
    director = Director(study(3), folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    parcel = folder / "parcels" / "1" / "2.safetensors"
    parcel.parent.mkdir(parents=True)
    parcel.write_bytes(b"x")
    assert director.report("a", "1", 1, (line(2, str(parcel)),))
    again = director.next("a", "2")
    assert isinstance(again, Assignment)
    assert (again.trial, again.attempt, again.starts, again.own, again.spent) == (1, 2, (str(parcel),), True, 2.0)
    assert director.report("a", "1", 1, (line(3),)) is False, "the old process is still alive"
    kill(director)


def test_a_trial_that_kills_its_worker_three_times_without_a_report_is_given_up(folder: Path) -> None:
    director = Director(study(1, driver={"max_errors": 0}), folder)
    for attempt in (1, 2, 3):
        again = director.next("a", str(attempt))
        assert isinstance(again, Assignment)
        assert (again.trial, again.attempt) == (1, attempt)
    assert director.next("a", "4") is None
    outcome = director.ledger.trials()[1].outcome
    assert outcome is not None
    assert outcome.status == "error"
    assert "died 3 times" in (outcome.reason or "")


def test_lost_machines_do_not_use_up_a_trials_own_failures(folder: Path) -> None:
    director = Director(study(1, driver={"max_errors": 0}), folder)
    for attempt in range(1, 10):
        said = director.next("a", str(attempt))
        assert isinstance(said, Assignment)
        assert (said.trial, said.attempt) == (1, attempt)
        director.lost("a", "machine")
    assert isinstance(director.next("a", "10"), Assignment)
    assert director.ledger.trials()[1].barren == 0
    assert [row.body["cause"] for row in rows(folder, "started")] == ["new"] + ["infrastructure"] * 9
    for attempt in (11, 12):  # its own deaths count
        assert isinstance(director.next("a", str(attempt)), Assignment)
    assert director.next("a", "13") is None
    kill(director)


def test_what_ran_out_of_memory_is_tried_once_more_with_fewer_episodes_at_once(folder: Path) -> None:
    director = Director(study(3, driver={"max_errors": 0}), folder)
    first = director.next("a", "1")
    assert isinstance(first, Assignment)
    assert first.chunk is None
    oom = Ending(1, "oom", reason="MemoryError", step=2, seconds=3.0)
    letters.write(folder, oom)
    again = director.next("a", "1", oom)
    assert isinstance(again, Assignment)
    assert (again.trial, again.attempt, again.chunk, again.spent) == (1, 2, CHUNK, 3.0)
    assert again.proposal == first.proposal
    kill(director)

    director = Director(study(3, driver={"max_errors": 0}), folder)  # the letter of the first attempt is there still
    again = director.next("a", "2")
    assert isinstance(again, Assignment)
    assert (again.trial, again.attempt, again.chunk) == (1, 3, CHUNK)
    ran = to_the_end(director, process="2", said=director.next("a", "2", replace(oom, chunk=CHUNK)))
    assert ran == [2, 3, 4], "a configuration that does not fit is replaced, like an infeasible one"
    assert director.status().reason == "trials", "and is no failure of the study"
    director.close()
    letters.path(folder, 1).unlink()  # a worker would have written another
    assert problems(folder) == []
    (retry,) = rows(folder, "retry")
    assert (retry.body["cause"], retry.body["chunk"], retry.body["reason"]) == ("oom", CHUNK, "MemoryError")
    assert results(folder)[1][0] == "oom"


def test_a_letter_that_tells_of_a_want_of_memory_is_adopted_as_such(folder: Path) -> None:
    director = Director(study(1), folder)
    assert isinstance(director.next("a", "1"), Assignment)
    letters.write(folder, Ending(1, "oom", reason="MemoryError"))
    kill(director)
    director = Director(study(1), folder)
    again = director.next("a", "2")
    assert isinstance(again, Assignment)
    assert (again.trial, again.chunk) == (1, CHUNK)
    kill(director)


def test_a_worker_that_was_ended_for_want_of_memory_is_oom_and_not_an_error(folder: Path) -> None:
    director = Director(study(1, driver={"max_errors": 0}), folder)
    assert isinstance(director.next("a", "1"), Assignment)
    director.lost("a", "memory")
    again = director.next("a", "2")
    assert isinstance(again, Assignment)
    assert (again.trial, again.chunk) == (1, CHUNK)
    director.lost("a", "memory")
    assert isinstance(director.next("a", "3"), Assignment), "another configuration"
    assert results(folder)[1][0] == "oom"
    kill(director)


def test_a_configuration_that_did_not_fit_is_not_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = scripted(folder, [Proposal(config(x)) for x in (1, 1, 2)], monkeypatch)
    for chunk in (None, CHUNK):
        said = director.next("a", "1") if chunk is None else director.next("a", "1", Ending(1, "oom", reason="m"))
        assert isinstance(said, Assignment)
        assert (said.trial, said.chunk) == (1, chunk)
    said = director.next("a", "1", Ending(1, "oom", reason="m", chunk=CHUNK))
    assert isinstance(said, Assignment)
    assert said.trial == 3
    assert director.strategy.told == [(1, "oom", None), (2, "oom", None)]  # type: ignore[attr-defined]
    assert director.ledger.trials()[2].attempts == 0
    kill(director)


def test_killed_drivers_do_not_count_against_a_trial(folder: Path) -> None:
    for session in range(5):
        director = Director(study(1), folder)
        said = director.next("a", str(session))
        assert isinstance(said, Assignment)
        assert (said.trial, said.attempt) == (1, session + 1)
        kill(director)


def test_a_hung_trial_is_ended_with_a_word_about_its_stacks(folder: Path) -> None:
    director = Director(study(1, driver={"trial_timeout": 5.0, "max_errors": 0}), folder)
    assert isinstance(director.next("a", "1"), Assignment)
    (folder / "stacks").mkdir()
    (folder / "stacks" / "1-1.txt").write_text("Thread 0x0 ...")
    assert director.next("a", "2") is None
    outcome = director.ledger.trials()[1].outcome
    assert outcome is not None
    assert "no report for 5.0 s" in (outcome.reason or "")
    assert "1-1.txt" in (outcome.reason or "")


def test_parcels_are_kept_two_while_a_trial_runs_and_one_when_it_has_ended(folder: Path) -> None:
    director = Director(study(2), folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    paths = [folder / "parcels" / "1" / f"{step}.safetensors" for step in (1, 2, 3)]
    paths[0].parent.mkdir(parents=True)
    for step, path in enumerate(paths, 1):
        path.write_bytes(b"x")
        director.report("a", "1", 1, (line(step, str(path)),))
    assert [p.exists() for p in paths] == [False, True, True]
    director.next("a", "1", replace(done(said), checkpoint=str(paths[2])))
    assert [p.exists() for p in paths] == [False, False, True]
    kill(director)


def test_a_disk_that_is_full_ends_the_study_with_a_word_about_it(folder: Path) -> None:
    director = Director(study(50), folder)
    said = director.next("a", "1")
    (pages,) = director.ledger._db.execute("PRAGMA page_count").fetchone()
    director.ledger._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(OSError, match=r"ledger.sqlite cannot be written.*full.*bytes are free.*resume"):
        to_the_end(director, said=said)
    assert isinstance(director.failure, OSError)
    with pytest.raises(Lost):
        director.next("b", "1")
    kill(director)
    director = Director(study(50), folder)
    to_the_end(director, process="2")
    director.close()
    assert problems(folder) == []


# -- a strategy comes back ----------------------------------------------------------------------------------------------------

INNER = {
    "random": {"name": "random"},
    "grid": {"name": "grid"},
    "tpe": {"name": "tpe"},
    "asha": {"name": "asha", "min_steps": 1, "max_steps": 9, "eta": 3},
}


@pytest.mark.parametrize("name", INNER)
def test_after_any_kill_the_strategy_proposes_what_an_undisturbed_one_does(tmp_path: Path, name: str) -> None:
    wanted = study(12, method={"inner": INNER[name]})
    quiet = Director(wanted, tmp_path / "quiet")
    to_the_end(quiet)
    quiet.close()
    shaken = tmp_path / "shaken"
    director, ended = Director(wanted, shaken), 0
    said = director.next("a", "0")
    while isinstance(said, Assignment):
        ended += 1
        judged = done(said)
        if ended % 3 == 0:
            letters.write(shaken, judged)
        if ended % 2 == 0:
            kill(director)
            director = Director(wanted, shaken)
            said = director.next("a", str(ended))
            if not isinstance(said, Assignment) or said.trial != judged.trial:
                continue
        said = director.next("a", (said and str(ended - ended % 2)) or "0", judged) if said else said
    director.close()
    assert proposals(shaken) == proposals(tmp_path / "quiet")
    assert results(shaken) == results(tmp_path / "quiet")
    assert rows(shaken, "note") == []
    assert problems(shaken) == []


def test_where_a_replayed_strategy_differs_the_ledger_wins_and_a_note_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    director = scripted(folder, [Proposal(config(x)) for x in (1, 2, 3)], monkeypatch, trials=3)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    director.next("a", "1", done(said))
    kill(director)
    director = scripted(folder, [Proposal(config(x)) for x in (9, 2, 3)], monkeypatch, trials=3)
    (note,) = rows(folder, "note")
    assert note.body["what"] == "1 of 2 proposals are not what the strategy asks now; the ledger's count"
    assert director.ledger.trials()[1].proposal.config == config(1)
    assert to_the_end(director, process="2") == [2, 3]


class Counter(Strategy):
    """Its whole state is a number and a tensor; it counts how often it was asked."""

    asks = 0

    def __init__(self) -> None:
        import torch

        self.n, self.t, self.closed = 0, torch.zeros(2), False

    def ask(self) -> Proposal:
        type(self).asks += 1
        self.n += 1
        return Proposal({"x": self.n % 100, "y": self.n // 100, "kind": "a"})

    def tell(self, outcome: Any) -> None:
        self.t = self.t + float(outcome.score)

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "deep": {"t": self.t, 3: [1, None]}}

    def load_state_dict(self, state: Any) -> None:
        assert state["deep"][3] == [1, None]
        self.n, self.t = state["n"], state["deep"]["t"]


def test_a_snapshot_and_the_tail_are_the_whole_replay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(Study, "strategy", lambda self: Counter())
    director = Director(study(260), folder)
    said = director.next("a", "1")
    for _ in range(250):
        assert isinstance(said, Assignment)
        said = director.next("a", "1", done(said))
    live = director.strategy
    kill(director)
    assert load_snapshot(folder, Counter()) > 0
    Counter.asks = 0
    director = Director(study(260), folder)
    assert Counter.asks < 60, "the snapshot was not used"
    assert isinstance(director.strategy, Counter)
    assert isinstance(live, Counter)
    assert director.strategy.n == live.n
    assert torch.equal(director.strategy.t, live.t)
    assert rows(folder, "note") == []
    kill(director)
    (folder / "strategy.json").write_text("{torn")
    Counter.asks = 0
    director = Director(study(260), folder)
    assert Counter.asks == 251
    assert torch.equal(director.strategy.t, live.t)
    kill(director)


@pytest.mark.slow
def test_ten_thousand_trials_cost_the_same_each_and_come_back_in_seconds(folder: Path, tmp_path: Path) -> None:
    space = tmp_path / "wide.py"
    space.write_text("from metasearch.space import Float, Space\nSPACE = Space({'x': Float(0.0, 1.0)})\n")
    wanted = study(10_000, space=space)
    director = Director(wanted, folder)
    said, laps, began = director.next("a", "1"), [], time.process_time()
    for number in range(1, 10_001):
        assert isinstance(said, Assignment)
        said = director.next("a", "1", done(said), (line(1),))
        if number % 1000 == 0:
            laps.append(time.process_time() - began)
            began = time.process_time()
    assert director.reason == "trials"
    assert laps[-1] <= 1.5 * laps[0]
    assert sum(laps) < 15e-3 * 10_000
    kill(director)
    began = time.process_time()
    director = Director(wanted, folder)
    assert time.process_time() - began < 4
    assert director.status().done == 10_000
    director.close()


# -- any order of events --------------------------------------------------------------------------------------------------------


class Lanes(RuleBasedStateMachine):
    """Lanes that hello, report, end, die and write letters, under a director that is killed at any time; a dict is the model."""

    inner: dict[str, Any] = INNER["random"]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "t"
        self.wanted = study(7, method={"inner": self.inner}, driver={"max_errors": 1000})
        self.director = Director(self.wanted, self.folder)
        self.tokens = itertools.count()
        self.lanes: dict[str, tuple[str, Assignment]] = {}  # lane -> (process, what it works on)
        self.ended: dict[int, str] = {}

    def teardown(self) -> None:
        """Whatever happened, good lanes bring it to its end."""
        assert problems(self.folder, finished=False) == []
        for lane in "abc":
            self.hello(lane)
        while not self.director.finished:
            lane = min(self.lanes)
            process, said = self.lanes.pop(lane)
            more = self.director.next(lane, process, done(said))
            for idle in "abc":
                if isinstance(more, Assignment):
                    self.lanes[lane] = (process, more)
                if idle not in self.lanes:
                    lane, process = idle, str(next(self.tokens))
                    more = self.director.next(lane, process)
        self.director.close()
        assert problems(self.folder) == []
        for number, status in self.ended.items():
            assert results(self.folder)[number][0] == status
        shutil.rmtree(self.home)

    @rule(lane=st.sampled_from("abc"))
    def hello(self, lane: str) -> None:
        """A new process on a lane: it gets back what the lane held, if that has not ended."""
        process = str(next(self.tokens))
        said = self.director.next(lane, process)
        before = self.lanes.pop(lane, None)
        if isinstance(said, Assignment):
            assert said.trial not in self.ended, "a trial that has ended is run again"
            assert said.trial not in {held.trial for _, held in self.lanes.values()}, "two lanes work on one trial"
            if before is not None and before[1].trial not in self.ended and said.attempt == before[1].attempt + 1:
                assert said.trial == before[1].trial
            self.lanes[lane] = (process, said)

    @precondition(lambda self: self.lanes)
    @rule(data=st.data(), step=st.integers(1, 3))
    def report(self, data: st.DataObject, step: int) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        process, said = self.lanes[lane]
        assert self.director.report(lane, process, said.trial, (line(step),))

    @precondition(lambda self: self.lanes)
    @rule(
        data=st.data(), status=st.sampled_from(["done", "done", "diverged", "error"]),
        way=st.sampled_from(["next", "end", "lost"]),
    )
    def end(self, data: st.DataObject, status: Any, way: str) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        process, said = self.lanes.pop(lane)
        ending = done(said) if status == "done" else Ending(said.trial, status, reason="as drawn")
        letters.write(self.folder, ending)
        if way == "lost":
            return  # the process dies between its letter and its call
        self.ended[said.trial] = status
        if way == "end":
            self.director.end(lane, process, ending)
        else:
            more = self.director.next(lane, process, ending)
            if isinstance(more, Assignment):
                self.lanes[lane] = (process, more)

    @rule(all_die=st.booleans())
    def kill_the_director(self, all_die: bool) -> None:
        kill(self.director)
        if all_die:
            self.lanes.clear()
        self.director = Director(self.wanted, self.folder, lanes_live=not all_die)

    @invariant()
    def what_has_ended_stays_as_it_was(self) -> None:
        trials = self.director.ledger.trials()
        assert all(trials[number].status == status for number, status in self.ended.items())


class AshaLanes(Lanes):
    inner = INNER["asha"]


RARE = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking starts hundreds of directors
)
TestAnyOrder = Lanes.TestCase
TestAnyOrder.settings = RARE
TestAnyOrderOfAsha = AshaLanes.TestCase
TestAnyOrderOfAsha.settings = settings(RARE, max_examples=15)


# -- workers ------------------------------------------------------------------------------------------------------------------


class Told:
    """A Link that keeps what it is told."""

    def __init__(self, go_on: bool = True) -> None:
        self.lines: list[Line] = []
        self.notes: list[str] = []
        self.go_on = go_on

    def report(self, trial: int, lines: tuple[Line, ...]) -> bool:
        self.lines += lines
        return self.go_on

    def mode(self, signature: str, seconds: Any) -> Any:
        return "loop" if seconds else None

    def note(self, trial: int, what: str) -> None:
        self.notes.append(what)


def judged(folder: Path, objective: Any, said: Assignment | None = None, link: Any = None) -> Ending:
    ending, _ = run_trial(objective, said or Assignment(1, Proposal(config(1))), link or Told(), folder)
    assert ending is not None
    assert letters.read(folder, 1) == ending, "the letter says something else"
    return ending


def reports(*given: Any) -> Any:
    from metasearch.records import Report

    def objective(proposal: Proposal, trial: Any) -> Iterator[Report]:
        for step, thing in enumerate(given, 1):
            if isinstance(thing, BaseException):
                raise thing
            yield Report(step, **thing) if isinstance(thing, dict) else Report(step, {}, score=thing)

    return objective


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["score", "metrics", "episodes"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_number_that_is_not_finite_is_a_divergence_with_its_step(folder: Path, bad: float, where: str, at: int) -> None:
    wrong = {"score": {"score": bad}, "metrics": {"metrics": {"loss": bad}}, "episodes": {"episodes": (bad, 1.0)}}
    ending = judged(folder, reports(*[0.5] * (at - 1), {"score": 0.5, **wrong[where]}, *[0.5] * (3 - at)))
    assert (ending.status, ending.step, ending.score, ending.episodes) == ("diverged", at, None, None)
    assert f"step {at}" in (ending.reason or "")


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (MemoryError(), "oom", "Lower the meta-batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom", "can't allocate"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "oom", "CUBLAS"),
        (ValueError("no"), "error", "ValueError: no"),
        (SystemExit(3), "error", "SystemExit"),
        (ZeroDivisionError(), "error", "test_director.py"),
    ],
)
def test_what_is_raised_becomes_an_outcome(folder: Path, raised: BaseException, status: str, words: str) -> None:
    ending = judged(folder, reports(0.5, raised))
    assert (ending.status, ending.score) == (status, None)
    assert words in (ending.reason or "")


def test_torchs_own_out_of_memory_is_oom(folder: Path) -> None:
    import torch

    assert judged(folder, reports(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))).status == "oom"


def test_infeasible_and_diverged_say_why(folder: Path) -> None:
    from metasearch.objectives import Diverged, Infeasible

    assert judged(folder, reports(Infeasible("no pooling left"))).reason == "no pooling left"
    ending = judged(folder, reports(0.5, Diverged(77, "the outer loss is nan")))
    assert (ending.status, ending.step, ending.reason) == ("diverged", 77, "step 77: the outer loss is nan")


def test_an_objective_that_says_nothing_has_failed(folder: Path) -> None:
    assert judged(folder, reports()).status == "error"
    assert "no score" in (judged(folder, reports({"score": None})).reason or "")


def test_the_score_is_that_of_the_last_report(folder: Path) -> None:
    ending = judged(folder, reports(0.9, 0.5, {"score": 0.7, "metrics": {"kept_step": 1}}))
    assert (ending.status, ending.score, ending.step, ending.metrics) == ("done", 0.7, 3, {"kept_step": 1.0})


def test_a_trial_that_is_told_to_stop_closes_its_generator_and_writes_no_letter(folder: Path) -> None:
    closed = []

    def objective(proposal: Proposal, trial: Any) -> Iterator[Any]:
        from metasearch.records import Report

        try:
            for step in range(1, 100):
                yield Report(step, {}, score=0.5, checkpoint=f"{step}")
        finally:
            closed.append(step)

    ending, _ = run_trial(objective, Assignment(1, Proposal(config(1))), Told(go_on=False), folder)  # type: ignore[arg-type]
    assert (ending, closed) == (None, [1])
    assert letters.read(folder, 1) is None


def test_quick_reports_travel_together_and_parcels_are_told_at_once(folder: Path) -> None:
    link = Told()
    _, unsent = run_trial(
        reports(*[0.1] * 50, {"score": 0.2, "checkpoint": "p"}, *[0.3] * 9), Assignment(1, Proposal(config(1))), link, folder  # type: ignore[arg-type]
    )
    assert [line.step for line in link.lines] == list(range(1, 52))
    assert [line.step for line in unsent] == list(range(52, 61))


def test_a_damaged_parcel_is_passed_over_for_the_one_before_it_and_noted(folder: Path) -> None:
    import torch

    from metasearch.objectives import parcel
    from metasearch.records import Report

    good = parcel.write(folder / "2.safetensors", {"a": torch.zeros(2)}, {"step": 2})
    bad = parcel.write(folder / "4.safetensors", {"a": torch.zeros(2)}, {"step": 4})
    bad.write_bytes(bad.read_bytes()[:-3])
    started = []

    def objective(proposal: Proposal, trial: Any) -> Iterator[Report]:
        started.append((trial.start, trial.own))
        step = 0 if trial.start is None else int(parcel.read(trial.start)[1]["step"])
        yield Report(step + 1, {}, score=0.5)

    link = Told()
    said = Assignment(1, Proposal(config(1)), 2, (str(bad), str(good)), True)
    assert judged(folder, objective, said, link).step == 3
    assert started == [(bad, True), (good, True)]
    assert "4.safetensors" in link.notes[0]
    assert judged(folder, objective, replace(said, starts=(str(bad),))).step == 1, "a root can begin again"
    lost = Assignment(1, Proposal(config(1), parent=7), 1, (), False)
    ending = judged(folder, objective, lost)
    assert (ending.status, ending.reason) == ("error", "it goes on from trial 7, whose parcel is gone")


def test_an_ending_survives_its_letter() -> None:
    ending = Ending(3, "done", 0.5, {"a": 1.0}, 7, None, 1.5, "p", np.float32([1, 2]).tobytes())
    assert Ending.from_json(json.loads(json.dumps(ending.to_json()))) == ending
