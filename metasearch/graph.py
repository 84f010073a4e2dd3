"""An architecture as a graph, which is what a space file's `graph(config)` tells and what a picture shows.

    def graph(config):
        nodes = (Node("in", role="input"), Node("0"), Node("out", "concat", role="output"))
        return [Graph("cell", nodes, (Edge("in", "0", config["op"]), Edge("0", "out")))]

One Graph is one cell, one motif or a whole chain of layers; a config has as many as it has kinds of them. What is done to a
value is an operation: of an edge where every way into a node has its own (NASNet, DARTS), of a node where what comes in is put
together first (a layer, `concat`). An option `none` has no edge. An operation that is an option of the space is spelled as
it is there.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, NamedTuple

from metasearch.records import Config

__all__ = ["Edge", "Graph", "Node", "drawn"]


class Node(NamedTuple):
    """name: by which edges name it, and what is written in it. operation: what it does to what comes in, if anything."""

    name: str
    operation: str = ""
    role: Literal["input", "output", "inside"] = "inside"


class Edge(NamedTuple):
    """operation: what is done on the way; "" if the value goes through as it is."""

    source: str
    target: str
    operation: str = ""


@dataclass(frozen=True)
class Graph:
    """One graph of an architecture. nodes: in the order in which they are computed.

    Raises ValueError for names that are taken twice or not known, for a cycle, and where input or output is missing.
    """

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "edges", tuple(self.edges))
        if said := list(self._problems()):
            raise ValueError(f"graph '{self.name}': {'; '.join(said)}")

    def named(self, role: str) -> list[str]:
        """The nodes of a role."""
        return [node.name for node in self.nodes if node.role == role]

    @property
    def operations(self) -> Counter[str]:
        """Every operation, as often as it occurs."""
        return Counter(what for what in (*(n.operation for n in self.nodes), *(e.operation for e in self.edges)) if what)

    @property
    def live(self) -> frozenset[Edge]:
        """The edges on ways from an input to an output."""
        forward = _reached(self.named("input"), [(e.source, e.target) for e in self.edges])
        backward = _reached(self.named("output"), [(e.target, e.source) for e in self.edges])
        return frozenset(e for e in self.edges if e.source in forward and e.target in backward)

    def _problems(self) -> Iterator[str]:
        place = {node.name: i for i, node in enumerate(self.nodes)}
        if len(place) < len(self.nodes):
            twice = [name for name, count in Counter(node.name for node in self.nodes).items() if count > 1]
            yield f"names of nodes must differ, but {twice[0]!r} is there twice"
        yield from (f"a node must be {role}, but none is" for role in ("input", "output") if not self.named(role))
        unknown = [name for edge in self.edges for name in (edge.source, edge.target) if name not in place]
        if unknown:
            yield f"an edge names {unknown[0]!r}, which is no node"
            return
        for edge in self.edges:
            if place[edge.source] >= place[edge.target]:
                yield f"nodes must stand in the order of their edges, but {edge.source!r} -> {edge.target!r} leads back"
        ends = set(self.named("input")), set(self.named("output"))
        yield from (f"{e.target!r} is an input, but an edge leads into it" for e in self.edges if e.target in ends[0])
        yield from (f"{e.source!r} is an output, but an edge leads out of it" for e in self.edges if e.source in ends[1])


def drawn(module: ModuleType, config: Config) -> tuple[Graph, ...]:
    """What a space file draws of a config; nothing if it has no `graph`.

    Raises ValueError for what is no graph, and whatever the file's own function raises.
    """
    function = getattr(module, "graph", None)
    if function is None:
        return ()
    found = function(dict(config))
    if not isinstance(found, Sequence) or not found or not all(isinstance(one, Graph) for one in found):
        raise ValueError(f"graph(config) must return a list of Graph, at least one, but returned {found!r:.80}")
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ValueError(f"graphs of a config must have different names, but got {', '.join(map(repr, names))}")
    return tuple(found)


def _reached(start: Iterable[str], steps: list[tuple[str, str]]) -> set[str]:
    after: dict[str, list[str]] = {}
    for here, there in steps:
        after.setdefault(here, []).append(there)
    found, left = set(start), list(start)
    while left:
        new = set(after.get(left.pop(), ())) - found
        found |= new
        left += new
    return found
