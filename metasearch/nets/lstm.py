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

__all__ = ["cell", "init", "step", "step_in_columns"]


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
    weight = torch.cat([params[f"{prefix}/weight_x"], params[f"{prefix}/weight_h"]], -1)
    return cell(linear(torch.cat([x, h], -1), weight, params[f"{prefix}/bias"]), c)


def step_in_columns(params: Params, prefix: str, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`step` for P inputs that are columns: x [inputs, P], state [H, P] each. For many thousands of them it saves copies."""
    h, c = state
    weight = torch.cat([params[f"{prefix}/weight_x"], params[f"{prefix}/weight_h"]], -1)
    return cell(torch.addmm(params[f"{prefix}/bias"][:, None], weight, torch.cat([x, h])), c, dim=0)


def cell(gates: Tensor, c: Tensor, *, dim: int = -1) -> tuple[Tensor, Tensor]:
    """What a step does once its gates [..., 4H] (along `dim`, the last or the first) are summed up: -> the next (h, c)."""
    # each gate in one piece of memory: on slices of rows sigmoid and tanh take ten times as long
    i, f, g, o = (gate.contiguous() for gate in gates.chunk(4, dim))
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c
