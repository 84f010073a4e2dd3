"""A linear map without a bias: the net whose loss is a quadratic function of its weights."""
from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import linear

from metasearch.nets import Block, Net, Params

__all__ = ["linear_map"]


def linear_map(inputs: int | tuple[int, ...], outputs: int, std: float = 0.01) -> Net:
    """x [M, *inputs] (flattened) -> x W^T [M, outputs]. Key: net/head/weight [outputs, inputs], normal with deviation `std`."""
    width = inputs if isinstance(inputs, int) else math.prod(inputs)
    if width < 1 or outputs < 1 or not std >= 0:
        raise ValueError(f"`inputs >= 1`, `outputs >= 1` and `std >= 0` must hold, but got {inputs}, {outputs} and {std}")

    def init(generator: Generator) -> Params:
        return {"net/head/weight": std * torch.randn(outputs, width, generator=generator)}

    def flattened(params: Params, x: Tensor) -> Tensor:
        return x.flatten(1)

    def head(params: Params, z: Tensor) -> Tensor:
        return linear(z, params["net/head/weight"])

    def apply(params: Params, x: Tensor) -> Tensor:
        return head(params, x.flatten(1))

    return Net(init, apply, "none", width, flattened, head, outputs, blocks=(Block("inputs", flattened),))
