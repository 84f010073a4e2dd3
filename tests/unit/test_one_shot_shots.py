"""Further shots at test time: what scores a candidate, or a net of a task, gives it those that a finished learner gets."""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import relaxed_space
from torch import Generator, Tensor

from metasearch.augment import Places, Policy, Step, fixed
from metasearch.augment.plan import Plan
from metasearch.learners.metanas import MetaNAS
from metasearch.nets import Block, Net, Params
from metasearch.nets.discrete import Choices
from metasearch.objectives import Trial
from metasearch.objectives.one_shot import Last
from metasearch.objectives.optimizer import sgd
from metasearch.objectives.per_task import PerTask, adapting
from metasearch.objectives.recipe import Recipe, RecipeOf
from metasearch.objectives.shared import CANDIDATE_EPISODES, Shared
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import TaskShape
from metasearch.tasks.blobs import Blobs

TASKS = Blobs(side=3, train_classes=20, val_classes=10)
SHAPE = TASKS.shape(ways=3, shots=2, queries=3)
CONFIG: Config = {"a": "see", "b": "none", "width": 4}
EPISODES = 6


@dataclass(frozen=True)
class Watched(Policy):
    """Flips, and notes for how many pictures it is asked."""

    asked: list[int]

    @property
    def operations(self) -> tuple[str, ...]:
        return ("flip",)

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        self.asked.append(n)
        return fixed(Step("flip")).plan(n, generator)


def _on_pictures(recipe_of: RecipeOf, places: Places, config: Config, shape: TaskShape) -> Recipe:
    made = recipe_of(config, shape._replace(x=(9,)))
    flat = made.net

    def apply(params: Params, x: Tensor) -> Tensor:
        return flat.apply(params, x.flatten(1))

    net = Net.of(flat.init, [Block("edges", apply)], outputs=None, norm="none", features=flat.features)
    return replace(made, net=net, augment=places)


def _spaces(asked: list[int]) -> tuple[RecipeOf, RecipeOf, Train]:
    places = Places(shot=Watched(asked), copies=2)
    recipe, relaxed = (partial(_on_pictures, f, places) for f in (relaxed_space.recipe, relaxed_space.relaxed))
    return recipe, relaxed, Train(recipe, TASKS, SHAPE, validation_episodes=EPISODES, mode="vmap", steps=2)


@pytest.mark.parametrize(("what", "episodes"), [("inherited", EPISODES), ("chosen", CANDIDATE_EPISODES), ("adapted", EPISODES)])
def test_candidates_are_scored_with_further_shots(what: str, episodes: int) -> None:
    asked: list[int] = []
    recipe, relaxed, train = _spaces(asked)
    search = Shared(train=train, relaxed=relaxed, space=relaxed_space.SPACE, dims=relaxed_space.RELAXED, candidates=1)
    supernet, last = search.supernet(CONFIG), Last(None)
    last.meta = supernet.learner.init(supernet.net, Generator().manual_seed(0))
    last.state = {f"sampler/{k}": v for k, v in search.started(0).tensors().items()}
    if what == "inherited":
        search._inherited(supernet, CONFIG, last.meta, Trial(0))
    elif what == "chosen":
        search.chosen(supernet, Proposal(CONFIG, seed=0), Trial(0), last)
    else:
        choices = Choices.of(dict.fromkeys(relaxed_space.RELAXED, relaxed_space.OPTIONS))
        learner = MetaNAS(inner_lr=0.05, arch_lr=0.1, inner_steps=1, test_steps=1, choices=choices)
        found, single = (partial(adapting, f, learner, sgd(1.0), None) for f in (relaxed, recipe))
        tasks = PerTask(search=replace(train, recipe=found, looks=False), single=single, space=relaxed_space.SPACE,
                        dims=relaxed_space.RELAXED)
        built = tasks.search.built(CONFIG)
        tasks.adapted(built, CONFIG, built.learner.init(built.net, Generator().manual_seed(0)))
    assert asked == [2 * 3 * 2] * episodes  # copies of the supports of each episode
