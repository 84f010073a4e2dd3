"""Random, grid and quasi-random search against what is known of them."""
from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2, hypergeom, qmc

from metasearch.records import Outcome, Proposal
from metasearch.space import Choice, Float, Int, Space, canonical
from metasearch.strategies import Strategy, build
from metasearch.strategies._draws import Permutation, Seen, rng_of, seed_of

ALARM = 1e-6  # false-alarm rate of each chi-square test; seeds are fixed, so it only matters when draws change


def random_search(space: Space, seed: int = 0) -> Strategy:
    return build("random", space, {}, seed=seed)


def configs_of(strategy: Strategy, number: int) -> list[str]:
    proposals = [strategy.ask() for _ in range(number)]
    return [canonical(p.config) for p in proposals if p is not None]


def uniform_p_value(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return float(chi2.sf(sum((c - expected) ** 2 / expected for c in counts), len(counts) - 1))


def test_a_permutation_has_every_number_once_and_then_none_for_ever() -> None:
    for size in (0, 1, 2, 7, 100):
        order = Permutation(size, seed=3)
        assert sorted(n for n in (order.draw() for _ in range(size)) if n is not None) == list(range(size))
        assert [order.draw() for _ in range(3)] == [None] * 3


def test_all_orders_are_equally_likely() -> None:
    def order(seed: int) -> tuple[int | None, ...]:
        permutation = Permutation(4, seed)
        return tuple(permutation.draw() for _ in range(4))

    counts = Counter(map(order, range(6000)))
    assert uniform_p_value([counts[o] for o in itertools.permutations(range(4))]) > ALARM


def test_memory_grows_with_draws_not_with_the_space() -> None:
    order = Permutation(10**40, seed=0)
    drawn = {order.draw() for _ in range(2000)}
    assert len(drawn) == 2000
    assert len(order._moved) <= 2000


def test_random_is_uniform_over_configs_not_over_options() -> None:
    space = Space({"a": Choice({"one": Space({}), "many": Space({"n": Int(1, 9)})})})  # 10 configs; option "one" is one of them
    counts = Counter(configs_of(random_search(space, seed), 1)[0] for seed in range(4000))
    assert len(counts) == 10
    assert uniform_p_value(list(counts.values())) > ALARM
    second = Counter(configs_of(random_search(space, seed), 2)[1] for seed in range(4000))
    assert uniform_p_value(list(second.values())) > ALARM


def test_random_draws_hit_one_of_the_top_as_often_as_the_hypergeometric_says() -> None:
    space, top, draws, seeds = Space({"n": Int(0, 99)}), 3, 40, 2000
    hits = 0
    for seed in range(seeds):
        strategy = random_search(space, seed)
        proposals = [strategy.ask() for _ in range(draws)]
        hits += any(p is not None and int(p.config["n"]) < top for p in proposals)
    expected = 1 - hypergeom.pmf(0, 100, top, draws)  # 0.788; with replacement it would be 0.704
    assert abs(hits / seeds - expected) < 5 * math.sqrt(expected * (1 - expected) / seeds)  # false alarms: 6e-7


def test_random_in_an_infinite_space_is_a_sample_for_every_number() -> None:
    space = Space({"lr": Float(1e-4, 1.0, log=True)})
    strategy, values = random_search(space), list[float]()
    for number in range(1, 6):
        proposal = strategy.ask()
        assert proposal is not None
        assert proposal.config == space.sample(rng_of(0, number))
    for _ in range(2000):
        proposal = strategy.ask()
        assert proposal is not None
        values.append(math.log10(float(proposal.config["lr"])))
    counts, _ = np.histogram(values, bins=20, range=(-4, 0))
    assert uniform_p_value(counts.tolist()) > ALARM


def test_random_takes_no_notice_of_what_it_is_told() -> None:
    space = Space({"n": Int(0, 49)})
    deaf, told = random_search(space), random_search(space)
    for trial in range(60):
        proposal = told.ask()
        assert proposal == deaf.ask()
        told.tell(Outcome(trial, proposal or Proposal({"n": 7}), 1.0, {}, "done"))


@pytest.mark.parametrize("points", [1, 2, 5])
def test_grid_walks_every_point_of_the_grid_once_in_random_order(points: int) -> None:
    option = Choice({"x": Space({"m": Float(0, 1)}), "y": Space({})})
    space = Space({"lr": Float(1e-3, 1.0, log=True), "a": option, "n": Int(1, 3)})
    grid = [canonical(config) for config in space.grid(points)]
    one, two = (build("grid", space, {"points": points}, seed=seed) for seed in (0, 1))
    assert one.population == len(grid)
    walked = configs_of(one, len(grid) + 5)
    assert sorted(walked) == sorted(grid)
    assert one.ask() is None
    assert walked != grid
    assert configs_of(two, len(grid)) != walked


def test_an_interrupted_grid_is_a_uniform_sample_of_the_grid() -> None:
    space = Space({"x": Float(0.0, 1.0), "c": Choice(("a", "b"))})
    counts = Counter(configs_of(build("grid", space, {"points": 5}, seed=seed), 1)[0] for seed in range(3000))
    assert len(counts) == 10
    assert uniform_p_value(list(counts.values())) > ALARM


def test_grid_of_a_huge_space_costs_nothing_to_build() -> None:
    strategy = build("grid", Space({f"x{i}": Float(0.0, 1.0) for i in range(60)}), {"points": 9}, seed=0)
    assert strategy.population == 9**60
    assert strategy.ask() is not None


def test_qmc_puts_one_point_in_every_slice_of_every_axis() -> None:
    """The first 2^k points of a scrambled Sobol' sequence have exactly one in each of 2^k slices; random points do not."""
    space = Space({"a": Float(0.0, 1.0), "b": Float(0.0, 1.0), "c": Float(0.0, 1.0)})
    strategy = build("qmc", space, {}, seed=4)
    points = np.array([[float(v) for v in p.config.values()] for p in (strategy.ask() for _ in range(32)) if p is not None])
    for axis in range(3):
        assert sorted((points[:, axis] * 32).astype(int)) == list(range(32))


def test_qmc_is_more_even_than_random_for_every_seed() -> None:
    """If the two were alike, ten of ten would come out with probability 1/1024."""
    space = Space({"a": Float(0.0, 1.0), "b": Float(0.0, 1.0), "c": Float(0.0, 1.0)})

    def discrepancy(name: str, seed: int) -> float:
        strategy = build(name, space, {}, seed=seed)
        return float(qmc.discrepancy([list(map(float, p.config.values())) for p in (strategy.ask() for _ in range(50)) if p]))

    assert all(discrepancy("qmc", seed) < discrepancy("random", seed) for seed in range(10))


def test_qmc_finds_every_config_of_a_finite_space() -> None:
    space = Space({"a": Choice({"one": Space({}), "many": Space({"n": Int(1, 30, log=True)})}), "b": Choice((1, 2, 3))})
    found = configs_of(build("qmc", space, {}, seed=0), 200)
    assert len(found) == len(set(found)) == space.size


def test_qmc_says_when_a_space_is_too_wide() -> None:
    with pytest.raises(ValueError, match="at most 21201 dimensions, but this has 21202"):
        build("qmc", Space({f"x{i}": Int(1, 2) for i in range(21202)}), {}, seed=0)


DRAWING: dict[str, dict[str, object]] = {
    "tpe": {}, "gp": {}, "nsga-ii": {"objectives": ["score"]}, "regularized-evolution": {}, "guided-evolution": {},
    "large-scale-evolution": {"steps": 1, "evaluations": 30, "population": 10, "founders": "random"},
    "asha": {"min_steps": 1, "max_steps": 4}, "hyperband": {"min_steps": 1, "max_steps": 4},
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_is_marked_as_drawn_depends_on_no_score_and_is_uniform(name: str) -> None:
    """Fourth draws over 240 seeds against 12 configs: a false alarm is a matter of 1 in 10,000."""
    space = Space({"a": Choice((1, 2, 3)), "b": Int(1, 4)})
    assert build(name, space, DRAWING[name], seed=0).drawn_from == 12
    counts = [0] * 12
    for seed in range(240):
        drawn: list[list[str]] = []
        for sign in (1, -1) if seed < 10 else (1,):
            strategy = build(name, space, DRAWING[name], seed=seed)
            told = []
            for trial in range(1, 5):
                proposal = strategy.ask()
                assert proposal is not None
                if proposal.parent is None:
                    assert proposal.drawn
                    told.append(canonical(proposal.config))
                strategy.tell(Outcome(trial, proposal, sign * float(proposal.config["b"]), {}, "done"))  # type: ignore[arg-type]
            drawn.append(told)
        assert drawn[0] == drawn[-1]
        counts[space.rank(json.loads(drawn[0][-1]))] += 1
    assert uniform_p_value(counts) > 1e-4


def test_after_its_random_part_nothing_is_marked_as_drawn() -> None:
    space = Space({"a": Float(0.0, 1.0), "b": Int(1, 4)})
    assert build("tpe", space, {}, seed=0).drawn_from == math.inf
    for name, given, most in (("tpe", {"startup": 5}, 5), ("regularized-evolution", {"population": 6}, 6), ("cma-es", {}, 0)):
        strategy, marks = build(name, space, given, seed=0), []  # type: ignore[arg-type]
        for trial in range(1, 15):
            proposal = strategy.ask()
            assert proposal is not None
            marks.append(proposal.drawn)
            strategy.tell(Outcome(trial, proposal, float(trial), {}, "done"))
        assert marks == [True] * most + [False] * (14 - most)


def test_seeds_are_the_same_in_every_process_and_differ() -> None:
    sequences = [numbers for length in (1, 2, 3) for numbers in itertools.product(range(4), repeat=length)]
    assert len({seed_of(*numbers) for numbers in sequences}) == len(sequences)  # (7, 1) and (7, 1, 0) too
    assert seed_of(0, 1) == int(hashlib.sha256(b"(0, 1)").hexdigest()[24:32], 16)


def test_seen_knows_a_config_that_was_not() -> None:
    space = Space({"n": Int(0, 999)})
    seen = Seen(space)
    for n in range(1000):
        if n != 617:
            seen.add({"n": n})
    assert not seen.everything
    assert seen.another(rng_of(0)) == {"n": 617}
    seen.add({"n": 617})
    assert seen.everything
    with pytest.raises(ValueError, match="every config"):
        seen.another(rng_of(0))


@pytest.mark.parametrize(
    ("name", "hyperparameters", "said"),
    [
        ("grid", {"points": 0}, "at least 1 point"),
        ("grid", {"pionts": 3}, "'pionts' is no hyper-parameter of grid. Did you mean 'points'"),
        ("asha", {}, "asha needs the hyper-parameter 'min_steps'.; asha needs the hyper-parameter 'max_steps'."),
        ("tpe", {"startup": 0}, "`startup >= 1`"),
        ("gp", {"startup": 0}, "`startup >= 1`"),
        ("cma-es", {"sigma": 0.0, "population": 5}, "`0 < sigma <= 1`"),
        ("cma-es", {"population": 3}, "`population >= 4`"),
        ("nsga-ii", {"objectives": ["score", "-score"], "population": 1}, "`objectives` must be different.*`population >= 2`"),
        ("asha", {"min_steps": 9, "max_steps": 3, "eta": 1}, "`1 <= min_steps <= max_steps`.*`eta >= 2`"),
        ("hyperband", {"min_steps": 1, "max_steps": 9, "rounds": 0}, "`rounds >= 1`"),
        ("hyperband", {"min_steps": 1, "max_steps": 9, "inner": {"nam": "tpe"}}, "`inner` needs the name"),
        ("asha", {"min_steps": 1, "max_steps": 9, "inner": {"name": "asha", "min_steps": 1, "max_steps": 3}}, "configs only"),
        ("asha", {"min_steps": 1, "max_steps": 9, "inner": {"name": "tpee"}}, "Did you mean 'tpe'"),
    ],
)
def test_wrong_hyperparameters_are_told_in_words(name: str, hyperparameters: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(name, Space({"n": Int(1, 3)}), hyperparameters, seed=0)
