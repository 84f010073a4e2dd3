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
    from metasearch.driver.launch import Result
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
    new_id: Annotated[bool, typer.Option("--new-id", help="If the name is taken, use NAME-2, NAME-3, ...")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong with the study and what it would do.")] = False,
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
    _concluded(wanted, result, folder_of_all, as_json)


def resume(
    name: Annotated[str, typer.Argument(help="The study's name.")],
    changes: Annotated[list[str] | None, typer.Argument(
        metavar="[KEY=VALUE]...", help="New limits or another driver: budget.trials=500 driver.lanes=8",
    )] = None,
    home: Home = None, progress: Progress = True, as_json: Json = False,
) -> None:
    """Goes on with a study that was interrupted: no finished trial runs again, none is lost."""
    from metasearch.driver import launch

    folder_of_all = _home(home)
    wanted = _stored(name, folder_of_all)
    with _shown(wanted, home, progress) as show:
        result = launch.resume(name, home=folder_of_all, show=show, overrides=tuple(changes or ()))
    _concluded(wanted, result, folder_of_all, as_json)


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
    from metasearch.home import study_folder

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
    from metasearch.home import study_folder
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


def _concluded(study: Study, result: Result, home: Path, as_json: bool) -> None:
    """The leaderboard, the coverage that was reached, and the exit code."""
    one = result.status
    board = _board(study.name, home, source="ledger")
    if as_json:
        print(json.dumps({"status": one.to_json(), "leaderboard": board.records}, allow_nan=False))
    else:
        board.show(top=10)
    if one.coverage is not None:
        wanted = "" if one.coverage_wanted is None else f" (wanted: {one.coverage_wanted:g})"
        talk(f"coverage: one of the top {one.top} was tried with probability {one.coverage:.3f}{wanted}")
    talk(f"'{study.name}' ended: {one.reason}. Again: metasearch leaderboard {study.name}. "
         f"On the sealed test tasks: metasearch evaluate {study.name}/{one.best_trial}")
    if result.exit_code == NO_SUCCESS:
        raise Refused(f"no trial of '{study.name}' succeeded. What they said: metasearch show {study.name}", NO_SUCCESS)
    if result.exit_code == TOO_MANY_ERRORS:
        raise Refused(f"{one.failed} trials of '{study.name}' failed, more than driver.max_errors allows", TOO_MANY_ERRORS)


# -- looking ----------------------------------------------------------------------------------------------------------


def status(
    name: Annotated[str | None, typer.Argument(help="The study's name; all studies if it is left out.")] = None,
    home: Home = None, as_json: Json = False,
) -> None:
    """Where a study stands: done, running, failed, best so far, time left, coverage."""
    folder_of_all = _home(home)
    if name is None:
        found = [_status(each, folder_of_all) for each in _names(folder_of_all)]
        if as_json:
            print(json.dumps([one.to_json() for one in found], allow_nan=False))
        elif found:
            table(["study", "trials", "failed", "best", "coverage", "state"],
                  [_status_row(one, folder_of_all) for one in found])
        else:
            talk(f"no studies in {folder_of_all}")
        return
    one = _status(name, folder_of_all)
    if as_json:
        print(json.dumps(one.to_json(), allow_nan=False))
    else:
        console().print(in_a_line(one, _unit(_stored(name, folder_of_all))))
        talk(_state(one, folder_of_all))


def show(
    what: Annotated[str, typer.Argument(metavar="STUDY[/TRIAL]", help="A study, or one of its trials: glyphs/12.")],
    home: Home = None, as_json: Json = False,
) -> None:
    """A study in full, or the history of one trial, from the ledger."""
    from metasearch.ledger import Ledger

    name, _, number = what.partition("/")
    folder_of_all = _home(home)
    study = _stored(name, folder_of_all)
    with Ledger.open(folder_of_all / name / "ledger.sqlite") as ledger:
        if number:
            _show_trial(study, ledger, what, number, as_json)
        else:
            _show_study(study, ledger, as_json)


def evaluate(
    trial: Annotated[str, typer.Argument(metavar="STUDY/TRIAL", help="The trial to test: glyphs/12.")],
    episodes: Annotated[int, typer.Option(help="Episodes of the test split.", min=2)] = 600,
    seed: Annotated[int, typer.Option(help="Which episodes: equal seeds draw equal ones for all trials.", min=0)] = 0,
    shift: Annotated[bool, typer.Option("--shift", help="Tasks away from those that were trained on.")] = False,
    steps: Annotated[int, typer.Option(help="The adaptation curve goes from 0 to so many inner steps.", min=0)] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draws the adaptation curve and sine waves: a .png, .svg or .pdf.")] = None,
    home: Home = None, as_json: Json = False,
) -> None:
    """Opens the sealed test split (the ledger records it) and scores a trial on it."""
    from metasearch import trained

    name, _, _ = trial.partition("/")
    _stored(name, _home(home))
    found = trained.evaluate(trial, home=_home(home), episodes=episodes, seed=seed, shift=shift, steps=steps, say=talk)
    if plot is not None:
        from metasearch.draw import evaluation

        evaluation(found, plot)
        talk(f"drawn: {plot}")
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
        return
    for one in (found, *([found.half] if found.half else [])):
        unit = Unit(one.unit)
        console().print(
            f"{one.trial} on {one.split} ({len(one.scores)} episodes): {unit.text(*one.interval[:3])} {one.unit}, 95 % interval over "
            f"episodes; median {unit.text(one.median)}" + (f"; {one.diverged:.1%} of the episodes diverged" if one.diverged else "")
        )
        if one.curve:
            table(["inner steps", one.unit, "median"],
                  [[str(p.inner_steps), unit.text(p.mean, p.low, p.high), unit.text(p.median)] for p in one.curve])


def sync(
    name: Annotated[str | None, typer.Argument(help="The study's name; all studies if it is left out.")] = None, home: Home = None,
) -> None:
    """Makes MLflow equal the ledger: sends what is missing, mends what differs."""
    from metasearch.track import outbox
    from metasearch.track.store import tracking_uri

    folder_of_all = _home(home)
    for each in [name] if name is not None else _names(folder_of_all):
        study = _stored(each, folder_of_all)
        uri = tracking_uri(study.track.uri, folder_of_all)
        found = outbox.sync(folder_of_all / each, uri)
        talk(f"{each}: {found.rows} ledger rows are in {uri}" + (f"; mended: {found.wrong}" if found.wrong else ""))


def _show_trial(study: Study, ledger: Any, what: str, number: str, as_json: bool) -> None:
    trials = ledger.trials()
    if not number.isdecimal() or int(number) not in trials:
        raise Refused(f"there is no trial {printable(what)}: '{study.name}' has trials 1 to {max(trials, default=0)}")
    row, unit = trials[int(number)], _unit(study)
    history = [r for r in ledger.rows(trial=row.id)]
    if as_json:
        print(json.dumps({
            "trial": what, "status": row.status, "config": row.proposal.config, "proposal": row.proposal.to_json(),
            "attempts": row.attempts, "seconds": row.seconds, "checkpoint": row.checkpoint,
            "outcome": None if row.outcome is None else row.outcome.to_json(),
            "episodes": None if row.episodes is None else row.episodes.tolist(),
            "history": [{"at": r.at, "kind": r.kind, **r.body} for r in history],
        }, allow_nan=False))
        return
    outcome = row.outcome
    console().print(f"{what}: {row.status}" + (f", {unit.text(outcome.score)}" if outcome and outcome.score is not None else "")
                    + f", {clock(row.seconds)} in {row.attempts} attempt{'s' if row.attempts != 1 else ''}"
                    + (f"; goes on from trial {row.proposal.parent}" if row.proposal.parent else ""))
    if outcome is not None and outcome.reason:
        console().print(printable(outcome.reason))
    table(["dimension", "value"], [[path, f"{value:.4g}" if isinstance(value, float) else str(value)]
                                   for path, value in row.proposal.config.items()])
    start = history[0].at if history else 0.0
    table(["after", "what", "step", "score", ""], [
        [clock(r.at - start), r.kind, str(r.body.get("step", "")), unit.text(r.body["score"]) if r.body.get("score") is not None else "",
         _remark(r)] for r in history
    ])
    if row.checkpoint:
        talk(f"weights: {row.checkpoint}")


def _remark(row: Any) -> str:
    """What is worth saying of a ledger row in a line."""
    body = row.body
    if row.kind == "started":
        return f"attempt {body['attempt']} in {body['lane']}" + (" from its parcel" if body.get("own") else "")
    if row.kind == "report":
        return ", ".join(f"{key} {value:.4g}" for key, value in list(body.get("metrics", {}).items())[:3])
    return str(body.get("reason") or body.get("what") or "")


def _show_study(study: Study, ledger: Any, as_json: bool) -> None:
    first = ledger.study()
    events = [r for r in ledger.rows(kinds=["note", "opened", "evaluated", "stopped", "resumed", "mode"])]
    if as_json:
        said = [{"at": r.at, "kind": r.kind, "trial": r.trial, **r.body} for r in events]
        print(json.dumps({**first, "digest": study.digest, "events": said}, allow_nan=False))
        return
    rows = [[key, str(value)] for key, value in _flat(first["study"]) if value is not None]
    table(["key", "value"], rows, title=f"study '{study.name}'")
    rows = [[key, str(value)] for key, value in _flat({k: v for k, v in first.items() if k != "study"}) if value is not None]
    table(["fact", "value"], rows)
    if events:
        table(["event", "trial", ""], [[r.kind, "" if r.trial is None else str(r.trial), _event(r)] for r in events])
    reasons: dict[str, list[int]] = {}
    for row in ledger.trials().values():
        if row.outcome is not None and row.outcome.status not in ("done", "reused"):
            reasons.setdefault(f"{row.outcome.status}: {(row.outcome.reason or '').partition(chr(10))[0]}", []).append(row.id)
    if reasons:
        table(["trials that are not done", "how many", "for instance"],
              [[reason, str(len(who)), f"{study.name}/{who[0]}"] for reason, who in reasons.items()])


def _event(row: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.body.items() if not isinstance(value, (list, dict)))


def _flat(body: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in body.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# -- what the commands share ------------------------------------------------------------------------------------------


def _home(home: Path | None) -> Path:
    from metasearch.home import home_of

    return home_of(home)


def _names(home: Path) -> list[str]:
    """The studies in a home."""
    return sorted(path.parent.name for path in home.glob("*/ledger.sqlite"))


def _unit(study: Study) -> Unit:
    """What the scores of a study are called; `tasks` is imported (with torch) for it."""
    from metasearch.tasks import TaskDistribution

    return Unit() if study.tasks is None else Unit(plugins.find("tasks", study.tasks.name, TaskDistribution).unit)


def _status(name: str, home: Path) -> Status:
    from metasearch.driver import launch
    from metasearch.driver.director import Status

    _stored(name, home)
    body = launch.status(name, home=home)
    return Status(**{**body, "lanes": tuple(body["lanes"])})


def _status_row(one: Status, home: Path) -> list[str]:
    unit = _unit(_stored(one.name, home))
    planned = "" if one.planned is None else f"/{one.planned}"
    return [one.name, f"{one.used}{planned}", str(one.failed), unit.text(one.best_score, one.best_low, one.best_high),
            "-" if one.coverage is None else f"{one.coverage:.2f}", _state(one, home)]


def _state(one: Status, home: Path) -> str:
    from metasearch.driver.folder import held_by

    if one.reason is not None:
        return f"ended: {one.reason}"
    holder = held_by(home / one.name)
    return f"running, process {holder}" if holder else f"interrupted; to go on: metasearch resume {one.name}"
