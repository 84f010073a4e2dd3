"""FOMAML: MAML without second derivatives; the outer gradient is that of the query loss at the adapted weights.

Finn, Abbeel, Levine. ICML 2017, section 5.2. https://arxiv.org/abs/1703.03400 · analysed in Nichol, Achiam, Schulman.
"On First-Order Meta-Learning Algorithms". 2018. https://arxiv.org/abs/1803.02999 (here: their variant with a separate tail).
g = grad L_Q(theta_k), taken at theta_k and applied to theta. For one inner step it is MAML's gradient plus inner_lr * H_S g.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from metasearch.learners import Learner, Loss
from metasearch.learners.maml import MAML
from metasearch.nets import Net, Params


@dataclass(frozen=True)
class FOMAML(Learner):
    """Fields as MAML's."""

    inner_lr: float | Tensor = 0.1
    inner_steps: int = 1
    test_steps: int | None = None

    def __post_init__(self) -> None:
        self._maml()

    def _maml(self) -> MAML:
        return MAML(self.inner_lr, self.inner_steps, self.test_steps, first_order=True)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        return self._maml().adapt(net, loss, meta, support_x, support_y)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return self._maml().predict(net, meta, task, query_x)

    def at_test(self) -> FOMAML:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)
