"""`metasearch plan`: what a study would cost, before it costs anything."""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.cli import runs
from metasearch.cli.failures import FAILURE, Refused, talk
from metasearch.cli.show import Json, table
from metasearch.cli.stored import Home
from metasearch.home import home_of

if TYPE_CHECKING:
    from metasearch.driver.plan import Plan, Range
    from metasearch.driver.smoke import Smoke

NAMES = {
    "params": "learnt numbers", "flops": "FLOPs of a forward", "episode_flops": "FLOPs of an episode",
    "meta_batch": "episodes a step", "steps": "outer steps",
}


def plan(
    study: runs.StudyWords = None,
    gpu_hour: Annotated[float | None, typer.Option(min=0, help="The price of one GPU for one hour, in any currency.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Configurations to draw and measure.")] = 20,
    smoke: Annotated[int, typer.Option(
        min=0, max=1000, help="Configurations to train for a few steps (each learner of a choice at least once); 0: none.",
    )] = 3,
    address: runs.Address = None, home: Home = None, as_json: Json = False,
) -> None:
    """What a study would cost: trials, coverage, sizes, hours, money, disk. Trains a few steps; writes nothing."""
    from metasearch.driver.plan import plan as planned

    wanted = runs.read(list(study or []), address)
    found = planned(wanted, home=home_of(home), samples=samples, smokes=smoke, gpu_hour=gpu_hour, say=talk)
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        _show(found)
    for warning in found.warnings:
        talk(f"metasearch: {warning}")
    if found.broken:
        said = "; ".join(dict.fromkeys((one.reason or one.status).partition("\n")[0] for one in found.broken))
        raise Refused(f"{len(found.broken)} of {len(found.smokes)} smoke runs failed, and so will such trials: {said}", FAILURE)


def _show(found: Plan) -> None:
    table(["what", "how much"], list(_rows(found)), title=f"study '{found.study}'")
    if found.sizes:
        head = [f"of {found.drawn - found.infeasible} configurations", "least", "25 %", "half", "75 %", "most"]
        table(head, [[NAMES.get(name, name), *map(_count, found.sizes[name])] for name in found.sizes])
    if found.smokes:
        table(["smoke run", "", "a step", "a trial", "its weights"], [_smoke(one) for one in found.smokes])


def _rows(found: Plan) -> Iterator[list[str]]:
    size = "infinitely many" if found.size is None else f"{found.size:,}"
    yield ["space", f"{found.space}: {size} configurations"]
    planned = "as many as the hours allow" if found.planned is None else f"{found.planned:,} configurations"
    more = "" if found.trials in (None, found.planned) else f", {found.trials:,} trials (some go on from others)"
    yield ["budget", f"{found.method}: {planned}{more}"]
    if found.coverage is not None:
        wanted = "" if found.coverage["wanted"] is None else f" (wanted: {found.coverage['wanted']:g})"
        yield ["coverage", f"one of the top {found.coverage['top']} with probability {found.coverage['probability']:.3f}{wanted}"]
    if found.infeasible:
        yield ["infeasible", f"{found.infeasible} of {found.drawn} configurations that were drawn"]
    gpus = f" and {found.gpus:g} GPU" if found.gpus else ""
    yield ["place", f"{found.where.name}: {found.where.lanes} at a time, each {found.cpus:g} CPU{gpus}"]
    if found.hours is not None:
        yield ["hours", _range(found.hours)]
    if found.gpu_hours is not None:
        yield ["GPU-hours", _range(found.gpu_hours)]
    if found.cost is not None:
        yield ["cost", _range(found.cost)]
    disk = "" if found.disk is None else f"{_bytes(found.disk)} of weights at its end; "
    yield ["disk", f"{disk}{_bytes(found.free)} free"]


def _range(values: Range) -> str:
    low, expected, high = (f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}" for value in values)
    return f"about {expected} ({low} if every trial were as the cheapest tried, {high} as the dearest)"


def _smoke(one: Smoke) -> list[str]:
    dims = {path: value for path, value in one.config.items() if "." not in path}
    name = ", ".join(f"{path}={value:.3g}" if isinstance(value, float) else f"{path}={value}" for path, value in dims.items())
    state = "ok" if one.status == "done" else f"{one.status}: {(one.reason or '').partition(chr(10))[0][:80]}"
    pace = "-" if one.pace is None else f"{1000 * one.pace:.3g} ms"
    return [name[:60], state, pace, "-" if one.seconds is None else _time(one.seconds), _bytes(one.parcel)]


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.1f}M"
