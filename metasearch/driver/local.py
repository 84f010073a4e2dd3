"""Everything in this process, one trial after another: for a laptop, for a debugger, for tests."""
from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from metasearch.driver.director import Director
from metasearch.driver.messages import Assignment, Ending, Line, Lost, Wait
from metasearch.driver.status import Status
from metasearch.driver.study import Study
from metasearch.driver.worker import work
from metasearch.objectives import Mode

__all__ = ["Direct", "run_local"]

LANE = "local"
T = TypeVar("T")


class Direct:
    """A Link that calls the director in this process. `tick` is called at every step of the conversation."""

    def __init__(self, director: Director, lane: str = LANE, tick: Callable[[], None] = lambda: None) -> None:
        self.director, self.lane, self.tick = director, lane, tick
        self.process = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def next(self, ending: Ending | None, lines: tuple[Line, ...]) -> Assignment | Wait | None:
        said = _asked(lambda: self.director.next(self.lane, self.process, ending, lines))
        self.tick()
        return said

    def end(self, ending: Ending, lines: tuple[Line, ...]) -> None:
        _asked(lambda: self.director.end(self.lane, self.process, ending, lines))

    def report(self, trial: int, lines: tuple[Line, ...]) -> bool:
        on = _asked(lambda: self.director.report(self.lane, self.process, trial, lines))
        self.tick()
        return on

    def mode(self, signature: str, seconds: Mapping[str, float] | None) -> Mode | None:
        return _asked(lambda: self.director.mode(signature, seconds))

    def note(self, trial: int, what: str) -> None:
        _asked(lambda: self.director.note(trial, what))

    def fail(self, reason: str, *, storage: bool = False) -> None:
        self.director.fail(reason, storage)


def run_local(director: Director, study: Study, folder: Path, *, tick: Callable[[Callable[[], Status]], None]) -> None:
    """Works until the director has nothing more. `tick(status)` is called often; it may call status() and stop the director."""
    work(
        Direct(director, tick=lambda: tick(director.status)), study.objective, folder,
        devices=study.driver.trial_devices, threads=max(1, int(study.driver.cpus)),
    )


def _asked(call: Callable[[], T]) -> T:
    """What the director answers; if it cannot go on, no trial is to blame."""
    try:
        return call()
    except Lost:
        raise
    except Exception as error:
        raise Lost(f"{type(error).__name__}: {error}") from error
