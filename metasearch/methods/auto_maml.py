"""Auto-MAML: one architecture for all tasks, learnt by the gradient of what MAML loses after its inner steps.

Lian et al. "Towards Fast Adaptation of Neural Architectures with Meta Learning." ICLR 2020, where it is what T-NAS must beat.
https://openreview.net/forum?id=r1eowANFvr. This is DARTS of first order with MAML for a learner (objectives/relaxed.py,
metasearch/learners/maml.py): an outer step of the architecture on tasks of one half of the training classes, at the weights
that these tasks adapted, then one of the weights on tasks of the other half. (The authors' code puts the weights back before it
takes that gradient of the architecture; here it is that of the adapted ones.) Every trial is a whole search from another seed;
its score is that of the architecture it found, trained from the beginning as the space says; published: by MAML.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from metasearch.learners.maml import MAML
from metasearch.methods import Study, relaxation
from metasearch.methods._one_shot import Checked, arguments
from metasearch.objectives import Objective
from metasearch.objectives.optimizer import adam
from metasearch.objectives.per_task import adapting, buildable
from metasearch.objectives.relaxed import Relaxed
from metasearch.strategies import Strategy
from metasearch.strategies._seeds import Seeds


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Checked):
    """inner_lr, inner_steps, test_steps: MAML's.
    first_order:  FOMAML, as in the authors' code; false: the architecture's gradient, too, goes through the inner steps.
    meta_lr, arch_lr: of the outer Adams of weights and architecture.
    """

    inner_lr: float = 0.01
    inner_steps: int = 5
    test_steps: int = 10
    first_order: bool = True
    meta_lr: float = 1e-3
    arch_lr: float = 3e-4


def method(study: Study) -> tuple[Strategy, Objective]:
    module, dims = relaxation(study)
    given = Hyperparameters(**study.method.arguments)
    if not (given.arch_lr > 0 and given.meta_lr > 0):
        raise ValueError(f"`arch_lr > 0` and `meta_lr > 0` must hold, but got arch_lr={given.arch_lr}, meta_lr={given.meta_lr}")
    learner = MAML(given.inner_lr, given.inner_steps, given.test_steps, given.first_order)
    space = study.space()
    mixture = partial(adapting, module.relaxed, learner, adam(given.meta_lr), None)
    objective = Relaxed(
        **{**arguments(study, module, dims, given), "relaxed": mixture}, derive=getattr(module, "derive", None),
        hypergradient="first", arch=adam(given.arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
    )
    buildable(objective.supernet, space, dims, study.method.name)
    middle = space.decode([0.5] * space.width)
    objective.check_derive(middle)
    objective.check_classes(middle)
    objective.check_limits(middle)
    return Seeds(space, dims, seed=study.seed), objective
