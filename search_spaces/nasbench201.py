"""The cells of NAS-Bench-201: 5 operations on 6 edges, 15,625 in all; the same space as the table of their trainings.

Dong, Yang. "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search." ICLR 2020.
https://arxiv.org/abs/2001.00326

Published sizes (16 channels, 3 stages of 5 cells) are large for few shots on a CPU. A file of one's own makes smaller ones:

    from functools import partial
    from search_spaces.nasbench201 import RELAXED, SPACE, Cells, canonical, graph
    from search_spaces.nasbench201 import recipe as published
    recipe = partial(published, design=Cells(channels=8, cells=1), way="maml")
"""
from __future__ import annotations

from functools import cache
from itertools import permutations, product

from metasearch.graph import Edge, Graph, Node
from metasearch.nets.nasbench import EDGES, OPERATIONS, Cells, nasbench201
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape
from search_spaces._few_shot import Way, few_shot

__all__ = ["RELAXED", "SPACE", "Cells", "arch_str", "canonical", "from_arch_str", "graph", "recipe", "relaxed"]

SPACE = Space({edge: Choice(OPERATIONS) for edge in EDGES})
RELAXED = EDGES


def recipe(config: Config, shape: TaskShape, *, design: Cells = Cells(), way: Way = "prototypical") -> Recipe:
    """500 outer steps of 4 tasks."""
    cell = {edge: str(config[edge]) for edge in EDGES}
    return few_shot(lambda outputs: nasbench201(shape.x, outputs, cell, design), shape, way)


def relaxed(config: Config, shape: TaskShape, *, design: Cells = Cells(), way: Way = "prototypical") -> Recipe:
    """Every edge is a mixture of the five operations, the same in all cells: `arch/e10` [5], ..."""
    return few_shot(lambda outputs: nasbench201(shape.x, outputs, dict.fromkeys(EDGES), design), shape, way)


def arch_str(config: Config) -> str:
    """The table's notation: |nor_conv_3x3~0|+|skip_connect~0|none~1|+..."""
    nodes = [[f"{config[f'e{node}{source}']}~{source}" for source in range(node)] for node in (1, 2, 3)]
    return "+".join(f"|{'|'.join(edges)}|" for edges in nodes)


def from_arch_str(text: str) -> Config:
    """Raises ValueError for what is no cell of the table."""
    config: Config = {}
    for node, edges in enumerate(text.split("+"), 1):
        for edge in edges.strip("|").split("|"):
            name, _, source = edge.partition("~")
            config[f"e{node}{source}"] = name
    return SPACE.normal({edge: config[edge] for edge in EDGES if edge in config})


def graph(config: Config) -> list[Graph]:
    """The cell, without the edges that are none."""
    nodes = (Node("0", role="input"), Node("1"), Node("2"), Node("3", role="output"))
    return [Graph("cell", nodes, tuple(Edge(edge[2], edge[1], str(config[edge])) for edge in EDGES if config[edge] != "none"))]


# -- cells that mean the same --------------------------------------------------------------------------------------------------

Value = tuple[int, ...]  # a node: the numbers of what is added up, 0 for the cell's input; sorted, empty for zero
Form = tuple[tuple[tuple[str, Value], ...], Value]  # what each number is: an operation on a value; and the output


def canonical(config: Config) -> Config:
    """The first, in the order of the space's numbers, of the cells that compute the same with the same weights.

    Edges that nothing reads, copies and the order of sums and nodes make no difference: 6,040 cells are left. Two convolutions
    of one input are not taken for one used twice, nor a convolution of zeros, whose norm is a learnt constant, for zero. (The
    authors count 6,466 by comparing strings, in which those are the same but sums of sums are not.)
    """
    return SPACE.unrank(_representatives()[_form(tuple(str(config[edge]) for edge in EDGES))])


@cache
def _representatives() -> dict[Form, int]:
    found: dict[Form, int] = {}
    for number, cell in enumerate(product(OPERATIONS, repeat=len(EDGES))):
        found.setdefault(_form(cell), number)
    return found


def _form(cell: tuple[str, ...]) -> Form:
    """A cell as operations on sums, without nodes: numbered so that equal cells have equal forms."""
    nodes: list[Value] = [(0,)]
    made: list[tuple[str, Value]] = []  # number n is made[n - 1]
    names: list[str] = [""]  # what each number looks like when written out: equal for numbers that could change places
    operations = dict(zip(EDGES, cell, strict=True))
    for node in (1, 2, 3):
        total: list[int] = []
        for source in range(node):
            name, value = operations[f"e{node}{source}"], nodes[source]
            if name == "skip_connect":
                total += value
            elif name != "none" and (value or name != "avg_pool_3x3"):  # an average of zeros is zero
                made.append((name, value))
                names.append(f"{name}({'+'.join(sorted(names[n] for n in value))})")
                total.append(len(made))
        nodes.append(tuple(sorted(total)))
    live = _live(made, nodes[3])
    groups: dict[str, list[int]] = {}
    for n in sorted(live, key=lambda n: (len(names[n]), names[n])):
        groups.setdefault(names[n], []).append(n)
    orders = product(*(permutations(group) for group in groups.values()))
    return min(_numbered(made, nodes[3], [n for group in order for n in group]) for order in orders)


def _live(made: list[tuple[str, Value]], output: Value) -> set[int]:
    live, left = set[int](), [n for n in output if n]
    while left:
        n = left.pop()
        if n not in live:
            live.add(n)
            left += [m for m in made[n - 1][1] if m]
    return live


def _numbered(made: list[tuple[str, Value]], output: Value, order: list[int]) -> Form:
    new = {0: 0} | {n: i for i, n in enumerate(order, 1)}
    forms = tuple((made[n - 1][0], tuple(sorted(new[m] for m in made[n - 1][1]))) for n in order)
    return forms, tuple(sorted(new[m] for m in output))
