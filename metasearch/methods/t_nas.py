"""T-NAS: MAML over weights and architecture; every task reads an architecture of its own after a few steps.

Lian et al. "Towards Fast Adaptation of Neural Architectures with Meta Learning." ICLR 2020.
https://openreview.net/forum?id=r1eowANFvr (metasearch/learners/t_nas.py, metasearch/objectives/per_task.py). Every trial is a
whole search from another seed; its score is that of the tasks' own nets with the weights that they adapted. Published scores
are of nets that were trained anew for every task, which took thousands of GPU hours: `retrain` does it for some. With `alone
= true` the score is that of the meta-architecture, trained from the beginning as by darts and enas.
"""
from __future__ import annotations

from dataclasses import dataclass

from metasearch.learners.t_nas import TNAS, Update
from metasearch.methods import Study, relaxation
from metasearch.methods._per_task import choices_of, per_task
from metasearch.objectives import Objective
from metasearch.objectives.optimizer import adam, by_prefix
from metasearch.strategies import Strategy


@dataclass(frozen=True)
class Hyperparameters:
    """inner_lr, arch_lr: of a task's steps; published: 0.1 (the code: 0.01) and 30.
    inner_steps, test_steps: of a task in training, and when scored.
    first_order:    as in the authors' code; false: through the steps.
    update:         weights and architecture "together" by one backward (the code), or "alternately".
    tune_steps:     of the weights alone, in the task's architecture, before it is scored; published: it is trained anew.
    meta_lr, meta_arch_lr: of the outer Adams.
    search_steps:   outer steps; None: `train.steps` (without `alone`), or those of the space's mixture.
    alone:          the score is that of the meta-architecture, trained for `train.steps`.
    check:          with `alone`, so many random architectures are trained for `check_steps`, to see whether the mixture ranks
                    them rightly; 0: none.
    finalists:      with `alone`, so many architectures, the meta-architecture and others drawn from its shares, are trained for
                    `check_steps`, and the best by itself is taken.
    retrain:        so many tasks' nets are trained anew for `retrain_steps`; the metric per_task/retrained_score is theirs.
    """

    inner_lr: float = 0.01
    arch_lr: float = 30.0
    inner_steps: int = 5
    test_steps: int = 10
    first_order: bool = True
    update: Update = "together"
    tune_steps: int = 10
    meta_lr: float = 1e-3
    meta_arch_lr: float = 1e-3
    search_steps: int | None = None
    alone: bool = False
    check: int = 8
    check_steps: int = 50
    finalists: int = 1
    retrain: int = 0
    retrain_steps: int = 50


def method(study: Study) -> tuple[Strategy, Objective]:
    module, dims = relaxation(study)
    given = Hyperparameters(**study.method.arguments)
    if not (given.meta_lr > 0 and given.meta_arch_lr > 0):
        raise ValueError(f"`meta_lr > 0` and `meta_arch_lr > 0` must hold, but got {given.meta_lr} and {given.meta_arch_lr}")
    learner = TNAS(
        inner_lr=given.inner_lr, arch_lr=given.arch_lr, inner_steps=given.inner_steps, test_steps=given.test_steps,
        first_order=given.first_order, update=given.update, tune_steps=given.tune_steps,
        choices=choices_of(study, module, dims, pairs=False),
    )
    optimizer = by_prefix({
        "": adam(given.meta_lr), "arch/": adam(given.meta_arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
    })
    return per_task(
        study, module, dims, learner, optimizer, shots=None, steps=given.search_steps, alone=given.alone, check=given.check,
        check_steps=given.check_steps, finalists=given.finalists, retrain=given.retrain, retrain_steps=given.retrain_steps,
    )
