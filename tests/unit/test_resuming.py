"""A study that was stopped or killed comes back from its ledger unchanged, and goes on."""
from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_data
import torch
from directing import HERE, INNER, config, done, kill, line, rows, scripted, study, to_the_end

from metasearch import tasks
from metasearch.cli.runs import to_go_on
from metasearch.driver import launch, letters
from metasearch.driver.director import CHUNK, Director
from metasearch.driver.folder import LockedError
from metasearch.driver.messages import Assignment, Ending, Lost
from metasearch.driver.opening import ACCEPT, StudyMismatch
from metasearch.driver.snapshot import load_snapshot
from metasearch.driver.study import Study, _identity
from metasearch.ledger import Ledger, LedgerError
from metasearch.records import Proposal
from metasearch.strategies import Strategy
from metasearch.testing.history import problems, proposals, results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t"


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


def test_a_space_that_has_changed_is_gone_on_with_by_somebodys_word_alone_and_the_ledger_says_so(tmp_path: Path) -> None:
    folder, space = tmp_path / "s", tmp_path / "space.py"

    def now(high: int) -> Study:
        space.write_text((HERE / "counting_space.py").read_text().replace("Int(0, 99)", f"Int(0, {high})"))
        for name in [n for n in sys.modules if n.startswith("metasearch_user_space")]:
            del sys.modules[name]
        _identity.cache_clear()
        return study(4, space=space)

    director = Director(now(99).model_copy(update={"budget": study(2).budget}), folder)
    to_the_end(director)
    director.close()
    before = results(folder)
    with pytest.raises(StudyMismatch, match=r"(?s)99.*200.*--accept-space-change"):
        Director(now(200), folder)
    with pytest.raises(StudyMismatch, match=r"trial 1 is not in it .*Widen"):
        Director(now(1), folder, about={ACCEPT: True})
    for change in ("seed=5", "train.steps=7", "validation.episodes=9"):
        with pytest.raises(StudyMismatch, match=rf'(?s)it is another one.*\+.*"{change.split("=")[0].split(".")[-1]}"'):
            Director(now(200).with_([change]), folder, about={ACCEPT: True})
        with pytest.raises(StudyMismatch, match="it is another one"):
            Director(now(99).with_([change]), folder, about={ACCEPT: True})
    assert rows(folder, "note") == []
    elsewhere = shutil.copy(now(200).space_name, tmp_path / "copy.py")  # as a driver on a cluster keeps it
    moved = now(200).with_([f"space={elsewhere}", "driver.lanes=3", "track.top=1"])
    director = Director(moved, folder, about={ACCEPT: True})
    to_the_end(director, process="2")
    director.close()
    assert {number: results(folder)[number] for number in before} == before, "a trial was lost, or is another one"
    said = [row.body["what"] for row in rows(folder, "note")]
    assert "although this has changed" in said[0]
    assert "200" in said[0]
    assert sum("accepted" in row.body for row in rows(folder, "note")) == 1
    Director(now(200), folder).close()
    with pytest.raises(StudyMismatch, match=r"(?s)200.*99"):
        Director(now(99), folder)


def _gone_on_with(wanted: Study, folder: Path) -> Study:
    """The study of the session that `run --resume-if-exists` begins."""
    changes = to_go_on(wanted, folder.parent)
    assert changes is not None
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        return launch.of_last_session(ledger).with_(changes)


def test_a_study_that_is_run_again_keeps_nothing_of_a_driver_tracking_or_budget_that_are_no_longer_said(folder: Path) -> None:
    old = {"kind": "ray", "address": "HOST:6379", "lanes": 64, "devices": ["cpu"], "max_errors": 0}
    track = {"enabled": False, "uri": "http://old:5000", "top": 7}
    Director(study(budget={"trials": 50, "hours": 8.0}, driver=old, track=track), folder).close()
    wanted = study(budget={"trials": 100}, driver={"kind": "ray", "cpus": 2.0}, track={"enabled": False})
    session = _gone_on_with(wanted, folder)
    assert (session.driver, session.track, session.budget) == (wanted.driver, wanted.track, wanted.budget)


def test_a_study_that_is_run_again_keeps_the_limits_that_a_resume_was_given(folder: Path) -> None:
    Director(study(50), folder).close()
    Director(study(80, driver={"max_errors": 30}), folder).close()  # what `resume t budget.trials=80 driver.max_errors=30` does
    session = _gone_on_with(study(50, driver={"lanes": 3}), folder)
    assert (session.budget.trials, session.driver.max_errors, session.driver.lanes) == (80, 30, 3)
    assert _gone_on_with(study(50, driver={"max_errors": 7}), folder).driver.max_errors == 7, "the file's own has changed"


SCORED = """
name = "scored"
space = "{space}"
method = {{ name = "grid" }}
tasks = {{ name = "class-arrays", shots = 1, queries = 2 }}
train = {{ mode = "vmap" }}
validation = {{ episodes = 4 }}
budget = {{ trials = 1 }}
driver = {{ kind = "local" }}
track = {{ enabled = false }}
"""
SMALL = """
from metasearch.learners.maml import MAML
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import sgd
from metasearch.objectives.recipe import Recipe
from metasearch.space import Int, Space

SPACE = Space({"width": Int(2, 9)})


def recipe(config, shape):
    return Recipe(mlp(shape.x, shape.ways, hidden=(int(config["width"]),)), MAML(0.1), sgd(0.1), meta_batch=1, steps=1)
"""


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the data of the study 'scored', which has run its one trial, in the home tmp_path."""
    data = tmp_path / "data" / "cifar" / "cifar100_100.npz"
    data.parent.mkdir(parents=True)
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("METASEARCH_CACHE", str(tmp_path / "cache"))
    task_data.class_arrays(data)
    (tmp_path / "small.py").write_text(SMALL)
    assert launch.run(Study.from_text(SCORED.format(space=tmp_path / "small.py")), home=tmp_path).status.done == 1
    return data


def _brightened(file: Path) -> None:
    """One picture of a class of the validation split is another one."""
    arrays = dict(np.load(file))
    arrays["images"][list(arrays["cifarfs_split"]).index("val"), 0] ^= 255
    np.savez_compressed(file, **arrays)


def test_trials_on_other_data_do_not_join_those_that_were_scored_before(scored: Path, tmp_path: Path) -> None:
    was = scored.read_bytes()
    _brightened(scored)
    before = len(rows(tmp_path / "scored"))
    with pytest.raises(StudyMismatch, match=r"(?s)data of study 'scored'.*digest [0-9a-f]{16}.*others.*Put the data back"):
        launch.resume("scored", home=tmp_path, overrides=("budget.trials=2",))
    assert len(rows(tmp_path / "scored")) == before
    ended = launch.resume("scored", home=tmp_path)
    assert ended.status.done == 1, "where nothing would run, nothing is looked at"
    scored.write_bytes(was)
    assert launch.resume("scored", home=tmp_path, overrides=("budget.trials=2",)).status.done == 2


def test_other_episodes_of_the_same_data_are_noted_and_stop_nobody(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that rounds otherwise makes others, in the last bit."""
    monkeypatch.setattr(tasks, "_bank_generator", lambda split, seed: torch.Generator().manual_seed(7))  # as other versions may
    assert launch.resume("scored", home=tmp_path, overrides=("budget.trials=2",)).status.done == 2
    (note,) = rows(tmp_path / "scored", "note")
    assert re.search(r"validation episodes are not to the last bit.*torch \d", note.body["what"])


def test_data_that_are_not_there_are_said_to_be_missing_not_to_be_others(scored: Path, tmp_path: Path) -> None:
    scored.unlink()
    with pytest.raises(RuntimeError, match=r"DataMissing: class-arrays: there is no .*cifar100_100\.npz"):
        launch.resume("scored", home=tmp_path, overrides=("budget.trials=2",))


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
    assert director.next("a", "1", oom) == again, "the answer was lost, and the call is repeated"
    director.end("a", "1", oom)
    assert not director.ledger.trials()[1].ended
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


@pytest.mark.parametrize(("inner", "budgets"), [
    ({"name": "hyperband", "min_steps": 1, "max_steps": 27}, (20, 60, 64)),
    ({"name": "asha", "min_steps": 1, "max_steps": 27, "eta": 3}, (20, 60, 64)),
    ({"name": "large-scale-evolution", "steps": 3, "evaluations": 40, "population": 12, "founders": "random"}, (6, 12, 13)),
    ({"name": "pba", "steps": 3, "max_steps": 9, "population": 6, "founders": "random"}, (3, 6, 7)),
], ids=lambda given: given["name"] if isinstance(given, dict) else None)
def test_what_was_asked_under_an_old_budget_is_replayed_under_it(
    folder: Path, inner: dict[str, Any], budgets: tuple[int, ...]
) -> None:
    """A strategy with children asks otherwise while its budget of roots is spent."""
    for session, trials in enumerate(budgets):
        director = Director(study(trials, method={"inner": inner}), folder)
        to_the_end(director, process=str(session))
        director.close()
        assert rows(folder, "note") == []
    assert problems(folder) == []


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
