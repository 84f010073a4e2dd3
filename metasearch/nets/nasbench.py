"""The nets behind two tables of real trainings, at any width, so that what was found in a table can be built and trained.

NAS-Bench-201: Dong, Yang. ICLR 2020. https://arxiv.org/abs/2001.00326. NAS-Bench-Macro: Su et al. CVPR 2021.
https://arxiv.org/abs/2103.11922. With ten classes and their published widths both have the tables' numbers of parameters.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Block, Net, NormMode, Params
from metasearch.nets.activation import RELU, RELU6
from metasearch.nets.init import weights
from metasearch.nets.mixture import begin, mixture
from metasearch.nets.norm import Norm
from metasearch.nets.operations import Operation, convolve, operation, relu_conv_norm

__all__ = ["BLOCKS", "EDGES", "OPERATIONS", "Cells", "Macro", "macro", "nasbench201"]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ("e10", "e20", "e21", "e30", "e31", "e32")  # eAB: the edge from node B to node A
BLOCKS = ("identity", "mb3_k3", "mb6_k5")  # NAS-Bench-Macro's: expansion 3, kernel 3; expansion 6, kernel 5

NORM = Norm("batch")


@dataclass(frozen=True)
class Cells:
    """channels: of the first of three stages, doubled twice (published: 16). cells: of each stage (published: 5)."""

    channels: int = 16
    cells: int = 5

    def __post_init__(self) -> None:
        if self.channels < 1 or self.cells < 1:
            raise ValueError(f"`channels >= 1` and `cells >= 1` must hold, but got {self}")


@dataclass(frozen=True)
class Macro:
    """channels: of the stem; stages have 2, 4 and 8 times as many (published: 32). last: of the 1x1 convolution before the head
    (published: 1280)."""

    channels: int = 32
    last: int = 1280

    def __post_init__(self) -> None:
        if self.channels < 1 or self.last < 1:
            raise ValueError(f"`channels >= 1` and `last >= 1` must hold, but got {self}")


# -- NAS-Bench-201 -----------------------------------------------------------------------------------------------------------


def nasbench201(
    x_shape: tuple[int, ...], outputs: int | None, cell: Mapping[str, str | None], design: Cells = Cells(),
    mode: NormMode = "transductive", norm: Norm = NORM,
) -> Net:
    """x [M, C, H, W] -> [M, outputs], or features [M, 4 * channels] if outputs is None.

    cell: the operation of each edge; None: a mixture of all that is read from `arch/<edge>`, for all cells the same.
    A 3x3 stem, three stages of cells with a residual block of stride 2 between them, the mean over space.
    Keys: net/stem/weight, net/cell.0/e10/nor_conv_3x3/weight, net/reduction.0/a/weight, net/last/norm/..., net/head/weight.
    """
    _pictures("NAS-Bench-201", x_shape)
    blocks: list[tuple[str, Operation]] = [("stem", _stem("stem", x_shape[0], design.channels, norm))]
    width = design.channels
    for stage in range(3):
        if stage:
            blocks.append((f"reduction.{stage - 1}", _reduction(f"reduction.{stage - 1}", width, 2 * width, norm)))
            width *= 2
        for i in range(stage * design.cells, (stage + 1) * design.cells):
            blocks.append((f"cell.{i}", _cell(f"cell.{i}", cell, width, norm)))
    blocks.append(("last", _last(width, norm)))
    relaxed = [edge for edge in EDGES if cell[edge] is None]
    return _net(blocks, outputs, norm.mode(mode), width, lambda generator: begin(relaxed, len(OPERATIONS), generator))


def _cell(key: str, cell: Mapping[str, str | None], channels: int, norm: Norm) -> Operation:
    """Four nodes; a node is the sum of its edges, the last one is the output."""
    edges: dict[str, Operation] = {}
    for edge in EDGES:
        name = cell[edge]
        if name is None:
            edges[edge] = mixture(OPERATIONS, edge, f"{key}/{edge}", channels, channels, 1, norm)
        else:
            edges[edge] = operation(name, f"{key}/{edge}", channels, channels, 1, norm)

    def init(generator: Generator) -> Params:
        params: Params = {}
        for edge in edges.values():
            params |= edge.init(generator)
        return params

    def apply(params: Params, x: Tensor) -> Tensor:
        nodes = [x]
        for node in range(1, 4):
            incoming = [edges[f"e{node}{source}"].apply(params, nodes[source]) for source in range(node)]
            nodes.append(sum(incoming[1:], incoming[0]))
        return nodes[-1]

    return Operation(init, apply)


def _reduction(key: str, before: int, after: int, norm: Norm) -> Operation:
    """Two 3x3 convolutions, the first of stride 2, beside a 2x2 average and a 1x1 convolution."""
    a = relu_conv_norm(f"{key}/a", before, after, 3, 2, norm)
    b = relu_conv_norm(f"{key}/b", after, after, 3, 1, norm)

    def init(generator: Generator) -> Params:
        beside = weights(f"{key}/beside", (after, before, 1, 1), "torch", generator)
        return a.init(generator) | b.init(generator) | {k: v for k, v in beside.items() if k.endswith("/weight")}

    def apply(params: Params, x: Tensor) -> Tensor:
        beside = convolve(F.avg_pool2d(x, 2, ceil_mode=True), params[f"net/{key}/beside/weight"])
        return beside + b.apply(params, a.apply(params, x))

    return Operation(init, apply)


def _last(channels: int, norm: Norm) -> Operation:
    def apply(params: Params, x: Tensor) -> Tensor:
        return RELU(norm.apply(params, "last", x)).mean((2, 3))

    return Operation(lambda generator: norm.init("last", channels), apply)


# -- NAS-Bench-Macro ---------------------------------------------------------------------------------------------------------


def macro(
    x_shape: tuple[int, ...], outputs: int | None, layers: Sequence[str], design: Macro = Macro(),
    mode: NormMode = "transductive", norm: Norm = NORM,
) -> Net:
    """x [M, C, H, W] -> [M, outputs], or features [M, last] if outputs is None.

    layers: eight of BLOCKS, two, three and three in a stage; the first of a stage has stride 2. An identity that must change
    its shape is a 1x1 convolution. Keys: net/stem/weight, net/layer.0/mb3_k3/0/weight, net/last/weight, net/head/weight.
    """
    _pictures("NAS-Bench-Macro", x_shape)
    if len(layers) != 8:
        raise ValueError(f"NAS-Bench-Macro has 8 layers, but got {len(layers)}: {', '.join(layers)}")
    blocks = [("stem", _act(_stem("stem", x_shape[0], design.channels, norm)))]
    before = design.channels
    for i, name in enumerate(layers):
        after = design.channels * (2 if i < 2 else 4 if i < 5 else 8)
        blocks.append((f"layer.{i}", _layer(f"layer.{i}", name, before, after, 2 if i in (0, 2, 5) else 1, norm)))
        before = after
    last = _act(_conv_norm("last", before, design.last, 1, 1, 1, norm))
    blocks.append(("last", Operation(last.init, lambda params, x: last.apply(params, x).mean((2, 3)))))
    return _net(blocks, outputs, norm.mode(mode), design.last, lambda generator: {})


def _layer(key: str, name: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
    """An inverted residual of MobileNetV2 (Sandler et al. CVPR 2018): widen, look around in each channel, narrow."""
    if name not in BLOCKS:
        raise ValueError(f"a layer of NAS-Bench-Macro is one of {', '.join(BLOCKS)}, but got {name!r}")
    key, keeps = f"{key}/{name}", stride == 1 and before == after
    if name == "identity":
        if keeps:
            return Operation(lambda generator: {}, lambda params, x: x)
        return _conv_norm(key, before, after, 1, stride, 1, norm)
    wide, size = before * (3 if name == "mb3_k3" else 6), 3 if name == "mb3_k3" else 5
    steps = (
        _act(_conv_norm(f"{key}/0", before, wide, 1, 1, 1, norm)),
        _act(_conv_norm(f"{key}/1", wide, wide, size, stride, wide, norm)),
        _conv_norm(f"{key}/2", wide, after, 1, 1, 1, norm),
    )

    def init(generator: Generator) -> Params:
        return steps[0].init(generator) | steps[1].init(generator) | steps[2].init(generator)

    def apply(params: Params, x: Tensor) -> Tensor:
        y = x
        for step in steps:
            y = step.apply(params, y)
        return x + y if keeps else y

    return Operation(init, apply)


def _act(operation: Operation) -> Operation:
    return Operation(operation.init, lambda params, x: RELU6(operation.apply(params, x)))


# -- both --------------------------------------------------------------------------------------------------------------------


def _stem(key: str, before: int, after: int, norm: Norm) -> Operation:
    return _conv_norm(key, before, after, 3, 1, 1, norm)


def _conv_norm(key: str, before: int, after: int, size: int, stride: int, groups: int, norm: Norm) -> Operation:
    def init(generator: Generator) -> Params:
        made = weights(key, (after, before // groups, size, size), "torch", generator)
        return {f"net/{key}/weight": made[f"net/{key}/weight"]} | norm.init(key, after)

    def apply(params: Params, x: Tensor) -> Tensor:
        return norm.apply(params, key, convolve(x, params[f"net/{key}/weight"], (stride, stride), groups=groups))

    return Operation(init, apply)


def _net(
    blocks: Sequence[tuple[str, Operation]], outputs: int | None, mode: NormMode, features: int,
    more: Callable[[Generator], Params],
) -> Net:
    def init(generator: Generator) -> Params:
        params: Params = {}
        for _, block in blocks:
            params |= block.init(generator)
        if outputs is not None:
            params |= weights("head", (outputs, features), "torch", generator)
        return params | more(generator)

    chain = [Block(key, block.apply) for key, block in blocks]
    return Net.of(init, chain, outputs=outputs, norm=mode, features=features)


def _pictures(name: str, x_shape: tuple[int, ...]) -> None:
    if len(x_shape) != 3:
        raise ValueError(f"{name}'s nets take pictures of shape (C, H, W), but got {x_shape}. Use an mlp for vectors.")
