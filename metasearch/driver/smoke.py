"""A trial of a few outer steps, to see that a configuration runs and how long the whole would take; leaves nothing behind.

It is run as a worker runs a trial (same objective, same share of the machine, same words for what goes wrong), in a folder that
is gone afterwards. What is timed: outer steps alone, and the rest (set-up, validation, the parcel). From these follows a whole
trial: rest + steps * pace.
"""
from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from metasearch.driver.messages import Assignment, Ending, Line, Wait
from metasearch.driver.study import Study
from metasearch.driver.worker import run_trial
from metasearch.objectives import Mode, Objective, Trial
from metasearch.records import Config, Proposal, Report

__all__ = ["Smoke", "smoke"]

STEPS = 4  # outer steps: the first warms up, the last is followed by the validation, those between are timed
NEVER = 10**9


@dataclass(frozen=True)
class Smoke:
    """How it went. status: as a trial's ("done", "infeasible", "error", ...), with the reason if it is not done.

    steps: outer steps of a whole trial, None where only the objective knows; pace: seconds of one; rest: seconds of all else;
    parcel: bytes.
    """

    config: Config
    status: str
    reason: str | None = None
    steps: int | None = None
    pace: float | None = None
    rest: float | None = None
    parcel: int = 0

    @property
    def seconds(self) -> float | None:
        """Of a whole trial."""
        return None if self.steps is None or self.pace is None or self.rest is None else self.rest + self.steps * self.pace

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def smoke(study: str, config: Config) -> Smoke:
    """Runs the first steps of a trial with a config of a study (its JSON), in this process, on a lane's share of the machine."""
    built = Study.from_json(json.loads(study))
    try:
        objective = _objective(study)
    except Exception as error:
        return Smoke(config, "error", f"the study's objective cannot be built: {error}")
    try:
        short, until, whole = _shortened(objective, config)
    except Exception:  # the trial itself says it better
        short, until, whole = objective, 1, None
    heard = _Heard()
    devices = built.driver.trial_devices
    with tempfile.TemporaryDirectory(prefix="ms-smoke-") as folder:
        said = Assignment(1, Proposal(config, until=until, seed=built.seed))
        threads = max(1, int(built.driver.cpus))
        ending, unsent = run_trial(short, said, heard, Path(folder), devices=devices, threads=threads)
        parcel = max((file.stat().st_size for file in Path(folder).glob("parcels/*/*")), default=0)
    assert ending is not None
    if ending.status != "done":
        return Smoke(config, ending.status, ending.reason)
    pace, rest = (None, None) if whole is None else _timed([*heard.lines, *unsent], ending, whole)
    return Smoke(config, "done", None, None if whole is None else whole.steps, pace, rest, parcel)


@functools.lru_cache(maxsize=4)
def _objective(study: str) -> Objective:
    """Data are read and banks are built once in a process: trials of a lane share them too."""
    objective = Study.from_json(json.loads(study)).objective()
    train = getattr(objective, "train", objective)
    getattr(train, "bank", None)
    return objective


# -- a whole trial, made short -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Whole:
    """What the short trial stands for. steps, ran: outer steps of the whole and of the short training; before: the same of a
    search that goes before it; block: outer steps whose episodes are drawn at once; drawing: seconds for those of one step;
    validations: how many more the whole has; checks: (trainings that a search adds, their steps) for every kind of them."""

    steps: int
    ran: int
    before: tuple[int, int] = (0, 0)
    block: int = 0
    drawing: float = 0.0
    validations: int = 0
    checks: tuple[tuple[int, int], ...] = ()


def _shortened(objective: Objective, config: Config) -> tuple[Objective, int | None, _Whole | None]:
    """(an objective whose trial is short, where it is to end, what it stands for; None: only its first report counts)."""
    from metasearch.objectives.one_shot import OneShot
    from metasearch.objectives.per_task import PerTask
    from metasearch.objectives.train import Train

    if isinstance(objective, Train):
        steps = objective.built(config).steps
        ran = min(STEPS, steps)
        return _plain(objective), ran, replace(_drawn(objective, config), steps=steps, ran=ran)
    if isinstance(objective, OneShot):
        steps, search = objective.train.built(config).steps, objective.supernet(config).steps
        ran, sought = min(STEPS, steps), min(STEPS, search)
        short = replace(objective, steps=sought, check=0, finalists=1, train=replace(_plain(objective.train), steps=ran))
        whole = replace(_drawn(objective.train, config), steps=steps, ran=ran, before=(search, sought))
        return short, None, replace(whole, checks=((_judged(objective), objective.check_steps),))
    if isinstance(objective, PerTask):
        search = objective.search.built(config).steps
        sought = min(STEPS, search)
        brief = replace(objective, search=replace(_plain(objective.search), steps=sought), retrain=0, check=0, finalists=1)
        anew = 0 if objective.retrained is None else objective.retrained.steps or 0
        checks = ((objective.retrain, anew), (_judged(objective), objective.check_steps))
        if objective.alone is None:
            whole = replace(_drawn(objective.search, config), steps=search, ran=sought)
            return brief, None, replace(whole, checks=checks)
        steps = objective.alone.built(config).steps
        ran = min(STEPS, steps)
        whole = replace(_drawn(objective.alone, config), steps=steps, ran=ran, before=(search, sought))
        return replace(brief, alone=replace(_plain(objective.alone), steps=ran)), None, replace(whole, checks=checks)
    return functools.partial(_first_report, objective), None, None


def _judged(objective: Any) -> int:
    """Architectures that a search trains for a while beside the one that it finds."""
    finalists: int = objective.finalists
    return int(objective.check) + (finalists if finalists > 1 else 0)


def _plain(train: Any) -> Any:
    """A report after every step, one validation, one parcel; nothing is compiled for a few steps."""
    mode = "vmap" if train.mode == "auto" else train.mode
    return replace(train, report_every=1, checkpoint_every=NEVER, keep="last", mode=mode)


def _drawn(train: Any, config: Config) -> _Whole:
    """How long the episodes of one outer step take to draw: a short trial draws those of a whole block."""
    from metasearch.objectives.episodic import block_steps
    from metasearch.objectives.training import generator

    recipe = train.built(config)
    shape = recipe.episode or train.shape
    took = []
    for seed in range(3):
        begin = time.perf_counter()
        train.tasks.sample_episodes(recipe.meta_batch, split="train", shape=shape, generator=generator(seed, "smoke"))
        took.append(time.perf_counter() - begin)
    every = train.report_every or max(1, math.ceil(recipe.steps / 10))
    more = math.ceil(recipe.steps / every) - 1 if train.keep == "best" else 0
    return _Whole(recipe.steps, 1, block=block_steps(shape, recipe.meta_batch, recipe.steps), drawing=min(took), validations=more)


def _first_report(objective: Objective, proposal: Proposal, trial: Trial) -> Iterator[Report]:
    """Of an objective that nobody here knows: it ran if it reports."""
    with contextlib.closing(objective(proposal, trial)) as reports:  # type: ignore[type-var]  # an objective is a generator
        for report in reports:
            yield replace(report, score=0.0 if report.score is None else report.score)
            return


def _timed(lines: list[Line], ending: Ending, whole: _Whole) -> tuple[float, float]:
    """(seconds of one outer step, its episodes drawn; seconds of all the rest of a whole trial)."""
    told = [0.0, *(line.seconds for line in sorted(lines, key=lambda line: line.step))]
    search, sought = whole.before
    first, second = told[1 : sought + 1], told[sought + 1 : sought + whole.ran + 1]
    seeking, step = _pace(first) if sought else 0.0, _pace(second)
    validation = max(0.0, second[-1] - second[-2] - step) if len(second) > 1 else 0.0
    rest = ending.seconds - whole.ran * step - min(whole.block, whole.steps) * whole.drawing
    rest = max(rest, validation) + whole.validations * validation
    rest += (search - sought) * seeking + sum(count * (steps * step + 2 * validation) for count, steps in whole.checks)
    return step + whole.drawing, rest


def _pace(told: list[float]) -> float:
    """Seconds a step, from the times of consecutive reports: without the first step and the last, where others can be had."""
    apart = [after - before for before, after in pairwise(told)]
    return statistics.median(apart[:-1] or apart or told[-1:] or [0.0])


class _Heard:
    """A Link that only listens."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def next(self, ending: Ending | None, lines: tuple[Line, ...]) -> Assignment | Wait | None:
        return None

    def end(self, ending: Ending, lines: tuple[Line, ...]) -> None: ...

    def report(self, trial: int, lines: tuple[Line, ...]) -> bool:
        self.lines += lines
        return True

    def mode(self, signature: str, seconds: Mapping[str, float] | None) -> Mode | None:
        return "vmap"

    def note(self, trial: int, what: str) -> None: ...

    def fail(self, reason: str, *, storage: bool = False) -> None: ...
