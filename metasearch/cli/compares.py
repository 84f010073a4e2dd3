"""`metasearch compare`: two trials, episode by episode, from the ledgers of their studies."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.cli.failures import Refused, talk
from metasearch.cli.live import Unit
from metasearch.cli.show import Json, printable, table
from metasearch.cli.stored import Home, stored
from metasearch.home import home_of
from metasearch.records import ERRORS

if TYPE_CHECKING:
    from metasearch.track.leaderboard import Row

Trial = Annotated[str, typer.Argument(metavar="STUDY[/TRIAL]", help="A trial, or a study: its best.")]


def compare(first: Trial, second: Trial, home: Home = None, as_json: Json = False) -> None:
    """Are two trials different? In pairs, on the validation episodes of both: the difference, its interval, p."""
    from metasearch.track.leaderboard import ALPHA
    from metasearch.track.statistics import mean_interval, paired_p

    one, other = (_row(word, home_of(home)) for word in (first, second))
    if one.episodes is None or other.episodes is None or one.bank is None or (one.bank, one.unit) != (other.bank, other.unit):
        raise Refused(
            f"{_name(one)} and {_name(other)} were not scored on the same episodes, so they cannot be compared in pairs: the "
            f"tasks, their ways, shots and queries, and [validation] of their studies must be the same."
        )
    apart = mean_interval(one.episodes.astype("f8") - other.episodes.astype("f8"))
    p, unit = paired_p(one.episodes, other.episodes), Unit(one.unit)
    if as_json:
        body = {"first": _name(one), "second": _name(other), "scores": [one.score, other.score], "episodes": apart.n, "p": p}
        numbers = {"difference": apart.mean, "low": apart.low, "high": apart.high}
        print(json.dumps(body | {key: value if math.isfinite(value) else None for key, value in numbers.items()}))
    else:
        scores = [(row, mean_interval(row.episodes)) for row in (one, other) if row.episodes is not None]
        table(["trial", one.unit, "steps"], [[_name(row), unit.text(*found[:3]), str(row.step)] for row, found in scores])
        better = _name(one if apart.mean > 0 else other)
        said = f"{better} is better" if p < ALPHA else "they cannot be told apart"
        size = unit.text(abs(apart.mean) * (-1 if one.unit in ERRORS else 1), apart.low, apart.high)
        print(f"difference {size} (p = {p:.2g}, {apart.n} episodes in pairs): {said} at {100 * ALPHA:g} %")
    if "/" not in first or "/" not in second:
        talk("the best of a study was chosen by these very scores, which flatter it; the sealed test tasks do not (evaluate)")


def _row(word: str, home: Path) -> Row:
    from metasearch.track.leaderboard import ranked, rows_from_ledger

    name, slash, number = word.partition("/")
    stored(name, home)
    rows = rows_from_ledger(home / name)
    found = [row for row in rows if str(row.trial) == number] if slash else [row for row, rank, _ in ranked(rows) if rank == 1]
    if not found or found[0].score is None:
        raise Refused(f"there is no trial {printable(word)} that is done" if slash else f"no trial of '{name}' is done")
    return found[0]


def _name(row: Row) -> str:
    return f"{row.study}/{row.trial}"
