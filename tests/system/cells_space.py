"""Cells of three nodes that are drawn and never trained; importing it imports no torch."""
from __future__ import annotations

from metasearch.graph import Edge, Graph, Node
from metasearch.records import Config
from metasearch.space import Choice, Space

EDGES = ("e10", "e20", "e21")
SPACE = Space({edge: Choice(("none", "skip_connect", "nor_conv_3x3")) for edge in EDGES})


def graph(config: Config) -> list[Graph]:
    nodes = (Node("0", role="input"), Node("1"), Node("2", role="output"))
    return [Graph("cell", nodes, tuple(Edge(e[2], e[1], str(config[e])) for e in EDGES if config[e] != "none"))]
