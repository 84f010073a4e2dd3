"""The relaxed edge of a supernet: all operations at once, weighted by an architecture that is a tensor beside the weights.

Liu, Simonyan, Yang. "DARTS: Differentiable Architecture Search." ICLR 2019. https://arxiv.org/abs/1806.09055 (eq. 2)

`params["arch/<dim>"]` holds one logit an option; their softmax are the weights, so that log(w) gives any weights w, and the log
of a one-hot vector (0 and -inf) the discrete net exactly. A whole number instead of logits computes that one option alone,
which is what a net sampled from a supernet costs (ENAS; Pham et al. ICML 2018. https://arxiv.org/abs/1802.03268).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from metasearch.nets import Params
from metasearch.nets.norm import Norm
from metasearch.nets.operations import Operation, operation

__all__ = ["begin", "mixture", "read"]

SPREAD = 1e-3  # standard deviation of the first logits, as in DARTS' code


def begin(dims: Sequence[str], options: int, generator: Generator) -> Params:
    """`arch/<dim>` [options] for every dimension: nearly equal weights."""
    return {f"arch/{dim}": SPREAD * torch.randn(options, generator=generator) for dim in dims}


def read(params: Params, dim: str) -> Tensor | int:
    """The weights [options] of a dimension's options, or the number of the only one."""
    logits: Tensor | int = params[f"arch/{dim}"]
    if isinstance(logits, int):
        return logits
    return logits.softmax(-1) if logits.is_floating_point() else int(logits)


def mixture(names: Sequence[str], dim: str, key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
    """An edge whose operation is read from `arch/<dim>`; each option has its own weights, `net/<key>/<name>/...`.

    Edges that share a dimension (the same edge of every cell) share the architecture, never the weights.
    """
    options = [operation(name, key, before, after, stride, norm) for name in names]

    def init(generator: Generator) -> Params:
        params: Params = {}
        for option in options:
            params |= option.init(generator)
        return params

    def apply(params: Params, x: Tensor) -> Tensor:
        weights = read(params, dim)
        if isinstance(weights, int):
            return options[weights].apply(params, x)
        shares = [
            weights[i] * option.apply(params, x) for i, option in enumerate(options) if names[i] != "none"  # it adds nothing
        ]
        return torch.stack(shares).sum(0) if shares else 0.0 * x

    return Operation(init, apply)
