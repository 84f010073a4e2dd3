"""Meta-Weight-Net: how much a support counts is learnt from its loss.

Shu, Xie, Yi, Zhao, Zhou, Xu, Meng. "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting". NeurIPS 2019.
https://arxiv.org/abs/1902.07379
Inner steps descend (1/n) sum_i V(L_i; Theta) L_i (eq. 3), V a sigmoid MLP of one hidden layer; the weights do not sum to 1.
The outer loss is that of clean data (eq. 4), here the queries; its slope in Theta is -(lr/n) sum_i (g_outer . g_i) dV_i/dTheta
(eq. 6): samples whose gradient agrees with that of clean data come to count more. In the paper one net is trained all along;
here its initialisation is learnt, too. An outer optimiser for the prefix "weight/" alone leaves it as it is.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import linear

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params, adapted


@dataclass(frozen=True)
class MetaWeightNet(Learner):
    """inner_lr: of the weighted mean; V begins near 1/2, so it moves about half as far as a MAML of the same rate.
    test_steps: inner steps when validated or tested; None: as in training. hidden: width of V."""

    inner_lr: float | Tensor = 0.2
    inner_steps: int = 1
    test_steps: int | None = None
    hidden: int = 100

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(least=1, hidden=self.hidden)

    def init(self, net: Net, generator: Generator) -> Params:
        def uniform(fan_in: int, *shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)

        return net.init(generator) | {
            "weight/hidden/weight": uniform(1, self.hidden, 1), "weight/hidden/bias": uniform(1, self.hidden),
            "weight/out/weight": uniform(self.hidden, 1, self.hidden), "weight/out/bias": uniform(self.hidden, 1),
        }

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        def row(output: Tensor, y: Tensor) -> Tensor:
            return loss(output[None], y[None])

        def weighted(fast: Params) -> Tensor:
            losses = torch.func.vmap(row)(net.apply({**meta, **fast}, support_x), support_y)  # [M]
            return (sample_weights(meta, losses.detach()) * losses).mean()  # detached: V weighs slopes, it is none of them

        theta = {k: v for k, v in meta.items() if adapted(k)}
        return inner.sgd_steps(weighted, theta, lr=self.inner_lr, steps=self.inner_steps)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def at_test(self) -> MetaWeightNet:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)


def sample_weights(meta: Params, losses: Tensor) -> Tensor:
    """V(L; Theta): [M] -> [M] in (0, 1)."""
    z = linear(losses[:, None], meta["weight/hidden/weight"], meta["weight/hidden/bias"]).relu()
    return linear(z, meta["weight/out/weight"], meta["weight/out/bias"]).sigmoid()[:, 0]
