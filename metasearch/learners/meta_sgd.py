"""Meta-SGD: learn the initialisation, and for every weight its own inner learning rate, direction included.

Li, Zhou, Chen, Li. "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning". 2017. https://arxiv.org/abs/1707.09835
theta' = theta - A * grad L_S(theta), elementwise (eq. 2); theta and A are learnt by the same outer optimiser (algorithm 1), the
signs of A are free. One inner step, as published; more share A. With A constant it is MAML (learners/maml.py).
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params, adapted


@dataclass(frozen=True)
class MetaSGD(Learner):
    """low, high: the rates A, of the *mean* loss over the support set, begin uniform in [low, high]; equal: all the same.
    Keys: `lr/<key>` with the shape of every adapted `<key>`."""

    low: float | Tensor = 0.005
    high: float | Tensor = 0.1
    inner_steps: int = 1
    test_steps: int | None = None

    def __post_init__(self) -> None:
        inner.check(low=self.low, high=self.high, inner_steps=self.inner_steps, test_steps=self.test_steps)
        if not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor) and self.high < self.low:
            raise ValueError(f"`low <= high` must hold, but got low={self.low}, high={self.high}")

    def init(self, net: Net, generator: Generator) -> Params:
        params = net.init(generator)
        spread = {f"lr/{k}": torch.rand(v.shape, generator=generator) for k, v in params.items() if adapted(k)}
        return params | {k: self.low + (self.high - self.low) * u for k, u in spread.items()}

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        def support_loss(fast: Params) -> Tensor:
            return loss(net.apply({**meta, **fast}, support_x), support_y)

        theta = {k: v for k, v in meta.items() if adapted(k)}
        rates = {k: meta[f"lr/{k}"] for k in theta}
        return inner.sgd_steps(support_loss, theta, lr=rates, steps=self.inner_steps)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def at_test(self) -> MetaSGD:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)
