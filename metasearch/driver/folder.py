"""Where a study lives on the disk, and who may write there: one process at a time, held by the kernel's lock on driver.lock."""
from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

__all__ = ["LockedError", "held_by", "lives", "lock", "locked", "logged", "runs_elsewhere"]

LOG_BYTES, LOGS = 10_000_000, 3  # of one log file, and how many old ones are kept
PATIENCE = 15.0  # seconds for which the lock of a driver that is gone may be held by what it left behind


class LockedError(Exception):
    """Another process works on this study; says host and pid."""


@contextlib.contextmanager
def locked(folder: Path, *, owner: int | None = None) -> Iterator[None]:
    """Only one process is inside at a time. Raises LockedError."""
    held = lock(folder, owner=owner)
    try:
        yield
    finally:
        held.close()


def lock(folder: Path, *, owner: int | None = None) -> IO[str]:
    """The lock, held until the file is closed or the process is gone, even by kill -9.

    owner: the pid that people know (the driver's, where this process is a child of it). The lock of a driver that is dead may be
    held for a moment by a child that is about to end: that is waited for. Raises LockedError.
    """
    path = folder / "driver.lock"
    until = time.monotonic() + PATIENCE
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            holder = _read(file)
            file.close()
            left_behind = holder.get("host") == socket.gethostname() and not lives(holder.get("pid"))
            if not left_behind or time.monotonic() > until:
                raise LockedError(
                    f"study '{folder.name}' is being run by process {holder.get('pid', '?')} on {holder.get('host', '?')} since "
                    f"{holder.get('since', '?')}. Wait for it, or stop it (kill -INT {holder.get('pid', 'PID')}), and try again."
                ) from None
            time.sleep(0.1)
    file.seek(0)
    file.truncate()
    json.dump({"host": socket.gethostname(), "pid": owner or os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
    file.flush()
    return file


@contextlib.contextmanager
def logged(folder: Path) -> Iterator[None]:
    """What this process has to say about the study also goes to log.txt in its folder; what is old to log.txt.1 and so on."""
    handler = RotatingFileHandler(folder / "log.txt", maxBytes=LOG_BYTES, backupCount=LOGS, delay=True)
    handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("metasearch")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # on a full disk the last line is lost, not the reason why the study stopped
            handler.close()


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        from metasearch.track.redact import redact

        return redact(super().format(record))


def held_by(folder: Path) -> str | None:
    """Who works on the study now ("4711 on host"), or None. Looks only; never keeps anybody out for more than a moment."""
    try:
        file = (folder / "driver.lock").open()
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            holder = _read(file)
            return f"{holder.get('pid', '?')} on {holder.get('host', '?')}"
    return None


def runs_elsewhere(folder: Path) -> str | None:
    """Who works on the study now ("4711 on host"), if it is a process of another machine: then its ledger is not for this one."""
    holder = held_by(folder)
    return None if holder is None or holder.endswith((" on ?", f" on {socket.gethostname()}")) else holder


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.load(file)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def lives(pid: object) -> bool:
    """Is there such a process on this machine? A zombie has ended."""
    if not isinstance(pid, int):
        return True
    if Path("/proc/self/stat").exists():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
