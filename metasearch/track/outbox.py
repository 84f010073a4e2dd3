"""Ledger rows -> MLflow, in a process of its own that nobody waits for.

    python -m metasearch.track.outbox FOLDER --uri URI --follow PID

It reads the study's ledger (never writes it), sends batches, and keeps its place in FOLDER/outbox.json. It ends when the
study has stopped, or when the driver (PID) is gone, and everything is sent. A server that is down costs the search nothing:
one warning, a pause that doubles, and `metasearch sync NAME` later. Sending something twice changes nothing (mirror.py).
"""
from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metasearch.crashpoint import crashpoint
from metasearch.home import parcel_path
from metasearch.ledger import Ledger, Row
from metasearch.track.mirror import Mirror, Wanted
from metasearch.track.projection import STUDY, Change, Done, Key, Projection
from metasearch.track.redact import redact
from metasearch.track.statistics import mean_interval
from metasearch.track.store import TrackingError, connect, patience, tracking_uri

if TYPE_CHECKING:
    from metasearch.track.pictures import Pictures

ROWS = 1_000  # ledger rows a batch
POLL = 0.5  # seconds between looks at a ledger that has nothing new
PACE = 5.0  # seconds between two batches while the study runs: reports that travel together are one call
BARE = 30.0  # seconds after which the study's run is told of rows that say nothing about itself
LONGEST_PAUSE = 60.0  # seconds between two tries of a server that is down
FIRST_DRAWN = 20  # trials after which the first pictures are drawn
GRACE = 30.0  # seconds for which a server that is down is tried after the driver is gone
URI_VARIABLE = "METASEARCH_TRACK_URI"  # not an argument: other users see the arguments of a process

log = logging.getLogger("metasearch.track")


class OutboxBusy(TrackingError):
    """Another process is sending this study's rows."""


class Cursor(NamedTuple):
    """What FOLDER/outbox.json holds: the last row sent, to which server (a hash), when, and what is wrong, if anything."""

    seq: int = 0
    uri: str = ""
    at: float = 0.0
    trouble: str | None = None


@dataclass(frozen=True)
class Synced:
    """What `sync` found and did. wrong: runs that had to be written again, mended or removed."""

    rows: int
    runs: int
    wrong: int


class Outbox:
    """The rows of one ledger on their way to one MLflow."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.ledger = Ledger.open(folder / "ledger.sqlite")
        self.projection = Projection()
        cursor = read_cursor(folder)
        self.seq = cursor.seq if cursor.uri == _hash(uri) else 0  # rows up to here are sent
        self.tidied = 0  # things that were restored or removed when the runs were looked for
        self.refused: dict[Key, str] = {}  # runs that MLflow does not take, and its words
        self._mirror: Mirror | None = None
        self._pictures: Pictures | None = None
        self._unpictured = False  # they could not be stored: tried again at the end alone
        self._pending: tuple[int, dict[Key, Change]] | None = None  # taken from the ledger, not yet sent
        self._told = 0  # the last row that the study's run knows of
        self._told_at = 0.0  # time.monotonic()

    def close(self) -> None:
        self.ledger.close()

    def open(self, *, revive: bool = False, from_start: bool = False) -> Mirror:
        """Connects, and goes on where the study's run and the cursor agree that everything is sent."""
        first = next(self.ledger.rows(kinds=["study"]))
        projection = Projection()
        opening = projection.take([first])
        mirror = Mirror(connect(self.uri, create=True), self.uri, projection)
        self.tidied = mirror.open(revive={STUDY, *self.ledger.trials()} if revive else ())
        there = mirror.runs[STUDY].seq if STUDY in mirror.runs else 0
        self.seq, self._told = 0 if from_start else min(self.seq, there), there
        self._pending = (first.seq, opening) if self.seq < first.seq else None
        for batch in batches(self.ledger, first.seq, self.seq):
            projection.take(batch)
        self.projection, self._mirror = projection, mirror
        if read_cursor(self.folder).trouble is not None:
            self._write_cursor()  # it is over
        return mirror

    def step(
        self, *, wanted: dict[Key, Wanted] | None = None, only: set[Key] | None = None, sparing: bool = False
    ) -> bool:
        """Sends one batch; False: there was nothing to send. Raises TrackingError: call it again, later.

        sparing: the study's run hears of rows that are not about itself only now and then (`tell`).
        """
        mirror = self._mirror or self.open()
        if self._pending is None:
            rows = next(batches(self.ledger, self.seq), None)
            if rows is None:
                return False
            self._pending = rows[-1].seq, self.projection.take(rows)
        last, changes = self._pending
        study = changes.get(STUDY) or Change()
        study.seq = last
        if STUDY not in mirror.runs:
            mirror.apply(STUDY, Change(start=study.start, seq=0))  # children need a parent
        for trial in sorted(k for k in changes if k is not None):
            if only is None or trial in only:
                self._send(mirror, trial, changes[trial])
        if (only is None or STUDY in only) and not (sparing and study.bare and time.monotonic() - self._told_at < BARE):
            mirror.apply(STUDY, study)
            self._told, self._told_at = last, time.monotonic()
        if wanted is not None:
            for key, change in {**changes, STUDY: study}.items():
                wanted.setdefault(key, Wanted()).add(change)
        self.seq, self._pending = last, None
        crashpoint("outbox.before")
        self._write_cursor()
        crashpoint("outbox.after")
        return True

    def tell(self) -> None:
        """The study's run knows of all rows that were sent."""
        if self._mirror is not None and self._told < self.seq:
            self._mirror.apply(STUDY, Change(seq=self.seq))
            self._told, self._told_at = self.seq, time.monotonic()

    def _send(self, mirror: Mirror, key: Key, change: Change) -> None:
        if key in self.refused:
            return
        try:
            mirror.apply(key, change)
        except TrackingError as error:
            if error.passing:
                raise
            if not self.refused:
                log.warning("%s", error)
            self.refused[key] = str(error)  # somebody deleted the run, say; the others go on

    def _write_cursor(self, trouble: str | None = None) -> None:
        trouble = trouble or next(iter(self.refused.values()), None)
        write_cursor(self.folder, Cursor(self.seq, _hash(self.uri), time.time(), trouble))

    def trouble(self, words: str) -> None:
        self._write_cursor(words)

    def settle(self) -> int:
        """Removes copies of runs after lost replies; how many."""
        return 0 if self._mirror is None else self._mirror.settle()

    @property
    def finished(self) -> bool:
        """Is the study stopped and everything sent?"""
        return self._mirror is not None and self._pending is None and self.projection.stopped and self.ledger.last == self.seq

    @property
    def stopping(self) -> bool:
        """Has the study stopped since the last row that was sent?"""
        return next(self.ledger.rows(after=self.seq, kinds=["stopped"]), None) is not None

    # -- weights --------------------------------------------------------------------------------------------------------

    def upload_best(self) -> int:
        """The parcels of the best trials, each with a JSON that says what it is, as artifacts of the study's run. How many."""
        mirror = self._mirror or self.open()
        wanted = [done for done in self.projection.best(self.projection.top) if done.parcel is not None]
        parcels = [(done, path) for done in wanted if (path := self._parcel(done)) is not None]
        names = [f"{mirror.projection.run_name(d.trial)} {p.name} {_file_hash(p)}" for d, p in parcels]
        best, before = json.dumps(names), mirror.uploaded()
        if not parcels or before == best:
            return 0
        if len(parcels) < len(wanted) and set(names) <= set(json.loads(before or "[]")):
            return 0  # some were removed here to make room: they stay stored there
        with tempfile.TemporaryDirectory(prefix="metasearch-") as folder:
            files: dict[str, list[Path]] = {}
            for done, parcel in parcels:
                about = Path(folder) / f"trial-{done.trial}" / "trial.json"
                about.parent.mkdir()
                about.write_text(json.dumps(self._about(done), indent=1, allow_nan=False))
                files[f"best/trial-{done.trial}"] = [parcel, about]
            index = Path(folder) / "best.json"
            index.write_text(json.dumps([f"trial-{done.trial}" for done, _ in parcels]))
            files["best"] = [index]
            mirror.upload(files, best)
        return len(parcels)

    def _parcel(self, done: Done) -> Path | None:
        if done.parcel is None:
            return None
        path = parcel_path(self.folder, done.parcel)
        return path if path.is_file() else None

    def _about(self, done: Done) -> dict[str, Any]:
        row = self.ledger.trials()[done.trial]
        interval = None
        if row.episodes is not None and len(row.episodes) > 1:
            found = mean_interval(row.episodes)
            interval = {"low": found.low, "high": found.high, "episodes": found.n}
        study = self.ledger.study()
        return {
            "trial": self.projection.run_name(done.trial), "score": done.score, "interval": interval,
            "config": row.proposal.config, "seed": row.proposal.seed, "step": row.outcome.step if row.outcome else None,
            "metrics": dict(row.outcome.metrics) if row.outcome else {},
            **{key: study.get(key) for key in ("space_digest", "data_digest", "bank_digest", "code")},
        }

    # -- pictures -------------------------------------------------------------------------------------------------------

    def draw(self, *, over: bool = False) -> None:
        """The pictures of the study and of its best trials, if it is time for them (or over). Whatever fails is a warning."""
        projection = self.projection
        if projection.pictures == 0 or self._mirror is None or not (over or self._due(projection.ended)):
            return
        try:
            if self._pictures is None:
                from metasearch.track.pictures import Pictures

                self._pictures = Pictures()
            best = [done.trial for done in projection.best(projection.pictures)]
            with patience(120 if over else 20):
                self._pictures.store(self.ledger, self._mirror, best, projection.ended)
        except Exception as error:  # of any artifact store; rows are all there
            self._unpictured = True
            log.warning("pictures were not stored in MLflow: %s", redact(str(error)))

    def _due(self, ended: int) -> bool:
        return not self._unpictured and (ended >= FIRST_DRAWN if self._pictures is None else self._pictures.due(ended))


def batches(ledger: Ledger, after: int, last: int | None = None) -> Iterator[list[Row]]:
    """Rows with after < seq <= last, in portions."""
    while last is None or after < last:
        rows = list(islice(ledger.rows(after=after), ROWS if last is None else min(ROWS, last - after)))
        if not rows:
            return
        yield rows
        after = rows[-1].seq


# -- what others call -----------------------------------------------------------------------------------------------------


def start(folder: Path, uri: str, *, follow: int | None = None) -> subprocess.Popen[bytes]:
    """The outbox as a process in a session of its own, which Ctrl-C does not reach; its words go to FOLDER/outbox.log.
    It ends when process `follow` (default: this one) is gone or the study has stopped, and everything is sent."""
    command = [sys.executable, "-m", "metasearch.track.outbox", str(folder), "--follow", str(follow or os.getpid())]
    with open(folder / "outbox.log", "ab") as words:
        return subprocess.Popen(
            command, env={**os.environ, URI_VARIABLE: uri}, stdin=subprocess.DEVNULL, stdout=words, stderr=words,
            start_new_session=True, close_fds=True,
        )


def catch_up(folder: Path, study: Mapping[str, Any]) -> None:
    """MLflow, if it knows the study, is told of new rows by a process that nobody waits for. study: the ledger's first row."""
    if read_cursor(folder).seq:
        start(folder, tracking_uri((study["study"].get("track") or {}).get("uri"), folder.parent))


def sync(folder: Path, uri: str, *, wait: float | None = None, seconds: int = 60) -> Synced:
    """Makes MLflow equal the ledger: sends what is missing, mends what differs, restores what was deleted, removes copies.

    wait: seconds for another outbox of this study to end; None: ten, or until it has given a server up that is down, once the
    study has stopped. seconds: patience for one call.
    Raises OutboxBusy, or TrackingError if the server does not answer or refuses.
    """
    most = wait if wait is not None else GRACE + 15.0 if _has_stopped(folder) else 10.0
    with _alone(folder, lambda: most, asked_by="sync"), patience(seconds):
        box = Outbox(folder, uri)
        try:
            wanted: dict[Key, Wanted] = {}
            mirror = box.open(revive=True, from_start=True)
            while box.step(wanted=wanted):
                pass
            wrong = box.tidied + mirror.settle()
            for _ in range(3):
                again, differed = mirror.repair(wanted)
                wrong += differed
                if not again:
                    break
                mirror = _again(box, again)
            if box.refused:
                raise TrackingError("; ".join(box.refused.values()), passing=False)
            box.upload_best()
            box.draw(over=True)
            return Synced(box.seq, len(wanted), wrong)
        finally:
            box.close()


def _again(box: Outbox, keys: set[Key]) -> Mirror:
    """Writes some runs once more, from the first row on."""
    mirror = box.open(from_start=True)
    while box.step(only=keys):
        pass
    return mirror


def follow(folder: Path, uri: str, pid: int | None, stop: Signals | None = None) -> bool:
    """Sends rows until the study has stopped, process `pid` is gone, or `stop` is asked. False: not everything was sent."""
    gone, stop = _departed(pid), stop or Signals()
    with _alone(folder, lambda: 0.0 if gone() else 3600.0, asked_by="outbox"), patience(5):
        box = Outbox(folder, uri)
        try:
            return _until_done(box, gone, stop)
        finally:
            box.close()


def _until_done(box: Outbox, gone: Callable[[], bool], stop: Signals) -> bool:
    pause, deadline = 0.0, float("inf")
    while not stop.asked:
        over = gone() or box.stopping  # before the step: what was written before the end is sent
        try:
            moved = box.step(sparing=True)
            if not moved and (box.finished or over):
                box.tell()
                _finish(box)
                return not box.refused
        except TrackingError as error:
            if pause == 0.0:
                log.warning("%s. The search goes on; the rest is sent later, or by `metasearch sync %s`.", error, box.folder.name)
                box.trouble(str(error))
            if not error.passing:
                return False
            if over:
                deadline = min(deadline, time.monotonic() + GRACE)
                if time.monotonic() > deadline:
                    return False
            pause = min(LONGEST_PAUSE if not over else 5.0, max(1.0, 2 * pause))
            stop.sleep(pause, until=None if over else lambda: gone() or box.stopping)
            continue
        if pause:
            log.warning("MLflow answers again")
            pause, deadline = 0.0, float("inf")
        if not moved:
            box.draw()  # rows first
        if not moved or box.ledger.last - box.seq < ROWS:
            stop.sleep(PACE if moved else POLL, until=lambda: gone() or box.stopping)
    return False


def _finish(box: Outbox) -> None:
    box.settle()
    if not box.projection.stopped:
        return
    try:
        with patience(120):
            box.upload_best()
    except Exception as error:  # of any artifact store; rows are all there
        log.warning("the best trials' weights were not stored in MLflow: %s", redact(str(error)))
        box.trouble(redact(f"weights not stored: {error}"))
    box.draw(over=True)


def behind(folder: Path) -> int:
    """How many ledger rows are not in MLflow yet, by the cursor; asks no server."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        return max(0, ledger.last - read_cursor(folder).seq)


def read_cursor(folder: Path) -> Cursor:
    try:
        body = json.loads((folder / "outbox.json").read_text())
        return Cursor(int(body["seq"]), str(body["uri"]), float(body["at"]), body.get("trouble"))
    except (OSError, ValueError, KeyError, TypeError):
        return Cursor()  # missing or torn: everything is sent again, which changes nothing


def write_cursor(folder: Path, cursor: Cursor) -> None:
    new = folder / ".outbox.json.new"
    with open(new, "w") as file:
        json.dump(cursor._asdict(), file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / "outbox.json")


# -- processes ------------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path, patience: Callable[[], float], *, asked_by: str) -> Iterator[None]:
    """One sender a study: waits `patience()` seconds for another one, then raises OutboxBusy."""
    began = time.monotonic()
    with open(folder / "outbox.lock", "a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - began >= patience():
                    lock.seek(0)
                    raise OutboxBusy(
                        f"process {lock.read().strip() or '?'} is sending the rows of {folder.name} to MLflow "
                        f"({behind(folder)} are left). It ends when the study has stopped, or {GRACE:g} s later; then try again.",
                        passing=True,
                    ) from None
                time.sleep(0.1)
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()} ({asked_by})\n")
        lock.flush()
        yield


def _has_stopped(folder: Path) -> bool:
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        last = [row.kind for row in ledger.rows(kinds=["study", "resumed", "stopped"])][-1:]
    return last == ["stopped"]


def _departed(pid: int | None) -> Callable[[], bool]:
    """Whether the process that has this number now is gone (or a zombie, or the number is another's)."""
    if pid is None:
        return lambda: True
    born = _born(pid)
    return lambda: born is None or _born(pid) != born


def _born(pid: int) -> str | None:
    """When a process started, as the system counts; None if there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    try:  # no /proc: the number alone must do
        os.kill(pid, 0)
        return "?"
    except ProcessLookupError:
        return None
    except PermissionError:
        return "?"


class Signals:
    """SIGTERM ends the outbox between two batches, once `listen` was called; Ctrl-C is the driver's business."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def sleep(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        end = time.monotonic() + seconds
        while not self.asked and time.monotonic() < end and not (until is not None and until()):
            time.sleep(min(0.2, seconds))


def _hash(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m metasearch.track.outbox", description="Sends a study's ledger rows to MLflow.")
    parser.add_argument("folder", type=Path, help="the study's folder")
    parser.add_argument("--uri", help=f"MLflow's address (default: the environment's {URI_VARIABLE}, then MLFLOW_TRACKING_URI)")
    parser.add_argument("--follow", type=int, metavar="PID", help="end when this process is gone")
    given = parser.parse_args(arguments)
    uri = given.uri or os.environ.get(URI_VARIABLE) or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        parser.error("--uri is needed")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.nice(10)  # never in the search's way
    try:
        stop = Signals()
        stop.listen()
        return 0 if follow(given.folder, uri, given.follow, stop) else 69
    except TrackingError as error:
        log.warning("%s", error)
        return 69


if __name__ == "__main__":
    sys.exit(main())
