"""The orders in which a small graph can be written down, so that a space file can choose the first of them (`canonical`)."""
from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import permutations

__all__ = ["orders"]


def orders(reads: Sequence[Collection[int]]) -> Iterator[tuple[int, ...]]:
    """Every order of the nodes 0, 1, ... in which each comes behind those that it reads. order[place] is a node."""
    for order in permutations(range(len(reads))):
        place = {node: i for i, node in enumerate(order)}
        if all(place[source] < place[node] for node, sources in enumerate(reads) for source in sources):
            yield order
