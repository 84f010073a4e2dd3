"""The nets of NAS-Bench-Macro: one of three blocks in each of 8 layers, 6,561 in all; the same space as the table.

Su, Huang, Li, You, Wang, Qian, Zhang, Xu. "Prioritized Architecture Sampling with Monto-Carlo Tree Search." CVPR 2021.
https://arxiv.org/abs/2103.11922. Blocks: identity, and inverted residuals of expansion 3 and kernel 3, or 6 and 5.

Published sizes (32 channels, 1280 before the head) as in `recipe`; a file of one's own makes them smaller:

    recipe = functools.partial(search_spaces.nasbench_macro.recipe, design=Macro(channels=8, last=64))
"""
from __future__ import annotations

from itertools import pairwise

from metasearch.graph import Edge, Graph, Node
from metasearch.nets.nasbench import BLOCKS, Macro, macro
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape
from search_spaces._few_shot import Way, few_shot

__all__ = ["SPACE", "Macro", "arch", "canonical", "from_arch", "graph", "recipe"]

LAYERS = tuple(f"layer{i}" for i in range(8))
KEEPING = ((1,), (3, 4), (6, 7))  # the layers of each stage that keep their input's shape, where an identity does nothing

SPACE = Space({layer: Choice(BLOCKS) for layer in LAYERS})


def recipe(config: Config, shape: TaskShape, *, design: Macro = Macro(), way: Way = "prototypical") -> Recipe:
    """500 outer steps of 4 tasks."""
    layers = [str(config[layer]) for layer in LAYERS]
    return few_shot(lambda outputs: macro(shape.x, outputs, layers, design), shape, way)


def arch(config: Config) -> str:
    """The table's notation: one digit a layer."""
    return "".join(str(BLOCKS.index(str(config[layer]))) for layer in LAYERS)


def from_arch(text: str) -> Config:
    """Raises ValueError for what is no net of the table."""
    if len(text) != len(LAYERS) or not set(text) <= set("012"):
        raise ValueError(f"a net of NAS-Bench-Macro is {len(LAYERS)} digits of 0, 1 and 2, but got {text!r}")
    return {layer: BLOCKS[int(digit)] for layer, digit in zip(LAYERS, text, strict=True)}


def canonical(config: Config) -> Config:
    """Layers that do nothing come last among those of one shape: 3,969 nets are left."""
    found = dict(config)
    for layers in KEEPING:
        blocks = [config[LAYERS[i]] for i in layers]
        busy = [block for block in blocks if block != "identity"]
        found |= zip((LAYERS[i] for i in layers), busy + ["identity"] * (len(blocks) - len(busy)), strict=True)
    return found


def graph(config: Config) -> list[Graph]:
    """The chain of blocks."""
    names = [f"layer {i}" for i in range(len(LAYERS))]
    inside = (Node(name, str(config[layer])) for name, layer in zip(names, LAYERS, strict=True))
    nodes = (Node("stem", role="input"), *inside, Node("head", "linear", "output"))
    return [Graph("net", nodes, tuple(Edge(a.name, b.name) for a, b in pairwise(nodes)))]
