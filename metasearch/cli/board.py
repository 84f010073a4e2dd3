"""The leaderboard on paper: a table for people, CSV, JSON or Parquet for programs."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metasearch.cli.failures import Refused, talk
from metasearch.cli.live import Unit, clock
from metasearch.cli.show import table

if TYPE_CHECKING:
    from pandas import DataFrame

Format = Literal["table", "csv", "json", "parquet"]
CONFIG = "config/"


def write(board: DataFrame, form: Format, output: Path | None) -> None:
    """To a file, or to stdout."""
    if output is not None and form == "table":
        raise Refused("a table is for people: with --output, --format is csv, json or parquet")
    if form == "table":
        show(board)
    elif form == "csv":
        board.to_csv(output or sys.stdout, index=False)
    elif form == "json":
        text = json.dumps(records(board), indent=1, allow_nan=False) + "\n"
        if output is not None:
            output.write_text(text)
        else:
            sys.stdout.write(text)
    elif output is None and sys.stdout.isatty():
        raise Refused("Parquet is no text: name a file with --output, or send stdout to one")
    else:
        board.to_parquet(output or sys.stdout.buffer, index=False)


def records(board: DataFrame) -> list[dict[str, Any]]:
    """One plain object a row; what is missing is null."""
    found: list[dict[str, Any]] = json.loads(board.to_json(orient="records", double_precision=15))
    return [{**row, "config": json.loads(row["config"])} for row in found]


def show(board: DataFrame) -> None:
    """A table that fits a terminal: the score with its interval, whether it can be told from the first, and what was tried."""
    rows = records(board)
    if not rows:
        talk("no trials to show")
        return
    varied = _varied(rows)
    single = rows[0]["trial"].rpartition("/")[0]
    one_study = all(row["trial"].rpartition("/")[0] == single for row in rows)
    table(
        ["#", "trial", "score", "", "config", "params", "MFLOPs", "time"],
        [[
            "" if row["rank"] is None else str(row["rank"]), row["trial"].rpartition("/")[2] if one_study else row["trial"],
            _score(row), "=" if row["tied"] and row["rank"] != 1 else "", _config(row, varied),
            _count(row["params"]), "" if row["flops"] is None else f"{row['flops'] / 1e6:,.3g}",
            "" if row["seconds"] is None else clock(row["seconds"]),
        ] for row in rows],
        title=f"study {single}" if one_study else None,
    )
    for line in _captions(rows, board.attrs):
        talk(line)


def _captions(rows: list[dict[str, Any]], attrs: dict[Any, Any]) -> list[str]:
    first, said = rows[0], []
    if first["low"] is not None:
        said.append(
            f"± is a 95 % interval over the {first['episodes']:.0f} validation episodes; "
            "it covers neither seeds nor the choice of the best."
        )
    if any(row["tied"] and row["rank"] != 1 for row in rows):
        said.append("= cannot be told from the first: paired test on the same episodes, 5 %, Holm.")
    if len({row["unit"] for row in rows}) == 1 and first["unit"] != "accuracy":
        said.append(f"scores are {first['unit']}" + ("; less is better." if first["unit"] == "mse" else "."))
    if attrs.get("unseen"):
        said.append(f"MLflow has not seen {attrs['unseen']} rows of the ledger yet: metasearch sync, or --source ledger.")
    return said


def _score(row: dict[str, Any]) -> str:
    if row["score"] is None:
        return str(row["status"])
    sign = -1.0 if row["unit"] == "mse" else 1.0  # rows show errors as errors; Unit wants scores
    low, high = (None if row[key] is None else sign * row[key] for key in ("low", "high"))
    return Unit(row["unit"]).text(sign * row["score"], low, high)


def _varied(rows: list[dict[str, Any]]) -> list[str]:
    """The dimensions in which the rows differ; if there is one row only, all of them."""
    keys = [key for key in rows[0] if key.startswith(CONFIG)]
    return [key for key in keys if len(rows) == 1 or len({str(row[key]) for row in rows}) > 1]


def _config(row: dict[str, Any], keys: list[str]) -> str:
    """ "learner=maml .inner_lr=0.1": a key that goes on from the one before it is written short."""
    said, last = [], ""
    for key in (k for k in keys if row[k] is not None):
        path, value = key.removeprefix(CONFIG), row[key]
        short = path.removeprefix(last) if last and path.startswith(f"{last}.") else path
        last = path if not path.startswith(f"{last}.") or not last else last
        said.append(f"{short}={value:.3g}" if isinstance(value, float) else f"{short}={value}")
    return " ".join(said)


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"
