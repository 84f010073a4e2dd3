"""BOIL: only the body is adapted in the inner loop; the head stays as the outer loop left it.

Oh, Yoo, Kim, Yun. "BOIL: Towards Representation Change for Few-shot Learning". ICLR 2021. https://arxiv.org/abs/2008.08882
Same outer objective as MAML (learners/maml.py); the mirror image of ANIL (learners/anil.py): inner steps leave keys under
"net/head/" alone, so features must move towards a fixed classifier.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params, adapted


@dataclass(frozen=True)
class BOIL(Learner):
    """inner_lr: of the mean loss over the support set. test_steps: inner steps when validated or tested; None: as in training.
    The net must end in a linear layer (Net.body and Net.head)."""

    inner_lr: float | Tensor = 0.5
    inner_steps: int = 1
    test_steps: int | None = None

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.head is None:
            raise ValueError("BOIL keeps a net's head fixed, but this net has none. Build it with `outputs`, or choose maml.")

        def support_loss(fast: Params) -> Tensor:
            return loss(net.apply({**meta, **fast}, support_x), support_y)

        body = {k: v for k, v in meta.items() if adapted(k) and not k.startswith("net/head/")}
        return inner.sgd_steps(support_loss, body, lr=self.inner_lr, steps=self.inner_steps)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def at_test(self) -> BOIL:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)
