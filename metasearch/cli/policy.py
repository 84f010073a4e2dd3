"""`metasearch policy`: the augmentation that a search found, as a table, as a JSON file, under a name that recipes may say."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from metasearch.cli.failures import Refused, talk
from metasearch.cli.show import Json, printable, table
from metasearch.cli.stored import Home, stored
from metasearch.home import home_of

HEAD = ("operation", "place", "probability", "magnitude", "when")


def policy(
    what: Annotated[str, typer.Argument(
        metavar="STUDY[/TRIAL]", help="A trial, with all that its lineage went through; or a study: its best side by side.",
    )],
    best: Annotated[int, typer.Option(help="Of a study: so many trials.", min=1)] = 5,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Writes it as JSON: a new file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keeps it for recipes; its name goes to stdout instead of it.")] = False,
    home: Home = None, as_json: Json = False,
) -> None:
    """The augmentation that a search found. Exports it, or keeps it by name (metasearch.augment.load_places and named)."""
    from metasearch import policies
    from metasearch.augment import find, saved

    folder = home_of(home)
    name, _, number = what.partition("/")
    study = stored(name, folder)
    if output is not None and (output.exists() or not output.absolute().parent.is_dir()):
        raise Refused(f"--output needs a new file in a folder that is there, but got {printable(str(output))}")
    if number:
        found = policies.of_trial(what, home=folder, ended=keep)
    else:
        found, trials = policies.side_by_side(name, best=best, home=folder)
        few = f"; no more than {len(trials)} trials that trained longest have sub-policies at that place"
        talk(f"side by side: {', '.join(f'{name}/{n}' for n in trials)}" + few * (len(trials) < best))
    if keep:
        kept = saved.keep(found, what if number else None, home=folder)
        print(kept)
        also = f" (or {what!r})" if number else ""
        talk(f"kept: a recipe may say augment=metasearch.augment.named({kept!r}){also}")
    elif as_json:
        print(json.dumps(saved.to_json(found), allow_nan=False))
    else:
        table(HEAD, policies.told(found, study.tasks_distribution().input_shape[0]))
    if output is not None:
        talk(f"written: {saved.save(found, output)}. In Python: metasearch.augment.load_places({str(output)!r})")
        if len(found.policies) == 1 and not found.new_classes:
            (only,) = found.policies.values()
            mixes = any(find(operation).kept is not None for operation in only.operations)
            told = "images, generator" + ", labels" * mixes + ", progress=0..1" * only.changes
            told += "" if found.fill is None else f", fill={found.fill}"
            talk(f"on pictures of your own: metasearch.augment.load({str(output)!r})({told})")
