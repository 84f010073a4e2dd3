"""What an objective does becomes one outcome, told once."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from directing import config

from metasearch.driver import letters
from metasearch.driver.messages import Assignment, Ending, Line
from metasearch.driver.worker import run_trial
from metasearch.records import Proposal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t"


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
        (ZeroDivisionError(), "error", "test_worker.py"),
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
