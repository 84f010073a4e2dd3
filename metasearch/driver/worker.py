"""One worker's work: run a proposal's objective, send its reports, write its letter, tell how it ended. No Ray here.

The local driver runs this in its own process, a lane under Ray Tune in a process of its own; they differ in the Link alone.
"""
from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import math
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from metasearch.driver import letters
from metasearch.driver.messages import Assignment, Ending, Line, Link, Lost, StorageFailure, Wait
from metasearch.home import living_in
from metasearch.objectives import Diverged, Infeasible, Mode, Objective, Trial
from metasearch.objectives.memory import out_of_memory, release
from metasearch.records import Report, Status
from metasearch.track.redact import redact

__all__ = ["LEAST", "TIMES", "run_trial", "stack_file", "work"]

TIMES, LEAST = 10.0, 1800.0  # a trial is ended after TIMES the longest time between two reports, but not before LEAST seconds
FLUSH = 0.2  # seconds between two calls for reports; those in between travel together (parcels are told at once)
REASON = 4000  # characters of an error that are kept
STORAGE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
T = TypeVar("T")
log = logging.getLogger("metasearch.worker")


def work(
    link: Link, build: Callable[[], Objective], folder: Path, *, devices: tuple[str, ...] = ("cpu",), threads: int = 1,
    go_on_after_error: bool = True,
) -> bool:
    """Asks for trials and runs them until there are none. False: a trial ended in a way after which no other should run in
    this process (with go_on_after_error=False)."""
    with living_in(folder.parent):
        return _work(link, build, folder, devices, threads, go_on_after_error)


def _work(
    link: Link, build: Callable[[], Objective], folder: Path, devices: tuple[str, ...], threads: int, go_on_after_error: bool,
) -> bool:
    objective: Objective | None = None
    ending: Ending | None = None
    lines: tuple[Line, ...] = ()
    pause = 0.02
    while True:
        said = link.next(ending, lines)
        ending, lines = None, ()
        if said is None:
            return True
        if isinstance(said, Wait):
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
            continue
        pause = 0.02
        if objective is None:
            try:
                objective = build()
            except Exception as error:
                link.fail(f"the study's objective cannot be built: {_in_words(error)}")
                return True
            if not link.report(said.trial, ()):  # imports are behind it: its silence counts from here
                return True
        try:
            ending, lines = run_trial(objective, said, link, folder, devices=devices, threads=threads)
        except StorageFailure as error:
            link.fail(str(error), storage=True)
            return True
        if ending is None:
            return True
        if ending.status in ("oom", "error") and not go_on_after_error:
            link.end(ending, lines)
            return False


def run_trial(
    objective: Objective, said: Assignment, link: Link, folder: Path, *, devices: tuple[str, ...] = ("cpu",), threads: int = 1,
) -> tuple[Ending | None, tuple[Line, ...]]:
    """Runs one trial to its end and writes its letter; whatever goes wrong in it becomes an Ending.

    Answers (ending, reports that have not been sent yet); the ending is None if the director stopped the trial.
    """
    run = _Run(said, link)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    with _watchdog(stack_file(folder, said.trial, said.attempt), said) as alive:
        ending = run.through(objective, _starts(said), _lend(said, link, folder, devices, threads), alive)
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()  # after eight different nets it would run the rest eagerly; the disk keeps programs
    if ending is not None and ending.status == "oom":
        release()
    if ending is not None:
        _kept(letters.path(folder, ending.trial), lambda: letters.write(folder, ending))
    return ending, tuple(run.unsent)


def stack_file(folder: Path, trial: int, attempt: int) -> Path:
    """Where the watchdog leaves the stacks of a trial that hung."""
    return folder / "stacks" / f"{trial}-{attempt}.txt"


class _Run:
    """One attempt at one trial: what it has said so far."""

    def __init__(self, said: Assignment, link: Link) -> None:
        self.said, self.link = said, link
        self.began = time.monotonic()
        self.sent = self.began
        self.unsent: list[Line] = []
        self.last: Line | None = None
        self.checkpoint = said.starts[0] if said.own and said.starts else None
        self.episodes: bytes | None = None

    @property
    def seconds(self) -> float:
        return self.said.spent + time.monotonic() - self.began

    def through(
        self, objective: Objective, starts: Iterator[tuple[str | None, bool]], lend: Callable[[str | None, bool], Trial],
        alive: Callable[[], None],
    ) -> Ending | None:
        """Every report of the objective, then how it ended."""
        try:
            for start, own in starts:
                try:
                    return self._reports(objective(self.said.proposal, lend(start, own)), alive)
                except Exception as error:
                    if not _bad_parcel(error):
                        raise
                    self.link.note(self.said.trial, str(error))
                    bad = error
            return self._ending("error", reason=f"none of its parcels can be read: {bad}" if self.said.starts else (
                f"it goes on from trial {self.said.proposal.parent}, whose parcel is gone"))
        except Diverged as error:
            return self._ending("diverged", step=error.step, reason=f"step {error.step}: {error.reason}")
        except Infeasible as error:
            return replace(self._ending("infeasible", reason=str(error) or "infeasible"), metrics=error.metrics)
        except (Lost, StorageFailure, KeyboardInterrupt):
            raise
        except BaseException as error:
            if out_of_memory(error):
                small = "" if self.said.chunk is None else f" with at most {self.said.chunk} episodes at once, too"
                way = "Lower the meta-batch or the sizes of the space, or give a trial a larger share of a machine"
                return self._ending("oom", reason=f"{_first_line(error)}{small}. {way} (driver.gpus, driver.cpus).")
            return self._ending("error", reason=_in_words(error))

    def _reports(self, reports: Iterator[Report], alive: Callable[[], None]) -> Ending | None:
        with contextlib.ExitStack() as stack:
            close = getattr(reports, "close", None)
            if close is not None:
                stack.callback(close)
            for report in reports:
                alive()
                if not self._take(report):
                    return None
        if self.last is None:
            return self._ending("error", reason="the objective ended without a report")
        if self.last.score is None:
            return self._ending("error", reason="the objective's last report has no score")
        if self.said.chunk is None:
            return self._ending("done")
        return self._ending("done", reason=f"after a want of memory: at most {self.said.chunk} episodes at once")

    def _take(self, report: Report) -> bool:
        """Keeps a report, sends what is due; False: stop."""
        line = _line(report, self.seconds)
        self.last = line
        self.checkpoint = line.checkpoint or self.checkpoint
        self.episodes = None if report.episodes is None else np.asarray(report.episodes, dtype="<f4").tobytes()
        self.unsent.append(line)
        now = time.monotonic()
        if line.checkpoint is None and now - self.sent < FLUSH:
            return True
        lines, self.unsent, self.sent = tuple(self.unsent), [], now
        return self.link.report(self.said.trial, lines)

    def _ending(self, status: Status, *, step: int | None = None, reason: str | None = None) -> Ending:
        last = self.last
        done = status == "done"
        return Ending(
            trial=self.said.trial, status=status, score=last.score if last and done else None,
            metrics=last.metrics if last else {}, step=step if step is not None else last.step if last else 0,
            reason=None if reason is None else redact(reason)[:REASON], seconds=self.seconds, checkpoint=self.checkpoint,
            episodes=self.episodes if done else None, chunk=self.said.chunk,
        )


def _starts(said: Assignment) -> Iterator[tuple[str | None, bool]]:
    """Where to start, best first: own parcels, then the parent's or the study's, then (a root that has none) from nothing."""
    for start in said.starts:
        yield start, said.own
    if said.fallback is not None:
        yield said.fallback, False
    elif said.proposal.parent is None and (said.own or not said.starts):
        yield None, False


def _lend(
    said: Assignment, link: Link, folder: Path, devices: tuple[str, ...], threads: int
) -> Callable[[str | None, bool], Trial]:
    def save(step: int, tensors: Any, facts: Any) -> str:
        from metasearch.objectives import parcel

        path = folder / "parcels" / str(said.trial) / f"{step}.safetensors"
        return str(_kept(path, lambda: parcel.write(path, tensors, facts)))

    def mode(signature: str, measure: Callable[[], Any]) -> Mode:
        return link.mode(signature, None) or link.mode(signature, measure()) or "vmap"

    def trial(start: str | None, own: bool) -> Trial:
        return Trial(
            id=said.trial, start=None if start is None else Path(start), own=own, devices=devices, threads=threads,
            chunk=said.chunk, mode=mode, save=save, deadline=None if said.left is None else time.monotonic() + said.left,
        )

    return trial


@contextlib.contextmanager
def _watchdog(path: Path, said: Assignment) -> Iterator[Callable[[], None]]:
    """Ends this process, with all stacks in a file, unless the yielded function is called often enough: at every report.

    Where no trial of the study has reported yet nobody knows what is long: then stacks and a warning, once, and no end.
    """
    if said.timeout is None and said.least is None:
        yield lambda: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    silent = None if said.least is None else threading.Timer(said.least, _mention, (path, said))
    with path.open("w") as file:
        timeout, before = said.timeout, time.monotonic()

        def alive() -> None:
            nonlocal timeout, before
            now = time.monotonic()
            if said.least is not None:
                timeout = max(said.least, timeout or 0.0, TIMES * (now - before))
            before = now
            if silent is not None:
                silent.cancel()
            arm()

        def arm() -> None:
            if timeout is not None:
                with contextlib.suppress(RuntimeError):  # no memory for its thread: until the next report nobody watches
                    faulthandler.dump_traceback_later(timeout, exit=True, file=file)

        arm()
        if silent is not None and timeout is None:
            silent.daemon = True
            with contextlib.suppress(RuntimeError):
                silent.start()
        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()
            if silent is not None:
                silent.cancel()
    path.unlink()


def _mention(path: Path, said: Assignment) -> None:
    """Where a trial stands that has not reported yet, in a study in which none has."""
    path = path.with_suffix(".silent.txt")
    with path.open("w") as file:
        faulthandler.dump_traceback(file=file)
    log.warning(
        "trial %d has not reported for %g minutes, and no trial of the study has, so nothing ends it: its stacks are in %s; "
        "driver.trial_timeout = SECONDS sets a limit", said.trial, (said.least or 0.0) / 60, path,
    )


def _kept(path: Path, write: Callable[[], T]) -> T:
    """What `write` answers. Raises StorageFailure, in words, for a disk that is full or broken."""
    try:
        return write()
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        room = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise StorageFailure(
            f"{path} cannot be written: {error.strerror or error} ({room:,} bytes are free there). The study stopped; make room "
            f"and resume it: what is in the ledger is whole, and running trials go on from their last parcels."
        ) from error


def _line(report: Report, seconds: float) -> Line:
    """A report as it goes into the ledger. Raises Diverged if anything in it is not finite."""
    step = int(report.step)
    metrics = {str(name): float(value) for name, value in report.metrics.items()}
    score = None if report.score is None else float(report.score)
    wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if score is not None and not math.isfinite(score):
        wrong = {"the score": score, **wrong}
    if report.episodes is not None and not np.isfinite(np.asarray(report.episodes, dtype=np.float32)).all():
        wrong["a per-episode score"] = math.nan
    if wrong:
        name, value = next(iter(wrong.items()))
        raise Diverged(step, f"{name} is {value}" if name != "a per-episode score" else f"{name} is not finite")
    return Line(step, metrics, score, report.checkpoint, report.found, time.time(), seconds)


def _bad_parcel(error: BaseException) -> bool:
    parcel = sys.modules.get("metasearch.objectives.parcel")
    return parcel is not None and isinstance(error, parcel.BadParcel)


def _first_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__


def _in_words(error: BaseException) -> str:
    """One line that says what, then the last lines of the traceback that say where."""
    where = "".join(traceback.format_exception(error)).strip().splitlines()
    return redact("\n".join([_first_line(error), *where[-20:]]))[:REASON]
