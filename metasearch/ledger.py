"""WHAT HAPPENED: one append-only SQLite file is the only truth about a study; all else can be rebuilt from it.

A row is written, and is on the disk, before anything else is told. Order is by `seq` alone: clocks jump, `at` is for people.
One process writes: the director, under driver.lock, and in every transaction its fencing number must be the last one given.
Readers on the same machine may look at any time.

On a disk SQLite keeps a write-ahead log (WAL), whose readers and writer share memory: other machines must not open such a file
while somebody writes it (`only_here`). Where a folder may lie on several machines (mounts.py) it keeps a rollback journal, which
needs locks and nothing else, so that any machine may read at any time: https://sqlite.org/wal.html,
https://sqlite.org/lockingv3.html. Whoever opens a ledger for writing turns it into what its place needs.
"""
from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasearch.crashpoint import KINDS, crashpoint
from metasearch.mounts import network_filesystem
from metasearch.records import Outcome, Proposal, Report

SCHEMA = 1
PATIENCE = 20.0  # seconds for which a lock that another process holds on the file is waited for
LEASE = 100.0  # and by a writer over a network: NFS 4 keeps the locks of a machine that is gone for 90
PAGE = 1000  # rows that are read at once: while a reader is in the middle of it, a writer with a rollback journal waits
APPLICATION = 0x6D657461  # "meta": SQLite's application_id, so that no other database is taken for a ledger
_TABLE = """
CREATE TABLE rows (
  seq   INTEGER PRIMARY KEY,   -- 1, 2, 3, ... without gaps
  at    REAL NOT NULL,         -- seconds since the epoch, for people
  kind  TEXT NOT NULL,
  trial INTEGER,
  body  TEXT NOT NULL,         -- strict JSON
  blob  BLOB                   -- float32 per-episode scores of an ended trial
)
"""


class LedgerError(Exception):
    """A ledger that cannot be trusted; says the file, what is wrong with it and what to do. Nothing is started afresh."""


class Overtaken(Exception):
    """Another process has opened the ledger for writing since this one did: nothing of what this one says counts any more."""


class Row(NamedTuple):
    """One line of history. Kinds and their bodies:

    study      {study, space_digest, ..., versions, code}: the first row, and the only one of its kind
    proposed   Proposal
    started    {lane, process, attempt, start, own, cause, chunk?, deadline?}: deadline: seconds without a report, as far as they
               followed from the reports of the study until then; cause is "new", "lane" (the lane died), "oom", "resume"
               or "infrastructure" (its machine was lost: nothing counts against the trial); chunk: see retry
    report     {step, metrics, score, checkpoint, seconds, elapsed, found?}: elapsed: seconds of all drivers on the study so far
    retry      {cause, chunk, reason, step, seconds}: an attempt ran out of memory (cause "oom"); the next, its last, has at most
               `chunk` episodes at once
    ended      Outcome + {seconds, checkpoint, elapsed}; blob: per-episode scores
    mode       {signature, mode, seconds: {mode: seconds a step}}
    opened     {tasks, digest, split}: the sealed meta-test was opened
    evaluated  {split, interval: {mean, low, high, n}, episodes, curve, seed, ..., half?}: half is the same on half of an axis
    note       {what}
    stopped    {reason, coverage, wanted, final, budget, max_errors, elapsed}: final is False for a study that was interrupted
    resumed    {budget, max_errors}: the limits from here on
    """

    seq: int
    at: float
    kind: str
    trial: int | None
    body: dict[str, Any]
    blob: bytes | None


@dataclass(slots=True)
class TrialRow:
    """One trial as the rows tell it. status is "proposed", "running", or an Outcome's status."""

    id: int
    proposal: Proposal
    status: str = "proposed"
    lane: str | None = None
    process: str | None = None
    attempts: int = 0
    barren: int = 0  # deaths of its lane since its last report
    chunk: int | None = None  # at most so many episodes at once, since an attempt ran out of memory
    report: Report | None = None  # the last one
    reports: int = 0
    checkpoints: tuple[str, ...] = ()  # parcels that its reports named, oldest first, each once
    outcome: Outcome | None = None
    seconds: float = 0.0
    checkpoint: str | None = None  # the parcel from which this trial, or a child, goes on
    episodes: NDArray[np.float32] | None = field(default=None, repr=False)
    proposed_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    ended_seq: int | None = None

    @property
    def ended(self) -> bool:
        return self.outcome is not None


class Ledger:
    """Append-only. `Ledger.create` for a new study, `Ledger.open` for one that is there.

        with ledger.together():                     # one transaction, one fsync
            ledger.append("ended", body, trial=3)
            ledger.append("proposed", proposal.to_json(), trial=4)
        ledger.trials()[3].status
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._db = connection
        self._depth = 0
        self._trials: dict[int, TrialRow] = {}
        self._reports: dict[int, str] = {}  # of trials, the last report: read when somebody looks, for later ones replace it
        self._folded = 0  # seq of the last row in _trials
        last = connection.execute("SELECT max(seq) FROM rows").fetchone()[0]
        self._last = int(last or 0)
        self._number = self._fenced() if writable else 0

    # -- making and opening -------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path | str, study: Mapping[str, Any]) -> Ledger:
        """A new ledger whose first row is `study` (the body of kind "study"). Raises LedgerError if a file is there."""
        path = Path(path).resolve()
        if path.exists():
            raise LedgerError(f"{path} exists already: resume that study, or give the new one another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        for orphan in (Path(f"{path}-wal"), Path(f"{path}-journal")):
            if orphan.exists() and orphan.stat().st_size:  # SQLite would take it for the new file's
                raise LedgerError(
                    f"{path} is missing, but {orphan} holds writes of it. Nothing was started. Put the ledger back from a "
                    f"backup, or move the folder {path.parent} away to start afresh."
                )
        for leftover in (path.with_name(path.name + ".new"), *(Path(f"{path}.new-{part}") for part in ("wal", "shm", "journal"))):
            leftover.unlink(missing_ok=True)
        new = path.with_name(path.name + ".new")  # gets its name when its first row is on the disk: a ledger is never half made
        db = _connect(new, write=True)
        with db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(_TABLE)
            db.execute("CREATE INDEX rows_of_trial ON rows (trial) WHERE trial IS NOT NULL")
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {SCHEMA}")
            crashpoint("ledger.study")
            db.execute("INSERT INTO rows VALUES (1, ?, 'study', NULL, ?, NULL)", (time.time(), _dumps(study)))
            crashpoint("ledger.commit")
        db.close()  # the last connection: the WAL is folded into the file
        Path(f"{new}-journal").unlink(missing_ok=True)
        os.rename(new, path)
        _sync_folder(path.parent)
        crashpoint("ledger.committed")
        return cls.open(path, write=True)

    @classmethod
    def open(cls, path: Path | str, write: bool = False) -> Ledger:
        """The ledger of a study. Raises LedgerError for a file that is missing, empty, damaged, foreign or newer than this."""
        path = Path(path).resolve()
        if not path.is_file():
            raise LedgerError(f"there is no ledger at {path}: check the study's name and METASEARCH_HOME")
        if path.stat().st_size == 0:
            raise _damaged(path, "it is empty")
        wal = Path(f"{path}-wal")
        mended = wal.exists() and wal.stat().st_size > 0  # then SQLite mends a page that was being written
        db = None
        try:
            db = _connect(path, write=write)
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (page,) = db.execute("PRAGMA page_size").fetchone()
            if application != APPLICATION:
                raise _damaged(path, "it is no metasearch ledger")
            if path.stat().st_size % page and not mended:
                raise _damaged(path, f"its size, {path.stat().st_size:,} bytes, is no multiple of a page: it was cut off")
            if version > SCHEMA:
                raise LedgerError(
                    f"{path} was written with ledger schema {version}, but this version of metasearch reads up to {SCHEMA}: "
                    f"update metasearch"
                )
            (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise _damaged(path, str(said))
            count, last = db.execute("SELECT count(*), coalesce(max(seq), 0) FROM rows").fetchone()
            if count != last:
                raise _damaged(path, f"{last - count} of {last} rows are missing")
            first = db.execute("SELECT kind FROM rows WHERE seq = 1").fetchone()
            if first is None or first[0] != "study":
                raise _damaged(path, "it does not begin with its study")
        except (sqlite3.DatabaseError, LedgerError) as error:
            if db is not None:
                db.close()
            if isinstance(error, LedgerError) or (meaning := _meaning(path, error)) is error:
                raise
            raise meaning from error
        return cls(path, db, writable=write)

    def _fenced(self) -> int:
        """This writer's number, one more than that of the last: whoever has a lower one is refused from now on."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("CREATE TABLE IF NOT EXISTS fence AS SELECT 0 AS number")
            self._db.execute("UPDATE fence SET number = number + 1")
        return self._fence()

    def _fence(self) -> int:
        return int(self._db.execute("SELECT number FROM fence").fetchone()[0])

    @property
    def overtaken(self) -> bool:
        """Has another process opened it for writing since this one did?"""
        return self.writable and self._fence() != self._number

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(
        self, kind: str, body: Mapping[str, Any], *, trial: int | None = None, blob: bytes | None = None, at: float | None = None
    ) -> int:
        """Writes one row and returns its seq. Outside `together` the row is on the disk when this returns.

        Raises ValueError for a NaN or an infinity anywhere in the body: they are turned into a status before they get here.
        """
        if not self.writable:
            raise LedgerError(f"{self.path} was opened for reading")
        if kind not in KINDS:
            raise ValueError(f"'{kind}' is no kind of ledger row; kinds are {', '.join(KINDS)}")
        if kind == "study":
            raise ValueError("a ledger has one study row, and Ledger.create writes it")
        text, when = _dumps(body), time.time() if at is None else at
        with self.together():
            crashpoint(f"ledger.{kind}")
            seq = self._last + 1
            # seq is given, not taken: if two processes ever wrote, the second insert would fail instead of interleaving
            self._db.execute(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", (seq, when, kind, trial, text, blob)
            )
            self._last = seq
            if self._folded == seq - 1:  # the writer folds as it writes; readers read
                self._take(seq, when, kind, trial, text, blob)
        return seq

    @contextmanager
    def together(self) -> Iterator[None]:
        """All rows appended inside become durable at once or not at all. May be nested: the outermost one commits."""
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        before = self._last
        self._db.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            if self.overtaken:
                raise Overtaken(f"another driver has taken {self.path} over since this one began")
            yield
            crashpoint("ledger.commit")
            self._db.execute("COMMIT")
        except BaseException:
            self._last = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if self._folded > before:  # somebody looked at rows that never were: fold again from the beginning
                self._trials, self._reports, self._folded = {}, {}, 0
            raise
        finally:
            self._depth = 0
        crashpoint("ledger.committed")

    # -- reading ------------------------------------------------------------------------------------------------------

    def rows(
        self, after: int = 0, kinds: Collection[str] | None = None, trial: int | None = None, *, bare: Collection[str] = ()
    ) -> Iterator[Row]:
        """Rows with seq > after, in order; of some kinds and of one trial if given. More may be appended meanwhile.

        bare: kinds whose rows come with an empty body and no blob: `trials` has read them already.
        """
        for seq, at, kind, number, body, blob in self._select(after, kinds, trial):
            if kind in bare:
                yield Row(seq, at, kind, number, {}, None)
            else:
                yield Row(seq, at, kind, number, self._loads(body), blob)

    def _select(self, after: int, kinds: Collection[str] | None = None, trial: int | None = None) -> Iterator[tuple[Any, ...]]:
        where, given = "seq > ?", []  # type: tuple[str, list[Any]]
        if kinds is not None:
            where += f" AND kind IN ({', '.join('?' * len(kinds))})"
            given += kinds
        if trial is not None:
            where += " AND trial = ?"
            given.append(trial)
        select = f"SELECT seq, at, kind, trial, body, blob FROM rows WHERE {where} ORDER BY seq LIMIT {PAGE}"
        page: list[tuple[Any, ...]] = []
        while True:  # whoever is slow with a row holds up no writer: between two pages the file is not locked
            try:
                page = self._db.execute(select, [page[-1][0] if page else after, *given]).fetchall()
            except sqlite3.DatabaseError as error:
                if (meaning := _meaning(self.path, error)) is error:
                    raise
                raise meaning from error
            yield from page
            if len(page) < PAGE:
                return

    def _loads(self, body: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(body)
        except json.JSONDecodeError as error:
            raise _damaged(self.path, str(error)) from error
        return found

    @property
    def last(self) -> int:
        """seq of the newest row."""
        if self.writable:
            return self._last
        return int(self._db.execute("SELECT max(seq) FROM rows").fetchone()[0])

    @property
    def elapsed(self) -> float:
        """Seconds that drivers had worked on the study when they last wrote so."""
        newest_first = self._db.execute("SELECT body FROM rows WHERE kind IN ('report', 'ended', 'stopped') ORDER BY seq DESC")
        told = (self._loads(body).get("elapsed") for body, in newest_first)
        return float(next((seconds for seconds in told if seconds is not None), 0.0))

    def study(self) -> dict[str, Any]:
        """The body of the first row."""
        return next(self.rows(kinds=["study"])).body

    def trials(self) -> dict[int, TrialRow]:
        """Every trial so far, by id, in the order of their proposals. Incremental: a call reads only what is new.

        The dict and its values are the ledger's own: look at them, do not change them.
        """
        if not self.writable or self._folded != self._last:
            for row in self._select(self._folded):
                self._take(*row)
        for number in [*self._reports]:
            self._read_report(number)
        return self._trials

    def _take(self, seq: int, at: float, kind: str, number: int | None, text: str, blob: bytes | None) -> None:
        if number is not None:
            self._fold(seq, at, kind, number, text, blob)
        self._folded = seq

    def _fold(self, seq: int, at: float, kind: str, number: int, text: str, blob: bytes | None) -> None:
        if kind == "proposed":
            self._trials[number] = TrialRow(number, Proposal.from_json(self._loads(text)), proposed_at=at)
            return
        trial = self._trials.get(number)
        if trial is None:
            return  # an evaluation or a note may name a trial of another study
        if kind == "report":
            trial.reports += 1
            trial.barren = 0
            self._reports[number] = text
            if not _names_no_parcel(text):
                self._read_report(number)
        elif kind == "started":
            body = self._loads(text)
            trial.status = "running"
            trial.lane, trial.process, trial.attempts = body.get("lane"), body.get("process"), int(body["attempt"])
            trial.barren += body.get("cause") == "lane"
            trial.started_at = trial.started_at or at
        elif kind == "retry":
            self._read_report(number)
            body = self._loads(text)
            trial.status, trial.chunk, trial.lane, trial.process = "proposed", int(body["chunk"]), None, None
            trial.seconds = float(body.get("seconds") or trial.seconds)
        elif kind == "ended":
            self._read_report(number)
            body = self._loads(text)
            trial.outcome = Outcome.from_json({k: body[k] for k in _OUTCOME if k in body})
            trial.status = trial.outcome.status
            trial.seconds = float(body.get("seconds") or 0.0)
            trial.ended_at, trial.ended_seq = at, seq
            if body.get("checkpoint"):
                self._names(trial, body["checkpoint"])
            if blob is not None:
                trial.episodes = np.frombuffer(blob, dtype="<f4")

    def _read_report(self, number: int) -> None:
        """The last report of a trial, if nobody has read it yet."""
        text, trial = self._reports.pop(number, None), self._trials[number]
        if text is None:
            return
        body = self._loads(text)
        trial.report = Report(body["step"], body["metrics"], body["score"], None, body["checkpoint"], body.get("found"))
        trial.seconds = float(body.get("seconds") or trial.seconds)
        if trial.report.checkpoint:
            self._names(trial, trial.report.checkpoint)

    @staticmethod
    def _names(trial: TrialRow, checkpoint: str) -> None:
        trial.checkpoint = checkpoint
        trial.checkpoints = (*(c for c in trial.checkpoints if c != checkpoint), checkpoint)


_CHECKPOINT = '"checkpoint":'
_OUTCOME = ("trial", "proposal", "score", "metrics", "status", "step", "reason")


def _names_no_parcel(report: str) -> bool:
    """Without reading it: metrics are numbers, so that the first "checkpoint" of a row is null only where it is the key."""
    at = report.find(_CHECKPOINT)
    return at >= 0 and report.startswith("null", at + len(_CHECKPOINT))


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite ones of some metrics, as plain floats: what may go into strict JSON."""
    return {str(k): number for k, v in metrics.items() if math.isfinite(number := float(v))}


def episode_blob(episodes: Collection[float] | None) -> bytes | None:
    """Per-episode scores as the blob of an "ended" row: little-endian float32."""
    return None if episodes is None else np.asarray(episodes, dtype="<f4").tobytes()


def _dumps(body: Mapping[str, Any]) -> str:
    return json.dumps(body, allow_nan=False, separators=(",", ":"))


def only_here(path: Path) -> bool:
    """Must no other machine open this ledger while somebody writes it? Yes, unless byte 18 of the file says that it has no WAL
    (https://sqlite.org/fileformat2.html). Not for a process that writes it: to close any handle of a file drops its locks."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(20)[18:19] != b"\1"
    return True


def half_written(path: Path) -> bool:
    """Is there a rollback journal with something in it? It is of a write that goes on, or of one whose process was killed."""
    with suppress(OSError), Path(f"{path}-journal").open("rb") as file:  # opened, so that NFS asks its server
        return bool(file.read(1).strip(b"\0"))
    return False


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    remote = network_filesystem(path) is not None
    half_written(path)  # SQLite only asks for its size, which NFS may have from a minute ago
    patience = max(PATIENCE, LEASE) if write and remote else PATIENCE
    foreign = write and remote and path.exists() and only_here(path)
    # isolation_level=None: transactions begin where the code says BEGIN
    db = sqlite3.connect(f"{path.as_uri()}?mode={'rwc' if write else 'ro'}", uri=True, isolation_level=None, timeout=patience)
    if write:
        try:
            _journal(db, remote, foreign)
        except BaseException:
            db.close()
            raise
    return db


def _journal(db: sqlite3.Connection, remote: bool, foreign: bool) -> None:
    """WAL on a disk, a rollback journal over a network; an old ledger is turned into it, with all that its old journal holds.

    foreign: it has a WAL, and came to the network from a disk.
    """
    if foreign:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # read without shared memory
    if remote:
        # not DELETE: that a file has appeared another machine may not know for a minute, what is in a file it asks at once
        (mode,) = db.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
    else:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != ("truncate" if remote else "wal"):
        raise sqlite3.OperationalError(f"database is locked: its journal stays '{mode}' while other processes read it")
    if foreign:
        db.execute("PRAGMA locking_mode = NORMAL")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # gives the exclusive lock back
    db.execute("PRAGMA synchronous = FULL")  # also flushes the journal's end, which is the commit
    db.execute("PRAGMA wal_autocheckpoint = 1000")


def _meaning(path: Path, error: sqlite3.DatabaseError) -> Exception:
    """An error of reading as what it is: the very one, if a lock was held too long."""
    said = str(error)
    if isinstance(error, sqlite3.OperationalError):
        if "locked" in said:
            return error
        if "readonly" in said and half_written(path):
            return LedgerError(
                f"the process that wrote {path} was killed in the middle of a write, and a reader cannot take that half back. "
                f"Whoever goes on with the study does: metasearch resume {path.parent.name}. Every row that was finished is "
                f"there."
            )
        if any(word in said for word in ("full", "readonly", "unable to open")):
            return OSError(f"{path} cannot be opened: {said}. Nothing was started or changed.")
    return _damaged(path, said)


def _damaged(path: Path, what: str) -> LedgerError:
    return LedgerError(
        f"the ledger {path} cannot be read: {what}. Nothing was started or changed. Copy the folder {path.parent}, then try "
        f"`sqlite3 {path} .recover | sqlite3 {path.with_name('recovered.sqlite')}` and put the recovered file in its place; "
        f"or restore the file (with its -wal or -journal, if there is one) from a backup"
    )


def _sync_folder(folder: Path) -> None:
    """A rename is durable when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
