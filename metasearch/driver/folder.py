"""Where a study lives on the disk, and who may write there: one process at a time, held by the kernel's lock on driver.lock.

A machine that is gone may leave its lock on a server, and there are file systems whose locks end at the machine: so the holder
also gives signs of itself, which others look for, and the ledger has a fencing number (metasearch/ledger.py).
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

__all__ = [
    "Held", "LockedError", "held_by", "lives", "lock", "locked", "logged", "must_be_free", "must_be_gone", "runs_elsewhere",
]

LOG_BYTES, LOGS = 10_000_000, 3  # of one log file, and how many old ones are kept
BEAT, STALE = 10.0, 60.0  # seconds between two signs that a driver gives of itself, and after which it may be robbed
PATIENCE = 15.0  # seconds for which the lock of a driver that is gone may be held by what it left behind


class LockedError(Exception):
    """Another process works on this study; says host and pid."""


class Held:
    """The lock of a study, until it is closed or the process is gone, even by kill -9.

    A thread of its own touches driver.beat, for machines that cannot see whether the process lives.
    """

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file, self._ended = path, file, threading.Event()
        _beat(path).write_text("")
        threading.Thread(target=_beats, args=(weakref.ref(self), self._ended), name="driver.beat", daemon=True).start()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def beat(self) -> bool:
        """Gives a sign; False: the lock is another's by now."""
        if self.closed or not self._mine():
            return False
        with contextlib.suppress(OSError):
            os.utime(_beat(self._path))  # by the clock of whoever keeps the file
        return True

    def _mine(self) -> bool:
        """Is it still this file that keeps others out?"""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except (OSError, ValueError):
            return False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._ended.set()
        if self._mine():
            _beat(self._path).unlink(missing_ok=True)
        self._file.close()


def _beats(held: weakref.ref[Held], ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        if (one := held()) is None or not one.beat():
            return
        del one


@contextlib.contextmanager
def locked(folder: Path, *, owner: int | None = None) -> Iterator[None]:
    """Only one process is inside at a time. Raises LockedError."""
    held = lock(folder, owner=owner)
    try:
        yield
    finally:
        held.close()


def lock(folder: Path, *, owner: int | None = None, steal: bool = False) -> Held:
    """Takes the lock of a study.

    owner: the pid that people know (the driver's, where this process is a child of it). The lock of a driver that is dead may be
    held for a moment by a child that is about to end: that is waited for. steal: take it from a driver on another machine that
    has given no sign of itself for STALE seconds (a server may keep the locks of a machine that is gone).

    Raises LockedError.
    """
    path = folder / "driver.lock"
    until = time.monotonic() + PATIENCE
    while True:
        file: IO[str] = path.open("a+")
        holder = _read(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            if steal:
                must_be_gone(folder)
                file = _another(path)
                break
            if not _left_behind(holder) or time.monotonic() > until:
                raise LockedError(_who(folder, holder) + _way_out(folder, holder)) from None
            time.sleep(0.1)
            continue
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # else it was stolen just now
            try:
                _must_not_beat(folder, holder)
            except BaseException:
                file.close()
                raise
            break
        file.close()
    file.seek(0)
    file.truncate()
    json.dump({"host": socket.gethostname(), "pid": owner or os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
    file.flush()
    return Held(path, file)


def must_be_free(folder: Path) -> None:
    """Raises LockedError if a process is seen to work on the study now: what `lock` would say in the end, before anything slow is
    done. Waits for nothing; that it is silent promises nothing."""
    holder = _holder(folder)
    if holder is not None and not _left_behind(holder):
        raise LockedError(_who(folder, holder) + _way_out(folder, holder))


def must_be_gone(folder: Path) -> None:
    """Raises LockedError unless whoever holds the lock may be robbed: on another machine, without a sign for STALE seconds; on
    this one, without a process.
    """
    try:
        with (folder / "driver.lock").open() as file:
            holder = _read(file)
    except OSError:
        return
    if holder.get("host") == socket.gethostname():
        if lives(holder.get("pid")) and held_by(folder) is not None:
            raise LockedError(f"{_who(folder, holder)}. It is a process of this machine, and lives: stop it (kill -INT "
                              f"{holder.get('pid', 'PID')}, or kill -9 if it hangs) instead of taking its study away.")
        return
    age = _age(folder)
    if age < STALE:
        raise LockedError(f"{_who(folder, holder)}, and gave a sign of itself {max(0.0, age):.0f} s ago. It can be taken over "
                          f"when there was none for {STALE:g} s: if its machine is gone, try again in {STALE - age + 1:.0f} s.")


def _must_not_beat(folder: Path, holder: dict[str, Any]) -> None:
    """Where a lock does not hold on other machines it is free, and yet somebody works there. He is waited for to give a sign."""
    if holder.get("host") in (None, socket.gethostname()) or (before := _seen(folder)) is None:
        return
    until = time.monotonic() + min(3 * BEAT, STALE - _age(folder))
    while time.monotonic() < until:
        time.sleep(BEAT / 20)
        if _seen(folder) not in (None, before):
            raise LockedError(f"{_who(folder, holder)}, although its lock is not seen here: locks do not hold between the two "
                              f"machines. Wait for it, or stop it there, and try again.")


def _another(path: Path) -> IO[str]:
    """A new lock file in the place of one that nobody can open any more."""
    new = path.with_name(f".driver.lock-{socket.gethostname()}-{os.getpid()}")
    file = new.open("a+")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.replace(new, path)
    return file


def _beat(path: Path) -> Path:
    return path.with_name("driver.beat")


def _seen(folder: Path) -> float | None:
    """When the holder's last sign was, by the clock of whoever keeps the file; None: he has ended in order, or never gave one."""
    try:
        with (folder / "driver.beat").open() as file:  # opened, so that NFS asks its server
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _age(folder: Path) -> float:
    """Seconds since the holder's last sign, both ends by the clock of whoever keeps the files; STALE if there is none."""
    seen = _seen(folder)
    if seen is None:
        return STALE
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
        file.write(b"now")
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_mtime - seen


def _left_behind(holder: dict[str, Any]) -> bool:
    """Is it a dead process of this machine, whose children may hold its lock for another moment?"""
    return holder.get("host") == socket.gethostname() and not lives(holder.get("pid"))


def _who(folder: Path, holder: dict[str, Any]) -> str:
    return (f"study '{folder.name}' is being run by process {holder.get('pid', '?')} on {holder.get('host', '?')} since "
            f"{holder.get('since', '?')}")


def _way_out(folder: Path, holder: dict[str, Any]) -> str:
    said = f". Wait for it, or stop it (kill -INT {holder.get('pid', 'PID')}), and try again."
    away = holder.get("host") not in (None, socket.gethostname())
    return said + (f" If that machine is gone: metasearch resume {folder.name} --steal" if away else "")


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
    holder = _holder(folder)
    return None if holder is None else f"{holder.get('pid', '?')} on {holder.get('host', '?')}"


def _holder(folder: Path) -> dict[str, Any] | None:
    """What the lock says of who holds it now; None: nobody does."""
    try:
        file = (folder / "driver.lock").open()
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _read(file)
    return None


def runs_elsewhere(folder: Path) -> str | None:
    """Who works on the study now ("4711 on host"), if it is a process of another machine: then a WAL is not for this one."""
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
