"""Nets of repeated cells: a stem, cells that each read the two before them, the mean over space, a linear layer.

Zoph, Vasudevan, Shlens, Le. "Learning Transferable Architectures for Scalable Image Recognition." CVPR 2018.
https://arxiv.org/abs/1707.07012 · Liu, Simonyan, Yang. "DARTS: Differentiable Architecture Search." ICLR 2019.
https://arxiv.org/abs/1806.09055 (cells at a third and at two thirds are reductions: half the sides, twice the channels)
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Net, NormMode, Params
from metasearch.nets.init import weights
from metasearch.nets.norm import Norm
from metasearch.nets.operations import Operation, operation

__all__ = ["Cell", "CellOf", "Stack", "prepared", "stacked"]


class Cell(NamedTuple):
    """init(generator) -> Params; apply(params, before, last) -> [M, channels, H', W'], with the last two cells' outputs."""

    init: Callable[[Generator], Params]
    apply: Callable[[Params, Tensor, Tensor], Tensor]
    channels: int


CellOf = Callable[[str, tuple[int, int], int, bool, int], Cell]
# (key, channels of the two inputs, channels C of the operations, whether the first input has twice the sides of the second,
# stride of the cell) -> Cell


def prepared(key: str, inputs: tuple[int, int], channels: int, halve: bool, norm: Norm) -> tuple[Operation, Operation]:
    """ReLU - 1x1 - norm on both inputs of a cell, after which they have C channels; a first input of twice the sides is halved
    by a factorized reduction."""
    before, last = inputs
    first = operation("skip_connect" if halve else "nor_conv_1x1", f"{key}/before", before, channels, 1 + halve, norm)
    return first, operation("nor_conv_1x1", f"{key}/last", last, channels, 1, norm)


@dataclass(frozen=True)
class Stack:
    """cells: how many, of which two are reductions, a third and two thirds of the way; channels: of the stem and of the first
    cells' operations, doubled by every reduction."""

    cells: int = 8
    channels: int = 16

    def __post_init__(self) -> None:
        if self.cells < 3 or self.channels < 1:
            raise ValueError(f"`cells >= 3` (two reductions and a normal one) and `channels >= 1` must hold, but got {self}")


def stacked(
    x_shape: tuple[int, ...], outputs: int | None, normal: CellOf, reduction: CellOf, stack: Stack, norm: Norm,
    mode: NormMode = "transductive",
) -> Net:
    """x [M, C, H, W] -> [M, outputs], or features [M, D] if outputs is None.

    Keys: net/stem/..., net/cell0/..., net/head/weight, net/head/bias.
    """
    if len(x_shape) != 3:
        raise ValueError(f"cells take pictures of shape (C, H, W), but got {x_shape}. Use an mlp for vectors.")
    made: list[Cell] = []
    cells, channels = stack.cells, stack.channels
    width, inputs, halve = channels, (channels, channels), False
    for i in range(cells):
        small = i in (cells // 3, 2 * cells // 3)
        width *= 1 + small
        made.append((reduction if small else normal)(f"cell{i}", inputs, width, halve, 1 + small))
        inputs, halve = (inputs[1], made[-1].channels), small
    features = inputs[1]

    def begin(generator: Generator) -> Params:
        stem = weights("stem", (channels, x_shape[0], 3, 3), "torch", generator)["net/stem/weight"]
        params: Params = {"net/stem/weight": stem} | norm.init("stem", channels)
        for cell in made:
            params |= cell.init(generator)
        return params if outputs is None else params | weights("head", (outputs, features), "torch", generator)

    def body(params: Params, x: Tensor) -> Tensor:
        last = norm.apply(params, "stem", F.conv2d(x, params["net/stem/weight"], None, 1, 1))
        before = last
        for cell in made:
            before, last = last, cell.apply(params, before, last)
        return last.mean((2, 3))

    if outputs is None:
        return Net(begin, body, norm.mode(mode), features)

    def head(params: Params, z: Tensor) -> Tensor:
        return F.linear(z, params["net/head/weight"], params["net/head/bias"])

    return Net(begin, lambda params, x: head(params, body(params, x)), norm.mode(mode), features, body, head, outputs)
