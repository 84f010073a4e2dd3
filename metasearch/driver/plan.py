"""What a study would cost, before it costs anything: trials, coverage, sizes of architectures, hours, money, disk.

    found = plan(study, home=home, gpu_hour=2.5)
    found.hours, found.cost, found.warnings

Everything is asked of what would really run: configurations are drawn and built, a few of them train for some steps where the
study's lanes would be placed (this machine, or the Ray at its address), and a strategy that promotes trials is played to its
end with random scores. No ledger is written, nothing is kept, and the test split stays sealed.
"""
from __future__ import annotations

import functools
import json
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metasearch.budget import Coverage
from metasearch.driver import spending
from metasearch.driver.fit import untestable
from metasearch.driver.lanes import address_of, connected, lanes_that_fit, places
from metasearch.driver.smoke import Smoke, smoke
from metasearch.driver.study import Study
from metasearch.objectives import Infeasible
from metasearch.records import Config, Outcome
from metasearch.space import Choice, Space

__all__ = ["Bought", "Plan", "Range", "Where", "bought", "plan", "priced"]

PATIENCE = 600.0  # seconds for which a busy cluster is waited for
DRAWS = 100  # configurations that are drawn, for each option, before the option is given up
ROOTS = 300  # of a strategy that promotes: so many are played, the rest is in proportion
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
Say = Callable[[str], None]


class Range(NamedTuple):
    """If all trials were as the cheapest that was tried, on average, and as the dearest."""

    low: float
    expected: float
    high: float


class Bought(NamedTuple):
    """What a budget of configurations pays for. trials: with those that go on from another; steps: outer steps of all, None if
    every trial has the recipe's."""

    trials: int
    steps: int | None


class Where(NamedTuple):
    """Where trials would run: on how many lanes at a time. name: of the machine or the address."""

    name: str
    lanes: int


@dataclass(frozen=True)
class Plan:
    """size: of the space, None if infinite; planned: configurations, None if only the clock ends the study; trials: with those
    that go on from another. coverage: {"top", "probability", "wanted"} of a method that draws uniformly.

    sizes: name -> the quantiles 0, 25, 50, 75 and 100 % over the configurations that were drawn; infeasible: how many of `drawn`
    mean nothing here. hours: of wall time; cost: of its GPU-hours. disk: bytes of parcels at the end; free: bytes there now.
    """

    study: str
    method: str
    space: str
    size: int | None
    planned: int | None
    trials: int | None
    coverage: Mapping[str, Any] | None
    where: Where
    cpus: float
    gpus: float
    drawn: int
    infeasible: int
    sizes: Mapping[str, tuple[float, ...]]
    smokes: tuple[Smoke, ...]
    hours: Range | None
    gpu_hours: Range | None
    cost: Range | None
    disk: int | None
    free: int
    warnings: tuple[str, ...]

    @property
    def broken(self) -> list[Smoke]:
        """Smoke runs that failed: a trial of such a configuration will."""
        return [one for one in self.smokes if one.status in ("error", "oom")]

    def to_json(self) -> dict[str, Any]:
        ranges = {name: None if (r := getattr(self, name)) is None else r._asdict() for name in ("hours", "gpu_hours", "cost")}
        return {
            **asdict(self), **ranges, "where": self.where._asdict(), "quantiles": QUANTILES,
            "smokes": [one.to_json() for one in self.smokes],
        }


def plan(
    study: Study, *, home: Path, samples: int = 20, smokes: int = 3, gpu_hour: float | None = None, say: Say = lambda words: None,
) -> Plan:
    """Looks at a study that has no `problems()`.

    samples: configurations to draw for the sizes. smokes: of these to train for some steps; where the space begins with a choice
    of learners (or of anything that opens sub-spaces), each option at least once; 0: none, and no hours. say: progress.
    Raises ValueError, in words, if no trial could ever be placed; ConnectionError if there is no Ray at the study's address.
    """
    space = study.space()
    drawn, chosen, infeasible, sizes = _looked_at(study, space, samples, smokes)
    where, done = _smoked(study, chosen, say)
    planned = study.planned_trials()
    paid = None if planned is None else bought(study, planned)
    seconds = _seconds(done, paid, study, space)
    if planned is None and seconds is not None and study.budget.hours is not None:
        planned = max(1, int(study.budget.hours * 3600 * where.lanes / seconds.expected))
        paid = Bought(planned, None)
        seconds = _seconds(done, paid, study, space)
    hours = _hours(seconds, done, where.lanes, study.budget.hours)
    gpu_hours, cost = priced(hours, where.lanes * study.driver.gpus, gpu_hour)
    parcels = [one.parcel for one in done if one.parcel]
    disk = int((paid.trials + 2 * where.lanes) * statistics.mean(parcels)) if parcels and paid is not None else None
    found = Plan(
        study.name, study.method.name, study.space_name, None if math.isinf(space.size) else int(space.size), planned,
        None if paid is None else paid.trials, _coverage(study, planned), where, study.driver.cpus, study.driver.gpus, drawn,
        infeasible, sizes, tuple(done), hours, gpu_hours, cost, disk, _free(home), (),
    )
    return Plan(**{**vars(found), "warnings": tuple(_warnings(found, study, gpu_hour))})


# -- configurations ------------------------------------------------------------------------------------------------------------


def _looked_at(
    study: Study, space: Space, samples: int, smokes: int
) -> tuple[int, list[Config], int, dict[str, tuple[float, ...]]]:
    """(how many configurations were drawn, those to train, how many mean nothing, quantiles of the sizes of the others)."""
    if study.tasks is None:
        asked = study.strategy().ask()
        return 0, [asked.config] if asked is not None and smokes else [], 0, {}
    rng = np.random.default_rng(study.seed)
    measured = functools.partial(_size, study.training(), study.seed)
    configs = [space.sample(rng) for _ in range(samples)]
    found = [measured(config) for config in configs]
    good = [config for config, size in zip(configs, found, strict=True) if size is not None]
    rows = [size for size in found if size]
    sizes = {name: _quantiles([row[name] for row in rows]) for name in rows[0]} if rows else {}
    chosen = _to_train(study, space, good, smokes, lambda config: measured(config) is not None, rng)
    return samples, chosen, samples - len(good), sizes


def _size(train: Any, seed: int, config: Config) -> dict[str, float] | None:
    """What an architecture is before it is trained; None: infeasible; {}: its recipe breaks, which a smoke run says."""
    from metasearch import measure
    from metasearch.objectives import augmenting
    from metasearch.objectives.training import generator

    try:
        recipe = train.built(config)
        meta = recipe.learner.init(recipe.net, generator(seed, "init"))
        found = measure.size(recipe.net, recipe.learner, train.tasks, meta, augmenting.at_test(recipe, train.shape))
    except Infeasible:
        return None
    except Exception:
        return {}
    return {**found._asdict(), "meta_batch": recipe.meta_batch, "steps": recipe.steps}


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(q) for q in np.quantile(np.asarray(values, dtype=np.float64), QUANTILES))


def _to_train(
    study: Study, space: Space, good: list[Config], smokes: int, feasible: Callable[[Config], bool], rng: np.random.Generator
) -> list[Config]:
    if not smokes:
        return []
    if study.has_own_method:  # its trials are told apart by what the strategy asks
        asked = study.strategy().ask()
        return [] if asked is None else [asked.config]
    first = _choice(space)
    if first is None:
        return good[:smokes]
    name, options = first
    chosen: dict[Any, Config] = {}
    for config in _more(good, space, rng, DRAWS * len(options)):
        option = config[name]
        if option not in chosen and (config in good or feasible(config)):
            chosen[option] = config
        if len(chosen) == len(options):
            break
    rest = [config for config in good if config not in chosen.values()]
    return [*chosen.values(), *rest[: max(0, smokes - len(chosen))]]


def _more(good: list[Config], space: Space, rng: np.random.Generator, most: int) -> Iterator[Config]:
    yield from good
    for _ in range(most):
        yield space.sample(rng)


def _choice(space: Space) -> tuple[str, tuple[Any, ...]] | None:
    """The dimension that says what is learnt: `learner`, or the first choice that opens sub-spaces."""
    opens = {
        name: dim.values for name, dim in space.dims.items()
        if isinstance(dim, Choice) and (name == "learner" or any(inner.dims for inner in dim.spaces))
    }
    name = "learner" if "learner" in opens else next(iter(opens), None)
    return None if name is None else (name, opens[name])


# -- where they run ------------------------------------------------------------------------------------------------------------


def _smoked(study: Study, configs: list[Config], say: Say) -> tuple[Where, list[Smoke]]:
    """Finds out whether a trial can be placed at all, then tries some."""
    driver, text = study.driver, json.dumps(study.to_json())
    address = address_of(driver)
    if driver.kind == "local":
        return Where("this process", 1), _one_by_one(configs, lambda config: smoke(text, config), say)
    if address is None:
        lanes = lanes_that_fit(driver, [{"Resources": _here()}])
        return Where("this machine", lanes), _one_by_one(configs, lambda config: smoke(text, config), say)
    with connected(driver) as ray:
        nodes = ray.nodes()
        lanes = min(lanes_that_fit(driver, nodes), places(driver, nodes))
        tasks = ray.remote(num_cpus=driver.cpus, num_gpus=driver.gpus, max_retries=0)(smoke)
        waiting = [tasks.remote(text, config) for config in configs]
        return Where(address, lanes), _one_by_one(waiting, functools.partial(_from, ray, address), say)


def _one_by_one(these: Sequence[Any], call: Callable[[Any], Smoke], say: Say) -> list[Smoke]:
    done = []
    for number, one in enumerate(these, 1):
        done.append(call(one))
        say(f"smoke run {number} of {len(these)}: {done[-1].status}")
    return done


def _from(ray: Any, address: str, task: Any) -> Smoke:
    try:
        found = ray.get(task, timeout=PATIENCE)
    except ray.exceptions.GetTimeoutError:
        raise ConnectionError(
            f"the Ray at {address} is busy: no smoke run ended within {PATIENCE:g} s. Wait, or plan without one (--smoke 0)."
        ) from None
    except ray.exceptions.RayError as error:
        raise ConnectionError(
            f"a smoke run failed on the Ray at {address} before it began: {error}. What is wrong there: metasearch doctor "
            f"--address {address}"
        ) from error
    assert isinstance(found, Smoke)
    return found


def _here() -> dict[str, float]:
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def _free(home: Path) -> int:
    there = next(folder for folder in (home, *home.parents) if folder.is_dir())
    return shutil.disk_usage(there).free


# -- what the budget buys ------------------------------------------------------------------------------------------------------


def bought(study: Study, roots: int) -> Bought:
    """Trials and outer steps of `roots` configurations; of a strategy that promotes, by playing it with random scores."""
    strategy = study.strategy()
    if not strategy.children:
        return Bought(roots, None)
    rng, played = np.random.default_rng(study.seed), min(roots, ROOTS)
    ends: dict[int, int] = {}  # trial -> the step at which it ended
    steps = begun = 0
    while True:
        strategy.closed = begun >= played
        proposal = strategy.ask()
        if proposal is None or proposal.until is None:
            break
        number = len(ends) + 1
        begun += proposal.parent is None
        steps += proposal.until - (0 if proposal.parent is None else ends[proposal.parent])
        ends[number] = proposal.until
        strategy.tell(Outcome(number, proposal, float(rng.random()), {}, "done", proposal.until))
    if not begun:
        return Bought(roots, None)
    return Bought(round(len(ends) * roots / begun), round(steps * roots / begun))


def _coverage(study: Study, planned: int | None) -> dict[str, Any] | None:
    goal: Coverage | None = spending.goal(study, study.strategy())
    if goal is None or planned is None:
        return None
    limited = planned if math.isinf(goal.total) else min(planned, int(goal.total))
    return {"top": goal.top, "probability": goal.reached(limited), "wanted": study.budget.coverage}


def _seconds(smokes: list[Smoke], paid: Bought | None, study: Study, space: Space) -> Range | None:
    """Of work in all trials together; before the number of trials is known, of one."""
    good = [one for one in smokes if one.seconds is not None]
    if not good:
        return None
    trials, steps = (1, None) if paid is None else paid

    def work(one: Smoke) -> float:
        assert one.seconds is not None
        assert one.pace is not None
        assert one.rest is not None
        return trials * one.seconds if steps is None else trials * one.rest + steps * one.pace

    first = None if study.has_own_method else _choice(space)
    groups: dict[Any, list[float]] = {}  # options are drawn alike, however often each was tried
    for one in good:
        groups.setdefault(None if first is None else one.config[first[0]], []).append(work(one))
    every = [value for group in groups.values() for value in group]
    return Range(min(every), statistics.mean(statistics.mean(group) for group in groups.values()), max(every))


def _hours(seconds: Range | None, smokes: list[Smoke], lanes: int, limit: float | None) -> Range | None:
    """On so many lanes; never less than one trial takes, never more than the budget allows."""
    if seconds is None:
        return None
    longest = max(one.seconds for one in smokes if one.seconds is not None)
    return Range(*(min(max(value / lanes, longest) / 3600, limit or math.inf) for value in seconds))


def priced(hours: Range | None, gpus: float, gpu_hour: float | None) -> tuple[Range | None, Range | None]:
    """(GPU-hours, what they cost) of a study that holds so many GPUs for so many hours."""
    if hours is None or not gpus:
        return None, None
    used = Range(*(h * gpus for h in hours))
    return used, None if gpu_hour is None else Range(*(h * gpu_hour for h in used))


def _warnings(found: Plan, study: Study, gpu_hour: float | None) -> Iterator[str]:
    if found.disk is not None and found.disk > found.free:
        yield (f"the parcels will take {found.disk / 1e9:.1f} GB, but {found.free / 1e9:.1f} GB are free. Choose another "
               "METASEARCH_HOME, or fewer trials.")
    if gpu_hour is not None and not study.driver.gpus:
        yield "driver.gpus = 0: the study takes no GPU, so it has no price by the GPU-hour."
    if study.tasks is not None and (said := untestable(tasks := study.tasks_distribution(), study.shape(tasks))) is not None:
        yield f"no trial could ever be evaluated on the test split: {said}"
    strategy = study.strategy()
    founders = None if strategy.children else getattr(strategy.hyperparameters, "population", None)  # children cost no budget
    if founders is not None and found.planned is not None and found.planned <= founders:
        yield (f"{study.method.name} founds a population of {founders} at random, and the budget pays for {found.planned} "
               "configurations: nothing would evolve. Lower method.population, or raise the budget.")
    if found.drawn and found.infeasible == found.drawn:
        yield f"none of {found.drawn} configurations that were drawn means anything here (infeasible)."
    diverged = [one for one in found.smokes if one.status == "diverged"]
    if diverged:
        yield f"{len(diverged)} of {len(found.smokes)} smoke runs diverged in their first steps: lower the learning rates."
    if found.smokes and found.hours is None and not found.broken:
        yield "how long a trial takes is known to its own objective alone, so no hours are told."
    if study.train.mode == "auto" and found.smokes and not study.has_own_method:
        yield "paces are those of vmap; train.mode = 'auto' measures what is fastest, and may well do better."
