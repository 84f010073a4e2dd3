"""What `metasearch show` draws: an architecture in the terminal, and pictures as files."""
from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.cli.failures import Refused, talk
from metasearch.cli.show import console, printable
from metasearch.plugins import reason

if TYPE_CHECKING:
    from torch import Tensor

    from metasearch.augment import Places
    from metasearch.augment.plan import Moments
    from metasearch.driver.study import Study
    from metasearch.graph import Graph
    from metasearch.ledger import Ledger, TrialRow
    from metasearch.tasks import TaskDistribution, TaskShape

Picture = Annotated[Path | None, typer.Option(
    help="Draws into this file: a .svg, .png or .pdf (a trial's learning curve goes beside it).",
    show_default="in the study's folder",
)]
FORMS = (".svg", ".png")  # both are drawn into the study's folder


def check(picture: Path | None) -> None:
    """Raises Refused for a path that nothing can be drawn into."""
    if picture is None:
        return
    if picture.suffix.lower() not in (".svg", ".png", ".pdf") or not picture.absolute().parent.is_dir():
        raise Refused(f"--picture needs a .svg, .png or .pdf in a folder that is there, but got {printable(str(picture))}")


def graphs_of(study: Study, row: TrialRow, *, wanted: bool) -> tuple[Graph, ...]:
    """The architecture of a trial, as its space draws it. A file of a user's that fails takes nothing else away, unless the
    picture is what is wanted: then it raises Refused."""
    from metasearch.track.pictures import architecture_of, found_by

    try:
        return architecture_of(study.space_name, found_by(row))
    except (Exception, SystemExit) as error:
        said = f"the architecture cannot be drawn: {reason(error, study.space_name)}"
        if wanted:
            raise Refused(said) from error
        talk(f"metasearch: {said}")
        return ()


def as_text(graphs: tuple[Graph, ...], row: TrialRow) -> None:
    """Prints an architecture, if there is one."""
    if graphs:
        from metasearch.track import architecture

        screen = console()
        screen.print("\nWhat it found:" if _found(row) else "")
        screen.print(architecture.as_text(graphs, width=min(screen.width, 160)))
        screen.print("")


def of_trial(ledger: Ledger, row: TrialRow, graphs: tuple[Graph, ...], picture: Path | None) -> list[Path]:
    """Writes the architecture and the learning curve of a trial: into `picture` and beside it, or into the study's folder.
    Where the space draws nothing, `picture` is the curve. Returns what was written."""
    from metasearch.track import architecture, plots

    one = plots.course(ledger, row.id)
    title = one.trial + (" (what it found)" if _found(row) else "")
    draws: list[tuple[str, Callable[[Path], object]]] = []
    if graphs:
        draws.append(("architecture", lambda path: architecture.picture(graphs, title=title, path=path)))
    if one.scores or one.losses or any(one.before) or not graphs:
        draws.append(("learning", lambda path: plots.learning(one, path=path)))
    return _written(draws, picture, ledger.path.parent / "pictures", f"{row.id}-")


def of_study(ledger: Ledger, picture: Path | None) -> list[Path]:
    """Writes the history of the search. Returns what was written."""
    from metasearch.track import plots

    one = plots.history(ledger)
    return _written([("history", lambda path: plots.searched(one, path=path))], picture, ledger.path.parent / "pictures", "")


def _written(draws: list[tuple[str, Callable[[Path], object]]], picture: Path | None, folder: Path, prefix: str) -> list[Path]:
    written: list[Path] = []
    try:
        for at, (name, draw) in enumerate(draws):
            beside = [folder / f"{prefix}{name}{form}" for form in FORMS] if picture is None else [
                picture if at == 0 else picture.with_name(f"{picture.stem}-{name}{picture.suffix}")]
            for path in beside:
                draw(path)
                written.append(path)
    except OSError as error:
        if picture is not None:
            raise
        talk(f"metasearch: nothing more is drawn into {folder}: {error}")  # a folder of others, say
    if written:
        talk(f"drawn: {', '.join(map(str, written))}")
    return written


def _found(row: TrialRow) -> bool:
    return row.report is not None and row.report.found is not None


def policy_of(study: Study, ledger: Ledger, row: TrialRow) -> tuple[Places, TaskDistribution] | None:
    """What a trial does to its training episodes; None where nothing is done, as a look at the space's file often tells. What
    fails (data that are not here, say) takes nothing else away."""
    try:
        if study.tasks is None or not _may_augment(study.space_name):
            return None
        from metasearch import policies

        of, searching = policies.places_of(study), policies.searches(study)
        found = policies.of_row(ledger.trials(), row.id, of, searching=searching)
        return None if found is None else (found, study.tasks_distribution())
    except (Exception, SystemExit) as error:
        talk(f"metasearch: the policy cannot be shown: {reason(error, study.space_name)}")
        return None


def _may_augment(space: str) -> bool:
    """Whether a space's file, or one that it may take its recipe from, says anything of augmentation: to build the recipe would
    take seconds."""
    from metasearch import plugins

    text = plugins.source("spaces", space)
    if text is None or "augment" in text:
        return True
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for module in (f"{node.module}.{one.name}" if isinstance(node, ast.ImportFrom) else one.name for one in node.names):
            root, _, rest = module.partition(".")
            if root == "search_spaces" and _may_augment(rest.partition(".")[0]):
                return True
            if root not in {"search_spaces", "metasearch", "torch", "numpy", *sys.stdlib_module_names}:
                return True
    return False


def of_policy(ledger: Ledger, row: TrialRow, places: Places, tasks: TaskDistribution) -> list[Path]:
    """Draws eight pictures before and after each place's policy at the end of training, and schedules over time, into the
    study's folder. Returns what was written."""
    from metasearch import policies
    from metasearch.augment import Schedule, Shared
    from metasearch.track import augmented

    rows = shown(places, tasks)
    title = f"trial {row.id}"
    draws: list[tuple[str, Callable[[Path], object]]] = [
        ("augmented", lambda path: augmented.grid(rows, title=title, path=path))]
    for place, policy in places.policies.items():
        if isinstance(policy, Schedule | Shared) and policy.changes:
            draws.append((f"schedule-{place}", partial(augmented.timeline, policies.stages(policy), title)))
    return _written(draws, None, ledger.path.parent / "pictures", f"{row.id}-")


def shown(places: Places, tasks: TaskDistribution) -> dict[str, Tensor]:
    """Eight training pictures (four where there are so few) [8, C, H, W] in 0..1, before and after each place's policy at the end
    of training."""
    import torch
    from torch import Generator

    from metasearch.augment import carry_out
    from metasearch.objectives.augmenting import moments

    bare = replace(places, support=None, query=None, shot=None, task=None, new_classes=0.0, versions=1)
    shape, drawn = _shape(tasks), Generator().manual_seed(0)
    episodes = tasks.sample_episodes(1, split="train", shape=shape, generator=drawn)
    one = episodes.select(0)
    x, labels, how = torch.cat([one.support_x, one.query_x]), torch.cat([one.support_y, one.query_y]), moments(tasks)
    rows = {"before": _shown(x, how)}
    for place, policy in places.policies.items():
        if place == "task":  # the same happens to the support and to the query of a class
            whole = replace(bare, task=policy)(episodes, drawn, 1.0, how).select(0)
            after = torch.cat([whole.support_x, whole.query_x])
        else:
            after, _ = carry_out(policy.plan(len(x), drawn, 1.0), x, labels, fill=places.fill, moments=how)
        rows[place] = _shown(after, how)
    if places.new_classes:
        whole = replace(bare, new_classes=1.0)(episodes, drawn).select(0)
        rows["classes"] = _shown(torch.cat([whole.support_x, whole.query_x]), how)
    return rows


def _shape(tasks: TaskDistribution) -> TaskShape:
    """Of an episode of eight pictures, of four classes if there are so many; of four pictures where there is no more."""
    for ways, queries in ((4, 1), (2, 3)):
        shape = tasks.shape(ways=ways, shots=1, queries=queries)
        with contextlib.suppress(ValueError):
            tasks.check(shape, "train")
            return shape
    return tasks.shape(ways=2, shots=1, queries=1)


def _shown(x: Tensor, how: Moments | None) -> Tensor:
    """In 0..1."""
    if how is None:
        return x
    mean, std = (x.new_tensor(part).view(-1, 1, 1) for part in how)
    return x * std + mean
