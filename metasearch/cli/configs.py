"""`metasearch config show` and `metasearch init`: what a study is in full, and a study to begin from."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from metasearch.cli import runs
from metasearch.cli.failures import Refused, talk
from metasearch.cli.show import Json
from metasearch.home import study_name
from metasearch.track.redact import redact

config = typer.Typer(no_args_is_help=True, help="Studies as they are understood.")
WINS = {"RAY_ADDRESS": "driver.address, where that is not given", "MLFLOW_TRACKING_URI": "track.uri"}
STUDY = """\
# A study to begin from. Every key: docs/studies.md; what it comes to with its defaults: metasearch config show {name}/study.toml
name = "{name}"
space = "my_space.py"           # beside this file; or one that comes along: metasearch spaces list

[method]
name = "random"                 # metasearch strategies list

[tasks]
name = "glyphs"                 # metasearch tasks list
ways = 5
shots = 1

[train]
steps = 500                     # outer steps of a trial

[validation]
episodes = 200                  # on which every trial is scored, the same ones for all

[budget]                        # the first limit that is reached ends the study
trials = 20
# hours = 8
# coverage = 0.95               # the probability that one of the top was tried
# top = "5%"

[driver]
cpus = 1                        # of one trial; lanes: trials at a time, as many as fit
# gpus = 0.25                   # four trials share a GPU
# address = "auto"              # of a Ray that runs already
# trial_timeout = 1800          # seconds without a report; "auto": ten times the longest so far, at least 1800
"""


@config.command("show")
def show(
    study: runs.StudyWords = None,
    resolved: Annotated[bool, typer.Option("--resolved/--given", help="With all defaults, or only what was said.")] = True,
    origin: Annotated[bool, typer.Option("--origin", help="A key a line, and where it was said.")] = False,
    address: runs.Address = None, as_json: Json = False,
) -> None:
    """A study in full, as TOML: defaults, then its file, then what was said beside it. Wrong keys are said, all at once."""
    from metasearch.driver.study import Study
    from metasearch.driver.travel import line, toml

    source = runs.source(list(study or []), address)
    wanted = Study.from_source(source).to_json()
    rows = [(path, value, source.at(path) if _given(source.table, path) else "default") for path, value in flat(wanted)]
    rows = [row for row in rows if resolved or row[2] != "default"]
    if as_json:
        print(json.dumps([{"key": ".".join(path), "value": value, "origin": said} for path, value, said in rows]))
    elif origin:
        for path, value, said in rows:
            if value is not None:
                print(redact(f"{line(path, value)}  # {said}"))
    else:
        print(redact(toml(wanted if resolved else _nested(rows))), end="")
    for name, what in WINS.items():
        if os.environ.get(name):
            talk(f"{name} = {os.environ[name]} of the environment counts for {what}")


def init(
    folder: Annotated[Path, typer.Argument(help="A new folder; its name is the study's.")],
) -> None:
    """Writes a commented study and a commented space to begin from."""
    from metasearch import space_file

    name = folder.resolve().name
    try:
        study_name(name)
    except ValueError as error:
        raise Refused(f"the folder's name is the study's, which {error}") from error
    for file in ("study.toml", "my_space.py"):
        if (folder / file).exists():
            raise Refused(f"{folder / file} exists already, and is left as it is.")
    folder.mkdir(parents=True, exist_ok=True)
    space_file.new(folder / "my_space.py")
    (folder / "study.toml").write_text(STUDY.format(name=name), "utf-8")
    talk(f"wrote {folder / 'study.toml'} and {folder / 'my_space.py'}. Next: metasearch plan {folder / 'study.toml'}")


def flat(table: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from flat(value, (*before, key))
        else:
            yield (*before, key), value


def _nested(rows: list[tuple[tuple[str, ...], Any, str]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for path, value, _ in rows:
        inner = table
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return table


def _given(table: Any, path: tuple[str, ...]) -> bool:
    """Was this key said, or does it come from the defaults?"""
    for part in path:
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True
