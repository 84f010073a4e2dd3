"""Makes room on the disk: of a study that has ended, only the best trials keep their parcels.

    clean("glyphs", keep=3)                # looks only: what would go, and how many bytes that frees
    clean("glyphs", keep=3, yes=True)      # removes it; a note in the ledger says so
"""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metasearch.crashpoint import crashpoint
from metasearch.driver.folder import locked
from metasearch.driver.study import Study
from metasearch.home import home_of, study_folder
from metasearch.ledger import Ledger, TrialRow
from metasearch.track.leaderboard import ranked, rows_from_ledger
from metasearch.track.outbox import catch_up

__all__ = ["Cleaned", "clean"]

log = logging.getLogger("metasearch.driver")


@dataclass(frozen=True)
class Cleaned:
    """What a cleaning is about. kept: trials that keep their parcels, best first; trials: those that lose theirs.

    done: whether anything was removed, or only looked at.
    """

    study: str
    kept: tuple[int, ...]
    trials: tuple[int, ...]
    files: int
    bytes: int
    done: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def clean(name: str, *, keep: int | None = None, yes: bool = False, home: Path | None = None) -> Cleaned:
    """Removes the parcels of an ended study, except those of its best `keep` trials (None: track.top, but at least one).

    Their results stay; trials without a parcel can neither be evaluated nor gone on from. Without `yes` nothing is removed.
    Raises ValueError for a study that may still go on, LockedError while somebody works on it, LedgerError.
    """
    if keep is not None and keep < 0:
        raise ValueError(f"the number of trials that keep their parcels must be 0 or more, but got {keep}")
    folder = study_folder(name, home_of(home))
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        study = Study.from_json(ledger.study()["study"])
    count = max(1, study.track.top) if keep is None else keep
    with locked(folder), Ledger.open(folder / "ledger.sqlite", write=yes) as ledger:
        _must_have_ended(name, ledger)
        best = [row.trial for row, _, _ in ranked(rows_from_ledger(folder)) if row.ranked][:count]
        going = _going(folder, set(best), ledger.trials())
        found = Cleaned(
            name, tuple(best), tuple(going), sum(len(files) for files in going.values()),
            sum(file.lstat().st_size for files in going.values() for file in files), done=yes and bool(going),
        )
        if found.done:
            kept = ", ".join(map(str, best)) or "none"
            ledger.append("note", {"what": f"the parcels of {len(going)} trials were removed to make room; kept: {kept}"})
            _remove(folder, going)
            catch_up(folder, ledger.study())
    return found


def _must_have_ended(name: str, ledger: Ledger) -> None:
    last = None
    for row in ledger.rows(kinds=["stopped", "resumed"]):
        last = row
    if last is None or not last.body.get("final"):
        raise ValueError(f"study '{name}' has not ended, and goes on from its parcels: metasearch resume {name}")


def _going(folder: Path, kept: set[int], trials: Mapping[int, TrialRow]) -> dict[int, list[Path]]:
    """trial -> its files, of those that are not kept. Nothing outside of the study's own folder, no links, no other names."""
    going: dict[int, list[Path]] = {}
    for part in sorted((folder / "parcels").glob("[0-9]*"), key=lambda path: (len(path.name), path.name)):
        if not part.name.isdecimal() or part.is_symlink() or int(part.name) in kept or int(part.name) not in trials:
            continue
        files = [file for file in sorted(part.iterdir()) if ".safetensors" in file.name and not file.is_dir()]
        if files:
            going[int(part.name)] = files
    return going


def _remove(folder: Path, going: Mapping[int, list[Path]]) -> None:
    for number, files in going.items():
        for file in files:
            crashpoint("parcel.delete")
            file.unlink(missing_ok=True)
        try:
            (folder / "parcels" / str(number)).rmdir()
        except OSError as error:
            log.warning("%s stays: %s", folder / "parcels" / str(number), error.strerror)
