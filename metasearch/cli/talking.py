"""The options that say how a command talks; they may stand before the command, and after those that run a study."""
from __future__ import annotations

from typing import Annotated, Literal

import typer

from metasearch.cli.failures import Voice


def _hush(asked: bool) -> bool:
    Voice.quiet = Voice.quiet or asked
    return asked


def _spell(form: str | None) -> str | None:
    if form is not None:
        Voice.as_json = form == "json"
    return form


Quiet = Annotated[bool, typer.Option(
    "--quiet", "-q", callback=_hush, is_eager=True, help="On stderr only warnings and errors.",
)]
Log = Annotated[Literal["text", "json"] | None, typer.Option(
    "--log", callback=_spell, is_eager=True, envvar="METASEARCH_LOG", show_default="text",
    help="What is said on stderr: text, or one JSON object a line.",
)]
