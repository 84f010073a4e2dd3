"""NASNet's cells: blocks that choose two earlier outputs, an operation for each and how to combine them.

Zoph, Vasudevan, Shlens, Le. "Learning Transferable Architectures for Scalable Image Recognition." CVPR 2018.
https://arxiv.org/abs/1707.07012 (B = 5 blocks, 13 operations, add or concatenate; normal and reduction cells)

A block's inputs are numbered 0 (the cell before the last), 1 (the last cell), 2 (block 0), ... Outputs that no block reads are
concatenated. In a reduction cell operations on the two inputs of the cell have stride 2. Where channels differ, a 1x1
convolution matches them. Published are B = 5 (here 1 to 5) and, in the search, 8 cells of 32 channels. Smaller:

    recipe = partial(nasnet_cells.recipe, stack=Stack(3, 8), way="maml")
"""
from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.graph import Edge, Graph, Node
from metasearch.nets import Params
from metasearch.nets.cells import Cell, Stack, prepared, stacked
from metasearch.nets.norm import Norm
from metasearch.nets.operations import Operation, operation
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Int, Repeat, Space, items, origin
from metasearch.tasks import TaskShape
from search_spaces._few_shot import Way, few_shot
from search_spaces._orders import orders

OPERATIONS = (
    "skip_connect", "conv_3x1_1x3", "conv_7x1_1x7", "dil_conv_3x3", "avg_pool_3x3", "max_pool_3x3", "max_pool_5x5",
    "max_pool_7x7", "nor_conv_1x1", "nor_conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
)
KINDS = ("normal", "reduction")
SIDES = ("first", "second")
INPUTS = ("cell before last", "last cell")
MOST_BLOCKS = 5
NORM = Norm("batch")


def _block(number: int) -> Space:
    return Space({
        **{side: Choice(tuple(range(2 + number))) for side in SIDES},
        **{f"{side}_op": Choice(OPERATIONS) for side in SIDES},
        "combine": Choice(("add", "concat")),
    })


SPACE = Space({
    **{kind: Repeat(Int(1, MOST_BLOCKS), tuple(_block(i) for i in range(MOST_BLOCKS))) for kind in KINDS},
})


def recipe(config: Config, shape: TaskShape, *, stack: Stack = Stack(8, 32), way: Way = "prototypical") -> Recipe:
    """500 outer steps of 4 tasks."""
    normal, reduction = (partial(_cell, config, kind) for kind in KINDS)
    return few_shot(lambda outputs: stacked(shape.x, outputs, normal, reduction, stack, NORM), shape, way)


def mutations(config: Config, rng: np.random.Generator) -> tuple[Config, dict[str, str]]:
    """Space.mutate, after which blocks still read the blocks that they read, although those may have other numbers now."""
    child, moved = SPACE.mutate(config, rng)
    for kind in KINDS:
        if child[f"{kind}.count"] == config[f"{kind}.count"]:
            continue
        parents = [origin(f"{kind}.{i}", moved) for i in range(int(child[f"{kind}.count"]))]
        came = [parent if f"{parent}.first" in config else None for parent in parents]
        now = {f"{kind}.{i}": i + 2 for i in range(-2, 0)} | {parent: i + 2 for i, parent in enumerate(came) if parent}
        for i, parent in enumerate(came):
            for side in SIDES if parent else ():
                read = f"{kind}.{int(config[f'{parent}.{side}']) - 2}"
                if read in now:  # else the block that it read is gone, and it reads what mutate chose
                    child[f"{kind}.{i}.{side}"] = now[read]
    return child, moved


def canonical(config: Config) -> Config:
    """The first of the configs whose cells differ only in the numbers of their blocks, or in the order of a block's two sides:
    whoever reads what is concatenated has a weight for every channel."""
    found: Config = {}
    for kind in KINDS:
        blocks = items(config, kind)
        reads = [[int(block[side]) - 2 for side in SIDES if int(block[side]) > 1] for block in blocks]
        found[f"{kind}.count"] = len(blocks)
        for i, (sides, combine) in enumerate(min(_renumbered(blocks, order) for order in orders(reads))):
            for name, (source, number) in zip(SIDES, sides, strict=True):
                found |= {f"{kind}.{i}.{name}": source, f"{kind}.{i}.{name}_op": OPERATIONS[number]}
            found[f"{kind}.{i}.combine"] = combine
    return SPACE.normal(found)


def _renumbered(blocks: list[Config], order: tuple[int, ...]) -> list[tuple[list[tuple[int, int]], str]]:
    """order: blocks by their new numbers. Of every block: (what it reads, its operation's number) twice, and the combination."""
    new = {0: 0, 1: 1} | {block + 2: place + 2 for place, block in enumerate(order)}
    return [
        (sorted((new[int(blocks[i][side])], OPERATIONS.index(str(blocks[i][f"{side}_op"]))) for side in SIDES),
         str(blocks[i]["combine"]))
        for i in order
    ]


def graph(config: Config) -> list[Graph]:
    """Each kind of cell."""
    found = []
    for kind in KINDS:
        blocks = items(config, kind)
        inside = (Node(_name(i), str(block["combine"])) for i, block in enumerate(blocks, 2))
        nodes = (*(Node(name, role="input") for name in INPUTS), *inside, Node("output", "concat", "output"))
        edges = (Edge(_name(int(block[side])), _name(i), str(block[f"{side}_op"]))
                 for i, block in enumerate(blocks, 2) for side in SIDES)
        unread = (Edge(_name(number), "output") for number in _unused(blocks))
        found.append(Graph(f"{kind} cell", nodes, (*edges, *unread)))
    return found


def _name(number: int) -> str:
    return INPUTS[number] if number < 2 else f"block {number - 2}"


def _unused(blocks: list[Config]) -> list[int]:
    """Numbers of blocks' outputs that no block reads; the last one's is always among them."""
    read = {block[side] for block in blocks for side in SIDES}
    return [number for number in range(2, len(blocks) + 2) if number not in read]


def _cell(
    config: Config, kind: str, key: str, inputs: tuple[int, int], channels: int, halve: bool, stride: int
) -> Cell:
    first, second = prepared(key, inputs, channels, halve, NORM)
    blocks = items(config, kind)
    widths = [channels, channels]
    made: list[list[Operation]] = []
    for i, block in enumerate(blocks):
        sources = [int(block[side]) for side in SIDES]
        strides = [stride if source < 2 else 1 for source in sources]
        made.append([
            operation(str(block[f"{side}_op"]), f"{key}/{kind}.{i}/{side}", widths[source], channels, s, NORM)
            for side, source, s in zip(SIDES, sources, strides, strict=True)
        ])
        widths.append(channels * (2 if block["combine"] == "concat" else 1))
    unused = _unused(blocks)

    def init(generator: Generator) -> Params:
        params = first.init(generator) | second.init(generator)
        for pair in made:
            for one in pair:
                params |= one.init(generator)
        return params

    def apply(params: Params, before: Tensor, last: Tensor) -> Tensor:
        states = [first.apply(params, before), second.apply(params, last)]
        for block, pair in zip(blocks, made, strict=True):
            a, b = (one.apply(params, states[int(block[side])]) for side, one in zip(SIDES, pair, strict=True))
            states.append(a + b if block["combine"] == "add" else torch.cat([a, b], 1))
        return torch.cat([states[number] for number in unused], 1)

    return Cell(init, apply, sum(widths[number] for number in unused))
