"""An architecture as a picture and as text, from the graphs of its space file (metasearch/graph.py).

    picture(drawn(module, config), title="glyphs/12", path=Path("cell.svg"))
    print(as_text(drawn(module, config)))

Values flow downwards. A box on a line is an operation, a box that lines meet in is a node; its colour is the kind of operation.
What lies on no way from an input to an output is dashed. In an SVG every box and every label has an id: g0-node-3 and
g0-node-3-box, g0-edge-5 and g0-edge-5-box (graph, number of the node or edge).
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metasearch.graph import Edge, Graph, Node
from metasearch.track.figures import blank, written
from metasearch.track.layout import Placed, Size, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch
    from rich.text import Text

__all__ = ["KINDS", "as_text", "kind_of", "picture", "spelled"]

FONT = 8.0  # points
PAD_X, PAD_Y = 0.075, 0.05  # inches between a label and its box
LINE = 0.145  # inches from one line of a label to the next
HEAD = 0.08  # of an arrow
MARGIN, APART, TITLE = 0.18, 0.42, 0.31  # inches around and between graphs, and for the name above each
INK, FAINT = "#3A3A3A", "#A8A8A8"


class Kind(NamedTuple):
    """A kind of operation. fill, line: its colours; style: in a terminal."""

    name: str
    pattern: str
    fill: str
    line: str
    style: str


KINDS = (  # the first whose pattern is found in the operation's name
    Kind("separable convolution", r"\bsep|separable|\bmb\d|mbconv", "#CFE3F5", "#2F6FA8", "blue"),
    Kind("dilated convolution", r"\bdil", "#D9D3EF", "#5E4FA2", "magenta"),
    Kind("depthwise convolution", r"depthwise", "#CDEBEA", "#1F7F7B", "cyan"),
    Kind("convolution", r"conv", "#B7D7C4", "#2B7A4B", "green"),
    Kind("max pooling", r"max", "#FBD9B4", "#B8650B", "yellow"),
    Kind("average pooling", r"avg|average|mean", "#FBEFB0", "#9A7D0A", "bright_yellow"),
    Kind("identity", r"skip|identity|\bid\b", "#EDEDED", "#7A7A7A", "bright_black"),
    Kind("motif", r"motif", "#F3D0E3", "#A8427A", "bright_magenta"),
    Kind("linear", r"linear|dense|\bfc\b", "#E6DCD0", "#7B6245", "red"),
    Kind("none", r"\bnone|zero", "#FFFFFF", "#9A9A9A", "bright_black"),
    Kind("other operation", r"", "#E3E8EE", "#55606E", "default"),
)
TOGETHER = ("add", "sum", "concat", "concatenate", "multiply", "product", "")  # how a node puts together what comes in


def kind_of(operation: str) -> Kind | None:
    """None for what only puts values together."""
    words = operation.replace("_", " ")
    if words in TOGETHER:
        return None
    return next(kind for kind in KINDS if re.search(kind.pattern, words, re.IGNORECASE))


def spelled(operation: str) -> str:
    """As people write it: sep_conv_3x3 -> sep conv 3×3."""
    words = re.sub(r"(?<=\d)x(?=\d)", "×", operation.replace("_", " "))
    return re.sub(r"^nor (?=conv)|(?<=^skip) connect$", "", words).strip()


# -- the picture ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A box of a graph. key: of its place; id: of its elements in an SVG."""

    key: str
    id: str
    lines: tuple[str, ...]
    kind: Kind | None
    round: bool
    faint: bool

    @property
    def size(self) -> Size:
        """Width and height in inches."""
        widest = max(_width(line) for line in self.lines)
        return widest + 2 * PAD_X, LINE * len(self.lines) + 2 * PAD_Y


@dataclass(frozen=True)
class Panel:
    """A graph with its boxes in their places."""

    name: str
    boxes: tuple[Box, ...]
    placed: Placed
    faint: frozenset[tuple[str, str]]  # lines that lie on no way from input to output

    @property
    def width(self) -> float:
        return max(self.placed.width, _width(self.name) * 1.2)

    @property
    def height(self) -> float:
        return self.placed.height + TITLE


def picture(graphs: Sequence[Graph], *, title: str = "", path: Path | None = None) -> Figure:
    """All graphs side by side, in as many rows as look best, with a legend of the kinds of operations. Written to `path`
    (.png, .svg, .pdf) if one is given. Raises ValueError if there is no graph."""
    if not graphs:
        raise ValueError("there is no graph to draw")
    panels = [_panel(graph, number) for number, graph in enumerate(graphs)]
    rows = _shelves(panels)
    kinds = [kind for kind in KINDS if any(box.kind is kind for panel in panels for box in panel.boxes)]
    widths = [sum(panel.width for panel in row) + APART * (len(row) - 1) for row in rows]
    width = max(*widths, _width(title) * 1.3, 2.4) + 2 * MARGIN
    legend = _legend(kinds, width - 2 * MARGIN)
    head = TITLE if title else 0.0
    deep = sum(max(panel.height for panel in row) for row in rows) + APART * (len(rows) - 1)
    height = head + deep + 2 * MARGIN + (0.12 + 0.24 * len(legend) if legend else 0.0)
    made = blank(width, height, layout=None)
    axes = made.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    if title:
        axes.text(MARGIN, MARGIN, title, fontsize=FONT * 1.3, fontweight="bold", color=INK, va="top", gid="title")
    top = MARGIN + head
    for row, wide in zip(rows, widths, strict=True):
        left = (width - wide) / 2
        for panel in row:
            _draw(axes, panel, left + (panel.width - panel.placed.width) / 2, top)
            left += panel.width + APART
        top += max(panel.height for panel in row) + APART
    for line, entries in enumerate(legend):
        left = MARGIN
        for kind in entries:
            at = height - MARGIN - 0.24 * (len(legend) - line) + 0.12
            _patch(axes, left, at - 0.07, 0.2, 0.14, kind.fill, kind.line, 0.04)
            axes.text(left + 0.27, at, kind.name, fontsize=FONT, color=INK, va="center_baseline", gid=f"legend-{kind.name}")
            left += _entry(kind)
    return written(made, path)


def _panel(graph: Graph, number: int) -> Panel:
    live = graph.live
    boxes: list[Box] = []
    lines: dict[tuple[str, str], bool] = {}  # -> is it live?
    lively = {name for edge in live for name in edge[:2]}
    for i, node in enumerate(graph.nodes):
        words = (node.name, spelled(node.operation)) if node.operation else (node.name,)
        faint = node.role == "inside" and node.name not in lively
        boxes.append(Box(f"n{i}", f"g{number}-node-{i}", words, kind_of(node.operation), not kind_of(node.operation), faint))
    place_of = {node.name: f"n{i}" for i, node in enumerate(graph.nodes)}
    late = []
    for i, edge in enumerate(graph.edges):
        source, target = place_of[edge.source], place_of[edge.target]
        if edge.operation:
            box = Box(f"e{i}", f"g{number}-edge-{i}", _folded(edge.operation), kind_of(edge.operation) or KINDS[-1], False,
                      edge not in live)
            boxes.append(box)
            late.append(box.key)
            lines |= {(source, box.key): edge in live, (box.key, target): edge in live}
        else:
            lines[source, target] = edge in live
    late += [place_of[node.name] for node in graph.nodes if node.role == "inside" and node.name not in
             {edge.target for edge in graph.edges}]
    outputs = [place_of[name] for name in graph.named("output")]
    placed = place({box.key: box.size for box in boxes}, lines, late=late, last=outputs)
    return Panel(graph.name, tuple(boxes), placed, frozenset(line for line, alive in lines.items() if not alive))


def _folded(operation: str) -> tuple[str, ...]:
    """The label on an edge: the size below the name, so that many have room beside each other."""
    words = spelled(operation)
    found = re.fullmatch(r"(.*?[^\d×\s])\s+([\d×\s]+)", words)
    return (found[1], found[2]) if found and "×" in found[2] else (words,)


def _shelves(panels: list[Panel]) -> list[list[Panel]]:
    """The panels in rows, of as many columns as bring the picture near to three by two and leave little of it empty."""
    def flaw(columns: int) -> float:
        rows = [panels[i: i + columns] for i in range(0, len(panels), columns)]
        width = max(sum(p.width for p in row) + APART * (len(row) - 1) for row in rows)
        height = sum(max(p.height for p in row) for row in rows) + APART * (len(rows) - 1)
        return abs(math.log(width / height / 1.5)) - 2 * sum(p.width * p.height for p in panels) / (width * height)

    columns = min(range(1, len(panels) + 1), key=flaw)
    return [panels[i: i + columns] for i in range(0, len(panels), columns)]


def _entry(kind: Kind) -> float:
    return 0.27 + _width(kind.name) + 0.28


def _legend(kinds: Sequence[Kind], width: float) -> list[list[Kind]]:
    """In lines that are not too wide."""
    lines: list[list[Kind]] = []
    for kind in kinds:
        if not lines or sum(map(_entry, lines[-1])) + _entry(kind) > width:
            lines.append([])
        lines[-1].append(kind)
    return lines


def _draw(axes: Axes, panel: Panel, left: float, top: float) -> None:
    axes.text(left + panel.placed.width / 2, top, panel.name, fontsize=FONT * 1.15, fontweight="bold", color=INK, ha="center",
              va="top")
    top += TITLE
    _lines(axes, panel, left, top)
    for box in panel.boxes:
        x, y = panel.placed.centres[box.key]
        width, height = box.size
        fill, line = (box.kind.fill, box.kind.line) if box.kind else ("#FFFFFF", INK)
        rounding = height / 2 if box.round and len(box.lines) == 1 else 0.05
        patch = _patch(axes, left + x - width / 2, top + y - height / 2, width, height, fill, line, rounding)
        patch.set_gid(f"{box.id}-box")
        if box.faint:
            patch.set(linestyle=(0, (3, 2)), alpha=0.55)
        axes.text(left + x, top + y, "\n".join(box.lines), fontsize=FONT, color=FAINT if box.faint else INK, ha="center",
                  va="center", linespacing=LINE * 72 / FONT / 1.2, zorder=4, gid=box.id)


def _lines(axes: Axes, panel: Panel, left: float, top: float) -> None:
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path as Curve

    for segment in panel.placed.segments:
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = ((left + x, top + y) for x, y in segment.points)
        middle = (by + cy) / 2
        points = [(ax, ay), (bx, by), (bx, middle), (cx, middle), (cx, cy), (dx, dy)]
        codes = [Curve.MOVETO, Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4, Curve.LINETO]
        faint = panel.faint.issuperset(segment.ways)
        look = {"edgecolor": FAINT if faint else INK, "linewidth": 0.9, "linestyle": (0, (3, 2)) if faint else "-"}
        axes.add_patch(PathPatch(Curve(points, codes), facecolor="none", capstyle="round", zorder=2, **look))
        if segment.end is not None:
            tip = [(dx, dy), (dx - HEAD / 3, dy - HEAD), (dx + HEAD / 3, dy - HEAD)]
            axes.add_patch(Polygon(tip, facecolor=look["edgecolor"], edgecolor="none", zorder=3))


def _patch(
    axes: Axes, x: float, y: float, width: float, height: float, fill: str, line: str, rounding: float
) -> FancyBboxPatch:
    from matplotlib.patches import FancyBboxPatch as Rounded

    style = f"round,pad=0,rounding_size={min(rounding, width / 2, height / 2)}"
    patch = Rounded((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=line, linewidth=0.9, zorder=3)
    axes.add_patch(patch)
    return patch


@lru_cache(maxsize=4096)
def _width(words: str) -> float:
    """Of a label, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    width, _, _ = TextToPath().get_text_width_height_descent(words, FontProperties(size=FONT), ismath=False)
    return float(width) / 72


# -- as text -------------------------------------------------------------------------------------------------------------------


def as_text(graphs: Sequence[Graph], *, width: int = 100) -> Text:
    """A line a node, in the order in which they are computed: what it does, and to what, each with the operation on the way.

        reduction cell
          block 0  add     ← sep conv 5×5 (last cell)  max pool 3×3 (cell before last)
          output   concat  ← block 0
    """
    from rich.text import Text

    found = Text()
    for at, graph in enumerate(graphs):
        found.append("\n" if at else "").append(f"{graph.name}\n", style="bold")
        for line in _as_lines(graph, width):
            found.append(line).append("\n")
    found.rstrip()
    return found


def _as_lines(graph: Graph, width: int) -> Iterator[Text]:
    from rich.text import Text

    live = graph.live
    inside = [node for node in graph.nodes if node.role != "input"]
    into = {node.name: [edge for edge in graph.edges if edge.target == node.name] for node in inside}
    name = max(len(node.name) for node in inside)
    does = max(len(spelled(node.operation)) for node in inside)
    left = 2 + name + 2 + (does + 2 if does else 0) + 2
    ways = {edge: _way(edge, edge in live) for edge in graph.edges}
    cell = max((way.cell_len for way in ways.values()), default=0)
    fit = max(1, (width - left) // (cell + 2))
    for node in inside:
        start = Text("  ").append(node.name.ljust(name + 2))
        if does:
            start.append(spelled(node.operation).ljust(does + 2), style=_style(node))
        here = [ways[edge] for edge in into[node.name]]
        for first in range(0, max(len(here), 1), fit):
            line = start if first == 0 else Text(" " * (left - 2))
            line.append("← " if first == 0 and here else "  ")
            for way in here[first: first + fit]:
                line.append(way).append(" " * (cell + 2 - way.cell_len))
            line.rstrip()
            yield line


def _way(edge: Edge, live: bool) -> Text:
    from rich.text import Text

    if not edge.operation:
        return Text(edge.source, style="" if live else "dim")
    kind = kind_of(edge.operation)
    style = "dim" if not live else kind.style if kind else ""
    return Text().append(spelled(edge.operation), style=style).append(f" ({edge.source})")


def _style(node: Node) -> str:
    kind = kind_of(node.operation)
    return kind.style if kind else ""
