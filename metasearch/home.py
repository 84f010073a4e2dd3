"""Where studies live: METASEARCH_HOME/NAME, and which names are safe as a folder and on a terminal."""
from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

__all__ = ["NAME", "home_of", "homes", "live_in", "living_in", "parcel_path", "study_folder", "study_name"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TAKEN = re.compile(r"mlartifacts|mlflow\.db.*", re.IGNORECASE)  # by MLflow, in the same folder
_lived_in: ContextVar[tuple[Path, ...]] = ContextVar("lived_in", default=())


def home_of(home: Path | None = None) -> Path:
    """Where studies live: the argument, else METASEARCH_HOME, else ./studies. Absolute."""
    return (home or Path(os.environ.get("METASEARCH_HOME") or "studies")).expanduser().resolve()


@contextlib.contextmanager
def living_in(home: Path | None) -> Iterator[None]:
    """Inside, a recipe that names what is kept in a home (metasearch.augment.named) finds it here: a recipe is given no home."""
    before = _lived_in.get()
    live_in(home)
    try:
        yield
    finally:
        _lived_in.set(before)


def live_in(home: Path | None) -> None:
    """As `living_in`, to the end of the context."""
    _lived_in.set((home_of(home), *_lived_in.get()))


def homes() -> tuple[Path, ...]:
    """Those lived in, the last one first, and the usual one."""
    return tuple(dict.fromkeys((*_lived_in.get(), home_of())))


def study_name(name: str) -> str:
    """The name itself if it is safe as a folder and on a terminal; raises ValueError if not."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "must begin with a letter or a digit and have at most 64 characters out of A-Z a-z 0-9 . _ -, "
            f"but got {name[:80]!r}"
        )
    if TAKEN.fullmatch(name):
        raise ValueError(f"must be another: {name!r} is MLflow's own in the folder where studies are")
    return name


def study_folder(name: str, home: Path) -> Path:
    """The folder of a study. Raises ValueError for a name that is none (it never leads out of the home)."""
    try:
        return home / study_name(name)
    except ValueError as error:
        raise ValueError(f"a study's name {error}") from None


def parcel_path(folder: Path, named: str) -> Path:
    """Where a parcel that a study's ledger names is: in the study's own folder, which may have been moved or copied since, or
    else where it was written."""
    written = Path(named)
    here = folder / "parcels" / written.parent.name / written.name
    return here if here.is_file() else written
