"""Studies that are on the disk, as the commands meet them; and the options that the commands share."""
from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from metasearch import plugins
from metasearch.cli.failures import BAD_DATA, TRY_AGAIN, Refused, judged, talk
from metasearch.cli.live import Unit
from metasearch.home import live_in, study_folder

if TYPE_CHECKING:
    from pandas import DataFrame

    from metasearch.driver.status import Status
    from metasearch.driver.study import Study


def _lived_in(home: Path | None) -> Path | None:
    """For the recipes of the command."""
    live_in(home)
    return home


Home = Annotated[Path | None, typer.Option(
    help="Where studies live.", envvar="METASEARCH_HOME", show_default="./studies", callback=_lived_in,
)]
Source = Literal["mlflow", "ledger"]
Cost = Literal["params", "flops", "latency_ms", "seconds"]
T = TypeVar("T")


def elsewhere(home: Path | None) -> str:
    """What a command needs to find this home again: " --home PATH", or nothing if it finds it by itself."""
    known = home is None or str(home) == os.environ.get("METASEARCH_HOME")
    return "" if known else f" --home {shlex.quote(str(home))}"


def names(home: Path) -> list[str]:
    """The studies in a home."""
    return sorted(path.parent.name for path in home.glob("*/ledger.sqlite"))


def of_all(home: Path, look: Callable[[str], T]) -> tuple[list[T], list[str]]:
    """(what `look` finds in the studies of a home, the names of those that cannot be read): none of these hides the others."""
    found, bad = [], []
    for name in names(home):
        try:
            found.append(look(name))
        except Exception as error:
            code, said = judged(error)
            if code != BAD_DATA:
                raise
            talk(f"metasearch: {said}")
            bad.append(name)
    return found, bad


def complain(bad: Sequence[str]) -> None:
    """Raises Refused if there are studies that could not be read."""
    if bad:
        raise Refused(f"cannot be read, as said above: {', '.join(bad)}", BAD_DATA)


def stored(name: str, home: Path, *, steal: bool = False) -> Study:
    """The study of a name. Raises LedgerError if it cannot be read; Refused if there is none, or if another machine writes its
    ledger now, on a disk of its own (in WAL mode a reader and the writer share memory, which two machines cannot).
    steal: whoever does must be gone; raises LockedError if not."""
    from metasearch.driver.folder import must_be_gone, runs_elsewhere
    from metasearch.driver.opening import mend
    from metasearch.driver.study import Study, StudyError
    from metasearch.ledger import Ledger, only_here

    path = study_folder(name, home) / "ledger.sqlite"
    if not path.parent.is_dir():
        raise Refused(f"there is no study '{name}' in {home}.{plugins.did_you_mean(name, names(home))}")
    if steal:
        must_be_gone(path.parent)
    elif only_here(path) and (holder := runs_elsewhere(path.parent)) is not None:
        raise Refused(
            f"study '{name}' is being run by process {holder}, and only that machine may open its ledger. From here: metasearch "
            f"status {name}, metasearch leaderboard {name} (from MLflow); or wait until it has stopped.", TRY_AGAIN,
        )
    mend(path.parent)
    with Ledger.open(path) as ledger:
        body = ledger.study()["study"]
    try:
        return Study.from_json(body)
    except StudyError as error:
        raise Refused(f"{path} holds a study that this version of metasearch does not understand: {error}", BAD_DATA) from error


def unit_of(one: Status, home: Path) -> Unit:
    """What the scores of a study are called: old ones say it in their ledger alone."""
    from metasearch.ledger import Ledger
    from metasearch.track.projection import unit

    if one.away:
        return Unit(one.unit)
    with Ledger.open(home / one.name / "ledger.sqlite") as ledger:
        return Unit(unit(ledger.study()))


def status_of(name: str, home: Path) -> Status:
    """What its driver last said of it. The ledger must be whole too, unless it is on another machine that it is written."""
    from metasearch.driver import launch
    from metasearch.driver.status import Status

    if not study_folder(name, home).is_dir():
        stored(name, home)
    one = Status.from_json(launch.status(name, home=home))
    if not one.away:
        stored(name, home)
    return one


def board_of(
    name: str | None, home: Path, *, source: Source, top: int | None = None, where: str | None = None, sort: str | None = None,
    front: Cost = "params",
) -> DataFrame:
    from metasearch.track.leaderboard import leaderboard

    return leaderboard(name, where=where, sort=sort, top=top, home=home, source=source, front=front)
