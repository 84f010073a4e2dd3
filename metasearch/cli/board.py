"""The leaderboard on paper: a table for people, CSV, JSON or Parquet for programs."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metasearch.cli.failures import Refused, talk
from metasearch.cli.show import console

if TYPE_CHECKING:
    from pandas import DataFrame

Format = Literal["table", "csv", "json", "parquet"]


def write(board: DataFrame, form: Format, output: Path | None) -> None:
    """To a file, or to stdout."""
    from metasearch.track.formats import as_csv, as_json, as_parquet, missing, save

    if form == "table":
        if output is not None:
            raise Refused("a table is for people: with --output, --format is csv, json or parquet")
        show(board)
        return
    for line in missing(board):
        talk(line)
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise Refused("Parquet is no text: name a file with --output, or send stdout to one")
    content = as_csv(board) if form == "csv" else as_json(board) + "\n" if form == "json" else as_parquet(board)
    if output is not None:
        save(content, output)
    elif isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    else:
        sys.stdout.write(content)


def show(board: DataFrame) -> None:
    """A table on stdout; what it leaves unsaid on stderr."""
    from metasearch.track.formats import as_table, captions, missing

    if board.empty:
        for line in ("no trials to show", *missing(board)):
            talk(line)
        return
    console().print(as_table(board))
    for line in captions(board):
        talk(line)
