"""DARTS: the architecture is a mixture that learns by gradient, on other classes than its weights; what is found is trained.

Liu, Simonyan, Yang. "DARTS: Differentiable Architecture Search." ICLR 2019. https://arxiv.org/abs/1806.09055
(metasearch/objectives/relaxed.py). Every trial is a whole search from another seed; its score is that of the architecture it
found, trained from the beginning. Dimensions that the space does not relax are drawn at random, trial by trial.
"""
from __future__ import annotations

from dataclasses import dataclass

from metasearch.methods import Study, relaxation
from metasearch.methods._one_shot import Checked, arguments
from metasearch.objectives import Objective
from metasearch.objectives.optimizer import adam
from metasearch.objectives.relaxed import Hypergradient, Relaxed, check_rate
from metasearch.strategies import Strategy
from metasearch.strategies._seeds import Seeds


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Checked):
    """hypergradient: "exact" and "difference" are the second order (the paper's is "difference"), "first" the first.
    arch_lr:      of Adam on the logits; published: 3e-4.
    xi:           the rate of the step that is looked ahead; None: the weights' own (published: the same).
    warm_up:      share of the steps, the first, in which the architecture stays (published: 0; for few steps .4 and more).
    """

    hypergradient: Hypergradient = "difference"
    arch_lr: float = 3e-4
    xi: float | None = None
    warm_up: float = 0.0


def method(study: Study) -> tuple[Strategy, Objective]:
    module, dims = relaxation(study)
    given = Hyperparameters(**study.method.arguments)
    if not given.arch_lr > 0:
        raise ValueError(f"`arch_lr > 0` must hold, but got arch_lr={given.arch_lr}")
    space = study.space()
    objective = Relaxed(
        **arguments(study, module, dims, given), derive=getattr(module, "derive", None), hypergradient=given.hypergradient,
        xi=given.xi, warm_up=given.warm_up, arch=adam(given.arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
    )
    middle = space.decode([0.5] * space.width)
    objective.check_learner(middle, "darts", (
        "Give the mixture a learner that does, such as prototypical or maml, or take a method that wants scores only: enas, "
        "random-sharing, regularized-evolution, reinforce or random."))
    objective.check_mixture(middle, study.method.name)
    objective.check_derive(middle)
    objective.check_classes(middle)
    objective.check_limits(middle)
    if given.hypergradient != "first":
        check_rate(given.xi, objective.supernet, middle)
    return Seeds(space, dims, seed=study.seed), objective
