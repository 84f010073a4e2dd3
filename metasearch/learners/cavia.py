"""CAVIA: a task is a few context parameters beside the weights; they alone are adapted, everything else is learnt outside.

Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson. "Fast Context Adaptation via Meta-Learning". ICML 2019.
https://arxiv.org/abs/1810.03642
phi' = phi_0 - inner_lr * grad_phi L_S(phi_0, theta), phi_0 = 0 for every task (eq. 4); theta follows the query loss at phi',
through that step (eq. 5). "concat": phi is laid beside the inputs of the first layer (eq. 6), which adds W phi to its bias;
"film": phi scales and shifts the features behind a block, channel by channel (eq. 7), here by 1 + A phi and B phi, so that a
task of which nothing is known leaves the net as it is.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params


@dataclass(frozen=True)
class CAVIA(Learner):
    """inner_lr: of the mean loss over the support set; the paper's is 1 on sine waves, since phi is no weight and begins at 0.
    test_steps: inner steps when validated or tested; None: as in training.
    context: numbers in phi (the paper's 5 on sine waves, 100 on pictures). block: behind which "film" stands, 0 the lowest.

    Keys: `context/shift` [D, context] and, of "film", `context/scale` [D, context]. The net must be a chain of blocks.
    """

    inner_lr: float | Tensor = 1.0
    inner_steps: int = 1
    test_steps: int | None = None
    context: int = 5
    by: Literal["concat", "film"] = "concat"
    block: int = -1

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(least=1, context=self.context)
        if self.by not in ("concat", "film"):
            raise ValueError(f"by is 'concat' or 'film', but got {self.by!r}")

    def init(self, net: Net, generator: Generator) -> Params:
        params = net.init(generator)
        if not -len(net.blocks) <= self.block < len(net.blocks):
            raise ValueError(f"CAVIA's context enters at a block of the net, but of {len(net.blocks)} blocks there is none with "
                             f"number {self.block}. Use conv4 or mlp, or choose another block.")
        bias, weight = self._entry(net, params)
        fan_in = self.context + (weight[0].numel() if self.by == "concat" else 0)

        def drawn() -> Tensor:
            return torch.empty(len(bias), self.context).uniform_(-1, 1, generator=generator) / math.sqrt(fan_in)

        return params | {"context/shift": drawn()} | ({"context/scale": drawn()} if self.by == "film" else {})

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        def support_loss(phi: Params) -> Tensor:
            return loss(self._outputs(net, meta, phi["phi"], support_x), support_y)

        unknown = {"phi": torch.zeros_like(meta["context/shift"][0])}
        return inner.sgd_steps(support_loss, unknown, lr=self.inner_lr, steps=self.inner_steps)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return self._outputs(net, meta, task["phi"], query_x)

    def at_test(self) -> CAVIA:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)

    def _entry(self, net: Net, params: Params) -> tuple[Tensor, Tensor]:
        """(bias, weight) of the layer whose outputs the context changes."""
        key = net.blocks[0 if self.by == "concat" else self.block].key
        try:
            return params[f"net/{key}/bias"], params[f"net/{key}/weight"]
        except KeyError:
            raise ValueError(f"CAVIA's context enters at a layer with a weight and a bias, but net/{key} has none") from None

    def _outputs(self, net: Net, meta: Params, phi: Tensor, x: Tensor) -> Tensor:
        shift = meta["context/shift"] @ phi  # [D]
        if self.by == "concat":
            key = f"net/{net.blocks[0].key}/bias"
            return net.apply({**meta, key: meta[key] + shift}, x)
        scale, at = 1 + meta["context/scale"] @ phi, self.block % len(net.blocks)
        for i, block in enumerate(net.blocks):
            x = block.apply(meta, x)
            if i == at:
                maps = x.view(len(x), len(scale), -1)  # [M, D, places]; the last block lays its maps flat, channel by channel
                x = (maps * scale[:, None] + shift[:, None]).view(x.shape)
        return x if net.head is None else net.head(meta, x)
