"""A recipe's precision in a supernet: its gradients are taken in it, everything that is scored in float32."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import relaxed_space
import torch
from torch import Generator, Tensor

from metasearch.driver.study import Study
from metasearch.nets import Apply, Params
from metasearch.objectives import Trial
from metasearch.objectives.one_shot import OneShot
from metasearch.objectives.optimizer import sgd
from metasearch.objectives.per_task import PerTask
from metasearch.objectives.recipe import Precision, Recipe, RecipeOf
from metasearch.objectives.relaxed import Hypergradient, Relaxed
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import TaskShape
from metasearch.tasks.blobs import Blobs

ONE_STEP = "search_steps = 1, check = 0"
METHODS = {
    **{f"darts-{how}": f"name = 'darts', hypergradient = '{how}', {ONE_STEP}" for how in ("exact", "difference", "first")},
    "enas": f"name = 'enas', aggregate = 2, candidates = 2, {ONE_STEP}",
    "random-sharing": f"name = 'random-sharing', candidates = 2, {ONE_STEP}",
    "auto-maml": f"name = 'auto-maml', inner_lr = 0.2, {ONE_STEP}",
    "metanas": "name = 'metanas', inner_lr = 0.05, warm_up = 0.0, search_steps = 1",
    "t-nas": "name = 't-nas', search_steps = 1",
    "dada": "name = 'dada', search_steps = 1",
}
CONFIG: Config = {"a": "none", "b": "none", "width": 4}


def _objective(method: str) -> OneShot | PerTask:
    pictures = method == "dada"
    found = Study.from_text(f"""
        name = "precision"
        space = "{'augmentation' if pictures else relaxed_space.__file__}"
        method = {{ {METHODS[method]} }}
        tasks = {{ name = "blobs", {'side = 12' if pictures else 'dimensions = 5'}, train_classes = 20, ways = 3, shots = 2 }}
        train = {{ steps = 1, meta_batch = 2, mode = "vmap" }}
        validation = {{ episodes = 4 }}
        budget = {{ trials = 1 }}
    """).objective()
    assert isinstance(found, OneShot | PerTask)
    return found


def _in(precision: Precision, seen: list[bool], recipe_of: RecipeOf, config: Config, shape: TaskShape) -> Recipe:
    """The recipe in this precision; `seen` is told, whenever its net computes, whether that is in bfloat16."""
    recipe = recipe_of(config, shape)
    net = recipe.net

    def watched(apply: Apply) -> Apply:
        def watching(params: Params, x: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return apply(params, x)

        return watching

    net = net._replace(apply=watched(net.apply), body=None if net.body is None else watched(net.body))
    return replace(recipe, net=net, precision=precision)


def _searched(method: str, precision: Precision) -> tuple[Params, list[bool]]:
    """(weights and architecture of the supernet after one step, whether its net computed in bfloat16, call by call)."""
    objective, seen, kept = _objective(method), list[bool](), list[Params]()
    if isinstance(objective, PerTask):
        search = objective.search
        objective = replace(objective, search=replace(search, recipe=partial(_in, precision, seen, search.recipe)))
    else:
        objective = replace(objective, relaxed=partial(_in, precision, seen, objective.relaxed))

    def save(step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        kept.append({k: v for k, v in tensors.items() if k.startswith("meta/")})
        return "kept"

    config = objective.space.decode([0.0] * objective.space.width) if method == "dada" else CONFIG
    for report in objective(Proposal(config, seed=7), Trial(0, save=save)):
        if report.checkpoint:
            break
    return kept[0], seen


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_trains_a_supernet_nearly_as_float32_does_and_float32_scores_it(method: str) -> None:
    (full, plain), (half, seen) = (_searched(method, precision) for precision in ("float32", "bfloat16"))
    assert not any(plain)
    assert any(seen), "nothing was computed in bfloat16"
    assert not seen[-1], "what is scored is computed in float32"
    assert all(v.dtype == torch.float32 for v in half.values())
    assert any(not torch.equal(full[k], half[k]) for k in full)
    for k in full:
        torch.testing.assert_close(half[k], full[k], rtol=0.05, atol=0.02)


def test_the_controllers_rewards_are_scores_in_float32() -> None:
    """What is computed in bfloat16 is the gradient of the weights, with a controller as without one."""
    assert sum(_searched("enas", "bfloat16")[1]) == sum(_searched("random-sharing", "bfloat16")[1])


def test_the_finite_difference_is_not_rounded_away() -> None:
    """Its weights are a hundredth apart: by gradients in bfloat16 the second-order term would be up to 4 % off."""
    tasks = Blobs(dimensions=5, train_classes=20, val_classes=10)
    shape = tasks.shape(ways=3, shots=2, queries=3)
    train = Train(relaxed_space.recipe, tasks, shape, mode="vmap")

    def moved(how: Hypergradient, precision: Precision, seed: int) -> Tensor:
        search = Relaxed(train=train, relaxed=relaxed_space.relaxed, space=relaxed_space.SPACE, dims=relaxed_space.RELAXED,
                         hypergradient=how, xi=0.5, arch=sgd(1.0))
        recipe, drawn = replace(search.supernet(CONFIG), precision=precision), Generator().manual_seed(seed)
        meta = recipe.learner.init(recipe.net, drawn)
        episodes = tasks.sample_episodes(2 * recipe.meta_batch, split="train", shape=shape, generator=drawn)
        state = {f"weights/{k}": v for k, v in recipe.optimizer.init(meta).items()}
        after, _, _ = search.step(recipe, "vmap")(meta, state, episodes, 0.0)
        return torch.cat([meta[k] - after[k] for k in ("arch/a", "arch/b")])

    for seed in (0, 3):
        second = moved("exact", "float32", seed) - moved("first", "float32", seed)
        found = moved("difference", "bfloat16", seed) - moved("first", "bfloat16", seed)
        assert float((found - second).norm() / second.norm()) < 0.015
