"""What went wrong, in one message and one exit code.

0 ok · 1 failure · 2 usage or configuration · 3 finished, but more trials failed than the study allows · 4 no trial succeeded ·
65 bad data or state · 69 service unavailable · 74 input/output · 75 try again (another driver, a lock) · 130 SIGINT · 143 SIGTERM
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import sys
import time
from typing import Any, Literal

from metasearch.plugins import UnknownName
from metasearch.track.redact import redact

OK, FAILURE, USAGE, TOO_MANY_ERRORS, NO_SUCCESS = 0, 1, 2, 3, 4
BAD_DATA, UNAVAILABLE, IO_ERROR, TRY_AGAIN, INTERRUPTED, TERMINATED = 65, 69, 74, 75, 130, 143


class Refused(Exception):
    """A command that cannot be carried out: a message for the person who typed it, and the exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived: everything cleans up on the way out."""


def judged(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error. A message of its own is shown as it is; others are named by their type."""
    code = _code(error)
    said = str(error) or type(error).__name__
    if code == FAILURE and not isinstance(error, Refused):
        said = f"{type(error).__name__}: {said}"
    return code, redact(said)


def _code(error: BaseException) -> int:
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, UnknownName):
        return USAGE
    named = {_name(kind) for kind in type(error).__mro__}
    for kind, code in _CODES.items():
        if kind in named:
            return code
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return TRY_AGAIN
    if isinstance(error, sqlite3.DatabaseError):
        return BAD_DATA
    if isinstance(error, ConnectionError):
        return UNAVAILABLE
    if isinstance(error, OSError):
        return IO_ERROR
    return USAGE if isinstance(error, ValueError) and _ours(error) else FAILURE


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


_CODES = {  # by name, so that judging an error imports nothing
    "metasearch.driver.study_file.StudyError": USAGE,
    "metasearch.driver.folder.LockedError": TRY_AGAIN,
    "metasearch.ledger.LedgerError": BAD_DATA,
    "metasearch.ledger.Overtaken": TRY_AGAIN,
    "metasearch.objectives.parcel.BadParcel": BAD_DATA,
    "metasearch.track.outbox.OutboxBusy": TRY_AGAIN,
    "metasearch.track.store.TrackingError": UNAVAILABLE,
}


def _ours(error: BaseException) -> bool:
    """Was it raised on purpose, by this project's own code? Then its message says what to do."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return where.partition(".")[0] in ("metasearch", "search_spaces")


Level = Literal["info", "warning", "error"]


class Voice:
    """How this process talks: `quiet` leaves out what is neither a warning nor an error; `as_json` makes every line an object."""

    quiet = False
    as_json = False


def talk(message: str, level: Level = "info", **facts: Any) -> None:
    """One line for the person at the terminal; stdout is for data. facts: what else a program may want to know of it.

    What came from outside steers no terminal.
    """
    if Voice.quiet and level == "info":
        return
    said = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in redact(message))
    if Voice.as_json:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        said = redact(json.dumps({"at": at, "level": level, "message": said, **facts}, allow_nan=False))
    try:
        print(said, file=sys.stderr, flush=True)
    except (OSError, ValueError) as error:  # nobody reads it any more, or the disk of a log is full: no reason to end a search
        _go_silent()
        logging.getLogger("metasearch.cli").warning("stderr cannot be written any more: %s", error)


def _go_silent() -> None:
    """What is still said on stderr goes nowhere, whoever says it."""
    silent = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # it may have no number
        os.dup2(silent, sys.stderr.fileno())
    sys.stderr = os.fdopen(silent, "w")
