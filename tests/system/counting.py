"""A method for tests: trials that count their steps, write a line for every start, and fail on demand.

Scores are known in advance, so that any history can be checked; a trial writes parcels and goes on from them.
"""
from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from metasearch import strategies
from metasearch.objectives import Diverged, Objective, Trial
from metasearch.records import Proposal, Report
from metasearch.strategies import Strategy


def method(study: Any) -> tuple[Strategy, Objective]:
    given = dict(study.method.arguments)
    inner = given.pop("inner", {"name": "random"})
    strategy = strategies.build(inner["name"], study.space(), {k: v for k, v in inner.items() if k != "name"}, seed=study.seed)
    return strategy, Counting(**given)


class Counting:
    """steps: reports of a trial. log: a file that gets a line for every start and every end. misbehave: {trial number: how}.
    seen: a file that gets a line of JSON for every start: the devices that a trial was given, and those that it could see.
    meet: trials wait until so many processes have written into the log, however long one of them takes to start (at most a
    minute)."""

    def __init__(
        self, steps: int = 3, log: str | None = None, seconds: float = 0.0, parcels: bool = True,
        misbehave: dict[str, str] | None = None, seen: str | None = None, meet: int = 1,
    ) -> None:
        self.steps, self.log, self.seconds, self.parcels, self.meet = steps, log, seconds, parcels, meet
        self.misbehave, self.seen = misbehave or {}, seen

    def __call__(self, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        how = self.misbehave.get(str(trial.id))
        first = self._first(trial)
        self._say("start", trial, first)
        if self.seen is not None:
            told = {"pid": os.getpid(), "devices": trial.devices, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
            with Path(self.seen).open("a") as file:
                file.write(json.dumps(told) + "\n")
        self._wait_for_the_others()
        end = proposal.until or self.steps
        for step in range(min(first, end - 1) + 1, end + 1):  # a trial that was whole, but for its letter, says its end again
            if self.seconds:
                time.sleep(self.seconds)
            self._fail(how, step, trial)
            report = Report(
                step, {"train_loss": 1.0 / step}, score=score(proposal, step), episodes=episodes(proposal, step),
                checkpoint=self._save(trial, step),
            )
            yield spoilt(report, how)
        self._say("end", trial, end)

    def _first(self, trial: Trial) -> int:
        if trial.start is None:
            return 0
        from metasearch.objectives import parcel

        return int(parcel.read(trial.start)[1]["step"])

    def _save(self, trial: Trial, step: int) -> str | None:
        if not self.parcels or trial.save is None:
            return None
        import torch

        return trial.save(step, {"count": torch.tensor([float(step)])}, {"step": step})

    def _say(self, what: str, trial: Trial, step: int) -> None:
        if self.log is not None:
            with Path(self.log).open("a") as file:
                file.write(f"{what} {trial.id} {step} {os.getpid()}\n")

    def _wait_for_the_others(self) -> None:
        until = time.monotonic() + 60
        while self.log is not None and self.meet > 1 and time.monotonic() < until:
            if len({line.split()[3] for line in Path(self.log).read_text().splitlines()}) >= self.meet:
                return
            time.sleep(0.05)

    def _fail(self, how: str | None, step: int, trial: Trial) -> None:
        if how is None or step < 2:
            return
        if how == "error":
            raise RuntimeError("as asked")
        if how == "oom":
            raise MemoryError("as asked")
        if how == "diverged":
            raise Diverged(step, "as asked")
        if how == "hang":
            time.sleep(1000)
        if how == "spin":
            re.match(r"(a+)+$", "a" * 60 + "b")  # in C, without ever letting another thread run
        if how == "die" or (how == "die once" and not trial.own):
            os._exit(1)


def score(proposal: Proposal, step: int) -> float:
    return sum(float(v) for v in proposal.config.values() if isinstance(v, int | float)) + 0.001 * step


def episodes(proposal: Proposal, step: int) -> tuple[float, ...]:
    return tuple(score(proposal, step) + d for d in (-0.1, 0.0, 0.1))


def spoilt(report: Report, how: str | None) -> Report:
    """The report, with another value where `how` ("nan metric 2") says so: in the score, a metric or an episode of a step."""
    value, where, step = (how or "").split() if (how or "").count(" ") == 2 else ("", "", "0")
    if int(step) != report.step:
        return report
    odd: Any = {"none": None, "text": "much"}[value] if value in ("none", "text") else float(value)
    if where == "score":
        return replace(report, score=odd)
    if where == "metric":
        return replace(report, metrics={**report.metrics, "odd": odd})
    return replace(report, episodes=(0.0, odd, 0.0))
