"""ANIL: only the head is adapted in the inner loop.

Raghu, Raghu, Bengio, Vinyals. "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML". ICLR 2020.
https://arxiv.org/abs/1909.09157
Same outer objective as MAML (learners/maml.py); inner steps touch keys under "net/head/". The body's gradient flows through
the query features and through the support features on which the head was adapted, which are computed once for all steps.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params


@dataclass(frozen=True)
class ANIL(Learner):
    """inner_lr: of the mean loss over the support set. test_steps: inner steps when validated or tested; None: as in training.
    The net must end in a linear layer (Net.body and Net.head)."""

    inner_lr: float | Tensor = 0.1
    inner_steps: int = 5
    test_steps: int | None = None

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.body is None or net.head is None:
            raise ValueError("ANIL adapts a net's head, but this net has none. Build it with `outputs`, or choose maml.")
        read, z = net.head, net.body(meta, support_x)  # [M, D]

        def support_loss(fast: Params) -> Tensor:
            return loss(read({**meta, **fast}, z), support_y)

        head = {k: v for k, v in meta.items() if k.startswith("net/head/")}
        return inner.sgd_steps(support_loss, head, lr=self.inner_lr, steps=self.inner_steps)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def at_test(self) -> ANIL:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)
