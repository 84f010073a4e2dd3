"""SNAIL: an episode is a sequence; temporal convolutions gather its past, causal attention looks single items up in it.

Mishra, Rohaninejad, Chen, Abbeel. "A Simple Neural Attentive Meta-Learner". ICLR 2018. https://arxiv.org/abs/1707.03141
Labelled supports, then one query with a label of zeros, whose output is the prediction: Attn(64, 32) - TC(T, 128) -
Attn(256, 128) - TC(T, 128) - Attn(512, 256) - linear, T = N*K + 1 (section 5.1). Every query ends a sequence of its own. Those
sequences share their supports, which see no query, so one pass computes them all: M supports in a row, and behind them Q ends
side by side. The order of the supports is the episode's, which is random.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _embedding, _linear
from metasearch.nets import Net, Params
from metasearch.tasks import Episode, TaskDistribution, TaskShape


@dataclass(frozen=True)
class SNAIL(Learner):
    """supports: in the longest episode (N*K); the temporal convolutions reach back over at least so many items.
    keys, values: widths of the three attentions. filters: of each causal convolution."""

    pooled: ClassVar[bool] = True

    supports: int = 5
    keys: tuple[int, int, int] = (64, 256, 512)
    values: tuple[int, int, int] = (32, 128, 256)
    filters: int = 128

    def __post_init__(self) -> None:
        for name in ("keys", "values"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a file's list
            if len(getattr(self, name)) != 3:
                raise ValueError(f"SNAIL has three attentions, but got {name}={getattr(self, name)}")
        if min(self.supports, self.filters, *self.keys, *self.values) < 1:
            raise ValueError(f"every size must be at least 1, but got {self}")

    @property
    def dilations(self) -> tuple[int, ...]:
        """1, 2, 4, ...: ceil(log2 T) of them, which together reach over the last 2^ceil(log2 T) >= T items. (The paper counts
        2^i from i = 1: with 2, 4, 8 no item would see the one before it.)"""
        return tuple(2**i for i in range(self.supports.bit_length()))

    def init(self, net: Net, generator: Generator) -> Params:
        params, width = _embedding.init(net, generator), net.features + net.outputs
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            if i > 0:
                for dilation in self.dilations:
                    params |= _linear.init(f"snail/convolution{i}/{dilation}", 2 * width, 2 * self.filters, generator)
                    width += self.filters
            for name, size in (("query", keys), ("key", keys), ("value", values)):
                params |= _linear.init(f"snail/attention{i}/{name}", width, size, generator)
            width += values
        return params | _linear.init("snail/head", width, net.outputs, generator)

    def check(self, tasks: TaskDistribution, shape: TaskShape) -> None:
        super().check(tasks, shape)
        self._must_reach(shape.shots * (shape.ways if tasks.kind == "classes" else 1))

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        self._must_reach(support_x.shape[0])
        return {"support": _embedding.kept(net, meta, support_x), "y": support_y}

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return self.outputs(meta, *_embedding.both(net, meta, task["support"], query_x), task["y"])[task["y"].shape[0]:]

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        self._must_reach(episode.support_x.shape[0])
        z, query_z = _embedding.together(net, meta, episode.support_x, episode.query_x)
        return loss(self.outputs(meta, z, query_z, episode.support_y)[z.shape[0]:], episode.query_y), {}

    def _must_reach(self, supports: int) -> None:
        reach = 2 ** len(self.dilations) - 1
        if supports > reach:
            raise ValueError(f"these temporal convolutions reach over {reach} supports, but the episode has {supports}. Train "
                             f"with supports={supports} (ways * shots: tasks.shots, in a study; an augmentation at the place "
                             f"shot multiplies them), or give fewer.")

    def outputs(self, meta: Params, support_z: Tensor, query_z: Tensor, support_y: Tensor) -> Tensor:
        """Features [M, D], [Q, D] and labels [M, N] -> outputs of all M + Q items [M + Q, N]."""
        supports = support_z.shape[0]
        labels = torch.cat([support_y, support_y.new_zeros(query_z.shape[0], support_y.shape[1])])
        x = torch.cat([torch.cat([support_z, query_z]), labels.to(support_z.dtype)], dim=1)
        seen = visible(supports, query_z.shape[0], x.device)
        for i in range(3):
            if i > 0:
                for dilation in self.dilations:
                    x = dense(meta, f"snail/convolution{i}/{dilation}", x, supports, dilation)
            x = torch.cat([x, attention(meta, f"snail/attention{i}", x, seen)[0]], dim=1)
        return _linear.apply(meta, "snail/head", x)


def visible(supports: int, queries: int, device: Any = None) -> Tensor:
    """Which items an item may look up, [M + Q, M + Q]: itself and the supports before it."""
    rows = supports + queries
    past = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
    past[supports:, supports:] = torch.eye(queries, dtype=torch.bool, device=device)
    return past


def attention(meta: Params, key: str, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """(what is read [R, V], the weights with which it is [R, R]): softmax over keys of q k' / sqrt(K), x [R, C]."""
    q, k, v = (_linear.apply(meta, f"{key}/{name}", x) for name in ("query", "key", "value"))
    weights = torch.where(seen, q @ k.T / math.sqrt(k.shape[1]), -math.inf).softmax(dim=-1)
    return weights.to(v.dtype) @ v, weights


def dense(meta: Params, key: str, x: Tensor, supports: int, dilation: int) -> Tensor:
    """A causal convolution of two taps, tanh(f) * sigmoid(g), laid beside its input: [R, C] -> [R, C + filters]."""
    z = torch.cat([x, delayed(x, supports, dilation)], dim=1)
    f, g = _linear.apply(meta, key, z).chunk(2, dim=1)
    return torch.cat([x, f.tanh() * g.sigmoid()], dim=1)


def delayed(x: Tensor, supports: int, steps: int) -> Tensor:
    """The item `steps` before each one, zeros before the first; all queries stand at the place behind the last support."""
    none = x.new_zeros(min(steps, supports), x.shape[1])
    if steps > supports:
        return torch.cat([none, x.new_zeros(x.shape[0] - supports, x.shape[1])])
    before_queries = x[supports - steps].expand(x.shape[0] - supports, -1)
    return torch.cat([none, x[: supports - steps], before_queries])
