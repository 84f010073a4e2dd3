"""MAML: learn an initialisation from which a few steps of gradient descent solve a task.

Finn, Abbeel, Levine. "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks". ICML 2017. https://arxiv.org/abs/1703.03400
theta_k = k steps of SGD on the support loss (eq. 1); the outer gradient is that of the query loss at theta_k with respect to
theta (eq. 4), through the steps. Norm parameters are learnt but not adapted, as in the authors' code.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params, adapted


@dataclass(frozen=True)
class MAML(Learner):
    """inner_lr: of the *mean* loss over the support set (the authors' code sums over the ways: their 0.4 at 5 ways is 2.0 here).
    test_steps: inner steps when validated or tested; None: as in training. first_order: FOMAML."""

    inner_lr: float | Tensor = 0.1
    inner_steps: int = 1
    test_steps: int | None = None
    first_order: bool = False

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        def support_loss(fast: Params) -> Tensor:
            return loss(net.apply({**meta, **fast}, support_x), support_y)

        theta = {k: v for k, v in meta.items() if adapted(k)}
        return inner.sgd_steps(support_loss, theta, lr=self.inner_lr, steps=self.inner_steps, first_order=self.first_order)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def at_test(self) -> MAML:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)
