"""The cells of DARTS: on each of 14 edges one of 8 operations, in normal and in reduction cells; and all at once, as a mixture.

Liu, Simonyan, Yang. "DARTS: Differentiable Architecture Search." ICLR 2019. https://arxiv.org/abs/1806.09055

A cell has 4 nodes behind its 2 inputs; a node is the sum of its edges from everything before it, and the cell's output is the
concatenation of its nodes. `derive` keeps 2 inputs a node, as published: what it makes are the cells of the paper, and the
other edges are `none`. Other strategies search among cells with any number of inputs. Norms have their scale and shift in the
search too, and pools have no norm behind them, so that a mixture with all of its weight on one operation is that operation.

Published sizes (8 cells of 16 channels in the search, 20 of 36 in the end) are large for few shots on a CPU. A file of one's
own makes smaller ones:

    from functools import partial
    from search_spaces.darts_cells import NODE_INPUTS, RELAXED, SPACE, Stack, canonical, derive, graph
    from search_spaces import darts_cells
    recipe, relaxed = (partial(f, stack=Stack(3, 8), way="maml") for f in (darts_cells.recipe, darts_cells.relaxed))
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from metasearch.graph import Edge, Graph, Node
from metasearch.nets import Net, Params
from metasearch.nets.cells import Cell, Stack, prepared, stacked
from metasearch.nets.mixture import begin, mixture
from metasearch.nets.norm import Norm
from metasearch.nets.operations import Operation, operation
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape
from search_spaces._few_shot import Way, few_shot
from search_spaces._orders import orders

PRIMITIVES = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)
NODES = range(2, 6)  # behind the inputs 0 (the cell before the last) and 1 (the last cell)
EDGES = [(node, source) for node in NODES for source in range(node)]
KINDS = ("normal", "reduction")
INPUTS = ("cell before last", "last cell")
NORM = Norm("batch")

RELAXED = tuple(f"{kind}_e{node}{source}" for kind in KINDS for node, source in EDGES)
SPACE = Space({path: Choice(PRIMITIVES) for path in RELAXED})
NODE_INPUTS = tuple(tuple(f"{kind}_e{node}{source}" for source in range(node)) for kind in KINDS for node in NODES)


def recipe(config: Config, shape: TaskShape, *, stack: Stack = Stack(), way: Way = "prototypical") -> Recipe:
    """500 outer steps of 4 tasks."""
    return few_shot(lambda outputs: _net(config, shape, outputs, stack, relaxed=False), shape, way)


def relaxed(config: Config, shape: TaskShape, *, stack: Stack = Stack(), way: Way = "prototypical") -> Recipe:
    """Every edge is a mixture of the eight operations, the same in all cells of a kind: `arch/normal_e20` [8], ..."""
    return few_shot(lambda outputs: _net(config, shape, outputs, stack, relaxed=True), shape, way)


def derive(shares: Mapping[str, Sequence[float]]) -> Config:
    """The config that is found: in every node the two edges with the largest share of an operation that is not `none`, with
    that operation; `none` on the others. shares: for every path in RELAXED the softmax of its logits."""
    found: Config = {}
    for kind in KINDS:
        for node in NODES:
            paths = [f"{kind}_e{node}{source}" for source in range(node)]
            strongest = {path: max((float(share), -o) for o, share in enumerate(shares[path]) if o > 0) for path in paths}
            kept = sorted(paths, key=lambda path: -strongest[path][0])[:2]
            found |= {path: PRIMITIVES[-strongest[path][1]] if path in kept else "none" for path in paths}
    return found


def graph(config: Config) -> list[Graph]:
    """Each kind of cell."""
    inside = tuple(Node(_name(node)) for node in NODES)
    nodes = (*(Node(name, role="input") for name in INPUTS), *inside, Node("output", "concat", "output"))
    return [
        Graph(f"{kind} cell", nodes, (
            *(Edge(_name(source), _name(node), str(config[f"{kind}_e{node}{source}"])) for node, source in EDGES
              if config[f"{kind}_e{node}{source}"] != "none"),
            *(Edge(_name(node), "output") for node in NODES),
        ))
        for kind in KINDS
    ]


def _name(node: int) -> str:
    return INPUTS[node] if node < 2 else f"node {node - 2}"


Edges = dict[tuple[int, int], str]  # (node, source) -> operation
OF_ZEROS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect")  # are zeros; a convolution has its norm's shift


def canonical(config: Config) -> Config:
    """The first of the configs whose cells differ only in the numbers of their nodes, whose order is that of the channels behind
    them. What pools or copies a node without inputs is none."""
    found: Config = {}
    for kind in KINDS:
        cell = _without_zeros({(node, source): str(config[f"{kind}_e{node}{source}"]) for node, source in EDGES})
        reads = [[source - 2 for source in range(2, node) if cell[node, source] != "none"] for node in NODES]
        first = min(
            (_renumbered(cell, order) for order in orders(reads)),
            key=lambda cell: [PRIMITIVES.index(cell[edge]) for edge in EDGES],
        )
        found |= {f"{kind}_e{node}{source}": first[node, source] for node, source in EDGES}
    return found


def _without_zeros(cell: Edges) -> Edges:
    zeros, found = set[int](), dict(cell)
    for node in NODES:
        for source in range(node):
            if source in zeros and found[node, source] in OF_ZEROS:
                found[node, source] = "none"
        if all(found[node, source] == "none" for source in range(node)):
            zeros.add(node)
    return found


def _renumbered(cell: Edges, order: tuple[int, ...]) -> Edges:
    """order: nodes, less 2, by their new numbers, less 2."""
    old = {0: 0, 1: 1} | {place + 2: node + 2 for place, node in enumerate(order)}
    return {(node, source): cell.get((old[node], old[source]), "none") for node, source in EDGES}


def _net(config: Config, shape: TaskShape, outputs: int | None, stack: Stack, *, relaxed: bool) -> Net:
    normal, reduction = (partial(_cell, config, kind, relaxed) for kind in KINDS)
    net = stacked(shape.x, outputs, normal, reduction, stack, NORM)
    if not relaxed:
        return net

    def init(generator: Generator) -> Params:
        return net.init(generator) | begin(RELAXED, len(PRIMITIVES), generator)

    return net._replace(init=init)


def _cell(
    config: Config, kind: str, relaxed: bool, key: str, inputs: tuple[int, int], channels: int, halve: bool, stride: int
) -> Cell:
    first, second = prepared(key, inputs, channels, halve, NORM)
    edges: dict[tuple[int, int], Operation] = {}
    for node, source in EDGES:
        path, s = f"{kind}_e{node}{source}", stride if source < 2 else 1
        if relaxed:
            edges[node, source] = mixture(PRIMITIVES, path, f"{key}/e{node}{source}", channels, channels, s, NORM)
        else:
            edges[node, source] = operation(str(config[path]), f"{key}/e{node}{source}", channels, channels, s, NORM)

    def init(generator: Generator) -> Params:
        params = first.init(generator) | second.init(generator)
        for edge in edges.values():
            params |= edge.init(generator)
        return params

    def apply(params: Params, before: Tensor, last: Tensor) -> Tensor:
        states = [first.apply(params, before), second.apply(params, last)]
        for node in NODES:
            terms = [edges[node, source].apply(params, states[source]) for source in range(node)]
            states.append(sum(terms[1:], terms[0]))
        return torch.cat(states[2:], 1)

    return Cell(init, apply, len(NODES) * channels)
