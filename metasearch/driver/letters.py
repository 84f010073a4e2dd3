"""A trial's result file: written by its worker before anybody is told, adopted by the director if the telling never came.

That closes the gap between "the trial is done" and "the ledger knows".
"""
from __future__ import annotations

import json
import os
from pathlib import Path

from metasearch.crashpoint import crashpoint
from metasearch.driver.messages import Ending

__all__ = ["path", "read", "write"]


def path(folder: Path, trial: int) -> Path:
    return folder / "letters" / f"{trial}.json"


def write(folder: Path, ending: Ending) -> None:
    """A letter under its own name is whole: temporary file, flush, rename."""
    target = path(folder, ending.trial)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    crashpoint("letter.write")
    with temporary.open("w") as file:
        json.dump(ending.to_json(), file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    crashpoint("letter.rename")
    os.replace(temporary, target)
    crashpoint("letter.written")


def read(folder: Path, trial: int) -> Ending | None:
    """The letter of a trial; None if there is none, or if it is damaged (the trial then runs on from its last parcel)."""
    try:
        ending = Ending.from_json(json.loads(path(folder, trial).read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return ending if ending.trial == trial else None
