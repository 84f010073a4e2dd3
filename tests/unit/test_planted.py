"""A planted augmentation is found: every search raises its operation's mass, and what it finds beats none on sealed tasks.

The tasks are those of planted.py: shifted where they are tested, not where they are trained on. "Beats" is a paired difference
on the same 200 test episodes whose 95 % interval lies above 0.1 (found policies gain 0.1 to 0.5), of DADA above 0.05.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import OPERATIONS, PLANTED, Shifted, trained
from torch import Tensor

from metasearch import policies
from metasearch.augment import Places, Schedule, Shuffled, Step, SubPolicies, fixed
from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.ledger import Ledger, TrialRow
from metasearch.nets import Params
from metasearch.objectives import Trial
from metasearch.objectives.dada import PI, Dada, P
from metasearch.objectives.evaluation import scores
from metasearch.objectives.one_shot import Last
from metasearch.objectives.train import Train
from metasearch.records import Proposal
from metasearch.tasks import open_test
from metasearch.track.statistics import mean_interval

HERE = Path(__file__).resolve().parent
TASKS = {"name": str(HERE / "planted.py"), "ways": 5, "shots": 1, "queries": 5}


def _study(
    space: str, method: Mapping[str, Any], *, steps: int, trials: int, seed: int, meta_batch: int | None = None
) -> Study:
    return Study.from_json({
        "name": "planted", "seed": seed, "space": str(HERE / f"planted_{space}.py"), "method": dict(method), "tasks": TASKS,
        "train": {"steps": steps, "mode": "vmap", "meta_batch": meta_batch}, "validation": {"episodes": 60},
        "budget": {"trials": trials}, "driver": {"kind": "local"}, "track": {"enabled": False},
    })


def _searched(study: Study, home: Path) -> dict[int, TrialRow]:
    assert study.problems() == []
    launch.run(study, home=home)
    with Ledger.open(home / "planted" / "ledger.sqlite") as ledger:
        return dict(ledger.trials())


@functools.cache
def _tested(places: Places | None) -> Tensor:
    """Scores on 200 episodes of the sealed test split, after 60 steps."""
    tasks, last = Shifted(), Last(None)
    shape = tasks.shape(ways=5, shots=1, queries=5)
    train = Train(lambda config, shape: trained(places, shape), tasks, shape, validation_episodes=2, mode="vmap", steps=60)
    *_, _ = train(Proposal({}, seed=3), Trial(0, save=last))
    recipe, bank = train.built({}), open_test(tasks, lambda row: None).bank(200, seed=0, shape=shape)
    return scores(recipe.net, recipe.learner, tasks, last.meta, bank.episodes)


def _beats_none(places: Places, by: float = 0.1) -> bool:
    return mean_interval(_tested(places) - _tested(None)).low > by


def test_what_is_planted_helps_and_nothing_else_does() -> None:
    helped = {name: _beats_none(Places(query=fixed(Step(name, 1.0, 0.5)))) for name in OPERATIONS}
    assert helped == {name: name == PLANTED for name in OPERATIONS}


# AutoAugment ------------------------------------------------------------------------------------------------------------------


def _shares(places: list[Places]) -> dict[str, float]:
    """Of all that sub-policies apply, the share of each operation."""
    found = dict.fromkeys(OPERATIONS, 0.0)
    for each in places:
        assert isinstance(each.query, SubPolicies)
        for choice in each.query.choices:
            for step in choice:
                found[step.operation] += step.probability
    return {name: value / sum(found.values()) for name, value in found.items()}


@pytest.mark.parametrize(("trials", "seed"), [
    (45, 0), pytest.param(80, 1, marks=pytest.mark.slow), pytest.param(80, 2, marks=pytest.mark.slow),
])
def test_autoaugment_finds_it(tmp_path: Path, trials: int, seed: int) -> None:
    knobs = {"name": "autoaugment", "batch": 5, "lr": 0.05, "hidden": 20}
    study = _study("policies", knobs, steps=40, trials=trials, seed=seed)
    rows = list(_searched(study, tmp_path).values())
    of = policies.places_of(study)
    told = [of(row.proposal.config) for row in rows]
    before, after = _shares([one for one in told[:10] if one]), _shares([one for one in told[-10:] if one])
    assert after[PLANTED] > max(0.4, 2 * before[PLANTED])
    assert max(after, key=lambda name: after[name]) == PLANTED
    assert _beats_none(policies.joined("planted", best=5, home=tmp_path))


# population based augmentation ------------------------------------------------------------------------------------------------


def _strength(places: Places | None) -> dict[str, float]:
    """Of each operation probability times magnitude; of a schedule the mean over training."""
    found = dict.fromkeys(OPERATIONS, 0.0)
    policy = places.query if places else None
    parts = policy.policies if isinstance(policy, Schedule) else (policy,)
    lengths = policy.lengths if isinstance(policy, Schedule) else (1.0,)
    for part, length in zip(parts, lengths, strict=True):
        assert isinstance(part, Shuffled)
        for step in part.steps:
            found[step.operation] += step.probability * step.magnitude * length / sum(lengths)
    return found


@pytest.mark.parametrize(("population", "segments", "seed"), [
    (8, 6, 0), pytest.param(12, 10, 1, marks=pytest.mark.slow), pytest.param(12, 10, 2, marks=pytest.mark.slow),
])
def test_population_based_augmentation_finds_it(tmp_path: Path, population: int, segments: int, seed: int) -> None:
    knobs = {"name": "pba", "steps": 10, "max_steps": 10 * segments, "population": population, "founders": "random",
             "synchronous": True}
    study = _study("numbers", knobs, steps=10 * segments, trials=population, seed=seed)
    trials = _searched(study, tmp_path)
    of = policies.places_of(study)
    ended = [row for row in trials.values() if row.proposal.until == 10 * segments and row.outcome and row.outcome.score]
    best = max(ended, key=lambda row: row.outcome.score)  # type: ignore[union-attr, arg-type, return-value]
    founders = [_strength(of(row.proposal.config)) for row in trials.values() if row.proposal.parent is None]
    found = policies.of_row(trials, best.id, of)
    assert found is not None
    strength = _strength(found)
    assert strength[PLANTED] > 1.3 * float(np.mean([one[PLANTED] for one in founders]))
    assert strength["translate_y"] < 0.5 * strength[PLANTED]
    assert _beats_none(found)


# DADA -------------------------------------------------------------------------------------------------------------------------


def _mass(arch: Params) -> dict[str, float]:
    """How often a step applies an operation, of all that are applied."""
    pi, p = arch[PI].softmax(0), arch[P].sigmoid()
    found = dict.fromkeys(OPERATIONS, 0.0)
    for k, pair in enumerate(combinations(OPERATIONS, 2)):
        for j, name in enumerate(pair):
            found[name] += float(pi[k] * p[k, j])
    return {name: value / sum(found.values()) for name, value in found.items()}


@pytest.mark.parametrize(("estimator", "steps", "seed"), [
    ("relax", 300, 0), pytest.param("gumbel", 300, 0, marks=pytest.mark.slow),
    pytest.param("relax", 600, 1, marks=pytest.mark.slow), pytest.param("relax", 600, 2, marks=pytest.mark.slow),
])
def test_dada_finds_it(estimator: str, steps: int, seed: int) -> None:
    """How often to move pictures is found, how far is not: the gradient of a magnitude is that of a brightness, and where it ends
    at the highest (seed 2), less is gained. "gumbel" is biased: what it says of a pair is what a brighter picture would change,
    so it finds by the probabilities."""
    knobs = {"name": "dada", "search_steps": steps, "arch_lr": 0.05, "xi": 0.2, "estimator": estimator}
    study = _study("policies", knobs, steps=20, trials=1, seed=seed, meta_batch=6)
    assert study.problems() == []
    objective, proposal = study.objective(), study.strategy().ask()
    assert isinstance(objective, Dada)
    assert proposal is not None
    seen: list[Params] = []

    def save(step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        if f"meta/{PI}" in tensors:
            seen.append({name: tensors[f"meta/{name}"].clone() for name in (PI, P)})
        return ""

    *_, report = objective(proposal.stamped(seed), Trial(seed, save=save))
    mass = _mass(seen[-1])
    assert mass[PLANTED] > 0.25  # all alike: a sixth
    assert max(mass, key=lambda name: mass[name]) == PLANTED
    assert report.found is not None
    found = objective.train.built(report.found).augment
    assert isinstance(found, Places)
    assert _beats_none(found, by=0.05)
