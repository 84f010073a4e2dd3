"""Commands about one study: run, resume, status, leaderboard, show, evaluate, sync."""
from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from metasearch import plugins
from metasearch.cli.failures import BAD_DATA, NO_SUCCESS, TOO_MANY_ERRORS, Refused, talk
from metasearch.cli.live import Live, Unit, clock, in_a_line
from metasearch.cli.show import Json, console, printable, table

if TYPE_CHECKING:
    from metasearch.driver.director import Status
    from metasearch.driver.study import Study
    from metasearch.space import Space

Home = Annotated[Path | None, typer.Option(help="Where studies live.", envvar="METASEARCH_HOME", show_default="./studies")]
Format = Literal["table", "csv", "json", "parquet"]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="A live region on a terminal; else one line a change.")]


# -- run and resume ---------------------------------------------------------------------------------------------------


def run(
    study: Annotated[list[str] | None, typer.Argument(
        metavar="[STUDY] [KEY=VALUE]...",
        help="A study file (study.toml) or one of the studies that come along (glyphs, omniglot, sine), and what to change in it: "
             "tasks.ways=20 budget.coverage=0.95",
    )] = None,
    name: Annotated[str | None, typer.Option(help="The study's name; the same as name=NAME.")] = None,
    new_id: Annotated[bool, typer.Option("--new-id", help="If there is a study of this name, call this one NAME-2, NAME-3, ...")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong with the study, if anything, and what it would do.")] = False,
    home: Home = None, progress: Progress = True, as_json: Json = False,
) -> None:
    """Runs a study from its first trial to its leaderboard. Without arguments: the study that comes along."""
    words = list(study or [])
    source = words.pop(0) if words and "=" not in words[0] else None
    if name is not None:
        words.append(f"name={name}")
    wanted = _read(source, words)
    folder_of_all = _home(home)
    named = name is not None or any(word.startswith("name=") for word in words)
    if not check:
        wanted = _free_name(wanted, folder_of_all, again=new_id or (source is None and not named))
    space = _fitting(wanted)
    talk(_plan(wanted, space, folder_of_all))
    if check:
        return

    from metasearch.driver import launch

    with _shown(wanted, home, progress) as show:
        result = launch.run(wanted, home=folder_of_all, show=show)
    _concluded(wanted, result.status, folder_of_all, as_json)


def resume(
    name: Annotated[str, typer.Argument(help="The study's name.")], home: Home = None, progress: Progress = True, as_json: Json = False
) -> None:
    """Goes on with a study that was interrupted: no finished trial runs again, none is lost."""
    from metasearch.driver import launch

    folder_of_all = _home(home)
    wanted = _stored(name, folder_of_all)
    with _shown(wanted, home, progress) as show:
        result = launch.resume(name, home=folder_of_all, show=show)
    _concluded(wanted, result.status, folder_of_all, as_json)


def embedded() -> dict[str, Path]:
    """The studies that come along."""
    import metasearch

    return {file.stem: file for file in sorted((Path(metasearch.__file__).parent / "studies").glob("*.toml"))}


def _read(source: str | None, overrides: list[str]) -> Study:
    from metasearch.driver.study import Study

    if source is None:
        source = _by_itself()
    along = embedded()
    if source in along and not Path(source).is_file():
        return Study.from_toml(along[source], overrides)
    if not source.endswith(".toml") and not Path(source).exists():
        hint = plugins.did_you_mean(source, along)
        raise Refused(f"'{source}' is no study: name a .toml file, or one that comes along.{hint}")
    return Study.from_toml(source, overrides)


def _by_itself() -> str:
    """What runs without arguments: real Omniglot if the person says where it is, glyphs otherwise."""
    data = os.environ.get("METASEARCH_DATA")
    if data and (Path(data) / "omniglot" / "images_background.zip").is_file():
        talk(f"running the study 'omniglot', since METASEARCH_DATA={data} has Omniglot (metasearch run glyphs: without it)")
        return "omniglot"
    return "glyphs"


def _free_name(study: Study, home: Path, *, again: bool) -> Study:
    """A name that is not taken. Raises Refused if it is, with what to do."""
    from metasearch.driver.folder import study_folder

    def taken(name: str) -> bool:
        return (study_folder(name, home) / "ledger.sqlite").exists()

    if not taken(study.name):
        return study
    if again:
        number = next(n for n in range(2, sys.maxsize) if not taken(f"{study.name[:58]}-{n}"))
        return study.with_([f"name={study.name[:58]}-{number}"])
    if _stored(study.name, home).digest == study.digest:
        raise Refused(f"study '{study.name}' is there already, and is the same. Go on with it: metasearch resume {study.name}")
    raise Refused(
        f"another study '{study.name}' is there already, and is left as it is. Give this one another name (name=NAME), "
        f"or let it have a number (--new-id). To go on with the old one: metasearch resume {study.name}"
    )


def _stored(name: str, home: Path) -> Study:
    from metasearch.driver.folder import study_folder
    from metasearch.driver.study import Study, StudyError
    from metasearch.ledger import Ledger

    path = study_folder(name, home) / "ledger.sqlite"
    if not path.parent.is_dir():
        raise Refused(f"there is no study '{name}' in {home}.{plugins.did_you_mean(name, _names(home))}")
    with Ledger.open(path) as ledger:
        body = ledger.study()["study"]
    try:
        return Study.from_json(body)
    except StudyError as error:
        raise Refused(f"{path} holds a study that this version of metasearch does not understand: {error}", BAD_DATA) from error


def _fitting(study: Study) -> Space:
    """The study's space, if everything fits. Raises StudyError with everything that does not."""
    from metasearch.driver.study import StudyError

    problems = study.problems()
    if problems:
        raise StudyError(problems, f"study '{study.name}'")
    return study.space()


def _plan(study: Study, space: Space, home: Path) -> str:
    planned, coverage = study.planned_trials(), study.coverage()
    trials = "trials until the time is over" if planned is None else f"{planned} trials"
    why = "" if coverage is None else f" (the top {coverage.top} with probability {coverage.confidence:g})"
    hours = "" if study.budget.hours is None else f", at most {study.budget.hours:g} hours"
    size = "infinitely many" if math.isinf(space.size) else f"{space.size:,}"
    tasks = "" if study.tasks is None else f" on {study.tasks.name}"
    return (
        f"study '{study.name}': {study.method.name} over {study.space_name} ({size} configurations){tasks}, "
        f"{trials}{why}{hours}; kept in {home / study.name}"
    )


@contextlib.contextmanager
def _shown(study: Study, home: Path | None, progress: bool) -> Iterator[Live]:
    """Shows the study, and says on every exit of an unfinished one how to go on."""
    live = Live(_unit(study), progress=progress)
    try:
        with live:
            yield live
    except BaseException:
        folder = _home(home) / study.name
        if (folder / "ledger.sqlite").is_file() and (live.last is None or live.last.reason is None):
            talk(f"to go on: metasearch resume {study.name}" + ("" if home is None else f" --home {home}"))
        raise


def _concluded(study: Study, status: Status, home: Path, as_json: bool) -> None:
    """The leaderboard, the coverage that was reached, and the exit code."""
    rows = _rows(study.name, home, source="ledger")
    if as_json:
        print(json.dumps({"status": status.to_json(), "leaderboard": json.loads(rows.to_json())}, allow_nan=False))
    else:
        rows.print(console(), top=10)
    if status.coverage is not None:
        wanted = "" if status.coverage_wanted is None else f" (wanted: {status.coverage_wanted:g})"
        talk(f"coverage: one of the top {status.top} was tried with probability {status.coverage:.3f}{wanted}")
    talk(f"'{study.name}' ended: {status.reason}. Again: metasearch leaderboard {study.name}; "
         f"on the sealed test tasks: metasearch evaluate {study.name}/{status.best_trial}")
    if status.done == 0:
        raise Refused(f"no trial of '{study.name}' succeeded. What they said: metasearch show {study.name}", NO_SUCCESS)
    if status.reason == "errors":
        raise Refused(f"{status.failed} trials of '{study.name}' failed, more than driver.max_errors allows", TOO_MANY_ERRORS)


# -- looking ----------------------------------------------------------------------------------------------------------
