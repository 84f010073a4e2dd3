"""Commands that run a study: run and resume."""
from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch import plugins
from metasearch.cli import board
from metasearch.cli.failures import NO_SUCCESS, TOO_MANY_ERRORS, Refused, talk
from metasearch.cli.live import Live, Unit, Warnings
from metasearch.cli.show import Json
from metasearch.cli.stored import Home, board_of, elsewhere, stored
from metasearch.home import home_of, study_folder

if TYPE_CHECKING:
    from metasearch.driver.launch import Result
    from metasearch.driver.study import Study
    from metasearch.tasks import TaskDistribution

Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="A live region on a terminal; else one line a change.")]


def run(
    study: Annotated[list[str] | None, typer.Argument(
        metavar="STUDY KEY=VALUE",
        help="A study file (study.toml), or one of the studies that come along (glyphs, omniglot, sine), and what to change "
             "in it: tasks.ways=20 budget.coverage=0.95",
    )] = None,
    name: Annotated[str | None, typer.Option(help="The study's name; the same as name=NAME.")] = None,
    new_id: Annotated[bool, typer.Option("--new-id", help="If the name is taken, use NAME-2, NAME-3, ...")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong with the study and what it would do.")] = False,
    home: Home = None, progress: Progress = True, as_json: Json = False,
) -> None:
    """Runs a study, to its leaderboard. Without arguments: a search over learners on few-shot characters."""
    words = list(study or [])
    source = words.pop(0) if words and "=" not in words[0] else None
    if name is not None:
        words.append(f"name={name}")
    wanted = _read(source, words)
    folder_of_all = home_of(home)
    named = name is not None or any(word.startswith("name=") for word in words)
    wanted = _free_name(wanted, folder_of_all, again=new_id or (source is None and not named))
    _may_begin(wanted, folder_of_all)
    talk(_plan(wanted, folder_of_all))
    if check:
        return

    from metasearch.driver import launch

    with _shown(wanted, home, progress) as show:
        result = launch.run(wanted, home=folder_of_all, show=show)
    _concluded(wanted, result, folder_of_all, as_json)


def resume(
    name: Annotated[str, typer.Argument(help="The study's name.")],
    changes: Annotated[list[str] | None, typer.Argument(
        metavar="KEY=VALUE", help="New limits or another driver: budget.trials=500 driver.lanes=8",
    )] = None,
    home: Home = None, progress: Progress = True, as_json: Json = False,
) -> None:
    """Goes on with an interrupted study. No finished trial runs again, none is lost."""
    from metasearch.driver import launch

    folder_of_all = home_of(home)
    wanted = stored(name, folder_of_all)
    with _shown(wanted, home, progress) as show:
        result = launch.resume(name, home=folder_of_all, show=show, overrides=tuple(changes or ()))
    _concluded(wanted, result, folder_of_all, as_json)


def embedded() -> dict[str, Path]:
    """The studies that come along."""
    import metasearch

    return {file.stem: file for file in sorted((Path(metasearch.__file__).parent / "studies").glob("*.toml"))}


def _read(source: str | None, overrides: list[str]) -> Study:
    """The study that is meant, with everything about it right. Raises StudyError with all that is not."""
    from metasearch.driver import fit, study_file

    if source is None:
        source = _by_itself()
    along = embedded()
    if source in along and not Path(source).is_file():
        return fit.checked(study_file.read(along[source], overrides))
    if not source.endswith(".toml") and not Path(source).exists():
        hint = plugins.did_you_mean(source, along)
        raise Refused(f"'{source}' is no study: name a .toml file, or one that comes along.{hint}")
    return fit.checked(study_file.read(Path(source), overrides))


def _by_itself() -> str:
    """What runs without arguments: real Omniglot if the person says where it is, glyphs otherwise."""
    data = os.environ.get("METASEARCH_DATA")
    if data and (Path(data) / "omniglot" / "images_background.zip").is_file():
        talk(f"running the study 'omniglot', since METASEARCH_DATA={data} has Omniglot (metasearch run glyphs: without it)")
        return "omniglot"
    return "glyphs"


def _free_name(study: Study, home: Path, *, again: bool) -> Study:
    """A name that is not taken. Raises Refused if it is, with what to do."""
    def taken(name: str) -> bool:
        return (study_folder(name, home) / "ledger.sqlite").exists()

    if not taken(study.name):
        return study
    if again:
        number = next(n for n in range(2, sys.maxsize) if not taken(f"{study.name[:58]}-{n}"))
        return study.with_([f"name={study.name[:58]}-{number}"])
    if stored(study.name, home).digest == study.digest:
        raise Refused(f"study '{study.name}' is there already, and is the same. Go on with it: metasearch resume {study.name}")
    raise Refused(
        f"another study '{study.name}' is there already, and is left as it is. Give this one another name (name=NAME), "
        f"or let it have a number (--new-id). To go on with the old one: metasearch resume {study.name}"
    )


def _may_begin(study: Study, home: Path) -> None:
    """Raises StudyError if the weights with which all trials should begin are not there, or fit nothing."""
    from metasearch.driver import start
    from metasearch.driver.study import StudyError

    if wrong := start.problems(study, home):
        raise StudyError(wrong, f"study '{study.name}'")


def _plan(study: Study, home: Path) -> str:
    space, planned, coverage = study.space(), study.planned_trials(), study.coverage()
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
    live = Live(Unit() if study.tasks is None else Unit(_tasks_class(study.tasks.name).unit), progress=progress)
    logger, warnings = logging.getLogger("metasearch"), Warnings(live)
    logger.addHandler(warnings)
    try:
        with live, contextlib.redirect_stdout(sys.stderr):  # what a user's recipe prints is talk
            yield live
    except BaseException as error:
        begun = isinstance(error, KeyboardInterrupt) if live.last is None else live.last.reason is None
        if begun and (home_of(home) / study.name / "ledger.sqlite").is_file():
            talk(f"to go on: metasearch resume {study.name}{elsewhere(home)}")
        raise
    finally:
        logger.removeHandler(warnings)


def _tasks_class(name: str) -> type[TaskDistribution]:
    from metasearch.tasks import TaskDistribution

    return plugins.find("tasks", name, TaskDistribution)


def _concluded(study: Study, result: Result, home: Path, as_json: bool) -> None:
    """The leaderboard, the coverage that was reached, and the exit code."""
    one = result.status
    found = board_of(study.name, home, source="ledger", top=None if as_json else 10)
    if as_json:
        from metasearch.track.formats import records

        print(json.dumps({"status": one.to_json(), "leaderboard": records(found)}, allow_nan=False))
    else:
        board.show(found)
    if one.coverage is not None:
        wanted = "" if one.coverage_wanted is None else f" (wanted: {one.coverage_wanted:g})"
        part = ", by the random draws of the strategy alone" if one.random_part else ""
        talk(f"coverage: one of the top {one.top} was tried with probability {one.coverage:.3f}{wanted}{part}")
    if study.track.enabled:
        from metasearch.track.store import sqlite_path, tracking_uri

        uri = tracking_uri(study.track.uri, home)
        talk(f"in MLflow: {uri}" if sqlite_path(uri) is None else f"in MLflow: mlflow ui --backend-store-uri {uri}")
    where = elsewhere(home)
    best = f"metasearch evaluate {study.name}/{one.best_trial}{where}"
    tested = "" if one.best_trial is None else f" On the sealed test tasks: {best}"
    talk(f"'{study.name}' ended: {one.reason}. Again: metasearch leaderboard {study.name}{where}.{tested}")
    if result.exit_code == NO_SUCCESS:
        raise Refused(f"no trial of '{study.name}' succeeded. What they said: metasearch show {study.name}", NO_SUCCESS)
    if result.exit_code == TOO_MANY_ERRORS:
        raise Refused(f"{one.failed} trials of '{study.name}' failed, more than driver.max_errors allows", TOO_MANY_ERRORS)
