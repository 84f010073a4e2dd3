"""What a lane and the director say to each other: plain frozen values that travel by call, by Ray and, as a letter, by file."""
from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from metasearch.objectives import Mode
from metasearch.records import Config, Outcome, Proposal, Status

__all__ = ["Assignment", "Ending", "Line", "Link", "Lost", "StorageFailure", "Wait"]


class Lost(Exception):
    """The director cannot be reached, or has given up: no trial is to blame, and a lane that sees it ends."""


class StorageFailure(OSError):
    """What a trial has to leave behind cannot be written: no trial is to blame, and the study stops until there is room."""


@dataclass(frozen=True)
class Assignment:
    """Run this. `starts` are parcels to go on from, best first (the trial's own if `own`, else its parent's or the study's);
    `fallback` is that parcel for a trial whose own are all damaged. `spent` are the seconds of earlier attempts, `left` those
    that the study still has (clocks of machines differ, and jump). `chunk`: at most so many
    episodes at once, after an attempt that ran out of memory. `timeout`: seconds without a report after which it is ended; None:
    never, or none is known. `least`: the timeout grows with the trial's own reports and is at least so much; None: it is fixed.
    """

    trial: int
    proposal: Proposal
    attempt: int = 1
    starts: tuple[str, ...] = ()
    own: bool = False
    fallback: str | None = None
    spent: float = 0.0
    left: float | None = None
    chunk: int | None = None
    timeout: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet: ask again."""


@dataclass(frozen=True)
class Line:
    """One report on its way to the ledger: everything is finite, `at` is seconds since the epoch."""

    step: int
    metrics: Mapping[str, float]
    score: float | None
    checkpoint: str | None
    found: Config | None
    at: float
    seconds: float  # of work on this trial so far, all attempts together


@dataclass(frozen=True)
class Ending:
    """How a trial ended, as its worker saw it; the letter holds the same."""

    trial: int
    status: Status
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    reason: str | None = None
    seconds: float = 0.0
    checkpoint: str | None = None
    episodes: bytes | None = field(default=None, repr=False)  # float32, little-endian
    chunk: int | None = None  # that of its Assignment

    def outcome(self, proposal: Proposal) -> Outcome:
        return Outcome(self.trial, proposal, self.score, self.metrics, self.status, self.step, self.reason)

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        body["episodes"] = None if self.episodes is None else base64.b64encode(self.episodes).decode()
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Ending:
        episodes = body.get("episodes")
        return cls(**{**body, "episodes": None if episodes is None else base64.b64decode(episodes)})


class Link(Protocol):
    """A lane's way to the director: a call, or a call through Ray. Every call may be repeated without harm."""

    def next(self, ending: Ending | None, lines: tuple[Line, ...]) -> Assignment | Wait | None:
        """Writes down how the last trial ended (if one did) and answers with the next; None: no more for this lane."""
        ...

    def end(self, ending: Ending, lines: tuple[Line, ...]) -> None:
        """Writes down how a trial ended, and asks for nothing: this lane's process is about to end itself."""
        ...

    def report(self, trial: int, lines: tuple[Line, ...]) -> bool:
        """Writes reports; False: stop this trial now (the study is stopping, or the trial is another's)."""
        ...

    def mode(self, signature: str, seconds: Mapping[str, float] | None) -> Mode | None:
        """The mode recorded for a signature; None if nobody has measured it. Given measurements, the first writer's count."""
        ...

    def note(self, trial: int, what: str) -> None:
        """Writes down something worth knowing about a trial."""
        ...

    def fail(self, reason: str, *, storage: bool = False) -> None:
        """No trial can run here at all (the objective cannot be built, or the disk is full): the study ends with this error."""
        ...
