"""How things look: tables on stdout that fit the terminal, and plain text where there is none."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def console(*, stderr: bool = False) -> Console:
    """Honours NO_COLOR, COLUMNS and TERM=dumb; without a terminal lines are as long as they need to be."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdecimal() else 10_000
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """A table for people, on stdout. Cells are text, never markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
    for name in head:
        numbers = all(_number(row[head.index(name)]) for row in rows)
        made.add_column(name, justify="right" if rows and numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    console().print(made)


def printable(text: str) -> str:
    """Without control characters: a name from a file must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _number(text: str) -> bool:
    return text.strip("-+%").replace(",", "").replace(".", "", 1).isdecimal() or text in ("", "-")
