"""The spaces of two tables: rows and configs are the same thing, and the nets are those that were trained for them."""
from __future__ import annotations

import csv
import gzip
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from metasearch.measure import flops
from metasearch.nets import Params, nasbench
from metasearch.nets.nasbench import EDGES, OPERATIONS, Cells, Macro
from metasearch.records import Config
from metasearch.tasks import TaskShape
from metasearch.testing import spaces
from search_spaces import nasbench201, nasbench_macro

SHAPE = TaskShape((1, 28, 28), 5, 1, 3)
CIFAR = (3, 32, 32)
SMALL = Cells(channels=4, cells=1)


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def rows201(data: Path) -> list[dict[str, str]]:
    return _rows(data / "nas" / "nasbench201.csv.gz")


def _learnt(params: Params) -> int:
    return sum(v.numel() for k, v in params.items() if not k.startswith("arch/"))


def _cell(**edges: str) -> Config:
    return {edge: edges.get(edge, "none") for edge in EDGES}


def test_every_row_of_nasbench201_is_one_config(rows201: list[dict[str, str]]) -> None:
    numbers = set()
    for row in rows201:
        config = nasbench201.from_arch_str(row["arch_str"])
        assert [config[e] for e in EDGES] == [OPERATIONS[int(row[f"op_{e}"])] for e in EDGES]
        assert nasbench201.arch_str(config) == row["arch_str"]
        numbers.add(nasbench201.SPACE.rank(config))
    assert len(numbers) == nasbench201.SPACE.size == 15_625


def test_nets_of_nasbench201_have_the_tables_number_of_parameters(rows201: list[dict[str, str]]) -> None:
    """At published sizes, with a head of ten classes."""
    for row in rows201[::2500]:
        config = nasbench201.from_arch_str(row["arch_str"])
        cell = {edge: str(config[edge]) for edge in EDGES}
        assert _learnt(nasbench.nasbench201(CIFAR, 10, cell).init(Generator())) == int(row["params"])


def test_nets_of_nasbench_macro_have_the_tables_sizes(data: Path) -> None:
    """Parameters, and multiply-adds (the project counts two operations each)."""
    rows = _rows(data / "nas" / "nasbench_macro_cifar10.csv.gz")
    assert len({nasbench_macro.SPACE.rank(nasbench_macro.from_arch(row["arch"])) for row in rows}) == 6_561
    for row in [rows[0], rows[1], rows[2], *rows[::1300]]:
        config = nasbench_macro.from_arch(row["arch"])
        assert nasbench_macro.arch(config) == row["arch"]
        net = nasbench.macro(CIFAR, 10, [str(v) for v in config.values()])
        params = net.init(Generator())
        assert _learnt(params) == int(row["params"])
        assert flops(net, params, CIFAR) == 2 * int(row["flops"])


def test_what_is_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="8 digits"):
        nasbench_macro.from_arch("0123")
    with pytest.raises(ValueError, match="e20"):
        nasbench201.from_arch_str("|none~0|")


# relaxed --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corner", ["logits", "number"])
@pytest.mark.parametrize("way", ["prototypical", "maml"])
def test_relaxed_at_a_one_hot_corner_is_the_discrete_net(corner: str, way: nasbench201.Way) -> None:
    rng, x = np.random.default_rng(0), torch.randn(4, 1, 28, 28, generator=Generator().manual_seed(0))
    for _ in range(4):
        config = nasbench201.SPACE.sample(rng)
        mixed = nasbench201.relaxed(config, SHAPE, design=SMALL, way=way).net
        single = nasbench201.recipe(config, SHAPE, design=SMALL, way=way).net
        params = mixed.init(Generator().manual_seed(1))
        own = {key: params[key] for key in single.init(Generator().manual_seed(1))}  # its weights are among the mixture's
        for edge in nasbench201.RELAXED:
            chosen = torch.tensor(OPERATIONS.index(str(config[edge])))
            one_hot = torch.nn.functional.one_hot(chosen, len(OPERATIONS)).float()
            params[f"arch/{edge}"] = one_hot.log() if corner == "logits" else chosen
        torch.testing.assert_close(mixed.apply(params, x), single.apply(own, x), rtol=1e-5, atol=1e-5)


def test_an_operation_that_is_not_chosen_gets_no_gradient_and_a_mixture_gives_all_some() -> None:
    net = nasbench201.relaxed({}, SHAPE, design=SMALL, way="maml").net
    x = torch.randn(4, 1, 28, 28, generator=Generator().manual_seed(0))

    def gradient(**arch: torch.Tensor) -> Params:
        params = net.init(Generator().manual_seed(1)) | arch
        leaves = {k: v.requires_grad_() for k, v in params.items() if v.is_floating_point()}
        loss = net.apply({**params, **leaves}, x).square().sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, grads, strict=True))

    everything = gradient()
    assert all(bool(everything[f"arch/{edge}"].any()) for edge in EDGES)
    assert bool(everything["net/cell.0/e30/nor_conv_1x1/weight"].any())
    one = gradient(**{f"arch/{edge}": torch.tensor(3) for edge in EDGES})
    for key, value in one.items():
        if "/e" in key and "/norm/" not in key:
            assert bool(value.any()) == ("nor_conv_3x3" in key), key


def test_smaller_nets_are_options_and_impossible_ones_are_refused() -> None:
    config = nasbench201.SPACE.unrank(7)
    assert nasbench201.recipe(config, SHAPE, design=SMALL).net.features == 16
    assert nasbench_macro.recipe(nasbench_macro.SPACE.unrank(5), SHAPE, design=Macro(4, 24), way="maml").net.outputs == 5
    with pytest.raises(ValueError, match="cells >= 1"):
        Cells(cells=0)
    with pytest.raises(ValueError, match="prototypical, maml"):
        nasbench201.recipe(config, SHAPE, way="knn")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["prototypical", "maml"])
def test_the_gradient_of_a_vmap_is_that_of_a_loop(way: nasbench201.Way) -> None:
    """At small sizes; the contract's law at published ones is a slow test."""
    kind = spaces.KINDS[0]
    tasks, shape = kind.built()
    for recipe in (
        nasbench201.recipe(nasbench201.SPACE.unrank(9_999), shape, design=SMALL, way=way),
        nasbench201.relaxed({}, shape, design=SMALL, way=way),
        nasbench_macro.recipe(nasbench_macro.from_arch("12021210"), shape, design=Macro(4, 24), way=way),
    ):
        assert spaces._vmap_error(replace(recipe, meta_batch=2), tasks, shape, double=True) < 1e-6


# cells that mean the same -----------------------------------------------------------------------------------------------------

CONV, ONE, SKIP, POOL = "nor_conv_3x3", "nor_conv_1x1", "skip_connect", "avg_pool_3x3"


@pytest.mark.parametrize(("one", "other"), [
    (_cell(e10=CONV, e30=ONE), _cell(e30=ONE)),  # nobody reads node 1
    (_cell(e10=CONV, e31=ONE, e20=POOL, e32=SKIP), _cell(e20=CONV, e32=ONE, e10=POOL, e31=SKIP)),  # nodes 1 and 2 change places
    (_cell(e10=SKIP, e31=CONV), _cell(e30=CONV)),  # a copy of the input
    (_cell(e10=CONV, e31=SKIP), _cell(e20=CONV, e32=SKIP)),
    (_cell(e32=POOL, e30=CONV), _cell(e30=CONV)),  # an average of zeros
])
def test_cells_that_mean_the_same_have_one_representative(one: Config, other: Config) -> None:
    assert nasbench201.canonical(one) == nasbench201.canonical(other)


@pytest.mark.parametrize(("one", "other"), [
    # two convolutions of the input, and one that is used twice
    (_cell(e10=CONV, e20=CONV, e31=SKIP, e32=SKIP), _cell(e10=CONV, e21=SKIP, e31=SKIP, e32=SKIP)),
    (_cell(e30=CONV), _cell(e30=ONE)),
    (_cell(e10=CONV, e31=ONE), _cell(e10=ONE, e31=CONV)),
])
def test_cells_that_differ_stay_apart(one: Config, other: Config) -> None:
    assert nasbench201.canonical(one) != nasbench201.canonical(other)


def test_canonical_cells_trained_alike(rows201: list[dict[str, str]]) -> None:
    """In the table, cells of one class differ by the noise of training; cells at random differ by far more."""
    accuracy = {nasbench201.SPACE.rank(nasbench201.from_arch_str(row["arch_str"])): float(row["cifar10_test_acc_ep200"])
                for row in rows201}
    classes: dict[int, list[float]] = {}
    for number in range(15_625):
        config = nasbench201.SPACE.unrank(number)
        first = nasbench201.SPACE.rank(nasbench201.canonical(config))
        assert first <= number
        classes.setdefault(first, []).append(accuracy[number])
    spread = [statistics.stdev(found) for found in classes.values() if len(found) > 1 and min(found) > 80]
    assert statistics.median(spread) < 0.3
    assert statistics.stdev(accuracy.values()) > 5
    assert len(classes) == 6_040
