"""What a person sees while a study runs, on stderr: a live region on a terminal, one line per change elsewhere."""
from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from metasearch.cli.failures import Level, Voice, talk
from metasearch.cli.show import console
from metasearch.records import ERRORS
from metasearch.track.redact import redact

if TYPE_CHECKING:
    from rich.console import RenderableType

    from metasearch.driver.status import Status

LINES_APART = 2.0  # seconds between plain lines, at least


@dataclass(frozen=True)
class Unit:
    """How tables show a score: scores are larger-is-better inside, people read accuracies in percent and errors as errors."""

    name: str = "score"

    def text(self, score: float | None, low: float | None = None, high: float | None = None) -> str:
        """"93.1 ± 0.8 %" or "0.412 ± 0.031"; the interval is that of the score, larger is better."""
        if score is None:
            return "-"
        half = None if low is None or high is None else abs(high - low) / 2
        if self.name == "accuracy":
            return f"{100 * score:.1f}" + ("" if half is None else f" ± {100 * half:.1f}") + " %"
        shown = -score + 0.0 if self.name in ERRORS else score
        return f"{shown:.4g}" + ("" if half is None else f" ± {half:.2g}")


class Live:
    """A function of Status that shows it; a context, so that the terminal is left as it was found.

        with Live(Unit("accuracy")) as show:
            run(study, show=show)
    """

    def __init__(self, unit: Unit, *, progress: bool = True, data: bool = False) -> None:
        """data: it is what was asked for, and goes to stdout."""
        self.unit, self.data = unit, data
        self.last: Status | None = None
        self._heard = time.monotonic()
        self._said_at = float("-inf")
        self._said = ""
        self._live: Any = None
        screen = console(stderr=not data)
        wanted = progress and (data or not (Voice.quiet or Voice.as_json))
        if wanted and screen.is_terminal and not screen.is_dumb_terminal:
            from rich.live import Live as Region

            self._live = Region(self, console=screen, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                self._live.stop()
        if self.last is not None and in_a_line(self.last, self.unit) != self._said:
            self._say(self.last)

    def note(self, words: str, level: Level = "warning") -> None:
        """A line that stays, above the live region if there is one."""
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                self._live.console.print(redact(words))
        else:
            talk(words, level)

    def _say(self, status: Status) -> None:
        if self.data:
            print(redact(in_a_line(status, self.unit)), flush=True)
        else:
            talk(in_a_line(status, self.unit), status=status.to_json())

    def __call__(self, status: Status) -> None:
        self.last, self._heard = status, time.monotonic()
        if self._live is not None:
            return
        line = in_a_line(status, self.unit)
        if line != self._said and self._heard - self._said_at >= LINES_APART and _changed(line, self._said):
            self._say(status)
            self._said, self._said_at = line, self._heard

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        status = self.last
        if status is None:
            return Text("starting ...", style="dim")
        quiet = time.monotonic() - self._heard
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(status.name, style="bold"), ProgressBar(total=status.planned, completed=status.used, width=30),
            Text(f"{status.used}/{status.planned if status.planned is not None else '?'}"),
            Text(f"{clock(status.elapsed_seconds + quiet)} gone, {_left(status)}", style="dim"),
        )
        return Group(bar, Text("  " + ", ".join(_counts(status))), Text("  " + _best(status, self.unit) + _coverage(status)))


class Warnings(logging.Handler):
    """What the project logs as a warning becomes a line on the screen."""

    def __init__(self, live: Live) -> None:
        super().__init__(logging.WARNING)
        self.live = live

    def emit(self, record: logging.LogRecord) -> None:
        self.live.note(record.getMessage(), "error" if record.levelno >= logging.ERROR else "warning")


def in_a_line(status: Status, unit: Unit) -> str:
    """The whole status in one line."""
    planned = "" if status.planned is None else f" of {status.planned}"
    return (
        f"{status.name}: {status.used}{planned} trials ({', '.join(_counts(status))}); {_best(status, unit)}{_coverage(status)}; "
        f"{clock(status.elapsed_seconds)} gone, {_left(status)}"
    )


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _counts(status: Status) -> list[str]:
    said = [f"{status.done} done", f"{status.running} running", f"{status.failed} failed"]
    for name in ("diverged", "infeasible", "reused"):
        if getattr(status, name):
            said.append(f"{getattr(status, name)} {name}")
    return said


def _best(status: Status, unit: Unit) -> str:
    if status.best_score is None:
        return "no result yet"
    return f"best {unit.text(status.best_score, status.best_low, status.best_high)} (trial {status.best_trial})"


def _coverage(status: Status) -> str:
    if status.coverage is None:
        return ""
    wanted = "" if status.coverage_wanted is None else f" of {status.coverage_wanted:.2f}"
    part = " by its random draws alone" if status.random_part else ""
    return f", coverage {status.coverage:.2f}{wanted} for the top {status.top}{part}"


def _left(status: Status) -> str:
    if status.reason is not None:
        return f"ended: {status.reason}"
    return "time left unknown" if status.eta_seconds is None else f"about {clock(status.eta_seconds)} left"


def _changed(line: str, before: str) -> bool:
    """Is there more to say than the time?"""
    return line.rpartition(";")[0] != before.rpartition(";")[0]


