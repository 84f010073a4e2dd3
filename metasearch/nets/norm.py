"""Norms written from mean and variance, because torch's own are silently wrong under grad(vmap(grad(...))) (docs/structure.md).

Batch norm: Ioffe, Szegedy. ICML 2015. https://arxiv.org/abs/1502.03167 · layer norm: Ba, Kiros, Hinton 2016. https://arxiv.org/abs/1607.06450
group norm: Wu, He. ECCV 2018. https://arxiv.org/abs/1803.08494 · instance norm: Ulyanov, Vedaldi, Lempitsky 2016. https://arxiv.org/abs/1607.08022

On a plain tape torch's own batch norm is right, and a conv net's meta-gradient a fifth faster with it (nets/native.py).

A batch norm uses the statistics of the batch that it is given, as long as `params` holds no `stat/` keys of its own. No running
averages are kept while training (state under a vmap is no state): `population` measures them afterwards.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metasearch.nets import Net, NormMode, Params
from metasearch.nets.native import allowed

__all__ = ["Kind", "Norm", "norms_off", "population"]

Kind = Literal["batch", "layer", "group", "instance", "none"]
KINDS: tuple[Kind, ...] = ("batch", "layer", "group", "instance", "none")


@dataclass(frozen=True)
class Norm:
    """One kind of norm for activations [M, C, ...].

    kind:   over which entries mean and variance are taken: "batch" M and space, "layer" C and space, "group" the channels of a
            group and space, "instance" space alone; "none": the identity.
    scale:  whether a learnt factor (gamma) stands beside the learnt shift (beta).
    eps:    inside the root.
    groups: of a group norm; must divide C.
    """

    kind: Kind = "batch"
    scale: bool = True
    eps: float = 1e-5
    groups: int = 8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a norm is one of {', '.join(KINDS)}, but got {self.kind!r}")
        if not self.eps > 0:
            raise ValueError(f"`eps > 0` must hold, but got eps={self.eps}")

    def mode(self, mode: NormMode) -> NormMode:
        """What a net with this norm says of itself: only batch norms have batch statistics."""
        return mode if self.kind == "batch" else "none"

    def init(self, key: str, channels: int) -> Params:
        """`net/<key>/norm/bias` (and `/weight`), zeros and ones of shape [C]."""
        if self.kind == "none":
            return {}
        if self.kind == "group" and channels % self.groups:
            raise ValueError(f"groups must divide the channels, but got {self.groups} groups of {channels} channels. Change one.")
        bias = {f"net/{key}/norm/bias": torch.zeros(channels)}
        return {f"net/{key}/norm/weight": torch.ones(channels), **bias} if self.scale else bias

    def apply(self, params: Params, key: str, x: Tensor) -> Tensor:
        """x: [M, C] or [M, C, *space], normalised, scaled and shifted channel by channel."""
        if self.kind == "none" or _off:
            return x
        bias = _per_channel(params[f"net/{key}/norm/bias"], x)
        weight = _per_channel(params[f"net/{key}/norm/weight"], x) if self.scale else None
        if self.kind == "batch":
            return _batch_norm(params, key, x, weight, bias, self.eps)
        out = _over_channels(x, self.groups if self.kind == "group" else 1 if self.kind == "layer" else x.shape[1], self.eps)
        return out + bias if weight is None else out * weight + bias


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(-1, *(1 for _ in x.shape[2:]))  # [C] -> [C, 1, 1], so that it broadcasts over [M, C, H, W]


def _batch_norm(params: Params, key: str, x: Tensor, weight: Tensor | None, bias: Tensor, eps: float) -> Tensor:
    known = f"stat/{key}/norm/mean" in params
    if allowed() and not known and _seen is None:
        # not F.batch_norm, which refuses one value a channel; with ones, since its second derivative fails without a weight
        shift = bias.flatten()
        factor = torch.ones_like(shift) if weight is None else weight.flatten()
        return torch.batch_norm(x, factor, shift, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    if known:
        mean = _per_channel(params[f"stat/{key}/norm/mean"], x)
        var = _per_channel(params[f"stat/{key}/norm/var"], x)
        centred = x - mean
    else:
        if _seen and key not in _seen:
            raise _Behind
        dims = (0, *range(2, x.dim()))
        mean = x.mean(dims, keepdim=True)
        centred = x - mean
        var = (centred * centred).mean(dims, keepdim=True)
        if _seen is not None:
            _seen.setdefault(key, []).append((x.numel() // x.shape[1], mean.detach().flatten(), var.detach().flatten()))
    factor = (var + eps).rsqrt()
    return centred * (factor if weight is None else factor * weight) + bias


def _over_channels(x: Tensor, groups: int, eps: float) -> Tensor:
    """Every [C / groups, *space] block of every example gets mean 0 and variance 1."""
    blocks = x.reshape(x.shape[0], groups, -1)
    centred = blocks - blocks.mean(-1, keepdim=True)
    var = (centred * centred).mean(-1, keepdim=True)
    return (centred * (var + eps).rsqrt()).reshape(x.shape)


_off = False


@contextmanager
def norms_off() -> Iterator[None]:
    """Inside, every norm is the identity (for scores of an architecture that want a net without them)."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


Statistics = tuple[int, Tensor, Tensor]  # how many entries, their mean [C], their variance [C]
_seen: dict[str, list[Statistics]] | None = None


class _Behind(Exception):
    """Ends a pass at a second batch norm without `stat/` keys: what it is given is not yet what it will be given."""


@contextmanager
def _recording() -> Iterator[Mapping[str, list[Statistics]]]:
    """Inside, the first batch norm without `stat/` keys notes the statistics of what it is given, the next one ends the pass.
    Not for code under a vmap."""
    global _seen
    before, _seen = _seen, {}
    try:
        yield _seen
    finally:
        _seen = before


@torch.no_grad()
def population(net: Net, params: Params, batches: Sequence[Tensor]) -> Params:
    """The `stat/` keys of every batch norm of a net: mean and (biased) variance over all batches [M_i, *x] together.

    Layer by layer: a layer's statistics are taken behind layers that already use theirs. So with these keys the net says of x
    what it would say of x among all batches at once. Costs one pass over the batches, up to the next batch norm, for each.
    """
    if not batches:
        raise ValueError("population statistics need at least one batch")
    found: Params = {}
    while True:
        with _recording() as seen:
            for x in batches:
                with suppress(_Behind):
                    net.embed({**params, **found}, x)
                if not seen:
                    return found
        key = next(iter(seen))
        counts, means, variances = zip(*seen[key], strict=True)
        share = torch.tensor(counts, dtype=torch.float64, device=means[0].device)[:, None] / sum(counts)
        each, spread = torch.stack(means).double(), torch.stack(variances).double()
        mean = (share * each).sum(0)
        var = (share * (spread + (each - mean) ** 2)).sum(0)
        found[f"stat/{key}/norm/mean"] = mean.to(means[0].dtype)
        found[f"stat/{key}/norm/var"] = var.to(means[0].dtype)
