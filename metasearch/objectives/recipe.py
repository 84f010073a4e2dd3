"""What a config means: a Recipe is everything that `train` needs to know about one trial, made by the space's file.

    def recipe(config: Config, shape: TaskShape) -> Recipe: ...
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from metasearch.augment import PLACES, Places, Policy
from metasearch.learners import Learner
from metasearch.nets import Net
from metasearch.objectives import Infeasible, Trial
from metasearch.objectives.optimizer import Optimizer
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import Episode, TaskShape

if TYPE_CHECKING:
    from torch import Generator

    from metasearch.objectives.train import Train

__all__ = ["Fit", "Precision", "Recipe", "RecipeOf"]

Precision = Literal["float32", "bfloat16"]
Fit = Callable[["Recipe", "Train", Proposal, Trial], Iterator[Report]]


def _episodic(recipe: Recipe, study: Train, proposal: Proposal, trial: Trial) -> Iterator[Report]:
    from metasearch.objectives.episodic import episodic  # the trainer imports this file

    return episodic(recipe, study, proposal, trial)


@dataclass(frozen=True)
class Recipe:
    """net, learner:  what is trained.
    optimizer:  pure rules for the outer loop (objectives/optimizer.py).
    meta_batch: episodes in one outer step.
    steps:      outer steps in all; schedules stretch over them.
    episode:    the shape of training episodes (60-way, say); None: the study's own, on which every trial is scored.
    precision:  "bfloat16": products and convolutions in training, a supernet's too, are taken in bfloat16, weights stay float32
                (autocast): about twice as fast on CPUs with AMX for learners without an inner loop. Scores are always taken in
                float32, and so are the gradients whose finite difference DARTS takes.
    augment:    what is done to training episodes when they are drawn: Places (augment/places.py), or any function of a batch of
                them and a generator; None: nothing.
    fit:        what is done with all that; episodic training unless the recipe says otherwise.
    """

    net: Net
    learner: Learner
    optimizer: Optimizer
    meta_batch: int
    steps: int
    episode: TaskShape | None = None
    precision: Precision = "float32"
    augment: Places | Callable[[Episode, Generator], Episode] | None = None
    fit: Fit = field(default=_episodic)

    def __post_init__(self) -> None:
        if self.meta_batch < 1 or self.steps < 1:
            raise ValueError(f"a recipe needs meta_batch >= 1 and steps >= 1, but got {self.meta_batch} and {self.steps}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is one of {', '.join(get_args(Precision))}, but got {self.precision!r}")
        if isinstance(self.augment, Policy):
            raise ValueError(f"a policy acts at a place of an episode, so that a recipe's augment is Places(query=policy), say, "
                             f"but got {self.augment!r} without a place. Places are {', '.join(PLACES)}.")
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"augment is Places, a function of episodes and a generator, or None, but got {self.augment!r}")

    def full_precision(self, where: str) -> None:
        """Raises Infeasible, for a `fit` that knows no other."""
        if self.precision != "float32":
            raise Infeasible(f"{where} computes in float32, but the recipe says precision={self.precision!r}. Leave it out.")


RecipeOf = Callable[[Config, TaskShape], Recipe]
