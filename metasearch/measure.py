"""Cheap looks at an architecture before any training: learnt numbers, operations, latency, and two scores that cost one forward.

Operations are counted by torch's FlopCounterMode: matrix products and convolutions, forwards and backwards, one multiply-add as
two operations. Elementwise work (norms, activations, updates) is not counted.
SynFlow: Tanaka, Kunin, Yamins, Ganguli. NeurIPS 2020. https://arxiv.org/abs/2006.05467, as a score of architectures: Abdelfattah,
Mehrotra, Dudziak, Lane. "Zero-Cost Proxies for Lightweight NAS". ICLR 2021. https://arxiv.org/abs/2101.08134 ·
NASWOT: Mellor, Turner, Storkey, Crowley. "Neural Architecture Search without Training". ICML 2021.
https://arxiv.org/abs/2006.04647
"""
from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from metasearch.learners import Learner, gradients
from metasearch.nets import Apply, Net, Params, learnt
from metasearch.nets.activation import recorded, straight
from metasearch.nets.norm import norms_off
from metasearch.tasks import TaskDistribution, TaskShape

__all__ = ["Size", "flops", "latency", "looks", "naswot", "parameters", "size", "synflow"]

QUICK = 1e9  # operations


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
    """Operations of one forward of one input (2 x multiply-adds). Of shapes alone, but for a net that has constants of its own on
    a device, or looks at numbers: that one is computed."""
    try:
        return _flops(net, meta, x_shape, "meta")
    except RuntimeError:
        return _flops(net, meta, x_shape, "cpu")


def _flops(net: Net, meta: Params, x_shape: tuple[int, ...], device: str) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _forward(net, meta)(_zeros(meta, device), torch.zeros(1, *x_shape, device=device))
    return int(counter.get_total_flops())


def looks(net: Net, learner: Learner, tasks: TaskDistribution, meta: Params, shape: TaskShape, x: Tensor) -> dict[str, float]:
    """Everything above and below of a freshly initialised `meta`, by name; x [M, *x]: some inputs of the tasks. Scores that a net
    does not have (NASWOT without an activation, SynFlow without weights) are left out."""
    found = size(net, learner, tasks, meta, shape)
    told = {
        "params": found.params, "flops": found.flops, "episode_flops": found.episode_flops,
        "latency_ms": latency(net, meta, x[:1]), "synflow": synflow(net, meta, x[:1]), "naswot": naswot(net, meta, x),
    }
    return {k: float(v) for k, v in told.items() if math.isfinite(v)}


def latency(net: Net, meta: Params, x: Tensor, *, repeats: int = 10) -> float:
    """Median milliseconds of one forward of x [M, *x] on its device, after a warm-up. A measurement: never twice the same."""
    times = []
    with torch.no_grad():
        for _ in range(repeats + 2):
            begin = time.perf_counter()
            _forward(net, meta)(meta, x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - begin)
    return 1000 * sorted(times[2:])[repeats // 2]


def synflow(net: Net, meta: Params, x: Tensor) -> float:
    """log10 of the sum over weights of |theta * dR/dtheta|, R the sum of the outputs for an input of ones, with |theta| for
    theta, norms switched off and activations that let all pass: the flow along all paths. -inf for a net through which nothing
    flows. Biases are not counted."""
    theta = {k: v.detach().double().abs().requires_grad_() for k, v in meta.items() if k.startswith("net/") and "/norm/" not in k}
    if not theta:
        return -math.inf
    rest = {k: v.double() for k, v in meta.items() if k not in theta}
    with norms_off(), straight(), torch.enable_grad():
        total = _forward(net, meta)({**rest, **theta}, torch.ones_like(x, dtype=torch.float64)).sum()
        if not total.requires_grad:
            return -math.inf
        slopes = torch.autograd.grad(total, list(theta.values()), allow_unused=True)
    scored = [(p, g) for (k, p), g in zip(theta.items(), slopes, strict=True) if g is not None and not k.endswith("bias")]
    flow = float(sum((p * g).detach().abs().sum() for p, g in scored))
    return math.log10(flow) if flow > 0 else -math.inf


def naswot(net: Net, meta: Params, x: Tensor) -> float:
    """log |det K|, K[i, j] = units that are on or off together for inputs i and j (eq. 2): how well the untrained net tells its
    inputs [M, *x] apart by which of its units are active. -inf if it does not, or has no activations."""
    with torch.no_grad(), recorded() as signs:
        _forward(net, meta)(meta, x)
    if not signs:
        return -math.inf
    together = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for on in (s.reshape(len(x), -1).float() for s in signs if len(s) == len(x)):
        both, count = (on @ on.T).double(), on.sum(1).double()
        together += on.shape[1] - count[:, None] - count + 2 * both  # on together, or off together
    return float(torch.linalg.slogdet(together).logabsdet)


def _episode_flops(net: Net, learner: Learner, tasks: TaskDistribution, meta: Params, shape: TaskShape) -> int:
    groups = shape.ways if tasks.kind == "classes" else 1
    # numbers flow only where that is quicker than shapes alone, whose every operation costs a millisecond
    if flops(net, meta, shape.x) * groups * (shape.shots + shape.queries) < QUICK:
        return _adapting(net, learner, tasks, meta, shape, groups, "cpu")
    try:
        return _adapting(net, learner, tasks, meta, shape, groups, "meta")
    except RuntimeError:  # as in `flops`
        return _adapting(net, learner, tasks, meta, shape, groups, "cpu")


def _adapting(
    net: Net, learner: Learner, tasks: TaskDistribution, meta: Params, shape: TaskShape, groups: int, device: str
) -> int:
    learner, meta = learner.at_test(), _zeros(meta, device)
    x = torch.zeros(groups * (shape.shots + shape.queries), *shape.x, device=device)
    y = torch.zeros(groups * shape.shots, shape.ways, device=device)
    with gradients.on_tape(graphs=False), FlopCounterMode(display=False) as counter:
        task = learner.adapt(net, tasks.loss, meta, x[: len(y)], y)
        learner.predict(net, meta, task, x[len(y):])
    return int(counter.get_total_flops())


def _forward(net: Net, meta: Params) -> Apply:
    """The net, or its body alone where a learner dropped the head to put its own on."""
    head = {k for k in net.init(Generator().manual_seed(0)) if k.startswith("net/head/")} if net.outputs else set()
    return net.apply if head <= meta.keys() else net.embed


def _zeros(meta: Params, device: str) -> Params:
    return {k: torch.zeros(v.shape, device=device) for k, v in meta.items()}
