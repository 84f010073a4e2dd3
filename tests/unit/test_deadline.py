"""When a trial is ended that does not report: what the study's own reports say, never before there are any."""
from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from directing import done, kill, line, rows, study

from metasearch.driver import worker
from metasearch.driver.director import Director
from metasearch.driver.messages import Assignment, Line
from metasearch.driver.patience import LOADING, OVERDUE
from metasearch.driver.study import Driver
from metasearch.driver.worker import run_trial
from metasearch.objectives import Trial
from metasearch.records import Proposal, Report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t"


def at(step: int, seconds: float) -> Line:
    return replace(line(step), seconds=seconds)


def next_of(director: Director, lane: str) -> Assignment:
    said = director.next(lane, "1")
    assert isinstance(said, Assignment)
    return said


@pytest.mark.parametrize(("said", "meant"), [
    (None, "auto"), ("auto", "auto"), ("off", "off"), (0, "off"), (0.0, "off"), (90, 90.0), (0.5, 0.5),
])
def test_a_timeout_is_a_number_or_a_word(said: object, meant: object) -> None:
    assert Driver.model_validate({"trial_timeout": said}).trial_timeout == meant
    assert Driver().trial_timeout == "auto"


@pytest.mark.parametrize("said", [-1, "never", True, [1]])
def test_what_is_neither_is_refused(said: object) -> None:
    with pytest.raises(ValueError, match="trial_timeout"):
        Driver.model_validate({"trial_timeout": said})


def test_the_deadline_is_ten_times_the_longest_silence_that_ended_well(folder: Path) -> None:
    director = Director(study(9), folder)
    first = next_of(director, "a")
    assert (first.timeout, first.least, director.deadline) == (None, worker.LEAST, None)
    director.report("a", "1", first.trial, (at(1, 100.0), at(2, 150.0)))
    assert director.deadline == worker.LEAST == 1800.0
    assert next_of(director, "a").timeout is None, "the same call, the same answer"
    second = next_of(director, "b")
    assert second.timeout == 1800.0
    director.report("b", "1", second.trial, (at(1, 20.0), at(2, 420.0), at(3, 430.0)))
    assert director.deadline == 4000.0, "not the last, not the median: whoever is slow by nature lives"
    director.next("b", "1", replace(done(second), seconds=930.0))
    assert director.deadline == 5000.0, "from the last report to the end"
    assert next_of(director, "c").timeout == 5000.0
    assert [row.body.get("deadline") for row in rows(folder, "started")] == [None, 1800.0, 5000.0, 5000.0]


def test_a_deadline_outlives_its_driver(folder: Path) -> None:
    director = Director(study(9), folder)
    first = next_of(director, "a")
    director.report("a", "1", first.trial, (at(1, 700.0),))
    next_of(director, "b")
    kill(director)
    again = Director(study(9), folder)
    assert again.deadline == 7000.0
    assert next_of(again, "a").timeout == 7000.0


def test_an_attempt_that_goes_on_is_not_blamed_for_the_hours_of_earlier_ones(folder: Path) -> None:
    director = Director(study(9), folder)
    first = next_of(director, "a")
    director.report("a", "1", first.trial, tuple(at(step, 10.0 * step) for step in range(1, 1000)))
    kill(director)
    again = Director(study(9), folder)
    said = next_of(again, "a")
    assert said.spent == 9990.0
    again.report("a", "1", said.trial, (at(1000, 10_000.0),))
    assert again.deadline == 1800.0


@pytest.mark.parametrize(("said", "timeout"), [("off", None), (7.0, 7.0)])
def test_what_somebody_said_is_what_holds(folder: Path, said: object, timeout: float | None) -> None:
    director = Director(study(9, driver={"trial_timeout": said}), folder)
    first = next_of(director, "a")
    director.report("a", "1", first.trial, (at(1, 1000.0),))
    second = next_of(director, "b")
    assert (first.timeout, first.least, second.timeout, director.deadline) == (timeout, None, timeout, timeout)
    assert "deadline" not in rows(folder, "started")[0].body
    kill(director)
    live = Director(study(9, driver={"trial_timeout": said}), folder, lanes_live=True)
    assert next_of(live, "a") == replace(first, spent=1000.0)


def test_a_lane_that_its_own_watchdog_cannot_end_is_overdue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = Director(study(9), folder)
    first, second = next_of(director, "a"), next_of(director, "b")
    director.report("b", "1", second.trial, ())
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 10_000.0)
    assert director.status().overdue == (), "nobody knows how long a trial takes"
    director.report("a", "1", first.trial, (at(1, 999.0),))
    assert director.status().overdue == ("b",)
    monkeypatch.setattr(time, "monotonic", lambda: now + 20_000.0 + OVERDUE)
    assert director.status().overdue == ("a", "b")


def test_a_process_that_still_imports_is_not_overdue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    director = Director(study(9, driver={"trial_timeout": 2.0}), folder)
    first = next_of(director, "a")
    now += LOADING
    assert director.status().overdue == (), "no watchdog could have ended it"
    director.report("a", "1", first.trial, ())
    now += OVERDUE + 1.0
    assert director.status().overdue == ()
    now += 2.0
    assert director.status().overdue == ("a",)
    director.next("a", "1", done(first))
    now += OVERDUE + 3.0
    assert director.status().overdue == ("a",), "its second trial begins at once"
    next_of(director, "b")
    now += LOADING + OVERDUE + 3.0
    assert director.status().overdue == ("a", "b"), "imports that hang are ended, too"


def test_a_study_in_which_nothing_has_ever_reported_says_so_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    director = Director(study(9), folder)
    said = next_of(director, "a")
    director.report("a", "1", said.trial, ())
    director.keep_status()
    assert rows(folder, "note") == []
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + worker.LEAST + 1)
    director.keep_status()
    director.keep_status()
    (note,) = rows(folder, "note")
    assert note.trial == said.trial
    assert "no report for 30 minutes" in note.body["what"]
    assert "1-1.silent.txt" in note.body["what"]
    assert "driver.trial_timeout = SECONDS" in note.body["what"]


class Told:
    """A link that keeps what is said."""

    def report(self, trial: int, lines: tuple[Line, ...]) -> bool:
        return True


def slow(proposal: Proposal, trial: Trial) -> Iterator[Report]:
    time.sleep(0.4)
    yield Report(1, {"loss": 1.0}, 1.0)


@pytest.mark.parametrize(("said", "warnings"), [
    (Assignment(3, Proposal({"x": 1}), least=0.1), 1), (Assignment(3, Proposal({"x": 1}), timeout=9.0, least=0.1), 0),
    (Assignment(3, Proposal({"x": 1})), 0), (Assignment(3, Proposal({"x": 1}), timeout=9.0), 0),
], ids=["nobody has reported", "somebody has", "off", "a number"])
def test_a_first_trial_that_is_silent_is_shown_and_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture, said: Assignment, warnings: int
) -> None:
    with caplog.at_level(logging.WARNING, "metasearch.worker"):
        ending, _ = run_trial(slow, said, Told(), folder)  # type: ignore[arg-type]
    assert ending is not None
    assert ending.status == "done"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings
    if warnings:
        assert "driver.trial_timeout = SECONDS sets a limit" in caplog.text
        assert "in slow" in (folder / "stacks" / "3-1.silent.txt").read_text()
    assert not (folder / "stacks" / "3-1.txt").exists()


def test_a_trial_without_memory_for_a_watchdog_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads take some, and what trials there are may have taken all."""
    def refuse(*given: object, **named: object) -> None:
        raise RuntimeError("unable to start watchdog thread")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", refuse)
    monkeypatch.setattr(threading.Timer, "start", refuse)
    for timeout in (9.0, None):
        said = Assignment(3, Proposal({"x": 1}), timeout=timeout, least=0.1)
        ending, _ = run_trial(slow, said, Told(), folder)  # type: ignore[arg-type]
        assert ending is not None
        assert ending.status == "done"
