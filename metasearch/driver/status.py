"""Where a study stands, as whoever looks at it is told: a value, and the file status.json beside the ledger."""
from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from metasearch.crashpoint import crashpoint

__all__ = ["Status", "write"]


@dataclass(frozen=True)
class Status:
    """Where a study stands; status.json holds the same."""

    name: str
    planned: int | None  # roots that the budget pays for; None: as many as the hours allow
    used: int  # of these: done, diverged or reused. What goes on from another trial costs nothing
    done: int
    running: int
    failed: int  # error, and oom with one episode at a time, too
    diverged: int
    infeasible: int
    reused: int
    best_trial: int | None
    best_score: float | None
    best_low: float | None  # 95 % over the bank's episodes; None if the trial has no per-episode scores
    best_high: float | None
    eta_seconds: float | None
    coverage: float | None  # probability that one of the top was looked at; None: the strategy drew nothing at random
    coverage_wanted: float | None
    top: int | str | None  # what `coverage` counts as top
    elapsed_seconds: float
    reason: str | None  # why it is finished: trials, coverage, hours, strategy, errors, infeasible; None while it is not
    lanes: tuple[str, ...] = ()  # with a running trial
    pid: int = 0
    host: str = ""
    calls: int = 0  # of lanes, in this session
    random_part: bool = False  # `coverage` is that of the random draws among an adaptive strategy's proposals
    overdue: tuple[str, ...] = ()  # lanes that should have reported, or ended themselves, some time ago
    unit: str = "score"  # what scores are called

    @property
    def away(self) -> bool:
        """Is it, as far as is known here, another machine that works on the study?"""
        return self.reason is None and bool(self.host) and self.host != socket.gethostname()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Status:
        """From `to_json()`, of another version too: its own keys are left out, and `used` may be missing."""
        given = {field.name: body[field.name] for field in fields(cls) if field.name in body}
        given.setdefault("used", sum(body[name] for name in ("done", "diverged", "reused")))
        return cls(**{**given, **{name: tuple(body.get(name) or ()) for name in ("lanes", "overdue")}})


def write(status: Status, folder: Path) -> None:
    """Replaces status.json as a whole. OSError where it cannot be written."""
    temporary = folder / ".status.json.new"
    crashpoint("status.before")
    temporary.write_text(json.dumps(status.to_json(), allow_nan=False))
    os.replace(temporary, folder / "status.json")
    crashpoint("status.after")
