"""Where a recipe's augmentation meets training: when a block of episodes is drawn, and when a learner is scored.

Randomness is data: what is drawn for a block comes from the block's own generator, so a resumed trial sees the same pictures,
and loop, vmap and compiled runs are given the same episodes. MetaMaxUp alone looks at the learner: `hardest`.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from metasearch.augment import Places
from metasearch.augment.plan import Moments, look_at_moments
from metasearch.learners import Learner, Loss, gradients
from metasearch.nets import Net, Params
from metasearch.objectives import Infeasible, Mode
from metasearch.tasks import Episode, TaskDistribution, TaskShape

if TYPE_CHECKING:
    from metasearch.objectives.recipe import Recipe

__all__ = ["at_test", "augmented", "check", "given", "hardest", "tested", "versions"]


def augmented(
    recipe: Recipe, tasks: TaskDistribution, episodes: Episode, drawn: Generator, *, first: int = 0, rows: int = 1
) -> Episode:
    """The training episodes of the outer steps from `first` on, `rows` a step; a schedule goes by the progress of each step."""
    if recipe.augment is None:
        return episodes
    if not isinstance(recipe.augment, Places):
        return recipe.augment(episodes, drawn)
    progress = (first + torch.arange(episodes.count) // rows).double() / recipe.steps
    return recipe.augment(episodes, drawn, progress.clamp(max=1), moments(tasks))


def tested(augment: object, episodes: Episode, how: Moments | None) -> Episode:
    """Episodes as a finished learner is given them: with further shots, where its recipe wants them at test time too."""
    return augment.tested(episodes, how) if isinstance(augment, Places) else episodes


def moments(tasks: TaskDistribution) -> Moments | None:
    """How pictures are normalised, which tasks say by an attribute `moments`: (means, standard deviations), a number a channel.
    None: they are in 0..1, as those of tasks without it are taken to be."""
    mean, std = getattr(tasks, "moments", None) or ((), ())
    return (mean, std) if len(mean) else None


def given(recipe: Recipe, shape: TaskShape) -> TaskShape:
    """Of the training episodes that the learner is given, when those of `shape` are drawn."""
    return recipe.augment.shape(shape) if isinstance(recipe.augment, Places) else shape


def at_test(recipe: Recipe, shape: TaskShape) -> TaskShape:
    """Of the episodes that the finished learner is given: `given`, if further shots are there at test time too."""
    return given(recipe, shape) if isinstance(recipe.augment, Places) and recipe.augment.at_test else shape


def versions(recipe: Recipe) -> int:
    """How many versions of each episode are drawn, of which the hardest is trained on (MetaMaxUp)."""
    return recipe.augment.versions if isinstance(recipe.augment, Places) else 1


def check(recipe: Recipe, tasks: TaskDistribution, shape: TaskShape) -> str | None:
    """A remark about what the policies leave undone. Raises Infeasible if they cannot act on such episodes."""
    places = recipe.augment
    if not isinstance(places, Places):
        return None
    if tasks.kind != "classes":
        raise Infeasible(f"augmentation is for pictures of classes, but {type(tasks).__name__} is of {tasks.kind}")
    try:
        places.check(shape, recipe.steps)
        if (how := moments(tasks)) is not None:
            look_at_moments(how, shape.x[0])
    except ValueError as error:
        raise Infeasible(str(error)) from error
    idle = places.idle(shape.x[0])
    return f"the pictures are grey, so these operations leave them as they are: {', '.join(idle)}" if idle else None


def one_version(recipe: Recipe, where: str) -> None:
    """Raises Infeasible where MetaMaxUp would need a loss for each version of an episode and there is none."""
    if versions(recipe) > 1:
        raise Infeasible(f"MetaMaxUp (versions={versions(recipe)}) trains on the hardest version of an episode, which only "
                         f"episodic meta-training does, but this is {where}. Set versions=1.")


def hardest(
    learner: Learner, net: Net, loss: Loss, meta: Params, episodes: Episode, count: int, mode: Mode, chunk: int | None
) -> Episode:
    """Of `count` versions of each episode, side by side, the one of the largest outer loss: [B * count, ...] -> [B, ...].

    Ni et al. ICML 2021, eq. 5: the maximum is over the loss after adaptation; its gradient is that of the version chosen.
    """
    def value(episode: Episode) -> Tensor:
        return learner.episode_loss(net, loss, meta, episode)[0].detach()

    if mode == "loop":
        with gradients.on_tape(graphs=False):
            values = torch.stack([value(episodes.select(i)) for i in range(episodes.count)])
    else:
        values = torch.func.vmap(value, chunk_size=chunk)(episodes)
    best = values.view(-1, count).argmax(1)
    return episodes.select(best + count * torch.arange(len(best), device=best.device))
