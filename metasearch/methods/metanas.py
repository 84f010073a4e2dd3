"""MetaNAS: DARTS inside Reptile; every task adapts weights and architecture, and is solved by a discrete net of its own.

Elsken, Staffler, Metzen, Hutter. "Meta-Learning of Neural Architectures for Few-Shot Learning." CVPR 2020.
https://arxiv.org/abs/1911.11090 (metasearch/learners/metanas.py, metasearch/objectives/per_task.py). Every trial is a whole
search from another seed; its score is that of the tasks' own nets, which are not trained again. With `alone = true` it is
that of the meta-architecture, trained from the beginning as by darts and enas. Dimensions that the space does not relax are
drawn at random.
"""
from __future__ import annotations

from dataclasses import dataclass

from metasearch.learners.metanas import MetaNAS, Rows
from metasearch.methods import Study, relaxation
from metasearch.methods._per_task import choices_of, per_task
from metasearch.objectives import Objective
from metasearch.objectives.optimizer import by_prefix, sgd
from metasearch.strategies import Strategy


@dataclass(frozen=True)
class Hyperparameters:
    """inner_lr, arch_lr: of the tasks' Adams; published: 1e-3 on miniImageNet, 5e-3 on Omniglot. arch_decay: L2 of the latter.
    inner_steps, inner_batch: of a training task; test_steps, test_batch: when scored (None: as in training).
    arch_rows:      "all": architecture and weights learn on the same supports (the authors' code); "half": on halves of them.
    meta_lr, meta_arch_lr: of the outer steps towards the tasks' weights and architectures.
    warm_up:        share of the outer steps in which the architecture stays.
    t_max, t_min:   temperature at a task's first and last step; published: t_min 0.1 on miniImageNet, 0.05 on Omniglot.
    prune:          shares below it are left away.
    pairs:          where a space has NODE_INPUTS: a softmax over pairs of them; false: DARTS' rule, with a gap at the end.
    shots:          of training tasks, beside the queries, which training counts among them; None: the space's (published: 15).
    search_steps:   outer steps; None: `train.steps` (without `alone`), or those of the space's mixture.
    alone:          the score is that of the meta-architecture, trained for `train.steps`.
    check:          with `alone`, so many random architectures are trained for `check_steps`, to see whether the mixture ranks
                    them rightly; 0: none.
    finalists:      with `alone`, so many architectures, the meta-architecture and others drawn from its shares, are trained for
                    `check_steps`, and the best by itself is taken.
    retrain:        so many tasks' nets are trained anew for `retrain_steps`, to see what that would gain.
    """

    inner_lr: float = 1e-3
    arch_lr: float = 1e-3
    arch_decay: float = 1e-3
    inner_steps: int = 5
    inner_batch: int | None = 20
    test_steps: int = 50
    test_batch: int | None = None
    arch_rows: Rows = "all"
    meta_lr: float = 1.0
    meta_arch_lr: float = 0.6
    warm_up: float = 0.5
    t_max: float = 1.0
    t_min: float = 0.05
    prune: float = 0.01
    pairs: bool = True
    shots: int | None = None
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
    if not (given.meta_lr > 0 and given.meta_arch_lr >= 0 and 0 <= given.warm_up <= 1):
        raise ValueError(
            "`meta_lr > 0`, `meta_arch_lr >= 0` and `0 <= warm_up <= 1` must hold, but got "
            f"meta_lr={given.meta_lr}, meta_arch_lr={given.meta_arch_lr}, warm_up={given.warm_up}"
        )
    learner = MetaNAS(
        inner_lr=given.inner_lr, arch_lr=given.arch_lr, inner_steps=given.inner_steps, inner_batch=given.inner_batch,
        arch_rows=given.arch_rows, arch_decay=given.arch_decay, t_max=given.t_max, t_min=given.t_min, prune=given.prune,
        warm_up=given.warm_up, test_steps=given.test_steps, test_batch=given.test_batch,
        choices=choices_of(study, module, dims, pairs=given.pairs),
    )
    return per_task(
        study, module, dims, learner, by_prefix({"": sgd(given.meta_lr), "arch/": sgd(given.meta_arch_lr)}), shots=given.shots,
        steps=given.search_steps, alone=given.alone, check=given.check, check_steps=given.check_steps,
        finalists=given.finalists, retrain=given.retrain, retrain_steps=given.retrain_steps,
    )
