"""The pictures of a study in MLflow: the search history on the parent run, architecture and learning curve on the best trials'.

`metasearch.pictures`, a tag of the parent run, says what has been stored: a hash for each run of all that its pictures show.
What is there already is not drawn again, and what was interrupted is stored under the same names once more. Only the best
`track.pictures` trials are drawn, so that a long study is no slower; a picture that fails is a warning.
"""
from __future__ import annotations

import hashlib
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from metasearch import plugins
from metasearch.crashpoint import crashpoint
from metasearch.graph import Graph, drawn
from metasearch.ledger import Ledger, TrialRow
from metasearch.records import Config
from metasearch.track.mirror import Mirror
from metasearch.track.plots import Course, History, course, history
from metasearch.track.projection import STUDY, Key
from metasearch.track.redact import redact

__all__ = ["FOLDER", "Pictures", "architecture_of", "found_by"]

FOLDER = "pictures"  # among the artifacts of a run
VERSION = 1  # of what the pictures look like: another number draws them again
AT_LEAST, AGAIN = 20, 0.1  # more trials have ended, and a tenth more, when they are drawn again
PATIENCE = 60.0  # seconds for what a user's file draws
MOST_FAILED = 3  # trials whose pictures failed are named so often, then no more

log = logging.getLogger("metasearch.track")


class Pictures:
    """Draws what is new since the last time. One for each outbox; it remembers what failed."""

    def __init__(self) -> None:
        self.at = 0  # trials that had ended when it last looked
        self.failed: dict[Key, str] = {}  # the hash of what could not be drawn

    def due(self, ended: int) -> bool:
        """Is it time to look again? A study of 2,000 trials has 33 such times."""
        return ended - self.at >= max(AT_LEAST, AGAIN * self.at)

    def store(self, ledger: Ledger, mirror: Mirror, best: list[int], ended: int) -> int:
        """Draws and stores what has changed; of how many runs. Raises TrackingError, and nothing because of a picture."""
        self.at, space = ended, str(ledger.study()["study"]["space"])
        before = _read(mirror.pictured())
        wanted = self._wanted(ledger, mirror, best)
        prints = {key: _hash(mirror.runs[key].run_id, VERSION, *map(_plain, shown)) for key, shown in wanted.items()}
        stored = {str(key): before[str(key)] for key in wanted if str(key) in before}
        new = [key for key, print_ in prints.items() if before.get(str(key)) != print_ and self.failed.get(key) != print_]
        for key in new:
            with tempfile.TemporaryDirectory(prefix="metasearch-") as folder:
                try:
                    _draw(Path(folder), space, *wanted[key])
                    stored[str(key)] = prints[key]
                except (Exception, SystemExit) as error:  # a user's file may do anything
                    self._complain(mirror.projection.run_name(key), error)
                    self.failed[key] = prints[key]
                if any(Path(folder).iterdir()):
                    mirror.store(key, Path(folder), FOLDER)
            crashpoint("outbox.pictured")
        if stored != before:
            mirror.set_pictured(json.dumps(stored, sort_keys=True))
        return len(new)

    def _wanted(self, ledger: Ledger, mirror: Mirror, best: list[int]) -> dict[Key, tuple[Course | History, Config]]:
        """What the pictures of a run show, by run."""
        wanted: dict[Key, tuple[Course | History, Config]] = {}
        trials = ledger.trials()
        for number in best:
            if number in mirror.runs:
                wanted[number] = course(ledger, number), found_by(trials[number])
        if STUDY in mirror.runs:
            wanted[STUDY] = history(ledger), {}
        return wanted

    def _complain(self, name: str, error: BaseException) -> None:
        if len(self.failed) < MOST_FAILED:
            log.warning("the pictures of %s were not drawn: %s: %s", name, type(error).__name__, redact(str(error)))


def found_by(row: TrialRow) -> Config:
    """The config whose architecture a trial trained: what a one-shot search found, or what was proposed."""
    found = row.report.found if row.report is not None else None
    return row.proposal.config if found is None else found


def architecture_of(space: str, config: Config) -> tuple[Graph, ...]:
    """What the space of a study draws of a config; nothing if it draws none, which a look at its source often tells without
    importing it. Raises whatever the file raises."""
    source = plugins.source("spaces", space)
    if source is not None and "graph" not in source and "import *" not in source:
        return ()
    return drawn(plugins.module("spaces", space), config)


def _draw(folder: Path, space: str, one: Course | History, config: Config) -> None:
    """Writes the pictures of one run into a folder: first what needs no file of a user's."""
    from metasearch.track import architecture, plots

    if isinstance(one, History):
        plots.searched(one, path=folder / "history.png")
        return
    plots.learning(one, path=folder / "learning.png")
    with _limited(PATIENCE):
        graphs = architecture_of(space, config)
        for form in ("png", "svg") if graphs else ():
            architecture.picture(graphs, title=one.trial, path=folder / f"architecture.{form}")


def _read(text: str | None) -> dict[str, str]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain(shown: Course | History | Config) -> object:
    return shown if isinstance(shown, dict) else asdict(shown)


def _hash(*shown: object) -> str:
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside if it takes longer: a user's `graph` may never end, and rows must be sent all the same."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {seconds:g} s")

    before, began = signal.signal(signal.SIGALRM, over), time.monotonic()
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), again)

