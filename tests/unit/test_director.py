"""The director hands every trial out once, and writes before it answers."""
from __future__ import annotations

import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from directing import Scripted, config, done, kill, line, rows, scripted, study, to_the_end

import metasearch
from metasearch.budget import Coverage
from metasearch.cli.live import Unit, in_a_line
from metasearch.driver import launch
from metasearch.driver.director import Director, trial_seed
from metasearch.driver.messages import Assignment, Ending, Wait
from metasearch.driver.spending import Spending
from metasearch.driver.study import Study
from metasearch.ledger import Ledger, TrialRow
from metasearch.records import Config, Outcome, Proposal
from metasearch.testing.history import problems, proposals
from metasearch.track.leaderboard import Row, leaderboard, rows_from_ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t"


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
        if status is None:
            return done(said)
        return Ending(said.trial, status, reason="as asked", chunk=said.chunk)  # type: ignore[arg-type]

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


@pytest.mark.parametrize("orderly", [True, False])
def test_hours_without_an_end_of_a_trial_count_too(folder: Path, monkeypatch: pytest.MonkeyPatch, orderly: bool) -> None:
    """As on a cluster whose jobs are shorter than a trial."""
    wanted = study(budget={"hours": 1.0})
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    director = Director(wanted, folder)
    said = director.next("a", "1")
    assert isinstance(said, Assignment)
    now += 3000
    if orderly:
        director.close()
    else:
        director.report("a", "1", said.trial, (line(1),))
        kill(director)
    director = Director(wanted, folder)
    said = director.next("a", "2")
    assert isinstance(said, Assignment)
    assert said.left == pytest.approx(600.0)
    kill(director)


def test_an_interval_comes_with_the_best_score(folder: Path) -> None:
    director = Director(study(2), folder)
    to_the_end(director)
    status = director.status()
    assert status.best_score is not None
    assert status.best_low is not None
    assert status.best_high is not None
    assert status.best_low < status.best_score < status.best_high


def test_a_log_does_not_grow_for_ever_and_what_is_said_of_a_trial_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metasearch.driver import folder as folders

    monkeypatch.setattr(folders, "LOG_BYTES", 2_000)
    director = Director(study(2), folder)
    with folders.logged(folder):
        for number in range(300):
            director.note(1, f"note {number}")
    director.close()
    kept = sorted(path.name for path in folder.glob("log.txt*"))
    assert kept == ["log.txt", "log.txt.1", "log.txt.2", "log.txt.3"]
    assert sum((folder / name).stat().st_size for name in kept) <= 4 * 2_000
    assert "trial 1: note 299" in (folder / "log.txt").read_text().splitlines()[-1]


@pytest.mark.parametrize(("inherits", "status", "config", "best"), [
    (False, "diverged", {"x": 1}, 2), (False, "error", {"x": 1}, 1), (False, "diverged", {"x": 3}, 1),
    (True, "diverged", {"x": 1}, 1),
])
def test_the_best_trial_is_one_that_the_board_ranks(inherits: bool, status: Any, config: Config, best: int) -> None:
    """A promotion that somebody looked at stands for its parent, even if it diverged: so do the board and `clean`."""
    study = Study.from_text(Path(metasearch.__file__).with_name("studies").joinpath("sine.toml").read_text())
    strategy = study.strategy()
    strategy.inherits = inherits
    spending, rows = Spending(study, strategy), []
    for number, proposal, end, score in (
        (1, Proposal({"x": 1}, until=10), "done", 0.9), (2, Proposal({"x": 2}, until=10), "done", 0.5),
        (3, Proposal(config, parent=1, until=30), status, None),
    ):
        row = TrialRow(number, proposal, status=end)
        row.outcome = Outcome(number, proposal, score, {}, end, step=proposal.until or 0)  # type: ignore[arg-type]
        rows.append(Row("s", number, proposal.config, end, score=score, until=proposal.until, parent=proposal.parent,
                        inherits=inherits))
        spending.proposed(number, proposal, str(proposal.config))
        spending.finished(row, str(proposal.config))
    assert spending.best is not None
    assert spending.best.id == best
    assert leaderboard(rows)["trial"][0] == f"s/{best}"
