"""Three levels of motifs: 6 primitives, 6 motifs of them on 4 nodes, a cell of those on 5 nodes; 7**46 in all.

Liu, Simonyan, Vinyals, Fernando, Kavukcuoglu. "Hierarchical Representations for Efficient Architecture Search." ICLR 2018.
https://arxiv.org/abs/1711.00436

`motif.2.e31` is what leads from node 1 to node 3 in the third motif, `cell.0.e31` the same in the cell: none, or one of the
level below. The first options make chains of identities, with which evolution begins (method "hierarchical-evolution").
"""
from __future__ import annotations

from collections import Counter

import numpy as np

from metasearch.graph import Edge as Arrow
from metasearch.graph import Graph, Node
from metasearch.nets.hierarchy import Design, Edge, Motif, between, hierarchical
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Int, Repeat, Space
from metasearch.tasks import TaskShape
from search_spaces._few_shot import Way, few_shot
from search_spaces._orders import orders

__all__ = ["SPACE", "Design", "canonical", "flattened", "graph", "mutations", "recipe"]

PRIMITIVES = {
    "identity": "skip_connect", "conv_1x1": "nor_conv_1x1", "depthwise_3x3": "depthwise_conv_3x3",
    "separable_3x3": "one_sep_conv_3x3", "max_3x3": "max_pool_3x3", "avg_3x3": "avg_pool_3x3",
}
MOTIFS = tuple(f"motif{i}" for i in range(6))
MOTIF_NODES, CELL_NODES = 4, 5


def _edges(nodes: int) -> list[Edge]:
    return [(source, target) for target in range(1, nodes) for source in range(target)]


def _entries(nodes: int, below: tuple[str, ...]) -> Space:
    """First options: below[0] along the chain, none elsewhere."""
    return Space({
        f"e{target}{source}": Choice((*below, "none") if source == target - 1 else ("none", *below))
        for source, target in _edges(nodes)
    })


SPACE = Space({
    "motif": Repeat(Int(len(MOTIFS), len(MOTIFS)), _entries(MOTIF_NODES, tuple(PRIMITIVES))),
    "cell": Repeat(Int(1, 1), _entries(CELL_NODES, MOTIFS)),
})


def recipe(config: Config, shape: TaskShape, *, design: Design = Design(), way: Way = "prototypical") -> Recipe:
    """500 outer steps of 4 tasks. Raises ValueError (infeasible) for a cell through which nothing passes."""
    cell = _cell(config)
    return few_shot(lambda outputs: hierarchical(shape.x, outputs, cell, design), shape, way)


def _cell(config: Config) -> Motif:
    motifs: dict[str, Motif] = {}
    for i, name in enumerate(MOTIFS):
        entries = {(s, t): str(config[f"motif.{i}.e{t}{s}"]) for s, t in _edges(MOTIF_NODES)}
        motifs[name] = Motif(MOTIF_NODES, {edge: PRIMITIVES[what] for edge, what in entries.items() if what != "none"})
    entries = {(s, t): str(config[f"cell.0.e{t}{s}"]) for s, t in _edges(CELL_NODES)}
    return Motif(CELL_NODES, {edge: motifs[what] for edge, what in entries.items() if what != "none"})


def mutations(config: Config, rng: np.random.Generator) -> tuple[Config, dict[str, str]]:
    """A level, a motif of it, a node, a node before it: the edge between them comes, goes or changes."""
    level = int(rng.integers(2))
    motif, nodes = (f"motif.{int(rng.integers(len(MOTIFS)))}", MOTIF_NODES) if level == 0 else ("cell.0", CELL_NODES)
    target = int(rng.integers(1, nodes))
    path = f"{motif}.e{target}{int(rng.integers(target))}"
    options = ("none", *(PRIMITIVES if level == 0 else MOTIFS))
    others = [option for option in options if option != config[path]]
    return {**config, path: others[int(rng.integers(len(others)))]}, {}


Form = tuple[int, ...]  # of every edge: 0 for none, else 1 + the number of what is on it


CHAIN: Form = tuple(int(source == target - 1) for source, target in _edges(MOTIF_NODES))


def canonical(config: Config) -> Config:
    """The first of the configs whose cells differ only in the numbers of nodes and motifs: equal motifs are one, what lies on
    no way from input to output is none, and motifs that the cell does not use are chains of identities."""
    numbers = {operation: number for number, operation in enumerate(PRIMITIVES.values(), 1)}
    cell = between(_cell(config)) or Motif(CELL_NODES, {})
    forms = {edge: _form(what, {e: numbers[str(w)] for e, w in what.edges.items()})
             for edge, what in cell.edges.items() if isinstance(what, Motif)}
    motifs = sorted(set(forms.values()))
    top = _form(cell, {edge: motifs.index(form) + 1 for edge, form in forms.items()})
    motifs += [CHAIN] * (len(MOTIFS) - len(motifs))
    found = {"motif.count": len(MOTIFS), "cell.count": 1, **_entered("cell.0", CELL_NODES, top, MOTIFS)}
    for i, form in enumerate(motifs):
        found |= _entered(f"motif.{i}", MOTIF_NODES, form, tuple(PRIMITIVES))
    return SPACE.normal(found)


def _form(motif: Motif, numbers: dict[Edge, int]) -> Form:
    """The first over all numberings of the nodes between input and output."""
    last = motif.nodes - 1
    reads = [[source - 1 for source, target in numbers if target == node and source > 0] for node in range(1, last)]
    found: list[Form] = []
    for order in orders(reads):
        old = [0, *(node + 1 for node in order), last]
        found.append(tuple(numbers.get((old[source], old[target]), 0) for source, target in _edges(motif.nodes)))
    return min(found)


def _entered(path: str, nodes: int, form: Form, below: tuple[str, ...]) -> Config:
    edges = zip(_edges(nodes), form, strict=True)
    return {f"{path}.e{target}{source}": ("none", *below)[number] for (source, target), number in edges}


def graph(config: Config) -> list[Graph]:
    """The cell, and below it the six motifs that its edges may be, with how often each of them is there."""
    uses = Counter(str(config[f"cell.0.e{t}{s}"]) for s, t in _edges(CELL_NODES))
    told = [f"{name}, {uses[name] or 'not'} in the cell" for name in MOTIFS]
    below = [_graph(config, f"motif.{i}", MOTIF_NODES, name) for i, name in enumerate(told)]
    return [_graph(config, "cell.0", CELL_NODES, "cell"), *below]


def _graph(config: Config, path: str, count: int, name: str) -> Graph:
    names = ["in", *(str(i) for i in range(1, count - 1)), "out"]
    nodes = (Node("in", role="input"), *map(Node, names[1:-1]), Node("out", role="output"))
    found = [(s, t, str(config[f"{path}.e{t}{s}"])) for s, t in _edges(count)]
    return Graph(name, nodes, tuple(Arrow(names[s], names[t], what) for s, t, what in found if what != "none"))


def flattened(config: Config) -> list[tuple[str, str, str]]:
    """The cell as one graph of primitives from "in" to "out", without what lies on no way between them."""
    live = between(_cell(config))
    names = {operation: name for name, operation in PRIMITIVES.items()}
    edges: list[tuple[str, str, str]] = []

    def expand(motif: Motif, source: str, target: str, prefix: str) -> None:
        nodes = [source, *(f"{prefix}{i}" for i in range(1, motif.nodes - 1)), target]
        for (before, after), what in sorted(motif.edges.items()):
            if isinstance(what, Motif):
                expand(what, nodes[before], nodes[after], f"{prefix}e{after}{before}.")
            else:
                edges.append((nodes[before], nodes[after], names[what]))

    if live is not None:
        expand(live, "in", "out", "")
    return edges
