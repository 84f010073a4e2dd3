"""Nets of nested motifs: a small graph whose edges are operations, or other small graphs.

Liu, Simonyan, Vinyals, Fernando, Kavukcuoglu. "Hierarchical Representations for Efficient Architecture Search." ICLR 2018.
https://arxiv.org/abs/1711.00436. A node is the depth-concatenation of its edges; where there are several, a 1x1 convolution
brings them back to the motif's channels. What does not lie between input and output is not built.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metasearch.nets import Block, Net, NormMode, Params
from metasearch.nets.activation import RELU
from metasearch.nets.init import weights
from metasearch.nets.norm import Norm
from metasearch.nets.operations import Operation, convolve, operation, relu_conv_norm

__all__ = ["Design", "Edge", "Motif", "between", "hierarchical"]

NORM = Norm("batch")

Edge = tuple[int, int]  # (from, to), from < to


@dataclass(frozen=True)
class Motif:
    """nodes: 0 is the input, the last one the output. edges: an operation's name, or a motif; what is none has no entry."""

    nodes: int
    edges: Mapping[Edge, str | Motif]


@dataclass(frozen=True)
class Design:
    """channels: of the first of three stages, doubled twice (paper: 16 in search, 64 to evaluate). cells: of each stage."""

    channels: int = 16
    cells: int = 1

    def __post_init__(self) -> None:
        if self.channels < 1 or self.cells < 1:
            raise ValueError(f"`channels >= 1` and `cells >= 1` must hold, but got {self}")


def between(motif: Motif) -> Motif | None:
    """The part of a motif that lies on ways from its input to its output, in its own motifs too; None if there is no way."""
    edges: dict[Edge, str | Motif] = {}
    for edge, what in motif.edges.items():
        inside = between(what) if isinstance(what, Motif) else what
        if inside is not None:
            edges[edge] = inside
    reached, needed = {0}, {motif.nodes - 1}
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        if source in reached:
            reached.add(target)
    for source, target in sorted(edges, key=lambda edge: -edge[0]):
        if target in needed:
            needed.add(source)
    if motif.nodes - 1 not in reached:
        return None
    return Motif(motif.nodes, {edge: what for edge, what in edges.items() if edge[0] in reached and edge[1] in needed})


def hierarchical(
    x_shape: tuple[int, ...], outputs: int | None, cell: Motif, design: Design = Design(), mode: NormMode = "transductive",
    norm: Norm = NORM,
) -> Net:
    """x [M, C, H, W] -> [M, outputs], or features [M, 4 * channels] if outputs is None.

    A 3x3 stem, three stages of cells with 3x3 separable convolutions of stride 2 between them, the mean over space. Every use
    of a motif has its own weights: net/cell.0/e10/e21/nor_conv_1x1/weight. Raises ValueError for a cell that lets nothing pass.
    """
    if len(x_shape) != 3:
        raise ValueError(f"cells take pictures of shape (C, H, W), but got {x_shape}. Use an mlp for vectors.")
    live = between(cell)
    if live is None:
        raise ValueError("no way leads through this cell from its input to its output, so that it learns nothing.")
    width = design.channels
    blocks: list[tuple[str, Operation]] = [("stem", _stem(x_shape[0], width, norm))]
    for stage in range(3):
        if stage:
            key = f"reduction.{stage - 1}"
            blocks.append((key, operation("one_sep_conv_3x3", key, width, 2 * width, 2, norm)))
            width *= 2
        for i in range(stage * design.cells, (stage + 1) * design.cells):
            blocks.append((f"cell.{i}", _built(live, f"cell.{i}", width, norm)))
    blocks.append(("last", _last(width, norm)))

    def init(generator: Generator) -> Params:
        params: Params = {}
        for _, block in blocks:
            params |= block.init(generator)
        return params if outputs is None else params | weights("head", (outputs, width), "torch", generator)

    chain = [Block(key, block.apply) for key, block in blocks]
    return Net.of(init, chain, outputs=outputs, norm=norm.mode(mode), features=width)


def _built(motif: Motif, key: str, channels: int, norm: Norm) -> Operation:
    """A motif of which everything lies between input and output."""
    edges: dict[Edge, Operation] = {}
    for (source, target), what in sorted(motif.edges.items()):
        below = f"{key}/e{target}{source}"
        made = _built(what, below, channels, norm) if isinstance(what, Motif) else None
        edges[source, target] = made or operation(str(what), below, channels, channels, 1, norm)
    incoming = {node: [edge for edge in edges if edge[1] == node] for node in range(1, motif.nodes)}
    merges = {
        node: relu_conv_norm(f"{key}/n{node}", len(into) * channels, channels, 1, 1, norm)
        for node, into in incoming.items() if len(into) > 1
    }

    def init(generator: Generator) -> Params:
        params: Params = {}
        for part in (*edges.values(), *merges.values()):
            params |= part.init(generator)
        return params

    def apply(params: Params, x: Tensor) -> Tensor:
        nodes = {0: x}
        for node, into in incoming.items():
            found: Sequence[Tensor] = [edges[edge].apply(params, nodes[edge[0]]) for edge in into]
            if len(found) > 1:
                nodes[node] = merges[node].apply(params, torch.cat(list(found), 1))
            elif found:
                nodes[node] = found[0]
        return nodes[motif.nodes - 1]

    return Operation(init, apply)


def _stem(before: int, after: int, norm: Norm) -> Operation:
    def init(generator: Generator) -> Params:
        made = weights("stem", (after, before, 3, 3), "torch", generator)
        return {"net/stem/weight": made["net/stem/weight"]} | norm.init("stem", after)

    return Operation(init, lambda params, x: norm.apply(params, "stem", convolve(x, params["net/stem/weight"])))


def _last(channels: int, norm: Norm) -> Operation:
    def apply(params: Params, x: Tensor) -> Tensor:
        return RELU(norm.apply(params, "last", x)).mean((2, 3))

    return Operation(lambda generator: norm.init("last", channels), apply)
