"""Pictures show every operation of an architecture once, no label over another, no line through a box; plots tell a ledger."""
from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from made_ledgers import end, make, propose, report, study

from metasearch import cli, plugins
from metasearch.graph import Edge, Graph, Node, drawn
from metasearch.ledger import Ledger
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.testing.spaces import Broken, a_picture_shows_every_operation
from metasearch.track import architecture, layout, plots
from metasearch.track.architecture import as_text, picture, spelled

SVG = "{http://www.w3.org/2000/svg}"


def config_of(space: str, seed: int, keep: Callable[[Config], bool]) -> Config:
    """The first sample from a seed on that is as large as published."""
    rng, module = np.random.default_rng(seed), plugins.module("spaces", space)
    return next(config for config in iter(lambda: module.SPACE.sample(rng), None) if keep(config))


def dense(config: Config) -> bool:
    return "none" not in config.values()


def derived(seed: int) -> Config:
    from search_spaces import darts_cells

    rng = np.random.default_rng(seed)
    return darts_cells.derive({path: rng.dirichlet(np.ones(8)).tolist() for path in darts_cells.RELAXED})


MADE: dict[str, Callable[[], tuple[str, Config]]] = {
    **{f"nasnet-{seed}": lambda seed=seed: ("nasnet-cells", config_of(
        "nasnet-cells", seed, lambda c: c["normal.count"] == c["reduction.count"] == 5)) for seed in range(2)},
    "darts-14-edges": lambda: ("darts-cells", {
        path: options[i % 7 + 1] for i, path in enumerate(plugins.module("spaces", "darts-cells").RELAXED)
        for options in [plugins.module("spaces", "darts-cells").PRIMITIVES]}),
    **{f"darts-derived-{seed}": lambda seed=seed: ("darts-cells", derived(seed)) for seed in range(2)},
    **{f"chain-{count}": lambda count=count: ("conv-chain", config_of("conv-chain", count, lambda c: c["layer.count"] == count))
       for count in (12, 15)},
    "motifs": lambda: ("hierarchical-motifs", config_of("hierarchical-motifs", 0, lambda c: True)),
    "nasbench201": lambda: ("nasbench201", config_of("nasbench201", 0, dense)),
    "macro": lambda: ("nasbench-macro", config_of("nasbench-macro", 0, lambda c: True)),
    "grown": lambda: ("evolving-nets", config_of("evolving-nets", 0, lambda c: c["layers.count"] == 14)),
}


@pytest.fixture(params=MADE, scope="module")
def graphs(request: pytest.FixtureRequest) -> tuple[Graph, ...]:
    space, config = MADE[request.param]()
    return drawn(plugins.module("spaces", space), config)


@cache
def panels_of(graphs: tuple[Graph, ...]) -> list[architecture.Panel]:
    return [architecture._panel(graph, 0) for graph in graphs]


# -- the picture of an architecture --------------------------------------------------------------------------------------------


def test_no_label_overlaps_another_and_all_stay_in_their_boxes_and_in_the_picture(graphs: tuple[Graph, ...]) -> None:
    figure = picture(graphs, title="made/12")
    renderer = figure.canvas.get_renderer()
    (axes,) = figure.axes
    labels = {text.get_gid() or text.get_text(): text.get_window_extent(renderer) for text in axes.texts}
    boxes = {patch.get_gid(): patch.get_window_extent(renderer) for patch in axes.patches if patch.get_gid()}
    assert len(boxes) == sum(len(g.nodes) + sum(bool(e.operation) for e in g.edges) for g in graphs)
    for name, box in boxes.items():
        label = labels[name.removesuffix("-box")]
        assert box.x0 <= label.x0 <= label.x1 <= box.x1, name
        assert box.y0 <= label.y0 <= label.y1 <= box.y1, name
    titles = [box for name, box in labels.items() if f"{name}-box" not in boxes]
    for one, other in combinations([*boxes.values(), *titles], 2):
        assert not one.overlaps(other)
    width, height = figure.get_size_inches() * figure.dpi
    assert all(min(b.x0, b.y0) >= 0 and b.x1 <= width and b.y1 <= height for b in [*boxes.values(), *titles])


def curve(segment: layout.Segment) -> Iterator[tuple[float, float]]:
    """Points of a line as it is drawn."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = segment.points
    yield from ((ax, ay + t * (by - ay)) for t in np.linspace(0, 1, 10))
    for t in np.linspace(0, 1, 40):  # a cubic with vertical ends
        along = 3 * (1 - t) * t**2 + t**3
        middle = (by + cy) / 2
        yield bx + along * (cx - bx), (1 - t)**3 * by + 3 * (1 - t)**2 * t * middle + 3 * (1 - t) * t**2 * middle + t**3 * cy
    yield from ((dx, cy + t * (dy - cy)) for t in np.linspace(0, 1, 10))


def test_no_line_runs_through_a_box(graphs: tuple[Graph, ...]) -> None:
    for panel in panels_of(graphs):
        sizes = {box.key: box.size for box in panel.boxes}
        for segment in panel.placed.segments:
            for x, y in curve(segment):
                for key, (u, v) in panel.placed.centres.items():
                    inside = abs(x - u) < sizes[key][0] / 2 - 1e-6 and abs(y - v) < sizes[key][1] / 2 - 1e-6
                    assert not inside, (panel.name, key, segment)


def test_every_line_leads_down_from_its_source_to_its_target(graphs: tuple[Graph, ...]) -> None:
    for panel in panels_of(graphs):
        for (ax, ay), (bx, by), (cx, cy), (dx, dy) in (segment.points for segment in panel.placed.segments):
            assert ay <= by <= cy <= dy
            assert ax == bx
            assert cx == dx
        ends = Counter(segment.end for segment in panel.placed.segments if segment.end)
        assert ends.keys() <= panel.placed.centres.keys()


def test_an_svg_says_every_node_and_every_operation_once(graphs: tuple[Graph, ...], tmp_path: Path) -> None:
    picture(graphs, title="made/12", path=tmp_path / "new" / "cell.svg")
    root = ET.parse(tmp_path / "new" / "cell.svg").getroot()
    said = {g.get("id"): " ".join("".join(t.itertext()).strip() for t in g.iter(f"{SVG}text")) for g in root.iter(f"{SVG}g")}
    ids = [g.get("id") for g in root.iter(f"{SVG}g")]
    for number, graph in enumerate(graphs):
        for i, node in enumerate(graph.nodes):
            assert said[f"g{number}-node-{i}"] == f"{node.name} {spelled(node.operation)}".strip()
            assert ids.count(f"g{number}-node-{i}-box") == 1
        for i, edge in enumerate(graph.edges):
            assert said.get(f"g{number}-edge-{i}", "") == spelled(edge.operation)
        assert graph.name in said.values()
    labels = [name for name in ids if name and "-box" not in name and name.partition("-")[2].startswith(("node", "edge"))]
    assert len(labels) == len(set(labels)) == sum(len(g.nodes) + sum(bool(e.operation) for e in g.edges) for g in graphs)


def test_a_legend_names_the_kinds_that_are_there_and_no_others() -> None:
    nodes = (Node("in", role="input"), Node("0"), Node("out", "concat", "output"))
    made = picture([Graph("cell", nodes, (Edge("in", "0", "sep_conv_3x3"), Edge("in", "0", "max_pool_3x3"), Edge("0", "out")))])
    legend = [text.get_text() for text in made.axes[0].texts if (text.get_gid() or "").startswith("legend")]
    assert legend == ["separable convolution", "max pooling"]
    fills = {patch.get_gid(): patch.get_facecolor() for patch in made.axes[0].patches if patch.get_gid()}
    assert fills["g0-edge-0-box"] != fills["g0-edge-1-box"]
    assert fills["g0-node-1-box"] == fills["g0-node-2-box"] == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(("operation", "kind"), [
    ("sep_conv_5x5", "separable convolution"), ("one_sep_conv_3x3", "separable convolution"),
    ("mb6_k5", "separable convolution"),
    ("dil_conv_3x3", "dilated convolution"), ("depthwise_3x3", "depthwise convolution"), ("nor_conv_1x1", "convolution"),
    ("conv 3x3, 24, /1", "convolution"), ("max_pool_3x3", "max pooling"), ("avg_3x3", "average pooling"),
    ("skip_connect", "identity"), ("identity", "identity"), ("motif3", "motif"), ("attention", "other operation"),
])
def test_an_operation_has_the_colour_of_its_kind(operation: str, kind: str) -> None:
    found = architecture.kind_of(operation)
    assert found is not None
    assert found.name == kind


def test_what_lies_on_no_way_is_faint() -> None:
    nodes = (Node("in", role="input"), Node("a"), Node("b"), Node("out", role="output"))
    graph = Graph("cell", nodes, (Edge("in", "a", "conv"), Edge("in", "out", "skip"), Edge("b", "out", "conv")))
    assert graph.live == {Edge("in", "out", "skip")}
    panel = architecture._panel(graph, 0)
    assert [box.lines[0] for box in panel.boxes if box.faint] == ["a", "b", "conv", "conv"]


def test_equal_architectures_make_equal_files(tmp_path: Path) -> None:
    space, config = MADE["nasbench201"]()
    found = drawn(plugins.module("spaces", space), config)
    for form in ("svg", "png"):
        files = [tmp_path / f"{name}.{form}" for name in "ab"]
        for path in files:
            picture(found, path=path)
        assert files[0].read_bytes() == files[1].read_bytes()


# -- the layout ----------------------------------------------------------------------------------------------------------------


def crossings(placed: layout.Placed) -> int:
    lines = [(s.points[1], s.points[2]) for s in placed.segments if s.points[1] != s.points[2]]
    return sum(
        (a[0] - c[0]) * (b[0] - d[0]) < -1e-9 for (a, b), (c, d) in combinations(lines, 2) if a[1] == c[1] and b[1] == d[1]
    )


def test_a_graph_that_needs_no_crossing_has_none() -> None:
    """A complete binary tree whose boxes come in an order that would cross in every row."""
    sizes = {str(i): (0.4, 0.2) for i in [1, 3, 2, *reversed(range(4, 8)), *np.random.default_rng(0).permutation(range(8, 16))]}
    placed = layout.place(sizes, [(str(i // 2), str(i)) for i in range(2, 16)])
    assert crossings(placed) == 0


def test_a_chain_is_straight_and_its_skips_share_one_rail_beside_it() -> None:
    names = [str(i) for i in range(8)]
    edges = [*pairwise(names), ("0", "3"), ("0", "5"), ("0", "7")]
    placed = layout.place(dict.fromkeys(names, (0.6, 0.2)), edges)
    assert max(x for x, _ in placed.centres.values()) - min(x for x, _ in placed.centres.values()) < 0.05
    rails = {round(s.points[0][0], 6) for s in placed.segments if s.points[0][0] == s.points[3][0] and s.end is None}
    assert len(rails) == 1
    assert min(abs(x - rail) for rail in rails for x, _ in placed.centres.values()) >= 0.3


def test_a_graph_without_edges_and_one_box_are_placed() -> None:
    assert layout.place({"a": (0.4, 0.2)}, []).centres == {"a": (0.2, 0.1)}
    assert len({x for x, _ in layout.place(dict.fromkeys("abc", (0.4, 0.2)), []).centres.values()}) == 3


# -- what a graph is -----------------------------------------------------------------------------------------------------------

IN, OUT = Node("in", role="input"), Node("out", role="output")


@pytest.mark.parametrize(("nodes", "edges", "said"), [
    ((IN, Node("a"), Node("a"), OUT), (), "'a' is there twice"),
    ((Node("a"), OUT), (), "a node must be input"),
    ((IN,), (), "a node must be output"),
    ((IN, OUT), (Edge("in", "b"),), "an edge names 'b', which is no node"),
    ((IN, Node("a"), Node("b"), OUT), (Edge("a", "b"), Edge("b", "a")), "'b' -> 'a' leads back"),
    ((IN, Node("a"), OUT), (Edge("a", "a"),), "'a' -> 'a' leads back"),
    ((Node("a"), IN, OUT), (Edge("a", "in"),), "'in' is an input"),
    ((IN, OUT, Node("a")), (Edge("out", "a"),), "'out' is an output"),
])
def test_what_is_no_graph_is_refused(nodes: tuple[Node, ...], edges: tuple[Edge, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Graph("cell", nodes, edges)


def space_with(graph: Callable[[Config], object]) -> ModuleType:
    """Two operations, of which a chain is made, as a module of a user's."""
    module = ModuleType("mine")
    vars(module).update(SPACE=Space({"a": Choice(OPTIONS), "b": Choice(OPTIONS), "act": Choice(("relu", "tanh"))}), graph=graph)
    return module


OPTIONS = ("none", "conv", "pool")
CHAIN = (Node("in", role="input"), Node("0"), Node("out", role="output"))


def honest(config: Config) -> list[Graph]:
    ways = (Edge("in", "0", str(config["a"])), Edge("0", "out", str(config["b"])))
    return [Graph("net", CHAIN, tuple(way for way in ways if way.operation != "none"))]


def test_the_law_holds_for_an_honest_picture() -> None:
    a_picture_shows_every_operation(space_with(honest))


calls: list[int] = []


def moody(config: Config) -> list[Graph]:
    calls.append(1)
    return [replace(honest(config)[0], name=str(len(calls)))]


@pytest.mark.parametrize(("graph", "said"), [
    (lambda c: [Graph("net", CHAIN, (Edge("in", "0", "conv"), Edge("0", "out", str(c["b"]))))], "names 'pool' .-fold"),
    (lambda c: [Graph("net", CHAIN, (Edge("in", "out", str(c["b"])),))], "names '(conv|pool)' .-fold"),
    (lambda c: [Graph("net", CHAIN, (Edge("in", "0", str(c["a"])), Edge("in", "0", str(c["b"]))))], "in none of .* a way"),
    (lambda c: [replace(honest(c)[0], edges=tuple({e.operation: e for e in honest(c)[0].edges}.values()))], "' 2-fold"),
    (moody, "graph is not a function of its config"),
    (lambda c: honest(c) * 2, "different names"),
    (lambda c: [("in", "out", "conv")], "must return a list of Graph"),
    (lambda c: [Graph("net", CHAIN, (Edge("out", "in", "conv"),))], "leads back"),
])
def test_the_law_finds_what_is_wrong_with_a_picture(graph: Callable[[Config], object], said: str) -> None:
    with pytest.raises(Broken, match=said):
        a_picture_shows_every_operation(space_with(graph))


# -- as text -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 100, 10_000])
def test_text_says_every_operation_as_often_as_it_is_there_and_is_aligned(graphs: tuple[Graph, ...], width: int) -> None:
    text = as_text(graphs, width=width).plain
    assert max(map(len, text.split("\n"))) <= max(width, 66)  # a single way may be wider than a narrow terminal
    for graph, part in zip(graphs, text.split("\n\n"), strict=True):
        title, *lines = part.split("\n")
        assert title == graph.name
        edges = Counter(f"{spelled(edge.operation)} ({edge.source})" for edge in graph.edges if edge.operation)
        assert all(part.count(said) >= count for said, count in edges.items())
        starts = [line.split()[0] for line in lines if not line.startswith("   ")]
        assert len(starts) == len(graph.nodes) - len(graph.named("input"))
        assert len({line.index("←") for line in lines if "←" in line}) <= 1


def test_a_cell_reads_as_formulas() -> None:
    nodes = (Node("in", role="input"), Node("0", "add"), Node("out", "concat", "output"))
    text = as_text([Graph("cell", nodes, (Edge("in", "0", "sep_conv_3x3"), Edge("in", "0", "skip_connect"), Edge("0", "out")))])
    assert text.plain == "cell\n  0    add     ← sep conv 3×3 (in)  skip (in)\n  out  concat  ← 0"


# -- plots ---------------------------------------------------------------------------------------------------------------------


def opened(folder: Path) -> Ledger:
    return Ledger.open(folder / "ledger.sqlite")


def test_a_history_shows_every_status_and_the_best_so_far(tmp_path: Path) -> None:
    with opened(make(tmp_path / "made", 22)) as ledger:
        one, trials = plots.history(ledger), ledger.trials()
    figure = plots.searched(one, path=tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes()[:4] == b"\x89PNG"
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert {"score", "best so far", "diverged (2)", "error (2)"} <= lines.keys()
    done = [row for row in trials.values() if row.status == "done"]
    assert lines["score"].get_xdata().tolist() == [row.id for row in done]
    assert lines["score"].get_ydata().tolist() == pytest.approx([100 * row.outcome.score for row in done if row.outcome])
    assert lines["diverged (2)"].get_xdata().tolist() == [10, 20]
    best = np.maximum.accumulate([100 * row.outcome.score for row in done if row.outcome])
    drawn = dict(zip(lines["best so far"].get_xdata(), lines["best so far"].get_ydata(), strict=True))
    at = [max(step for step in drawn if step <= row.id) for row in done]
    assert [drawn[step] for step in at] == pytest.approx(best.tolist())


def test_an_error_falls_and_one_that_blew_up_leaves_the_picture(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", study(unit="mse")) as ledger:
        for trial, error in enumerate((4.0, 3.0, 1e6, 2.0, 2.5), start=1):
            proposal = propose(ledger, trial, {"lr": 0.1 * trial})
            end(ledger, trial, proposal, np.array([-error, -error]))
        axes = plots.searched(plots.history(ledger)).axes[0]
    (best,) = [line for line in axes.lines if line.get_label() == "best so far"]
    assert best.get_ydata().tolist() == [4.0, 3.0, 2.0, 2.0]
    assert axes.get_ylim()[1] < 10


@pytest.mark.parametrize(("about", "untils", "whole"), [
    ({}, (None, None, None), [1, 2, 3]), ({}, (20, 20, None), [3]), ({}, (20, 40, 40), [2, 3]),
    ({"inherits": True}, (20, 40, 60), [1, 2, 3]),
], ids=["whole", "promoted", "segments", "individuals"])
def test_a_history_has_the_best_of_those_that_trained_longest(
    tmp_path: Path, about: dict[str, Any], untils: tuple[int | None, ...], whole: list[int]
) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", {**study(), **about}) as ledger:
        for trial, until in enumerate(untils, start=1):
            proposal = propose(ledger, trial, {"lr": 0.1 * trial}, until=until)
            end(ledger, trial, proposal, np.array([0.9 - 0.1 * trial] * 2))
        one = plots.history(ledger)
        axes = plots.searched(one).axes[0]
    assert [each.trial for each in one.tried if each.whole] == whole
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["score"].get_xdata().tolist() == whole
    assert lines["best so far"].get_xdata().tolist() == [whole[0], 3]
    assert ("score, stopped early" in lines) == (len(whole) < 3)


def test_a_study_that_has_just_begun_is_an_empty_picture(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", study()) as ledger:
        assert plots.searched(plots.history(ledger)).axes[0].get_title(loc="left") == "made: 0 trials, 0 done"
        propose(ledger, 1, {"lr": 0.1})
        assert plots.history(ledger).tried == (plots.Tried(1, "running", None, None, None, True),)
        assert plots.searched(plots.history(ledger)).axes
        assert plots.learning(plots.course(ledger, 1), path=tmp_path / "learning.png").axes[0].texts[0].get_text() == "no score"


def coverage_of(folder: Path, said: float) -> plots.Points:
    (folder / "status.json").write_text(f'{{"coverage": {said}, "top": 2, "coverage_wanted": 0.9}}')
    with opened(folder) as ledger:
        return plots.history(ledger).coverage


def test_coverage_is_that_of_distinct_draws_that_were_looked_at(tmp_path: Path) -> None:
    """Of 10 configurations 2 are the top: 1 - C(8, x) / C(10, x) after x draws; an error and a repetition do not count."""
    first = {**study(), "space": Space({"a": Choice(tuple(range(10)))}).to_json()}
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", first) as ledger:
        for trial, (value, status) in enumerate([(3, "done"), (4, "error"), (5, "diverged"), (3, "done")], start=1):
            proposal = propose(ledger, trial, {"a": value})
            end(ledger, trial, proposal, np.ones(2) if status == "done" else None, status=status)
    one, two = 1 - 8 / 10, 1 - (8 * 7) / (10 * 9)
    assert coverage_of(tmp_path / "made", two) == ((1.0, pytest.approx(one)), (3.0, pytest.approx(two)))
    assert coverage_of(tmp_path / "made", 0.5) == ()  # the driver counts otherwise: then nothing is said


def test_a_course_has_scores_losses_the_interval_and_what_it_inherits(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", study()) as ledger:
        first = propose(ledger, 1, {"lr": 0.1}, until=100)
        report(ledger, 1, 50, train_loss=3.0)
        report(ledger, 1, 50, train_loss=2.0)  # said again after a restart
        end(ledger, 1, first, np.array([0.4, 0.6]), step=100)
        second = propose(ledger, 2, {"lr": 0.1}, parent=1)
        report(ledger, 2, 150, train_loss=1.0)
        end(ledger, 2, second, np.array([0.6, 0.8]), step=200)
        one = plots.course(ledger, 2)
    assert one.scores == ((200.0, pytest.approx(0.7)),)
    assert one.losses == ((150.0, 1.0),)
    assert one.before == (((100.0, pytest.approx(0.5)),), ((50.0, 2.0),))
    assert one.origin == "inherited"
    assert one.interval is not None
    assert one.interval[0] == 200
    assert one.interval[1] < 0.7 < one.interval[2]
    figure = plots.learning(one, path=tmp_path / "learning.svg")
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy (%)", "training loss"]


def test_a_supernet_comes_before_what_it_found(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", study()) as ledger:
        propose(ledger, 1, {"lr": 0.1})
        report(ledger, 1, 100, **{"supernet/score": 0.3, "supernet/train_loss": 2.0})
        report(ledger, 1, 200, **{"supernet/score": 0.3, "supernet/train_loss": 2.0, "train_loss": 1.0})
        one = plots.course(ledger, 1)
    assert (one.before, one.losses, one.origin) == ((((100.0, 0.3),), ((100.0, 2.0),)), ((200.0, 1.0),), "supernet")


# -- the command line ----------------------------------------------------------------------------------------------------------

Said = pytest.CaptureFixture[str]


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study over nasbench201 with two trials, of which the second found another cell than it was proposed."""
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path))
    edges = ("e10", "e20", "e21", "e30", "e31", "e32")
    first = study("cells")
    first["study"] |= {"space": "nasbench201", "tasks": {"name": "glyphs", "ways": 5}, "track": {"enabled": False}}
    with Ledger.create(tmp_path / "cells" / "ledger.sqlite", first) as ledger:
        for trial in (1, 2):
            proposal = propose(ledger, trial, dict.fromkeys(edges, "nor_conv_3x3"))
            found: Any = {"found": dict.fromkeys(edges, "skip_connect")} if trial == 2 else {}
            body = {"step": 100, "metrics": {"train_loss": 1.0}, "score": None, "checkpoint": None, "seconds": 0.5, **found}
            ledger.append("report", body, trial=trial)
            end(ledger, trial, proposal, np.array([0.4, 0.6]))
    return tmp_path / "cells"


def test_show_prints_the_architecture_and_says_where_it_is_drawn(searched: Path, capsys: Said) -> None:
    assert cli.call(["show", "cells/1"]) == 0
    out, err = capsys.readouterr()
    assert "3  ← conv 3×3 (0)  conv 3×3 (1)  conv 3×3 (2)" in out
    names = [f"1-{what}.{form}" for what in ("architecture", "learning") for form in ("svg", "png")]
    assert sorted(path.name for path in (searched / "pictures").iterdir()) == sorted(names)
    assert all(str(searched / "pictures" / name) in err for name in names)


def test_show_draws_what_a_one_shot_search_found(searched: Path, capsys: Said) -> None:
    assert cli.call(["show", "cells/2", "--picture", str(searched / "mine.svg")]) == 0
    out = capsys.readouterr().out
    assert "3  ← skip (0)  skip (1)  skip (2)" in out
    assert ["e10", "skip_connect", "nor_conv_3x3"] in [line.split() for line in out.splitlines()], "beside what was proposed"
    assert ["flops", "2.5e+07"] in [line.split() for line in out.splitlines()], "all that was measured"
    assert (searched / "mine.svg").read_text().count(">skip<") == 6
    assert (searched / "mine-learning.svg").is_file()
    assert not (searched / "pictures").exists()


def test_show_json_is_data_alone_and_draws_when_it_is_asked_to(searched: Path, capsys: Said) -> None:
    import json

    assert cli.call(["show", "cells/1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trial"] == "cells/1"
    assert not (searched / "pictures").exists()
    assert cli.call(["show", "cells", "--json", "--picture", str(searched / "mine.png")]) == 0
    assert json.loads(capsys.readouterr().out)["study"]["name"] == "cells"
    assert (searched / "mine.png").read_bytes()[:4] == b"\x89PNG"


def test_show_a_study_draws_its_history(searched: Path, capsys: Said) -> None:
    assert cli.call(["show", "cells"]) == 0
    assert "history.svg" in capsys.readouterr().err
    assert (searched / "pictures" / "history.png").is_file()


@pytest.mark.parametrize("path", ["cell.txt", "no/such/folder.svg"])
def test_a_picture_that_cannot_be_is_refused_before_anything_is_shown(searched: Path, capsys: Said, path: str) -> None:
    assert cli.call(["show", "cells/1", "--picture", path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--picture needs" in err


def test_a_graph_of_a_users_that_fails_is_a_warning(searched: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    module = plugins.module("spaces", "nasbench201")
    monkeypatch.setattr(module, "graph", lambda config: 1 // 0)
    assert cli.call(["show", "cells/1"]) == 0
    assert "cannot be drawn: ZeroDivisionError" in capsys.readouterr().err
    assert (searched / "pictures" / "1-learning.png").is_file()
    assert cli.call(["show", "cells/1", "--picture", str(searched / "mine.svg")]) == 2


def test_a_folder_that_cannot_be_written_is_a_warning(searched: Path, capsys: Said) -> None:
    (searched / "pictures").write_text("a file in its place")
    assert cli.call(["show", "cells/1"]) == 0
    assert "nothing more is drawn" in capsys.readouterr().err
