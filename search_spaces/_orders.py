"""The orders in which a graph can be written down, so that a space file can choose one of them (`canonical`)."""
from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import permutations
from typing import Any

__all__ = ["one_order", "orders"]


def orders(reads: Sequence[Collection[int]]) -> Iterator[tuple[int, ...]]:
    """Every order of the nodes 0, 1, ... in which each comes behind those that it reads. order[place] is a node."""
    for order in permutations(range(len(reads))):
        place = {node: i for i, node in enumerate(order)}
        if all(place[source] < place[node] for node, sources in enumerate(reads) for source in sources):
            yield order


def one_order(labels: Sequence[Any], reads: Sequence[Collection[int]]) -> tuple[int, ...]:
    """One of `orders`, for larger graphs: the same up to a renumbering for all graphs that differ only in the numbers of their
    nodes. labels: what the nodes are; they can be sorted.

    Nodes are told apart by their label and by the labels around them, as far as edges lead (colour refinement: Weisfeiler, Leman
    1968). Where two look alike, both are tried, unless the same nodes read them, so that exchanging them changes nothing.
    """
    count = len(labels)
    readers = [frozenset(i for i in range(count) if node in reads[i]) for node in range(count)]
    colours = _ranks(labels)
    for _ in range(count):
        colours = _ranks([
            (colours[i], sorted(colours[j] for j in reads[i]), sorted(colours[j] for j in readers[i])) for i in range(count)
        ])
    begun: list[dict[int, int]] = [{}]  # places of nodes, of those orders whose graphs begin alike
    for place in range(count):
        following: dict[tuple[int, tuple[int, ...]], list[dict[int, int]]] = {}
        for places in begun:
            alike = set[tuple[Any, ...]]()
            for node in range(count):
                if node in places or not all(source in places for source in reads[node]):
                    continue
                key = (colours[node], tuple(sorted(places[source] for source in reads[node])))
                if (key, readers[node]) not in alike:
                    alike.add((key, readers[node]))
                    following.setdefault(key, []).append(places | {node: place})
        begun = following[min(following)]
    return tuple(begun[0])


def _ranks(values: Sequence[Any]) -> list[int]:
    places = {repr(v): i for i, v in enumerate(sorted(values))}
    return [places[repr(v)] for v in values]
