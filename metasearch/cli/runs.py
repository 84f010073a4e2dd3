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
from metasearch.cli.talking import Log, Quiet
from metasearch.driver.folder import must_be_free
from metasearch.home import home_of, study_folder

if TYPE_CHECKING:
    from metasearch.driver.launch import Result
    from metasearch.driver.study import Study
    from metasearch.driver.study_file import Source
    from metasearch.tasks import TaskDistribution

Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="A live region on a terminal; else one line a change.")]
StudyWords = Annotated[list[str] | None, typer.Argument(
    metavar="STUDY KEY=VALUE",
    help="A study file (study.toml), or one of the studies that come along (glyphs, omniglot, sine), and what to change "
         "in it: tasks.ways=20 budget.coverage=0.95",
)]
Address = Annotated[str | None, typer.Option(
    help="Of a running Ray cluster: auto, HOST:PORT or ray://HOST:PORT; the same as driver.address=ADDRESS.",
)]


def run(
    study: StudyWords = None,
    name: Annotated[str | None, typer.Option(help="The study's name; the same as name=NAME.")] = None,
    new_id: Annotated[bool, typer.Option("--new-id", help="If the name is taken, use NAME-2, NAME-3, ...")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong with the study and what it would do.")] = False,
    or_resume: Annotated[bool, typer.Option(
        "--resume-if-exists", help="If this very study is there already, go on with it: for schedulers that start things again.",
    )] = False,
    submitted: Annotated[bool, typer.Option("--submitted", hidden=True, help="As a job: what `metasearch submit` says.")] = False,
    address: Address = None, home: Home = None, progress: Progress = True, quiet: Quiet = False, log: Log = None,
    as_json: Json = False,
) -> None:
    """Runs a study, to its leaderboard. Without arguments: a search over learners on few-shot characters."""
    words = list(study or [])
    if name is not None:
        words.append(f"name={name}")
    wanted = read(words, address)
    folder_of_all = home_of(home)
    if submitted:
        wanted, or_resume = _arrived(wanted, home), True
    if or_resume and (changes := to_go_on(wanted, folder_of_all)) is not None:
        resume(wanted.name, changes, home=home, progress=progress, as_json=as_json)
        return
    by_itself = not words or "=" in words[0]
    named = any(word.startswith("name=") for word in words)
    wanted = _free_name(wanted, folder_of_all, again=new_id or (by_itself and not named))
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
    accept: Annotated[bool, typer.Option(
        "--accept-space-change", help="Go on although the space's file has changed, if all trials are in it; the ledger says so.",
    )] = False,
    steal: Annotated[bool, typer.Option(
        "--steal", help="Take it from a driver on another machine that is gone: refused while that one gives a sign of itself.",
    )] = False,
    address: Address = None, home: Home = None, progress: Progress = True, quiet: Quiet = False, log: Log = None,
    as_json: Json = False,
) -> None:
    """Goes on with an interrupted study. No finished trial runs again, none is lost."""
    from metasearch.driver import launch

    folder_of_all = home_of(home)
    wanted = stored(name, folder_of_all, steal=steal)
    if not steal:  # else `stored` has looked
        must_be_free(folder_of_all / name)  # said at once: what follows takes seconds
    with _shown(wanted, home, progress) as show:
        words = (*(changes or ()), *_addressed(address))
        result = launch.resume(name, home=folder_of_all, show=show, overrides=words, accept_space_change=accept, steal=steal)
    _concluded(wanted, result, folder_of_all, as_json)


def embedded() -> dict[str, Path]:
    """The studies that come along."""
    import metasearch

    return {file.stem: file for file in sorted((Path(metasearch.__file__).parent / "studies").glob("*.toml"))}


def read(words: list[str], address: str | None = None) -> Study:
    """The study that is meant by STUDY KEY=VALUE ..., with everything about it right. Raises StudyError with all that is not."""
    from metasearch.driver import fit

    return fit.checked(source(words, address))


def source(words: list[str], address: str | None = None) -> Source:
    """The table of a study, as it was written down. Raises StudyError if it cannot be read, Refused if there is none."""
    from metasearch.driver import study_file

    named = words[0] if words and "=" not in words[0] else None
    overrides = [*words[named is not None :], *_addressed(address)]
    if named is None:
        named = _by_itself()
    along = embedded()
    if named in along and not Path(named).is_file():
        return study_file.read(along[named], overrides)
    if not named.endswith(".toml") and not os.path.exists(named):  # a path's own `exists` raises for a name that is too long
        hint = plugins.did_you_mean(named, along)
        raise Refused(f"'{named}' is no study: name a .toml file, or one that comes along.{hint}")
    return study_file.read(Path(named), overrides)


def _addressed(address: str | None) -> list[str]:
    return [] if address is None else [f"driver.address={json.dumps(address)}"]


def _by_itself() -> str:
    """What runs without arguments: real Omniglot if the person says where it is, glyphs otherwise."""
    data = os.environ.get("METASEARCH_DATA")
    if data and (Path(data) / "omniglot" / "images_background.zip").is_file():
        talk(f"running the study 'omniglot', since METASEARCH_DATA={data} has Omniglot (metasearch run glyphs: without it)")
        return "omniglot"
    return "glyphs"


def _arrived(study: Study, home: Path | None) -> Study:
    """A study that came as a job: its files are kept beside its results, for the folder that it came in goes with the job."""
    from metasearch.driver.travel import kept

    if home is None:
        raise Refused(
            "where studies live on this cluster is not known, and the folder of a job is gone with the job. Set METASEARCH_HOME "
            "on its nodes to a folder of the shared storage, or name it: metasearch submit --home PATH"
        )
    return kept(study, study_folder(study.name, home_of(home)))


def to_go_on(study: Study, home: Path) -> list[str] | None:
    """If this very study is there, its driver and tracking as they are now, and its budget if that has changed; None if it is
    not, or is another one. Tables are given whole, so that what is no longer said holds no longer.

    A budget (and a driver.max_errors) that was given to an earlier `resume` stays, unless the study's own has changed since it
    began.
    """
    from metasearch.driver.launch import of_last_session
    from metasearch.driver.travel import line
    from metasearch.ledger import Ledger

    path = study_folder(study.name, home) / "ledger.sqlite"
    if not path.exists():
        return None
    first = stored(study.name, home)
    if first.model_copy(update={"budget": study.budget}).digest != study.digest:
        return None
    body = study.to_json()
    if first.driver.max_errors == study.driver.max_errors:
        with Ledger.open(path) as ledger:
            body["driver"]["max_errors"] = of_last_session(ledger).driver.max_errors
    tables = ("driver", "track", *(() if first.budget == study.budget else ("budget",)))
    return [line([table], body[table]) for table in tables]


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
            talk(f"to go on: metasearch resume {study.name}{elsewhere(home)}", "warning")
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
    where, source = elsewhere(home), "" if study.track.enabled else " --source ledger"
    best = f"metasearch evaluate {study.name}/{one.best_trial}{where}"
    tested = "" if one.best_trial is None else f" On the sealed test tasks: {best}"
    talk(f"'{study.name}' ended: {one.reason}. Again: metasearch leaderboard {study.name}{source}{where}.{tested}")
    if result.exit_code == NO_SUCCESS:
        raise Refused(f"no trial of '{study.name}' succeeded. What they said: metasearch show {study.name}", NO_SUCCESS)
    if result.exit_code == TOO_MANY_ERRORS:
        raise Refused(f"{one.failed} trials of '{study.name}' failed, more than driver.max_errors allows", TOO_MANY_ERRORS)
