"""How long a trial may be silent: the seconds that a study says, or by default ten times the longest silence that it has seen.

The watchdog of a trial's own process ends it (worker.py). Here is what it is told, and which lanes have been silent for so long
that their watchdogs must be stuck, too.
"""
from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from metasearch.driver import worker

__all__ = ["LOADING", "OVERDUE", "Patience"]

OVERDUE = 8.0  # seconds after a watchdog should have ended a hung worker
LOADING = 120.0  # seconds more for a process whose watchdog does not watch yet: it imports and builds the study's objective


class Patience:
    """timeout: the study's driver.trial_timeout, seconds, "auto" or "off"."""

    def __init__(self, timeout: float | str) -> None:
        self.automatic = timeout == "auto"
        self._said = None if isinstance(timeout, str) else timeout
        self._longest: float | None = None  # seconds between two reports of a trial
        self._deadlines: dict[int, float | None] = {}  # of running trials, as their workers were told
        self._began = time.monotonic()
        self._heard: dict[str, float] = {}  # lane -> time.monotonic() of its last call
        self._loaded: dict[str, str] = {}  # lane -> its process, once that has begun to work
        self._mentioned = False  # that no trial has reported for long

    @property
    def deadline(self) -> float | None:
        """Seconds without a report after which a trial is ended; None: nobody wants that, or no trial has reported yet."""
        if not self.automatic or self._longest is None:
            return self._said
        return max(worker.LEAST, worker.TIMES * self._longest)

    # -- of trials ---------------------------------------------------------------------------------------------------------

    def waited(self, seconds: float) -> None:
        """So long was a trial silent that then reported."""
        self._longest = max(self._longest or 0.0, seconds)

    def ended(self, seconds: float) -> None:
        """So long was a trial silent before it ended: its last words come after its last report."""
        if self._longest is not None:
            self.waited(seconds)

    def started(self, trial: int) -> float | None:
        """A trial's worker is told the deadline of now. What the ledger has to know of it, or None."""
        self._deadlines[trial] = self.deadline
        return self.deadline if self.automatic else None

    def replayed(self, trial: int, deadline: float | None) -> None:
        """A trial was started with a deadline that the ledger knows."""
        self._deadlines[trial] = deadline
        if deadline is not None:
            self.waited(deadline / worker.TIMES)

    def told(self, trial: int) -> float | None:
        """The deadline that the worker of a running trial knows: that of its start."""
        return self._deadlines.get(trial) if self.automatic else self.deadline

    def hung(self, trial: int) -> str:
        """Why a trial was ended that its watchdog has ended."""
        seconds = self.told(trial) or self.deadline or worker.LEAST
        why = f", {worker.TIMES:g} times the longest time between two reports" if self.automatic else ""
        return f"no report for {seconds:.1f} s (driver.trial_timeout{why})"

    # -- of lanes ----------------------------------------------------------------------------------------------------------

    def called(self, lane: str, process: str) -> None:
        """A lane's process asks for work, which it does before it imports."""
        self._heard[lane] = time.monotonic() + (0.0 if self._loaded.get(lane) == process else LOADING)

    def reported(self, lane: str, process: str) -> None:
        """A lane's process works: its watchdog watches."""
        self._heard[lane], self._loaded[lane] = time.monotonic(), process

    def overdue(self, lanes: Iterable[str]) -> tuple[str, ...]:
        """Of lanes with a trial those whose watchdog should have ended them: it is stopped or stuck together with its process."""
        if self.deadline is None:
            return ()
        return self._silent(lanes, self.deadline + OVERDUE)

    def unheard(self, holder: Mapping[str, int]) -> int | None:
        """A trial that runs for long without a word, where nothing ends it since none has ever reported. Said once.

        holder: lane -> its trial."""
        if self._mentioned or not self.automatic or self._longest is not None:
            return None
        silent = self._silent(holder, worker.LEAST)
        self._mentioned = bool(silent)
        return holder[silent[0]] if silent else None

    def _silent(self, lanes: Iterable[str], seconds: float) -> tuple[str, ...]:
        late = time.monotonic() - seconds
        return tuple(lane for lane in lanes if self._heard.setdefault(lane, self._began) < late)
