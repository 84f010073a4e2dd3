"""Every learner of the shelf can be chosen in a study; what does not go together is refused in words."""
from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Generator

import metasearch
from metasearch import plugins
from metasearch import tasks as task_room
from metasearch.augment.places import Places
from metasearch.augment.policy import TrivialAugment
from metasearch.driver import launch, plan
from metasearch.driver.study import Study
from metasearch.learners import Learner
from metasearch.learners.centroid import Centroid
from metasearch.learners.learned_optimizer import LearnedOptimizer
from metasearch.learners.maml import MAML
from metasearch.learners.maml_rl import MAMLRL
from metasearch.learners.snail import SNAIL
from metasearch.nets.conv4 import conv4
from metasearch.nets.mlp import mlp
from metasearch.objectives import Infeasible, Trial
from metasearch.objectives.optimizer import adam
from metasearch.objectives.policy_search import policy_search
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Fit, Recipe
from metasearch.objectives.train import Train
from metasearch.objectives.unroll import unroll
from metasearch.records import Config, Proposal
from metasearch.space import Choice
from metasearch.tasks import TaskShape

METHODS = {"metanas", "t-nas"}  # learners that search, which the method of their name brings
SHAPES = {  # of tasks that a space is for
    "navigation": TaskShape((2,), 2, 100, 100), "quadratics": TaskShape((10,), 1, 10, 10), "latency": TaskShape((30,), 1, 10, 20),
}
PICTURES = TaskShape((1, 28, 28), 5, 1, 3)


def _choices() -> dict[str, Choice]:
    """The dimension `learner` of every space that has one."""
    spaces = {name: plugins.module("spaces", name).SPACE for name in plugins.names("spaces")}
    return {name: dim for name, space in spaces.items() if isinstance(dim := space.dims.get("learner"), Choice)}


def test_every_learner_can_be_chosen_in_some_space() -> None:
    offered = {str(value) for choice in _choices().values() for value in choice.values}
    assert set(plugins.names("methods")) >= METHODS
    assert offered == set(plugins.names("learners")) - METHODS


@pytest.mark.parametrize("name", ["latency", "meta-learners", "navigation", "pretraining", "quadratics"])
def test_an_option_builds_the_learner_of_its_name_and_no_number_of_its_sub_space_is_without_effect(name: str) -> None:
    """A mutation of anything below `learner` or `outer` changes the learner, the outer rate, the fit, its episodes or the net."""
    module, rng = plugins.module("spaces", name), np.random.default_rng(0)
    wanted = {str(value) for value in _choices()[name].values}
    parent = module.SPACE.sample(rng)
    for _ in range(800):
        child, _ = module.SPACE.mutate(parent, rng)
        recipe = module.recipe(dict(child), SHAPES.get(name, PICTURES))
        chosen = str(child["learner"])
        wanted.discard(chosen)
        assert type(recipe.learner) is plugins.find("learners", chosen, Learner)
        before = module.recipe(dict(parent), SHAPES.get(name, PICTURES))
        assert _meaning(recipe) != _meaning(before) or _same(module, parent, child), f"{parent} and {child}"
        parent = child
    assert not wanted


def _same(module: ModuleType, parent: Config, child: Config) -> bool:
    """Do two configs mean the same, as the space says or since they differ only in the net?"""
    one = getattr(module, "canonical", dict)
    return one(parent) == one(child) or set(parent.items() ^ child.items()) <= _outside(parent) | _outside(child)


def _outside(config: Config) -> set[tuple[str, object]]:
    return {(k, v) for k, v in config.items() if k.partition(".")[0] not in ("learner", "outer", "outer_lr", "channels")}


def _meaning(recipe: Recipe) -> object:
    fit = recipe.fit
    inside = [cell.cell_contents for cell in getattr(fit, "__closure__", None) or ()]
    one = {"net/one": torch.ones(())}
    halfway, _ = recipe.optimizer.update(one, recipe.optimizer.init(one), one, recipe.optimizer.rates, torch.tensor(0.5))
    return (
        recipe.learner, float(halfway["net/one"]), recipe.episode, recipe.net.features,
        fit if isinstance(fit, Pretrain) else (getattr(fit, "keywords", None), inside),
    )


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "boil", "cavia"])
def test_more_steps_at_test_come_on_top_of_those_of_training(name: str) -> None:
    module, own = plugins.module("spaces", "meta-learners"), {"learner": name, "learner.inner_lr": 0.1, "learner.inner_steps": 3}
    extra = {"learner.context": 20, "learner.block": 0} if name == "cavia" else {}
    for more in (0, 2):
        config = module.SPACE.normal({**own, **extra, "learner.more_at_test": more, "learner.outer_lr": 1e-3, "channels": 32})
        learner = module.recipe(config, PICTURES).learner
        assert (learner.inner_steps, learner.at_test().inner_steps) == (3, 3 + more)


def test_a_centroid_reads_pixels_or_what_was_learnt_before() -> None:
    module = plugins.module("spaces", "meta-learners")
    config: Config = {"learner": "centroid", "learner.distance": "euclid", "learner.features": "pixels", "channels": 32}
    shape = PICTURES._replace(x=(1, 12, 12))
    alone = module.recipe(config, shape)
    trained = module.recipe(config | {"learner.features": "pre-trained", "learner.features.outer_lr": 0.01}, shape)
    assert alone.learner == trained.learner == Centroid("euclid")
    assert alone.net.features == 12 * 12
    assert not alone.learner.init(alone.net, Generator()), "nothing is learnt"
    assert isinstance(trained.fit, Pretrain)
    tasks = task_room.build("blobs", {"side": 12, "train_classes": 20})
    scores = []
    for fit in (alone, trained):
        train = Train(lambda config, shape, fit=fit: fit, tasks, shape, validation_episodes=10, steps=3, mode="vmap")
        scores.append(list(train(Proposal({}, seed=0), Trial(0)))[-1].score)
    assert min(s for s in scores if s is not None) > 0.5, "blobs are told apart by where they lie"
    assert module.canonical(config | {"channels": 64}) == module.canonical(config), "pixels have no channels to choose"


# a study of each -------------------------------------------------------------------------------------------------------------


def _study(name: str, home: Path, *overrides: str) -> launch.Result:
    given = [
        f"space={name}", "driver.kind=local", "train.steps=2", "train.meta_batch=2", "train.mode=vmap", "validation.episodes=3",
        "track.enabled=false", *overrides,
    ]
    return launch.run(Study.from_text(f'name = "{name}"\nspace = "x"\nbudget = {{ trials = 4 }}', given), home=home)


@pytest.mark.parametrize(("name", "overrides"), [
    ("navigation", ("tasks.name=navigation", "tasks.shots=100", "tasks.queries=100", "budget.trials=2")),
    ("quadratics", ("tasks.name=quadratics", "tasks.shots=10", "tasks.queries=10", "budget.trials=2")),
])
def test_a_small_study_ends_with_a_best_trial(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Trials of several options are trained, scored and kept."""
    result = _study(name, tmp_path, *overrides)
    with launch.Ledger.open(result.folder / "ledger.sqlite") as ledger:
        trials = ledger.trials()
    assert {str(t.status) for t in trials.values()} == {"done"}
    assert len({tuple(v for v in t.proposal.config.values() if isinstance(v, str)) for t in trials.values()}) > 1
    assert all(t.outcome is not None and np.isfinite(t.outcome.score or np.nan) for t in trials.values())
    assert result.status.best_trial in trials
    for use in (metasearch.load, functools.partial(metasearch.export, folder=tmp_path / "export")):
        if name == "navigation":
            with pytest.raises(ValueError, match="navigation/1 is a policy: it learns from what it does"):
                use("navigation/1", home=tmp_path)
        else:
            assert use(f"{name}/1", home=tmp_path)


# what does not go together ---------------------------------------------------------------------------------------------------


def _refused(recipe: Callable[[Config, TaskShape], Recipe], tasks: str, said: str, **arguments: object) -> None:
    distribution = task_room.build(tasks, arguments)
    shape = SHAPES.get(tasks) or distribution.shape(ways=5, shots=1, queries=3)
    train = Train(recipe, distribution, shape, validation_episodes=2, steps=1, mode="loop")
    with pytest.raises(Infeasible, match=said):
        list(train(Proposal({}, seed=0), Trial(0)))


@pytest.mark.parametrize("outer", ["trpo", "ppo"])
def test_policy_search_of_another_learner_is_infeasible(outer: str) -> None:
    fit = policy_search(outer)  # type: ignore[arg-type]
    _refused(
        lambda config, shape: Recipe(mlp(shape.x, shape.ways), MAML(), adam(0.01), 1, 1, fit=fit), "blobs",
        "policy_search trains maml-rl, but the learner is MAML",
    )


def test_an_unrolled_learner_that_is_no_optimiser_is_infeasible() -> None:
    _refused(
        lambda config, shape: Recipe(mlp(shape.x, 1), MAML(), adam(0.01), 1, 1, fit=functools.partial(unroll, epoch=10)),
        "quadratics", "unroll trains a learned optimiser, but the learner is MAML",
    )


@pytest.mark.parametrize(("tasks", "learner", "fit", "said"), [
    ("navigation", MAMLRL(), policy_search(), "policy_search computes in float32, but the recipe says precision='bfloat16'"),
    ("quadratics", LearnedOptimizer(), unroll, "unroll computes in float32, but the recipe says precision='bfloat16'"),
])
def test_what_computes_in_float32_alone_refuses_another_precision(tasks: str, learner: Learner, fit: Fit, said: str) -> None:
    _refused(lambda config, shape: Recipe(
        mlp(shape.x, shape.ways), learner, adam(0.01), 1, 1, precision="bfloat16", fit=fit), tasks, said)


def test_a_precision_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is one of float32, bfloat16, but got 'fp16'"):
        Recipe(mlp((2,), 5), MAML(), adam(0.01), 1, 1, precision="fp16")  # type: ignore[arg-type]


@pytest.mark.parametrize(("tasks", "arguments", "learner", "said"), [
    ("blobs", {}, MAMLRL(), "MAMLRL learns tasks of control, but Blobs is of classes"),
    ("navigation", {"horizon": 50}, MAMLRL(), "would walk for 100 steps, but the tasks' walks have 50. Set tasks.horizon = 100"),
    ("navigation", {}, MAML(), "MAML learns tasks of classes and regression, but Navigation is of control"),
    ("quadratics", {}, Centroid(), "Centroid learns tasks of classes, but Quadratics is of regression"),
    ("blobs", {}, SNAIL(supports=1), "reach over 1 supports, but the episode has 5"),
])
def test_a_learner_of_other_tasks_is_infeasible(tasks: str, arguments: dict[str, object], learner: Learner, said: str) -> None:
    _refused(lambda config, shape: Recipe(mlp(shape.x, shape.ways), learner, adam(0.01), 1, 1), tasks, said, **arguments)


def test_further_shots_count_before_anything_is_trained() -> None:
    """At the place `shot` the episodes that a learner is given are larger than those that are drawn: 10 supports instead of 5."""
    tasks = task_room.build("glyphs", {})
    shape = tasks.shape(ways=5, shots=1, queries=2)

    def train(supports: int, looks: bool = True, at_test: bool = True) -> Train:
        return Train(lambda config, shape: Recipe(
            conv4(shape.x, shape.ways), SNAIL(supports, (4, 4, 4), (4, 4, 4), 4), adam(0.01), 1, 1,
            augment=Places(shot=TrivialAugment(), at_test=at_test),
        ), tasks, shape, validation_episodes=2, steps=1, mode="loop", looks=looks)

    def operations(one: Train) -> float:
        (report,) = one(Proposal({}, seed=0), Trial(0))
        planned = plan._size(one, 0, {})
        assert planned is not None
        assert planned["episode_flops"] == report.metrics["episode_flops"], "the plan says something else than the trial"
        return planned["episode_flops"]

    with pytest.raises(Infeasible, match=r"reach over 7 supports, but the episode has 10\..*an augmentation at the place shot"):
        list(train(5, looks=False)(Proposal({}, seed=0), Trial(0)))
    assert plan._size(train(5), 0, {}) is None
    assert operations(train(10)) > 1.2 * operations(train(10, at_test=False)), "the finished learner is given none of them there"


def test_a_learner_that_needs_a_head_is_infeasible_on_a_net_without_one() -> None:
    for name in ("anil", "boil", "black-box", "baseline-pp"):
        learner = plugins.find("learners", name, Learner)()
        _refused(lambda config, shape, learner=learner: Recipe(mlp(shape.x, None), learner, adam(0.01), 1, 1), "blobs", "head")
