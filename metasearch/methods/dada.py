"""DADA: which augmentations help learns by gradient beside the weights; what is found is trained.

Li, Hu, Wang, Hospedales, Robertson, Yang. "DADA: Differentiable Automatic Data Augmentation." ECCV 2020.
https://arxiv.org/abs/2003.03780 (metasearch/objectives/dada.py). Every trial is a whole search from another seed, at a place that
is drawn at random with all else that the space has beside sub-policies; its score is that of what was found, trained from the
beginning. Published: 105 pairs of fifteen operations, of which the best 25 are used.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from metasearch.methods import Study, augmented
from metasearch.methods._one_shot import Halved
from metasearch.objectives import Infeasible, Objective
from metasearch.objectives.dada import Dada, Estimator, Magnitudes, clean, searchable
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import RecipeOf
from metasearch.objectives.relaxed import check_rate
from metasearch.objectives.train import Train
from metasearch.space import Choice, Space
from metasearch.strategies import Strategy
from metasearch.strategies._seeds import Seeds


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Halved):
    """estimator: "relax" or "gumbel". temperature: of the relaxed draws. hidden: of RELAX's control.
    magnitudes:   "straight-through", as published, or "exact": by the operations' own derivatives, where they have one.
    arch_lr:      of Adam on what is learnt about the pairs, and on the control; published: 5e-3.
    xi:           the rate of the step that is looked ahead; None: the weights' own.
    """

    estimator: Estimator = "relax"
    magnitudes: Magnitudes = "straight-through"
    temperature: float = 0.5
    hidden: int = 100
    arch_lr: float = 5e-3
    xi: float | None = None


def method(study: Study) -> tuple[Strategy, Objective]:
    given = Hyperparameters(**study.method.arguments)
    if not given.arch_lr > 0:
        raise ValueError(f"`arch_lr > 0` must hold, but got arch_lr={given.arch_lr}")
    if given.xi == 0:
        raise ValueError("`xi > 0` must hold, but got xi=0: a policy is judged by what a step of this rate does to the loss")
    train, space = study.training(), study.space()
    augmented(study, train)
    path = next((name for name, dim in space.dims.items()
                 if isinstance(dim, Choice) and any("sub" in opened.dims for opened in dim.spaces)), None)
    if path is None:
        raise ValueError(f"dada searches for sub-policies, but no place in the space '{study.space_name}' opens any. Take "
                         f"augmentation or whole-pipeline, or autoaugment or pba for numbers of another kind.")
    relaxed = partial(clean, study.space_module().recipe, space, path)
    _all_searchable(train, relaxed, space, path)
    rule = partial(adam, given.arch_lr, betas=(0.5, 0.999))
    objective = Dada(
        train=train, relaxed=relaxed, space=space, dims=(), path=path, steps=given.search_steps, share=given.share,
        estimator=given.estimator, magnitudes=given.magnitudes, temperature=given.temperature, hidden=given.hidden, xi=given.xi,
        arch=rule(), control=rule(),
    )
    middle = space.decode([0.5] * space.width)
    objective.check_learner(middle, "dada", (
        "Give the recipe a learner that does, such as prototypical or maml, or take a method that wants scores only: "
        "autoaugment, pba, random, tpe or regularized-evolution."))
    objective.check_classes(middle)
    check_rate(given.xi, objective.supernet, middle)
    return Seeds(space, (), seed=study.seed), objective


def _all_searchable(train: Train, relaxed: RecipeOf, space: Space, path: str) -> None:
    """Raises ValueError if an option of `path` opens sub-policies that cannot be searched, or that the recipe does not use at the
    place of that name."""
    dim, column = space.dims[path], [name for name, _ in space.columns()].index(path)
    assert isinstance(dim, Choice)
    for number, opened in enumerate(dim.spaces):
        if "sub" in opened.dims:
            u = [0.5] * space.width
            u[column] = (number + 0.5) / len(dim.values)
            config = space.decode(u)
            searchable(space, path, str(config[path]))
            try:
                train.built(config)
            except Infeasible:
                continue  # another config may not be
            relaxed(config, train.shape)
