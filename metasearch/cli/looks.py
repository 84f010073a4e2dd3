"""Commands that look at studies: status, leaderboard, show; evaluate, sync and clean, which also write."""
from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.cli import board, pictures, policy
from metasearch.cli.configs import flat
from metasearch.cli.failures import FAILURE, Refused, talk
from metasearch.cli.live import Live, Unit, clock, in_a_line
from metasearch.cli.show import Json, console, printable, table
from metasearch.cli.stored import Cost, Home, Source, board_of, complain, elsewhere, of_all, status_of, stored, unit_of
from metasearch.home import home_of

if TYPE_CHECKING:
    from metasearch.driver.status import Status
    from metasearch.driver.study import Study
    from metasearch.trained import Evaluation


def status(
    name: Annotated[str | None, typer.Argument(help="The study's name; all studies if it is left out.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on looking until it ends or is stopped, or Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    home: Home = None, as_json: Json = False,
) -> None:
    """Where studies stand. Trials done, running and failed, best so far, time left, coverage."""
    folder_of_all = home_of(home)
    if watch:
        if name is None:
            raise Refused("--watch needs the name of one study: metasearch status NAME --watch")
        watched(name, folder_of_all, every=every, as_json=as_json, again=elsewhere(home))
        return
    if name is None:
        found, bad = of_all(folder_of_all, lambda each: status_of(each, folder_of_all))
        if as_json:
            print(json.dumps([one.to_json() for one in found], allow_nan=False))
        elif found:
            table(["study", "trials", "failed", "best", "coverage", "state"],
                  [_status_row(one, folder_of_all) for one in found])
        elif not bad:
            talk(f"no studies in {folder_of_all}")
        complain(bad)
        return
    one = status_of(name, folder_of_all)
    if as_json:
        print(json.dumps(one.to_json(), allow_nan=False))
    else:
        console().print(in_a_line(one, unit_of(one, folder_of_all)))
        talk(_state(one, folder_of_all))


def watched(name: str, home: Path, *, every: float, as_json: bool, again: str) -> None:
    """Shows a study that another process runs, here or on another machine, until it stands still. Only status.json is read: no
    lock is taken, and no ledger opened, which other machines must not. Raises Refused if its driver is gone."""
    from metasearch.driver import launch
    from metasearch.driver.status import Status

    one = Status.from_json(launch.status(name, home=home))
    with _as_lines() if as_json else Live(Unit(one.unit), data=True) as show:
        while True:
            show(one)
            if one.reason is not None or _gone(one):
                break
            time.sleep(every)
            one = Status.from_json(launch.status(name, home=home))
    if one.reason is None:
        raise Refused(f"nobody runs '{name}' any more; to go on: metasearch resume {name}{again}", FAILURE)


@contextlib.contextmanager
def _as_lines() -> Iterator[Callable[[Status], None]]:
    """Every change as a JSON object in a line."""
    said = ""

    def show(one: Status) -> None:
        nonlocal said
        text = json.dumps(one.to_json(), allow_nan=False)
        if text != said:
            print(text, flush=True)
            said = text

    yield show


def _gone(one: Status) -> bool:
    """Has the driver of this machine ended? Of another machine's nothing is known."""
    from metasearch.driver.folder import lives

    return one.host == socket.gethostname() and not lives(one.pid)


def leaderboard(
    name: Annotated[str | None, typer.Argument(help="The study's name; all studies if it is left out.")] = None,
    form: Annotated[board.Format, typer.Option("--format", help="How to write it.")] = "table",
    top: Annotated[int | None, typer.Option(help="So many rows.", min=1)] = None,
    where: Annotated[str | None, typer.Option(help=(
        'Only some: "learner.inner_lr < 0.1 and learner = \'maml\'". A dimension named like a column is config/NAME.'))] = None,
    sort: Annotated[str | None, typer.Option(help="A column or a dimension (config/NAME); -params: the largest first.")] = None,
    front: Annotated[Cost, typer.Option(help="Marks the Pareto front of the score and this cost.")] = "params",
    source: Annotated[Source, typer.Option(help="Ask MLflow, or the study's ledger.")] = "mlflow",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")] = None,
    home: Home = None, as_json: Json = False,
) -> None:
    """Trials, best first. With intervals, and which of them cannot be told from the first."""
    folder_of_all = home_of(home)
    if name is not None and source == "ledger":
        stored(name, folder_of_all)
    found = board_of(name, folder_of_all, source=source, top=top, where=where, sort=sort, front=front)
    board.write(found, "json" if as_json else form, output)


def show(
    what: Annotated[str, typer.Argument(metavar="STUDY[/TRIAL]", help="A study, or one of its trials: glyphs/12.")],
    picture: pictures.Picture = None, home: Home = None, as_json: Json = False,
) -> None:
    """A study or a trial in full, with its architecture. From the ledger; draws pictures (with --json only by --picture)."""
    from metasearch.ledger import Ledger

    pictures.check(picture)
    name, _, number = what.partition("/")
    folder_of_all = home_of(home)
    study = stored(name, folder_of_all)
    with Ledger.open(folder_of_all / name / "ledger.sqlite") as ledger:
        if number:
            _show_trial(study, ledger, what, number, as_json, picture)
        else:
            _show_study(study, ledger, as_json)
            if picture is not None or not as_json:
                pictures.of_study(ledger, picture)


def evaluate(
    trial: Annotated[str, typer.Argument(metavar="STUDY/TRIAL", help="The trial to test: glyphs/12.")],
    episodes: Annotated[int, typer.Option(help="Episodes of the test split.", min=2)] = 600,
    seed: Annotated[int, typer.Option(help="Which episodes: equal seeds draw equal ones for all trials.", min=0)] = 0,
    shift: Annotated[bool, typer.Option("--shift", help="Tasks away from those that were trained on.")] = False,
    steps: Annotated[int, typer.Option(help="The adaptation curve goes from 0 to so many inner steps.", min=0)] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draws the curve and the waves: a .png, .svg or .pdf.")] = None,
    home: Home = None, as_json: Json = False,
) -> None:
    """Scores a trial on the sealed test split. The ledger records that it was opened."""
    from metasearch import trained

    if plot is not None and (plot.suffix.lower() not in (".png", ".svg", ".pdf") or not plot.absolute().parent.is_dir()):
        raise Refused(f"--plot needs a .png, .svg or .pdf in a folder that is there, but got {printable(str(plot))}")
    name, _, _ = trial.partition("/")
    stored(name, home_of(home))
    with _doing() as say, contextlib.redirect_stdout(sys.stderr):  # what a user's recipe prints is talk
        found = trained.evaluate(trial, home=home_of(home), episodes=episodes, seed=seed, shift=shift, steps=steps, say=say)
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        _show_evaluation(found)
    if plot is not None:  # last: a disk that is full takes no result away
        from metasearch.draw import evaluation

        evaluation(found, plot)
        talk(f"drawn: {plot}")


def _show_evaluation(found: Evaluation) -> None:
    for one in (found, *([found.half] if found.half else [])):
        unit = Unit(one.unit)
        verified = "" if one.verification is None else f"; same or different: ROC-AUC {one.verification:.4f}"
        diverged = f"; {one.diverged:.1%} of the episodes diverged" if one.diverged else ""
        console().print(
            f"{one.trial} on {one.split} ({len(one.scores)} episodes): {unit.text(*one.interval[:3])} {one.unit}, "
            f"95 % interval over episodes; median {unit.text(one.median)}{verified}{diverged}"
        )
        if one.curve:
            table(["inner steps", one.unit, "median"],
                  [[str(p.inner_steps), unit.text(p.mean, p.low, p.high), unit.text(p.median)] for p in one.curve])


@contextlib.contextmanager
def _doing() -> Iterator[Callable[[str], None]]:
    """On a terminal, one line that says what is being done; elsewhere nothing."""
    screen = console(stderr=True)
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield lambda words: None
        return
    with screen.status("") as line:
        yield lambda words: line.update(words)


def sync(
    name: Annotated[str | None, typer.Argument(help="The study's name; all studies if it is left out.")] = None,
    home: Home = None, as_json: Json = False,
) -> None:
    """Makes MLflow equal the ledger. Sends what is missing, mends what differs."""
    from metasearch.driver import launch

    folder_of_all = home_of(home)
    done: list[dict[str, Any]] = []

    def sent(each: str) -> None:
        if name is None and not stored(each, folder_of_all).track.enabled:
            talk(f"{each}: not sent, since track.enabled is false. All the same: metasearch sync {each}")
            return
        found = launch.sync(each, home=folder_of_all)
        done.append({"study": each, "rows": found.rows, "runs": found.runs, "mended": found.wrong})
        talk(f"{each}: MLflow has all {found.rows} rows of the ledger" + (f"; mended: {found.wrong}" if found.wrong else ""))

    bad: list[str] = []
    if name is None:
        bad = of_all(folder_of_all, sent)[1]
    else:
        stored(name, folder_of_all)
        sent(name)
    if as_json:
        print(json.dumps(done))
    complain(bad)


def clean(
    name: Annotated[str, typer.Argument(help="The study's name.")],
    keep: Annotated[int | None, typer.Option(
        min=0, help="So many of the best trials keep their weights.", show_default="track.top of the study",
    )] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this, only say what it would free.")] = False,
    home: Home = None, as_json: Json = False,
) -> None:
    """Makes room. Removes the weights of an ended study's trials, except those of the best; all results stay."""
    from metasearch.driver.clean import clean as cleaned

    stored(name, home_of(home))
    found = cleaned(name, keep=keep, yes=yes, home=home_of(home))
    if as_json:
        print(json.dumps(found.to_json()))
    kept = ", ".join(f"{name}/{number}" for number in found.kept) or "none"
    if not found.trials:
        talk(f"there is nothing to remove; weights that stay: {kept}")
        return
    talk(f"{'freed' if found.done else 'would free'} {found.bytes / 1e6:,.1f} MB: the weights of {len(found.trials)} trials of "
         f"'{name}', which {'can no longer' if found.done else 'could then no longer'} be evaluated or gone on from; "
         f"weights that stay: {kept}")
    if not found.done:
        number = "" if keep is None else f" --keep {keep}"
        talk(f"nothing was removed. To do it: metasearch clean {name}{number} --yes{elsewhere(home)}")


def export(
    trial: Annotated[str, typer.Argument(metavar="STUDY/NUMBER", help="The trial.")],
    folder: Annotated[Path, typer.Argument(help="A new or an empty folder.")],
    home: Home = None, as_json: Json = False,
) -> None:
    """Writes a trained meta-learner (weights as safetensors, JSON) into a folder that metasearch.load reads on any machine."""
    from metasearch.hands import CARD
    from metasearch.hands import export as exported

    place = exported(trial, folder, home=home_of(home))
    if as_json:
        print(json.dumps({"trial": trial, "folder": str(place), "files": sorted(p.name for p in place.iterdir())}))
    space = json.loads((place / CARD).read_text("utf-8"))["space"]
    trust = ", trust_code=True" if "file" in space or "." in space["name"] else ""
    talk(f"{trial} is in {place}. In Python: metasearch.load({str(place)!r}{trust})")


def _show_trial(study: Study, ledger: Any, what: str, number: str, as_json: bool, picture: Path | None) -> None:
    from metasearch.track.projection import unit as tracked_unit

    trials = ledger.trials()
    if not number.isdecimal() or int(number) not in trials:
        raise Refused(f"there is no trial {printable(what)}: '{study.name}' has trials 1 to {max(trials, default=0)}")
    row, unit = trials[int(number)], Unit(tracked_unit(ledger.study()))
    history = list(ledger.rows(trial=row.id))
    if as_json:
        print(json.dumps({
            "trial": what, "status": row.status, "config": row.proposal.config, "proposal": row.proposal.to_json(),
            "attempts": row.attempts, "seconds": row.seconds, "checkpoint": row.checkpoint,
            "outcome": None if row.outcome is None else row.outcome.to_json(),
            "episodes": None if row.episodes is None else row.episodes.tolist(),
            "history": [{"at": r.at, "kind": r.kind, **r.body} for r in history],
        }, allow_nan=False))
        if picture is not None:
            pictures.of_trial(ledger, row, pictures.graphs_of(study, row, wanted=True), picture)
        return
    outcome = row.outcome
    score = f", {unit.text(outcome.score)}" if outcome and outcome.score is not None else ""
    attempts = f"{row.attempts} attempt{'' if row.attempts == 1 else 's'}"
    parent = f"; goes on from trial {row.proposal.parent}" if row.proposal.parent else ""
    console().print(f"{what}: {row.status}{score}, {clock(row.seconds)} in {attempts}{parent}")
    if outcome is not None and outcome.reason:
        console().print(printable(outcome.reason))
    config, found = row.proposal.config, row.report.found if row.report is not None else None
    if found is None:
        table(["dimension", "value"], [[path, _number(value)] for path, value in config.items()])
    else:  # where nothing was searched, both are equal
        paths = dict.fromkeys([*config, *found])
        table(["dimension", "found", "proposed"], [
            [path, *(_number(each[path]) if path in each else "" for each in (found, config))] for path in paths])
    graphs = pictures.graphs_of(study, row, wanted=picture is not None)
    pictures.as_text(graphs, row)
    augmented = pictures.policy_of(study, ledger, row)
    if augmented is not None:
        from metasearch.policies import told

        channels = augmented[1].input_shape[0]
        table(policy.HEAD, told(augmented[0], channels), title="augmentation of training")
    start = history[0].at if history else 0.0
    table(["after", "what", "step", "score", ""], [
        [clock(r.at - start), r.kind, str(r.body.get("step", "")), _scored(r, unit), _remark(r)] for r in history
    ])
    if outcome is not None and outcome.metrics:
        table(["metric", "last"], [[name, _number(value)] for name, value in sorted(outcome.metrics.items())])
    pictures.of_trial(ledger, row, graphs, picture)
    if augmented is not None:
        pictures.of_policy(ledger, row, *augmented)
    if row.checkpoint:
        talk(f"weights: {row.checkpoint}")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scored(row: Any, unit: Unit) -> str:
    return "" if row.body.get("score") is None else unit.text(row.body["score"])


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
    events = list(ledger.rows(kinds=["note", "opened", "evaluated", "stopped", "resumed"]))
    if as_json:
        said = [{"at": r.at, "kind": r.kind, "trial": r.trial, **r.body} for r in events]
        print(json.dumps({**first, "digest": study.digest, "events": said}, allow_nan=False))
        return
    rows = [[".".join(path), str(value)] for path, value in flat(first["study"]) if value not in (None, {})]
    table(["key", "value"], rows, title=f"study '{study.name}'")
    modes = Counter(row.body["mode"] for row in ledger.rows(kinds=["mode"]))
    facts = {key: value for key, value in first.items() if key not in ("study", "space")}
    facts["modes"] = ", ".join(f"{mode}: {count} nets" for mode, count in modes.items()) or None
    rows = [[".".join(path), str(value)] for path, value in flat(facts) if value not in (None, {})]
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


def _status_row(one: Status, home: Path) -> list[str]:
    unit = unit_of(one, home)
    planned = "" if one.planned is None else f"/{one.planned}"
    return [one.name, f"{one.used}{planned}", str(one.failed), unit.text(one.best_score, one.best_low, one.best_high),
            "-" if one.coverage is None else f"{one.coverage:.2f}", _state(one, home)]


def _state(one: Status, home: Path) -> str:
    from metasearch.driver.folder import held_by

    if one.reason is not None:
        return f"ended: {one.reason}"
    holder = held_by(home / one.name)
    return f"running, process {holder}" if holder else f"interrupted; to go on: metasearch resume {one.name}"
