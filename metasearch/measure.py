"""How big a net and a learner are, before any training: learnt numbers, and floating-point operations on the study's own shape.

Counted by torch's FlopCounterMode: matrix products and convolutions, forwards and backwards, one multiply-add as two operations.
Elementwise work (norms, activations, updates) is not counted, nor does it take time here: shapes flow, numbers do not.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metasearch.learners import Learner, gradients
from metasearch.nets import Net, Params, learnt
from metasearch.tasks import TaskDistribution, TaskShape

__all__ = ["Size", "flops", "parameters", "size"]


class Size(NamedTuple):
    """params: learnt numbers; flops: of one forward of one input; episode_flops: of adapting to one episode's supports (as
    `learner.at_test()` does) and classifying all its queries."""

    params: int
    flops: int
    episode_flops: int


def size(net: Net, learner: Learner, tasks: TaskDistribution, meta: Params, shape: TaskShape) -> Size:
    """Sizes of `meta` as trained by `learner` for episodes of `shape`."""
    return Size(parameters(meta), flops(net, meta, shape.x), _episode_flops(net, learner, tasks, meta, shape))


def parameters(meta: Params) -> int:
    """How many numbers the outer loop learns; statistics of norms are no parameters."""
    return sum(v.numel() for k, v in meta.items() if learnt(k))


def flops(net: Net, meta: Params, x_shape: tuple[int, ...]) -> int:
    """Operations of one forward of one input (2 x multiply-adds)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.apply(_shapes(meta), _empty(1, *x_shape))
    return int(counter.get_total_flops())


def _episode_flops(net: Net, learner: Learner, tasks: TaskDistribution, meta: Params, shape: TaskShape) -> int:
    groups = shape.ways if tasks.kind == "classes" else 1
    learner, meta = learner.at_test(), _shapes(meta)
    support = _empty(groups * shape.shots, *shape.x), _empty(groups * shape.shots, shape.ways)
    with gradients.on_tape(graphs=False), FlopCounterMode(display=False) as counter:
        task = learner.adapt(net, tasks.loss, meta, *support)
        learner.predict(net, meta, task, _empty(groups * shape.queries, *shape.x))
    return int(counter.get_total_flops())


def _shapes(meta: Params) -> Params:
    return {k: _empty(*v.shape) for k, v in meta.items()}


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")
