"""What the rooms say to each other: a few kinds of frozen message, JSON on the way to the ledger and back.

A strategy answers `ask` with a Proposal, an objective turns it into Reports, the driver sums them up in an Outcome.
Scores are larger-is-better everywhere inside (errors are negated; tables show their own unit).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Value = bool | int | float | str
Config = dict[str, Value]  # flat; keys are paths: {"learner": "maml", "learner.inner_lr": 0.01}

Status = Literal["done", "diverged", "oom", "error", "infeasible", "reused"]
STATUSES: tuple[Status, ...] = ("done", "diverged", "oom", "error", "infeasible", "reused")
ERRORS = frozenset({"mse", "rmse", "mae", "nll", "loss", "error"})  # units in which less is better: shown with the other sign
LOOKED_AT: frozenset[str] = frozenset({"done", "diverged"})  # what counts towards coverage: somebody looked at the config


@dataclass(frozen=True)
class Proposal:
    """What to try next.

    parent: the trial whose last parcel this one starts from (a promotion, a generation), or None for a root.
    until:  absolute outer step at which the trial ends, or None for the recipe's own number of steps.
    moved:  path prefixes of this config -> those of the parent's, so that inherited weights follow moved layers.
    seed:   None from `ask`; the driver stamps hash(study seed, trial number).
    drawn:  the config is a random draw that depends on no score, so that coverage counts it in a strategy that adapts.
    """

    config: Config
    parent: int | None = None
    until: int | None = None
    moved: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    drawn: bool = field(default=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Proposal:
        return cls(**body)

    def stamped(self, seed: int) -> Proposal:
        return replace(self, seed=seed)


@dataclass(frozen=True)
class Report:
    """What an objective says while it works: one line of a learning curve; the last one carries the trial's score.

    step:       outer steps done so far (absolute: a child goes on from its parent's step).
    score:      larger is better; None while nothing was validated.
    episodes:   per-episode scores on the study's bank, in the bank's order.
    checkpoint: path of a parcel from which this trial, or a child, can go on.
    found:      a config that a one-shot search found, then trained by the same generator.
    """

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    episodes: tuple[float, ...] | None = None
    checkpoint: str | None = None
    found: Config | None = None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `metrics` are those of its last report; `reason` says in words why it is not done, or what had to
    be changed for it (fewer episodes at once)."""

    trial: int
    proposal: Proposal
    score: float | None
    metrics: Mapping[str, float]
    status: Status
    step: int = 0
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"an outcome's status is one of {', '.join(STATUSES)}, but got {self.status!r}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Outcome:
        return cls(**{**body, "proposal": Proposal.from_json(body["proposal"])})
