"""WHAT ONE TRIAL DOES WITH ITS BUDGET: generators of Reports. No Ray, no MLflow.

`Objective = (Proposal, Trial) -> Iterator[Report]`: the driver stops a trial by closing the generator, a test reads it with
`next`, a worker sees one `for` loop. Objectives are plain values that a worker process builds from a study.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metasearch.records import Proposal, Report

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Diverged", "Infeasible", "Mode", "Objective", "Trial"]

Mode = Literal["loop", "vmap", "compiled"]
MODES: tuple[Mode, ...] = ("loop", "vmap", "compiled")


class Diverged(Exception):
    """Raised by an objective when a loss or a weight is NaN or infinite; says the step and what was not finite."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason


class Infeasible(Exception):
    """Raised by an objective, before it trains, for a config that means nothing trainable; says why.

    metrics: what was measured of it, if that is the reason.
    """

    def __init__(self, reason: str = "", metrics: Mapping[str, float] | None = None) -> None:
        super().__init__(reason)
        self.metrics = dict(metrics or {})


@dataclass(frozen=True)
class Trial:
    """What the driver lends to one trial.

    id:      the trial's number in its study.
    start:   a parcel to go on from (the trial's own, or its parent's), or None.
    own:     whether `start` is this trial's own parcel (resume: everything must load) or its parent's (what fits is inherited).
    devices: torch devices, e.g. ("cuda:0",) or ("cpu",); with several, the meta-batch is split and summed.
    threads: CPU threads that torch may use.
    chunk:   at most so many episodes at once under vmap; None: all.
    mode:    mode(signature, measure) -> how to run nets of this signature. The first caller in a study measures
             ({"loop": seconds a step, "vmap": ...}), the driver records the choice, later callers are given it.
    save:    save(step, tensors, facts) -> path of a parcel.
    deadline: of time.monotonic() in this process, after which the trial should end with a last report, or None.
    """

    id: int
    start: Path | None = None
    own: bool = False
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1
    chunk: int | None = None
    mode: Callable[[str, Callable[[], Mapping[str, float]]], Mode] = field(default=lambda signature, measure: "vmap")
    save: Callable[[int, Mapping[str, Tensor], Mapping[str, Any]], str] | None = None
    deadline: float | None = None

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline


Objective = Callable[[Proposal, Trial], Iterator[Report]]
