"""For learners that work on a net's features: embeddings of supports and queries in every norm mode.

In training supports and queries go through one forward. A transductive net does so when it is scored, too: supports wait for
the queries until then.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Net, Params

EPS = 1e-6  # beneath the root of a row's variance

def init(net: Net, generator: Generator) -> Params:
    """A net's weights without its head; its number of outputs is that of the learner's own. ValueError if it has none."""
    if not net.outputs:
        raise ValueError("this learner has as many outputs as the net's head, but the net has none. Give it outputs.")
    return {k: v for k, v in net.init(generator).items() if not k.startswith("net/head/")}


def kept(net: Net, meta: Params, support_x: Tensor) -> Tensor:
    """What `adapt` keeps of the supports [M, *x]: their features [M, D], or themselves if they must wait for the queries."""
    return support_x if net.norm == "transductive" else net.embed(meta, support_x)


def both(net: Net, meta: Params, kept: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of supports [M, D] and queries [Q, D], from what was kept."""
    return together(net, meta, kept, query_x) if net.norm == "transductive" else (kept, net.embed(meta, query_x))


def together(net: Net, meta: Params, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of supports [M, D] and queries [Q, D] in one forward."""
    z = net.embed(meta, torch.cat([support_x, query_x]))
    return z[: support_x.shape[0]], z[support_x.shape[0]:]


def alone(net: Net, meta: Params, x: Tensor, centre: Tensor | None, *, frozen: bool) -> Tensor:
    """Items [M, *x] -> features [M, D], each by itself; with a centre [D] that is taken off first, brought to mean 0 and variance
    1. frozen: no gradient goes through the net."""
    z = net.embed({k: v.detach() for k, v in meta.items()} if frozen else meta, x)
    return z if centre is None else standard(z.to(x.dtype) - centre)


def standard(z: Tensor) -> Tensor:
    """[..., D] -> [..., D], every row with mean 0 and variance 1."""
    centred = z - z.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()


def nearness(net: Net, meta: Params, a: Tensor, b: Tensor, *, cosine: bool) -> Tensor:
    """Of pairs a[i], b[i] of inputs [P, *x]: the cosine of their features, or minus their squared distance: [P]."""
    first, second = together(net, meta, a, b)
    return F.cosine_similarity(first, second, dim=-1) if cosine else -(first - second).square().sum(-1)
