"""Commands that list what there is: spaces, strategies, learners, tasks; and `budget`. Listing imports nothing."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from metasearch import plugins
from metasearch.cli.failures import FAILURE, Refused, talk
from metasearch.cli.show import Json, table

spaces = typer.Typer(no_args_is_help=True, help="Search spaces: list, show, check one, or begin a new one.")


def room(name: str, what: str) -> typer.Typer:
    """`metasearch learners list` and its like."""
    app = typer.Typer(no_args_is_help=True, help=f"{what}: list them.")

    @app.callback()
    def _group() -> None: ...

    @app.command("list")
    def _list(as_json: Json = False) -> None:
        """Names and what they are; nothing is imported."""
        _listed(name, as_json)

    return app


@spaces.command("list")
def spaces_list(as_json: Json = False) -> None:
    """Names and what they are; nothing is imported."""
    _listed("spaces", as_json)


def _listed(room: str, as_json: bool) -> None:
    rows = [{"name": name, "what": plugins.summary(room, name)} for name in plugins.names(room)]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        table(["name", "what"], [[row["name"], row["what"]] for row in rows])


@spaces.command("show")
def spaces_show(
    name: Annotated[str, typer.Argument(help="A name, a path to a .py file or an importable module.")], as_json: Json = False
) -> None:
    """The dimensions of a space, which of them are conditional, and its size."""
    from metasearch import space_file

    found = space_file.describe(name)
    if as_json:
        size = None if math.isinf(found.size) else found.size
        print(json.dumps({"space": found.space.to_json(), "digest": found.digest, "size": size, "example": found.example}))
        return
    table(["dimension", "values", "if"], [list(row) for row in found.dims])
    talk(f"{_size(found.size)} configurations; digest {found.digest}")


@spaces.command("check")
def spaces_check(
    file: Annotated[str, typer.Argument(help="A path to a .py file, a name or an importable module.")],
    as_json: Json = False,
) -> None:
    """Runs the contract tests on a space: samples, mutations, round trips; builds and runs one step."""
    from metasearch import space_file

    rows = []
    for truth, reason in space_file.check(file):
        rows.append({"truth": truth, "holds": reason is None, "reason": reason})
        if not as_json:
            print(f"{'ok    ' if reason is None else 'BROKEN'} {truth}" + (f"\n       {reason}" if reason else ""), flush=True)
    if as_json:
        print(json.dumps(rows, indent=1))
    broken = sum(not row["holds"] for row in rows)
    if broken:
        raise Refused(f"{broken} of {len(rows)} truths do not hold for {file}", FAILURE)
    talk(f"all {len(rows)} truths hold for {file}")


@spaces.command("new")
def spaces_new(file: Annotated[Path, typer.Argument(help="The file to write, for instance my_space.py.")]) -> None:
    """Writes a commented space file to begin from."""
    from metasearch import space_file

    space_file.new(file)
    talk(f"wrote {file}. Try: metasearch spaces check {file}")


def budget(
    total: Annotated[str, typer.Option(help="Number of configurations; inf: a space with a continuous dimension.")] = "inf",
    top: Annotated[str, typer.Option(help="How many of the best count as a hit (10), or which share ('1%').")] = "1%",
    confidence: Annotated[float, typer.Option(help="The probability with which one of them is to be looked at.")] = 0.9,
    trials: Annotated[int | None, typer.Option(help="The other way round: what do so many finished trials cover?")] = None,
    as_json: Json = False,
) -> None:
    """How many trials are enough. To hit one of the top configurations by chance, with and without replacement."""
    from metasearch.budget import Coverage

    count = math.inf if total == "inf" else _whole("total", total)
    goal = top if top.strip().endswith("%") else _whole("top", top)
    rows: list[dict[str, Any]] = []
    for distinct in (False, True) if count != math.inf else (False,):
        coverage = Coverage(count, goal, confidence, without_replacement=distinct)
        row: dict[str, Any] = {"draws": "without replacement" if distinct else "with replacement", "trials": coverage.needed}
        if trials is not None:
            row |= {"trials": trials, "coverage": coverage.reached(trials)}
        rows.append(row)
    if as_json:
        print(json.dumps({"total": total if total == "inf" else count, "top": goal, "confidence": confidence, "rows": rows}))
    elif trials is None:
        table(["draws", "trials needed"], [[row["draws"], f"{row['trials']:,}"] for row in rows])
    else:
        table(["draws", "trials", "coverage"], [[row["draws"], f"{trials:,}", f"{row['coverage']:.4f}"] for row in rows])


def _whole(what: str, text: str) -> int:
    try:
        return int(text.replace(",", "").replace("_", ""))
    except ValueError:
        other = "inf" if what == "total" else "a share such as 1%"
        raise Refused(f"--{what} must be a whole number or {other}, but got {text!r}") from None


def _size(size: int | float) -> str:
    return "infinitely many" if math.isinf(size) else f"{size:,}"
