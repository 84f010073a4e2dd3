"""Where the boxes of a layered drawing stand, and along which points its lines run, without any program of its own.

Sugiyama, Tagawa, Toda. "Methods for Visual Understanding of Hierarchical System Structures." IEEE Trans. SMC 11(2), 1981.
Gansner, Koutsofios, North, Vo. "A Technique for Drawing Directed Graphs." IEEE Trans. Software Engineering 19(3), 1993.

Rows by longest path; in a row, the order with the fewest crossings that sweeps of means find; then places that make lines short
and straight (a linear program, section 4 of the second paper). All long lines out of one box share a rail, from which they
branch off: a rail belongs to one box only, so that nobody takes one line for another.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Placed", "Segment", "place"]

GAP = 0.13  # inches between neighbours
RAIL = 0.11  # inches that a rail takes
ROWS_APART, MOST_APART = 0.24, 0.62  # inches between rows: more where lines are oblique
SWEEPS, IDLE = 24, 8  # sweeps at most; and without success

Key = str | tuple[str, int]  # a box, or the rail of a box in a row
Size = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Segment:
    """A line between two neighbouring rows: down, oblique from the second to the third point, down again. end: the box that it
    leads to, or None if it goes on as a rail; ways: the edges, as (source, target), that run along it."""

    points: tuple[Point, Point, Point, Point]
    end: str | None
    ways: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Placed:
    """centres: of the boxes, in inches, x to the right and y downwards from the top left corner."""

    centres: dict[str, tuple[float, float]]
    segments: tuple[Segment, ...]
    width: float
    height: float


def place(
    sizes: Mapping[str, Size], edges: Collection[tuple[str, str]], *, late: Collection[str] = (), last: Collection[str] = ()
) -> Placed:
    """sizes: width and height of every box, in inches. edges: of a graph without cycles. late: boxes that stand just above what
    they lead to, instead of just below what they come from; last: boxes that stand in the last row."""
    rows, paths = _rows(list(sizes), list(dict.fromkeys(edges)), late, last)
    neighbours = sorted({step for path in paths.values() for step in pairwise(path)}, key=str)
    rows = _ordered(rows, neighbours)
    x = _across(rows, neighbours, sizes)
    tops, heights = _down(rows, neighbours, sizes, x)
    return _drawn(rows, paths, sizes, x, tops, heights)


# -- rows ----------------------------------------------------------------------------------------------------------------------


def _rows(
    boxes: list[str], edges: list[tuple[str, str]], late: Collection[str], last: Collection[str]
) -> tuple[list[list[Key]], dict[tuple[str, str], list[Key]]]:
    """The boxes and rails of every row; and what every edge goes through, from row to row."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(boxes)
    graph.add_edges_from(edges)
    order = list(nx.lexicographical_topological_sort(graph, key=boxes.index))
    row: dict[str, int] = {}
    for box in order:
        row[box] = max((row[before] + 1 for before in graph.predecessors(box)), default=0)
    end = max(row.values(), default=0)
    if any(row[box] < end or any(row[other] == end for other in boxes if other not in last) for box in last):
        end += any(row[other] == end for other in boxes if other not in last)
    row |= dict.fromkeys(last, end)
    for box in reversed(order):
        if box in late and graph.out_degree(box):
            row[box] = min(row[after] for after in graph.successors(box)) - 1
    rows: list[list[Key]] = [[] for _ in range(end + 1)]
    for box in boxes:
        rows[row[box]].append(box)
    paths: dict[tuple[str, str], list[Key]] = {}
    for source, target in edges:
        rail: list[Key] = [(source, at) for at in range(row[source] + 1, row[target])]
        for at, part in enumerate(rail, row[source] + 1):
            if part not in rows[at]:
                rows[at].append(part)
        paths[source, target] = [source, *rail, target]
    return rows, paths


def _ordered(rows: list[list[Key]], steps: list[tuple[Key, Key]]) -> list[list[Key]]:
    """The rows with few crossings between them: sweeps of means down and up, with swaps of neighbours; the best of all."""
    above, below = _between(steps)
    best = [list(row) for row in rows]
    fewest = _crossings(best, below)
    now, idle = [list(row) for row in rows], 0
    for sweep in range(SWEEPS):
        if fewest == 0 or idle == IDLE:
            break
        down = sweep % 2 == 0
        look = above if down else below
        for at in range(1, len(now)) if down else range(len(now) - 2, -1, -1):
            place = {key: i for i, key in enumerate(now[at - 1 if down else at + 1])}
            here = {key: i for i, key in enumerate(now[at])}

            near = {key: [place[other] for other in look.get(key, ())] or [here[key]] for key in now[at]}
            now[at].sort(key=lambda key, near=near: sum(near[key]) / len(near[key]))  # type: ignore[misc]
        _swapped(now, below)
        if (count := _crossings(now, below)) < fewest:
            best, fewest, idle = [list(row) for row in now], count, -1
        idle += 1
    return best


def _swapped(rows: list[list[Key]], below: Mapping[Key, list[Key]]) -> None:
    """Swaps neighbours as long as this undoes crossings."""
    better = True
    while better:
        better = False
        for at, row in enumerate(rows):
            near = rows[max(0, at - 1): at + 2]
            for i in range(len(row) - 1):
                before = _crossings(near, below)
                row[i], row[i + 1] = row[i + 1], row[i]
                if _crossings(near, below) < before:
                    better = True
                else:
                    row[i], row[i + 1] = row[i + 1], row[i]


def _between(steps: list[tuple[Key, Key]]) -> tuple[dict[Key, list[Key]], dict[Key, list[Key]]]:
    above: dict[Key, list[Key]] = {}
    below: dict[Key, list[Key]] = {}
    for upper, lower in steps:
        above.setdefault(lower, []).append(upper)
        below.setdefault(upper, []).append(lower)
    return above, below


def _crossings(rows: Sequence[Sequence[Key]], below: Mapping[Key, list[Key]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {key: i for i, key in enumerate(lower)}
        ends = [sorted(place[other] for other in below.get(key, ()) if other in place) for key in upper]
        seen: list[int] = []
        for some in ends:
            total += sum(before > after for before in seen for after in some)
            seen += some
    return total


# -- places --------------------------------------------------------------------------------------------------------------------


def _across(rows: list[list[Key]], steps: list[tuple[Key, Key]], sizes: Mapping[str, Size]) -> dict[Key, float]:
    """The x of every box and rail: the sum of weight * |x_upper - x_lower| is least, and neighbours keep their distance. What
    is left free is put in the middle of the boxes that it is joined to."""
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    keys = [key for row in rows for key in row]
    number = {key: i for i, key in enumerate(keys)}
    n, m = len(keys), len(steps)
    parts: list[tuple[int, int, float]] = []
    bound: list[float] = []

    def require(entries: list[tuple[int, float]], most: float) -> None:
        parts.extend((len(bound), column, value) for column, value in entries)
        bound.append(most)

    for row in rows:
        for left, right in pairwise(row):
            require([(number[left], 1.0), (number[right], -1.0)], -_distance(left, right, sizes))
    for i, (upper, lower) in enumerate(steps):
        for sign in (1.0, -1.0):
            require([(number[upper], sign), (number[lower], -sign), (n + i, -1.0)], 0.0)
    weights = [_weight(upper, lower) for upper, lower in steps]
    if not bound:
        return dict.fromkeys(keys, 0.0)
    at, columns, values = zip(*parts, strict=True)
    matrix = csr_array((values, (at, columns)), shape=(len(bound), n + m))
    cost = np.concatenate([np.full(n, 1e-4), weights])  # a little to the left: one place for each, not any
    found = linprog(cost, A_ub=matrix, b_ub=bound, bounds=[(0, None)] * (n + m), method="highs").x
    x = {key: float(found[i]) for key, i in number.items()}
    above, below = _between(steps)
    for _ in range(40):
        for row in rows:
            for i, key in enumerate(row):
                joined = [*above.get(key, ()), *below.get(key, ())]
                near = [other for other in joined if isinstance(other, str)] or joined
                if not isinstance(key, str) or not near:
                    continue
                low = x[row[i - 1]] + _distance(row[i - 1], key, sizes) if i else -math.inf
                high = x[row[i + 1]] - _distance(key, row[i + 1], sizes) if i + 1 < len(row) else math.inf
                x[key] = min(max(sum(x[other] for other in near) / len(near), low), high)
    return x


def _weight(upper: Key, lower: Key) -> float:
    return (1.0, 3.0, 12.0)[(not isinstance(upper, str)) + (not isinstance(lower, str))]


def _half(key: Key, sizes: Mapping[str, Size]) -> float:
    return sizes[key][0] / 2 if isinstance(key, str) else RAIL / 2


def _distance(left: Key, right: Key, sizes: Mapping[str, Size]) -> float:
    return _half(left, sizes) + _half(right, sizes) + (GAP if isinstance(left, str) or isinstance(right, str) else RAIL / 2)


def _down(
    rows: list[list[Key]], steps: list[tuple[Key, Key]], sizes: Mapping[str, Size], x: Mapping[Key, float]
) -> tuple[list[float], list[float]]:
    """(top, height) of every row; two rows are further apart where the lines between them are oblique."""
    heights = [max((sizes[key][1] for key in row if isinstance(key, str)), default=0.0) for row in rows]
    inside = {key: i for i, row in enumerate(rows) for key in row}
    widest = [0.0] * len(rows)
    for upper, lower in steps:
        widest[inside[upper]] = max(widest[inside[upper]], abs(x[upper] - x[lower]))
    tops = [0.0]
    for height, oblique in zip(heights, widest, strict=True):
        tops.append(tops[-1] + height + min(MOST_APART, ROWS_APART + 0.1 * oblique))
    return tops[:-1], heights


def _drawn(
    rows: list[list[Key]], paths: Mapping[tuple[str, str], list[Key]], sizes: Mapping[str, Size], x: Mapping[Key, float],
    tops: list[float], heights: list[float],
) -> Placed:
    inside = {key: i for i, row in enumerate(rows) for key in row}
    left = min((x[key] - _half(key, sizes) for key in x), default=0.0)
    right = max((x[key] + _half(key, sizes) for key in x), default=0.0)

    def end(key: Key, side: int) -> tuple[Point, Point]:
        """The middle of the upper (-1) or lower (1) side of a box, and the same of its row."""
        at = inside[key]
        half = sizes[key][1] / 2 if isinstance(key, str) else heights[at] / 2
        middle = tops[at] + heights[at] / 2
        return (x[key] - left, middle + side * half), (x[key] - left, middle + side * heights[at] / 2)

    runs: dict[tuple[Key, Key], list[tuple[str, str]]] = {}
    for way, path in paths.items():
        for step in pairwise(path):
            runs.setdefault(step, []).append(way)

    def segments() -> Iterator[Segment]:
        rails: dict[Key, list[tuple[str, str]]] = {}
        for (upper, lower), ways in runs.items():
            (a, b), (d, c) = end(upper, 1), end(lower, -1)
            yield Segment((a, b, c, d), lower if isinstance(lower, str) else None, tuple(ways))
            if not isinstance(lower, str):
                rails.setdefault(lower, []).extend(ways)
        for rail, ways in rails.items():
            top, bottom = end(rail, -1)[0], end(rail, 1)[0]
            yield Segment((top, top, bottom, bottom), None, tuple(ways))

    centres = {key: (x[key] - left, tops[i] + heights[i] / 2) for key, i in inside.items() if isinstance(key, str)}
    return Placed(centres, tuple(segments()), right - left, tops[-1] + heights[-1] if rows else 0.0)
