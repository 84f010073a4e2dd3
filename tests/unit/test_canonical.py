"""Configs that mean the same: one representative for all numberings, and nets that compute the same where weights moved along."""
from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metasearch.nets import Net, Params
from metasearch.nets.cells import Stack
from metasearch.nets.hierarchy import Design
from metasearch.nets.nasbench import EDGES, Cells, Macro
from metasearch.records import Config
from metasearch.strategies.large_scale_evolution import simplest
from metasearch.tasks import TaskShape
from search_spaces import conv_chain, darts_cells, hierarchical_motifs, nasbench201, nasbench_macro, nasnet_cells
from search_spaces._orders import one_order, orders

SHAPE = TaskShape((2, 9, 9), 3, 1, 2)
STACK = Stack(4, 4)  # of the kinds normal, reduction, reduction, normal


def weights(net: Net, seed: int = 0) -> Params:
    """Of no layer all zeros or ones, so that everything shows."""
    generator = Generator().manual_seed(seed)
    made = net.init(generator)
    return {key: torch.randn(value.shape, generator=generator, dtype=torch.float64) for key, value in made.items()}


def pictures() -> Tensor:
    return torch.randn(3, *SHAPE.x, generator=Generator().manual_seed(7), dtype=torch.float64)


def same(net: Net, params: Params, other: Net, moved: Params) -> bool:
    assert set(moved) == set(other.init(Generator()))
    one, two = net.apply(params, pictures()), other.apply(moved, pictures())
    return bool(torch.isfinite(one).all()) and torch.allclose(one, two, rtol=1e-9, atol=1e-9)


def test_orders_are_all_in_which_nobody_reads_what_comes_later() -> None:
    reads = [[], [0], [0], [1, 2]]
    found = list(orders(reads))
    assert found == [(0, 1, 2, 3), (0, 2, 1, 3)]
    assert len(list(orders([[]] * 5))) == 120


# -- DARTS -------------------------------------------------------------------------------------------------------------


def darts(seed: int, none: float = 0.6) -> Config:
    """A random config in which most edges are none, so that nodes may change places."""
    rng = np.random.default_rng(seed)
    config = darts_cells.SPACE.sample(rng)
    return {path: "none" if rng.random() < none else value for path, value in config.items()}


def renumbered(config: Config, order: tuple[int, ...]) -> Config | None:
    """The nodes of both kinds of cells in another order, written down from the config's own edges; None where an edge would
    lead backwards."""
    new = {0: 0, 1: 1} | {node + 2: place + 2 for place, node in enumerate(order)}
    found: Config = dict.fromkeys(config, "none")
    for kind in darts_cells.KINDS:
        for node, source in darts_cells.EDGES:
            what = config[f"{kind}_e{node}{source}"]
            if what != "none":
                if new[source] >= new[node]:
                    return None
                found[f"{kind}_e{new[node]}{new[source]}"] = what
    return found


def test_the_order_of_the_nodes_makes_no_difference_to_darts_cells() -> None:
    tried = 0
    for seed in range(40):
        config = darts(seed)
        for order in itertools.permutations(range(4)):
            other = renumbered(config, order)
            if other is not None and other != config:
                tried += 1
                assert darts_cells.canonical(other) == darts_cells.canonical(config)
    assert tried > 80


@pytest.mark.parametrize("seed", range(3))
def test_a_darts_net_with_its_nodes_in_another_order_is_the_same_function(seed: int) -> None:
    """Channels of a cell's output follow its nodes, so the weights that read them move, too."""
    order, config, other = next(
        (order, config, other)
        for number in itertools.count(100 * seed)
        for config in [darts(number)]
        for order in list(itertools.permutations(range(4)))[1:]
        if (other := renumbered(config, order)) not in (None, config)
    )
    assert other is not None
    net, second = (darts_cells.recipe(one, SHAPE, stack=STACK, way="maml").net for one in (config, other))
    params, moved = weights(net), Params()
    new = {0: 0, 1: 1} | {node + 2: place + 2 for place, node in enumerate(order)}
    for key, value in params.items():
        _, cell, *rest = key.split("/")
        if rest[0].startswith("e"):
            node, source = (int(digit) for digit in rest[0][1:])
            key = "/".join(["net", cell, f"e{new[node]}{new[source]}", *rest[1:]])
        moved[key] = value
        reads = {"last": 1, "before": 2}.get(rest[0], 0)
        if (reads and int(cell[4:]) >= reads and key.endswith("weight") and "norm" not in key) or key == "net/head/weight":
            blocks = value.chunk(4, 1)  # by the node that made them
            moved[key] = torch.cat([blocks[node] for node in order], 1)
    assert same(net, params, second, moved)
    assert not same(net, params, second, {key: params.get(key, value) for key, value in moved.items()}), "the test cannot fail"


def test_what_copies_a_darts_node_without_inputs_is_none_and_a_convolution_of_it_is_not() -> None:
    empty = dict.fromkeys(darts_cells.RELAXED, "none") | {"normal_e40": "sep_conv_3x3", "reduction_e20": "sep_conv_3x3"}
    for what, equal in (("max_pool_3x3", True), ("skip_connect", True), ("sep_conv_3x3", False)):
        copied = {**empty, "normal_e43": what}
        assert (darts_cells.canonical(copied) == darts_cells.canonical(empty)) == equal
        nets = [darts_cells.recipe(one, SHAPE, stack=STACK).net for one in (empty, copied)]
        params = weights(nets[1])
        own = {key: params[key] for key in nets[0].init(Generator())}
        assert torch.equal(nets[0].apply(own, pictures()), nets[1].apply(params, pictures())) == equal


# -- NASNet ------------------------------------------------------------------------------------------------------------


def rewritten(config: Config, rng: np.random.Generator) -> tuple[Config, dict[str, list[int]], dict[str, str]]:
    """(the blocks in another order and their sides changed about, the order of each kind, and where keys of weights went)."""
    found, chosen, moved = dict(config), dict[str, list[int]](), dict[str, str]()
    for kind in nasnet_cells.KINDS:
        count = int(config[f"{kind}.count"])
        left, order = list(range(count)), list[int]()
        while left:
            free = [i for i in left if all(int(config[f"{kind}.{i}.{side}"]) - 2 not in left for side in nasnet_cells.SIDES)]
            order.append(int(rng.choice(free)))
            left.remove(order[-1])
        new = {0: 0, 1: 1} | {block + 2: place + 2 for place, block in enumerate(order)}
        chosen[kind] = order
        for place, block in enumerate(order):
            sides = list(nasnet_cells.SIDES)
            if rng.integers(2):
                sides.reverse()
            for side, was in zip(nasnet_cells.SIDES, sides, strict=True):
                found[f"{kind}.{place}.{side}"] = new[int(config[f"{kind}.{block}.{was}"])]
                found[f"{kind}.{place}.{side}_op"] = config[f"{kind}.{block}.{was}_op"]
                moved[f"{kind}.{block}/{was}"] = f"{kind}.{place}/{side}"
            found[f"{kind}.{place}.combine"] = config[f"{kind}.{block}.combine"]
    return found, chosen, moved


def test_the_order_of_blocks_and_of_their_sides_makes_no_difference_to_nasnet_cells() -> None:
    rng, tried = np.random.default_rng(0), 0
    for _ in range(60):
        config = nasnet_cells.SPACE.sample(rng)
        other, _, _ = rewritten(config, rng)
        assert not nasnet_cells.SPACE.problems(other)
        tried += other != config
        assert nasnet_cells.canonical(other) == nasnet_cells.canonical(config)
    assert tried > 40


@pytest.mark.parametrize("seed", range(3))
def test_a_nasnet_cell_with_its_blocks_in_another_order_is_the_same_function(seed: int) -> None:
    """One cell of each kind, with sums only: its channels then follow the blocks that nobody reads."""
    rng = np.random.default_rng(seed)
    config = nasnet_cells.SPACE.sample(rng)
    while min(int(config[f"{kind}.count"]) for kind in nasnet_cells.KINDS) < 3:
        config = nasnet_cells.SPACE.sample(rng)
    config |= {path: "add" for path in config if path.endswith("combine")}
    other, order, keys = rewritten(config, rng)
    for kind in nasnet_cells.KINDS:
        cells = [nasnet_cells._cell(one, kind, "cell", (4, 4), 4, False, 2) for one in (config, other)]
        generator = Generator().manual_seed(seed)
        params = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in cells[0].init(generator).items()}
        moved = {}
        for key, value in params.items():
            parts = key.split("/")
            if parts[2].startswith(kind):
                parts[2:4] = keys["/".join(parts[2:4])].split("/")
            moved["/".join(parts)] = value
        assert set(moved) == set(cells[1].init(generator))
        x = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
        one, two = (cell.apply(p, x[0], x[1]) for cell, p in zip(cells, (params, moved), strict=True))
        unused = [nasnet_cells._unused(nasnet_cells.items(c, kind)) for c in (config, other)]
        blocks = dict(zip((n - 2 for n in unused[0]), one.chunk(len(unused[0]), 1), strict=True))
        assert torch.allclose(torch.cat([blocks[order[kind][n - 2]] for n in unused[1]], 1), two, rtol=1e-9, atol=1e-9)


# -- chains of layers --------------------------------------------------------------------------------------------------------


def in_order(labels: list[str], reads: list[set[int]], order: tuple[int, ...]) -> list[tuple[str, list[int]]]:
    """The graph as it reads when its nodes are numbered in that order."""
    return [(labels[node], sorted(order.index(source) for source in reads[node])) for node in order]


def test_one_order_tells_graphs_apart_exactly_as_trying_all_orders_does() -> None:
    """All graphs of four nodes of two kinds whose edges lead onwards."""
    edges = list(itertools.combinations(range(4), 2))
    pairs = set[tuple[str, str]]()
    for labels in itertools.product("ab", repeat=4):
        for there in itertools.product((False, True), repeat=len(edges)):
            reads = [{a for (a, b), edge in zip(edges, there, strict=True) if edge and b == node} for node in range(4)]
            first = min(in_order(list(labels), reads, order) for order in orders(reads))
            pairs.add((repr(first), repr(in_order(list(labels), reads, one_order(labels, reads)))))
    assert len(pairs) == len({first for first, _ in pairs}) == len({one for _, one in pairs}) > 200


def other_numbers(config: Config, rng: np.random.Generator) -> tuple[Config, list[int]]:
    """(the same layers in another order, in which each still comes behind those that it reads; the order)."""
    count = int(config["layer.count"])
    left, order = list(range(count)), list[int]()
    while left:
        free = [i for i in left if not any(j in left and config[f"layer.{i}.skip_{j}"] for j in range(i))]
        order.append(int(rng.choice(free)))
        left.remove(order[-1])
    found: Config = {"layer.count": count}
    for place, was in enumerate(order):
        found |= {f"layer.{place}.{key}": config[f"layer.{was}.{key}"] for key in ("height", "width", "filters", "stride")}
        found |= {f"layer.{place}.skip_{j}": o < was and bool(config[f"layer.{was}.skip_{o}"])
                  for j, o in enumerate(order[:place])}
    return conv_chain.SPACE.normal(found), order


def test_the_numbers_of_layers_make_no_difference_to_a_chain() -> None:
    rng, tried = np.random.default_rng(0), 0
    for _ in range(60):
        config = conv_chain.SPACE.sample(rng)
        config |= {path: bool(rng.integers(4) == 0) for path in config if "skip" in path}
        other, _ = other_numbers(config, rng)
        tried += other != config
        assert conv_chain.canonical(other) == conv_chain.canonical(config)
        path = str(rng.choice([path for path in config if "skip" in path]))
        both = (conv_chain.canonical(one) for one in (config, {**config, path: not config[path]}))
        edges = [sum(bool(one[p]) for p in one if "skip" in p) for one in both]
        assert abs(edges[0] - edges[1]) == 1  # it loses nothing and adds nothing
    assert tried > 40


def test_a_chain_of_fifteen_equal_layers_is_told_at_once() -> None:
    """Of 15! orders that all read alike, or of which five pairs leave 5! that must be looked at."""
    layer: Config = {"height": 3, "width": 3, "filters": 24, "stride": 1}
    for pairs in (False, True):
        config: Config = {"layer.count": 15}
        for i in range(15):
            config |= {f"layer.{i}.{key}": value for key, value in layer.items()}
            config |= {f"layer.{i}.skip_{j}": pairs and i < 10 and i % 2 == 1 and j == i - 1 for j in range(i)}
        other, _ = other_numbers(config, np.random.default_rng(1))
        assert conv_chain.canonical(other) == conv_chain.canonical(config)


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_with_its_layers_in_another_order_is_the_same_function(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = conv_chain.SPACE.sample(rng)
    while not 4 <= int(config["layer.count"]) <= 6:
        config = conv_chain.SPACE.sample(rng)
    config |= {path: 24 for path in config if path.endswith("filters")}
    other, order = other_numbers(config, rng)
    net, second = (conv_chain.recipe(one, SHAPE).net for one in (config, other))
    params = weights(net)
    moved = {}
    for place, was in enumerate(order):
        now = [order[j] for j in range(place) if other[f"layer.{place}.skip_{j}"]]  # what it reads, in its new order
        before = sorted(now)
        for key in (key for key in params if f"/layer.{was}/" in f"{key}/".replace("/norm", "/")):
            value = params[key]
            if key.endswith("weight") and value.dim() == 4 and now:
                value = torch.cat([value[:, 24 * before.index(j):24 * (before.index(j) + 1)] for j in now], 1)
            moved[key.replace(f"layer.{was}/", f"layer.{place}/")] = value
    assert set(moved) == set(second.init(Generator().manual_seed(0)))
    x = pictures()
    ones, twos = net.apply(params, x).split(24, 1), second.apply(moved, x).split(24, 1)
    unused = [conv_chain._unused([conv_chain._read(layer, i) for i, layer in enumerate(conv_chain.items(c, "layer"))])
              for c in (config, other)]
    said = dict(zip(unused[0], ones, strict=True))
    assert torch.allclose(torch.cat([said[order[i]] for i in unused[1]], 1), torch.cat(twos, 1), rtol=1e-9, atol=1e-9)


# -- NAS-Bench-201 and -Macro ------------------------------------------------------------------------------------------------


def test_the_two_inner_nodes_of_nasbench201_may_change_places() -> None:
    swapped = {"e10": "e20", "e20": "e10", "e30": "e30", "e31": "e32", "e32": "e31"}
    rng = np.random.default_rng(0)
    for _ in range(5):
        config = {**nasbench201.SPACE.sample(rng), "e21": "none"}
        other = {**config, **{swapped[edge]: config[edge] for edge in swapped}}
        assert nasbench201.canonical(other) == nasbench201.canonical(config)
        net, second = (nasbench201.recipe(one, SHAPE, design=Cells(4, 1)).net for one in (config, other))
        params = weights(net)
        moved = {
            "/".join(swapped.get(part, part) for part in key.split("/")) if "/e" in key else key: v for key, v in params.items()
        }
        assert same(net, params, second, moved)


def test_a_cell_of_nasbench201_and_its_representative_are_the_same_function_of_the_same_convolutions() -> None:
    """Every convolution of a cell has the weights of its kind, so that only what reads what can make a difference."""

    def answer(config: Config) -> Tensor:
        net = nasbench201.recipe(config, SHAPE, design=Cells(4, 1)).net
        params = Params()
        for key, value in net.init(Generator()).items():
            kind = sum(map(ord, "/".join(part for part in key.split("/") if part not in EDGES)))
            params[key] = torch.randn(value.shape, dtype=torch.float64, generator=Generator().manual_seed(kind))
        return net.apply(params, pictures())

    rng, answers = np.random.default_rng(1), list[Tensor]()
    while len(answers) < 20:
        config = nasbench201.SPACE.sample(rng)
        first = nasbench201.canonical(config)
        if first != config:
            answers.append(answer(config))
            assert torch.allclose(answers[-1], answer(first), rtol=1e-9, atol=1e-9), config
    apart = sum(not torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in itertools.pairwise(answers))
    assert apart > 10, "the test cannot fail"


def test_layers_of_nasbench_macro_that_do_nothing_come_last() -> None:
    found = {nasbench_macro.arch(nasbench_macro.canonical(nasbench_macro.SPACE.unrank(n))) for n in range(6561)}
    assert len(found) == 3**4 * 7 * 7
    one, other = (nasbench_macro.from_arch(text) for text in ("12201101", "12210110"))
    assert nasbench_macro.canonical(one) == other
    net, second = (nasbench_macro.recipe(c, SHAPE, design=Macro(4, 8)).net for c in (one, other))
    params = weights(net)
    moved = {key.replace("layer.4/", "layer.3/").replace("layer.7/", "layer.6/"): value for key, value in params.items()}
    assert same(net, params, second, moved)


# -- hierarchical motifs -------------------------------------------------------------------------------------------------------


def mutated(times: int, seed: int) -> Config:
    rng = np.random.default_rng(seed)
    config = simplest(hierarchical_motifs.SPACE)
    for _ in range(times):
        config, _ = hierarchical_motifs.mutations(config, rng)
    return config


def relabelled(config: Config, rng: np.random.Generator) -> Config:
    """Motifs under other names, and nodes in another order, where no edge then leads backwards."""
    names = [int(i) for i in rng.permutation(6)]  # old -> new
    found: Config = {"motif.count": 6, "cell.count": 1}
    for i in range(6):
        found |= {f"motif.{names[i]}.{edge}": what for edge, what in reordered(config, f"motif.{i}", 4, rng).items()}
    cell = reordered(config, "cell.0", 5, rng)
    found |= {
        f"cell.0.{edge}": what if what == "none" else f"motif{names[int(str(what)[5:])]}" for edge, what in cell.items()
    }
    return hierarchical_motifs.SPACE.normal(found)


def reordered(config: Config, path: str, nodes: int, rng: np.random.Generator) -> Config:
    edges = [(s, t) for t in range(1, nodes) for s in range(t)]
    taken = {edge: config[f"{path}.e{edge[1]}{edge[0]}"] for edge in edges}
    reads = [[s - 1 for s in range(1, t) if taken[s, t] != "none"] for t in range(1, nodes - 1)]
    order = list(orders(reads))[-1] if rng.integers(2) else next(orders(reads))
    old = [0, *(node + 1 for node in order), nodes - 1]
    return {f"e{t}{s}": taken.get((old[s], old[t]), "none") for s, t in edges}


def test_the_names_of_motifs_and_the_order_of_their_nodes_make_no_difference() -> None:
    rng, tried = np.random.default_rng(0), 0
    for seed in range(40):
        config = mutated(200, seed)
        other = relabelled(config, rng)
        tried += other != config
        assert hierarchical_motifs.canonical(other) == hierarchical_motifs.canonical(config)
    assert tried > 30


@pytest.mark.parametrize("seed", range(10))
def test_the_representative_has_the_same_graph_of_primitives(seed: int) -> None:
    import networkx

    def graph(config: Config) -> networkx.MultiDiGraph:
        made = networkx.MultiDiGraph([(a, b, {"is": what}) for a, b, what in hierarchical_motifs.flattened(config)])
        for name in made:
            made.nodes[name]["end"] = name if name in ("in", "out") else ""
        return made

    def alike(one: networkx.MultiDiGraph, two: networkx.MultiDiGraph) -> bool:
        edges = networkx.algorithms.isomorphism.categorical_multiedge_match("is", "")
        nodes = networkx.algorithms.isomorphism.categorical_node_match("end", "")
        return bool(networkx.is_isomorphic(one, two, nodes, edges))

    config = mutated(60, seed)
    first = hierarchical_motifs.canonical(config)
    assert alike(graph(first), graph(config))
    changed = mutated(60, seed + 100)
    assert not alike(graph(changed), graph(config))


def test_a_cell_of_motifs_with_two_nodes_exchanged_is_the_same_function() -> None:
    """Node 3 reads both, and its 1x1 convolution reads their channels in the order of their numbers."""
    plain = simplest(hierarchical_motifs.SPACE) | {f"cell.0.e{t}{s}": "none" for t in range(1, 5) for s in range(t)}
    motifs = {"motif.0.e10": "conv_1x1", "motif.1.e10": "separable_3x3", "motif.1.e20": "identity"}
    config = {**plain, **motifs, "cell.0.e10": "motif0", "cell.0.e20": "motif1", "cell.0.e31": "motif1", "cell.0.e32": "motif0",
              "cell.0.e43": "motif2"}
    swapped = {**config, "cell.0.e20": "motif0", "cell.0.e10": "motif1", "cell.0.e32": "motif1", "cell.0.e31": "motif0"}
    assert hierarchical_motifs.canonical(config) == hierarchical_motifs.canonical(swapped)
    net, second = (hierarchical_motifs.recipe(c, SHAPE, design=Design(4)).net for c in (config, swapped))
    params, moved = weights(net), Params()
    names = {"e10": "e20", "e20": "e10", "e31": "e32", "e32": "e31"}
    for key, value in params.items():
        parts = key.split("/")
        if parts[1].startswith("cell"):
            parts[2] = names.get(parts[2], parts[2])
        merge = parts[1].startswith("cell") and parts[2:] == ["n3", "weight"]
        moved["/".join(parts)] = torch.cat(value.chunk(2, 1)[::-1], 1) if merge else value
    assert same(net, params, second, moved)


def test_canonical_nets_of_nasbench_macro_trained_alike(data: Path) -> None:
    """In the table nets of one class differ by the noise of training, nets at random by more."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
    import _tables

    table = _tables.macro(data)
    classes: dict[str, list[float]] = {}
    for number in range(6561):
        config = nasbench_macro.SPACE.unrank(number)
        classes.setdefault(nasbench_macro.arch(nasbench_macro.canonical(config)), []).append(table[config].final)
    within = [statistics.stdev(found) for found in classes.values() if len(found) > 1]
    assert statistics.median(within) < 0.2
    assert statistics.stdev([score for found in classes.values() for score in found]) > 1


@pytest.mark.parametrize(
    ("module", "sample"),
    [(darts_cells, darts), (hierarchical_motifs, lambda seed: mutated(100, seed)),
     (nasnet_cells, lambda seed: nasnet_cells.SPACE.sample(np.random.default_rng(seed)))],
    ids=["darts-cells", "hierarchical-motifs", "nasnet-cells"],
)
def test_a_representative_is_its_own_and_different_cells_stay_apart(module: ModuleType, sample: Callable[[int], Config]) -> None:
    firsts = [module.canonical(sample(seed)) for seed in range(50)]
    assert all(module.canonical(first) == first and not module.SPACE.problems(first) for first in firsts)
    assert len({str(first) for first in firsts}) > 45
