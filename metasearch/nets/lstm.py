"""A long short-term memory cell as two functions on a dict of weights.

Hochreiter, Schmidhuber. Neural Computation 9(8), 1997; with the forget gate of Gers, Schmidhuber, Cummins. Neural Computation
12(10), 2000. The gates' rows lie in the order i, f, g, o, as in torch.nn.LSTMCell, whose two biases are one here.

    params = lstm.init("fce/forward", inputs, hidden, generator)
    h, c = lstm.step(params, "fce/forward", x, (h, c))
"""
from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import linear

from metasearch.nets import Params

__all__ = ["cell", "init", "step"]


def init(prefix: str, inputs: int, hidden: int, generator: Generator, *, forget_bias: float = 0.0) -> Params:
    """`<prefix>/weight_x` [4H, inputs], `<prefix>/weight_h` [4H, H], `<prefix>/bias` [4H].

    All uniform in +-1/sqrt(H), torch's default; `forget_bias` is added to the forget gate's: with 1.0 a fresh cell remembers
    (Jozefowicz, Zaremba, Sutskever. ICML 2015).
    """
    if inputs < 1 or hidden < 1:
        raise ValueError(f"`inputs >= 1` and `hidden >= 1` must hold, but got inputs={inputs}, hidden={hidden}")
    bound = 1 / math.sqrt(hidden)

    def uniform(*shape: int) -> Tensor:
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    weight_x, weight_h, bias = uniform(4 * hidden, inputs), uniform(4 * hidden, hidden), uniform(4 * hidden)
    bias[hidden: 2 * hidden] += forget_bias
    return {f"{prefix}/weight_x": weight_x, f"{prefix}/weight_h": weight_h, f"{prefix}/bias": bias}


def step(params: Params, prefix: str, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """x [..., inputs], state (h, c) [..., H] each -> the next (h, c)."""
    h, c = state
    gates = linear(x, params[f"{prefix}/weight_x"], params[f"{prefix}/bias"]) + linear(h, params[f"{prefix}/weight_h"])
    return cell(gates, c)


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """What a step does once its gates [..., 4H] are summed up: -> the next (h, c)."""
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c
