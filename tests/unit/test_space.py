"""Spaces: laws that hold for every space, checked on generated nested ones; and the words of every error."""
from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metasearch import space as space_room
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Int, Repeat, Space, below, canonical, digest, items, origin, sub

NAMES = st.sampled_from(["a", "b", "c", "op", "lr", "count", "0", "x-y", "x_y"])
SCALARS = st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, -1.25, 1e300, "", "relu", "a.b", "é"]))


@st.composite
def floats(draw: st.DrawFn) -> Float:
    if draw(st.booleans()):
        low, high = sorted(draw(st.lists(st.floats(1e-300, 1e300), min_size=2, max_size=2, unique=True)))
        return Float(low, high, log=True)
    low, high = sorted(draw(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=2, unique=True)))
    return Float(low, high)


@st.composite
def ints(draw: st.DrawFn, most: int = 5) -> Int:
    log = draw(st.booleans())
    low = draw(st.integers(1 if log else -3, 10))
    return Int(low, low + draw(st.integers(0, most - 1)), log=log)


def choices() -> st.SearchStrategy[Choice]:
    return st.lists(SCALARS, min_size=1, max_size=4, unique_by=lambda v: v).map(lambda o: Choice(tuple(o)))


def spaces(leaves: st.SearchStrategy[Dim]) -> st.SearchStrategy[Space]:
    def deeper(inner: st.SearchStrategy[Space]) -> st.SearchStrategy[Space]:
        conditional = st.dictionaries(st.sampled_from(["maml", "reptile", "none"]), inner, min_size=1, max_size=3).map(Choice)
        count = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda p: Int(p[0], max(1, sum(p))))
        one = st.builds(Repeat, count, inner)
        several = count.flatmap(lambda c: st.tuples(*[inner] * c.high).map(lambda b: Repeat(c, b)))
        return st.dictionaries(NAMES, st.one_of(leaves, conditional, one, several), max_size=3).map(Space)

    flat = st.dictionaries(NAMES, leaves, max_size=2).map(Space)
    return deeper(st.one_of(flat, deeper(flat)))


FINITE = spaces(st.one_of(ints(), choices()))
ANY = spaces(st.one_of(floats(), ints(), choices()))
SEEDS = st.integers(0, 2**32)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(a: Config, b: Config) -> bool:
    """Equal in order, values and types."""
    return [(k, type(v), v) for k, v in a.items()] == [(k, type(v), v) for k, v in b.items()]


FAMILY = Space({
    "learner": Choice({
        "maml": Space({"inner_lr": Float(1e-3, 1.0, log=True), "steps": Int(1, 5)}),
        "reptile": Space({"inner_lr": Float(1e-3, 1.0, log=True), "batch": Choice((5, 10))}),
        "protonet": Space({}),
    }),
    "cell": Repeat(Int(1, 4), Space({"op": Choice(("conv3", "conv5", "skip"))})),
})


# -- samples, encodings, JSON --------------------------------------------------------------------------------------------------


@given(ANY, SEEDS)
@settings(max_examples=200, deadline=None)
def test_a_sample_is_valid_and_in_canonical_order(space: Space, seed: int) -> None:
    config = space.sample(rng_of(seed))
    assert space.problems(config) == []
    assert [path for path, _ in space.active(config)] == list(config)
    assert same(space.sample(rng_of(seed)), config)
    shuffled = dict(sorted(config.items(), reverse=True))
    assert same(space.normal(shuffled), config)
    assert digest(shuffled) == digest(config)


@given(ANY, SEEDS)
@settings(max_examples=200, deadline=None)
def test_decoding_what_was_encoded_gives_the_config_back(space: Space, seed: int) -> None:
    config = space.sample(rng_of(seed))
    u = space.encode(config)
    assert u.shape == (space.width,)
    assert ((u >= 0) & (u <= 1)).all()
    back = space.decode(u)
    assert list(back) == list(config)
    for path, dim in space.active(config):
        if isinstance(dim, Float):
            value, again = float(config[path]), float(back[path])
            if dim.log:
                spread = max(1.0, abs(math.log(dim.low)), abs(math.log(dim.high)))
                assert abs(again - value) <= 16 * spread * sys.float_info.epsilon * value
            else:
                scale = max(abs(dim.low), abs(dim.high), dim.high - dim.low)
                assert abs(again - value) <= 4 * sys.float_info.epsilon * scale
        else:
            assert (back[path], type(back[path])) == (config[path], type(config[path]))


@given(ANY, SEEDS)
@settings(max_examples=100, deadline=None)
def test_every_point_of_the_cube_is_a_valid_config_and_what_is_not_in_force_is_a_half(space: Space, seed: int) -> None:
    u = rng_of(seed).random(space.width)
    config = space.decode(u)
    assert space.problems(config) == []
    columns = list(space.columns())
    assert len(columns) == space.width
    in_force = dict(space.active(config))
    for (path, _), value in zip(columns, space.encode(config), strict=True):
        assert path in in_force or value == 0.5
    used = [column for *_, column, _ in space._walk(config)]
    assert [columns[i][0] for i in used] == list(config)
    other = u.copy()
    other[[i for i in range(space.width) if i not in used]] = 0.0
    assert same(space.decode(other), config)


@pytest.mark.parametrize("dim", [
    Float(1e-8, 1.0, log=True), Float(-3.0, 5.0), Float(5e-324, 1.7e308, log=True), Float(0.1, 0.1 + 2**-52),
    Float(1e300, 1.1e300),
])
def test_the_ends_of_a_float_are_exact_and_never_left(dim: Float) -> None:
    assert (dim.decode(0.0), dim.decode(1.0)) == (dim.low, dim.high)
    assert (dim.encode(dim.low), dim.encode(dim.high)) == (0.0, 1.0)
    for u in (5e-324, 1e-9, 0.5, 1 - 2**-53):
        assert dim.low <= dim.decode(u) <= dim.high


def test_a_log_float_is_uniform_in_its_logarithm() -> None:
    drawn = [Space({"x": Float(1e-4, 1.0, log=True)}).sample(rng_of(i))["x"] for i in range(400)]
    below_a_hundredth = sum(float(x) < 1e-2 for x in drawn)
    assert 150 < below_a_hundredth < 250  # half of them: 5 standard errors of 10
    assert Float(1e-4, 1.0, log=True).decode(0.5) == pytest.approx(1e-2)


@pytest.mark.parametrize("dim", [
    Int(0, 9), Int(1, 1000, log=True), Int(-5, 2**40 - 6), Int(1, 2**40, log=True), Int(2**60, 2**60 + 2**40 - 1, log=True),
    Int(-(2**80), -(2**80) + 7), Int(7, 7), Int(1, 1, log=True), Int(10**17, 10**17 + 5, log=True),
])
def test_every_int_comes_back_from_its_encoding(dim: Int) -> None:
    rng = rng_of(0)
    random = (dim.low + below(dim.size, rng) for _ in range(500))
    values = {dim.low, *random, *(dim.high - i for i in range(min(dim.size, 99)))}
    for value in values:
        assert dim.decode(dim.encode(value)) == value
    assert (dim.decode(0.0), dim.decode(1.0)) == (dim.low, dim.high)


@given(ANY, SEEDS)
@settings(max_examples=100, deadline=None)
def test_configs_and_spaces_survive_json_and_pickle(space: Space, seed: int) -> None:
    config = space.sample(rng_of(seed))
    assert same(json.loads(json.dumps(config)), config)
    assert canonical(json.loads(canonical(config))) == canonical(config)
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    for other in (again, pickle.loads(pickle.dumps(space)), copy.deepcopy(space)):
        assert other == space
        assert hash(other) == hash(space)
        assert other.digest == space.digest
        assert (other.size, other.width) == (space.size, space.width)
        assert same(other.sample(rng_of(seed)), config)


def test_one_and_one_point_nought_and_true_are_three_values() -> None:
    assert len({canonical({"a": value}) for value in (1, 1.0, True, "1")}) == 4
    assert canonical({"a": -0.0}) == canonical({"a": 0.0}) == '{"a":0.0}'
    assert canonical({"b": 1, "a": 2}) == '{"a":2,"b":1}'
    assert len({Choice((1, 2)), Choice((1.0, 2.0)), Choice((True, 2))}) == 3
    assert len({Space({"a": Choice((option,))}).digest for option in (1, 1.0, True, "1")}) == 4
    assert Float(0, 1) == Float(0.0, 1.0)
    assert Float(0, 1) != Int(0, 1)
    for value in (math.nan, math.inf, None, [1], {"a": 1}):
        with pytest.raises(ValueError, match="a value must be"):
            digest({"a": value})  # type: ignore[dict-item]


def test_the_order_of_dimensions_is_part_of_a_space() -> None:
    a, b = Choice((1, 2)), Int(0, 3)
    assert Space({"a": a, "b": b}) != Space({"b": b, "a": a})
    assert Space({"a": a, "b": b}).digest != Space({"b": b, "a": a}).digest


def test_a_digest_is_the_same_in_every_process() -> None:
    code = (
        "import numpy as np\nfrom metasearch.space import *\n"
        "s = Space({'l': Choice({'b': Space({'x': Float(0, 1)}), 'a': Space({})}), 'n': Int(1, 9, log=True)})\n"
        "print(s.digest, digest(s.sample(np.random.default_rng(0))))"
    )
    said = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}, check=True,
                       capture_output=True, text=True).stdout
        for seed in ("0", "1")
    }
    assert len(said) == 1


def test_what_is_frozen_stays_so() -> None:
    dims: dict[str, Dim] = {"a": Int(0, 1)}
    space = Space(dims)
    dims["b"] = Int(0, 1)
    assert list(space.dims) == ["a"]
    with pytest.raises(TypeError):
        space.dims["b"] = Int(0, 1)  # type: ignore[index]
    with pytest.raises(AttributeError):
        space.dims = {}  # type: ignore[misc]


# -- numbers -------------------------------------------------------------------------------------------------------------------


@given(FINITE)
@settings(max_examples=150, deadline=None)
def test_size_is_the_number_of_configs_and_rank_undoes_unrank(space: Space) -> None:
    assert isinstance(space.size, int)
    assume(space.size <= 3000)
    configs = [space.unrank(i) for i in range(space.size)]
    assert len({canonical(c) for c in configs}) == space.size
    assert [space.rank(c) for c in configs] == list(range(space.size))
    assert all(same(a, b) for a, b in zip(space.grid(2), configs, strict=True))
    for config in configs[:50]:
        assert space.problems(config) == []
        assert [path for path, _ in space.active(config)] == list(config)
    for i in (-1, space.size, True, 0.0):
        with pytest.raises(ValueError, match="number lies in"):
            space.unrank(i)  # type: ignore[arg-type]


@given(FINITE, SEEDS)
@settings(max_examples=100, deadline=None)
def test_rank_and_unrank_agree_in_spaces_too_large_to_list(space: Space, seed: int) -> None:
    wide = Space({f"n{i}": Repeat(Int(0, 5), space) for i in range(20)})
    assert isinstance(wide.size, int)
    config = wide.sample(rng_of(seed))
    assert same(wide.unrank(wide.rank(config)), config)
    i = below(wide.size, rng_of(seed))
    assert wide.rank(wide.unrank(i)) == i
    assert wide.problems(wide.uniform(rng_of(seed))) == []


@given(FINITE)
@settings(max_examples=60, deadline=None)
def test_size_agrees_with_walking_every_decision_of_the_space(space: Space) -> None:
    """The oracle shares nothing with unrank: it makes configs decision by decision, as a controller would."""
    assert isinstance(space.size, int)
    assume(space.size <= 500)
    found = set()
    prefix: list[int] = []
    while True:
        config: Config = {}
        sizes = []
        for place, (path, dim) in enumerate(space.active(config)):
            values = dim.values if isinstance(dim, Choice) else range(dim.low, dim.high + 1)  # type: ignore[union-attr]
            sizes.append(len(values))
            config[path] = values[prefix[place] if place < len(prefix) else 0]
        found.add(canonical(config))
        digits = prefix + [0] * (len(sizes) - len(prefix))
        while digits and digits[-1] == sizes[len(digits) - 1] - 1:
            digits.pop()
        if not digits:
            break
        digits[-1] += 1
        prefix = digits
    assert len(found) == space.size


def test_sizes_are_exact_beyond_every_float() -> None:
    assert Space({f"d{i}": Choice((1, 2, 3)) for i in range(1000)}).size == 3**1000
    assert Space({"r": Repeat(Int(0, 100), Space({"op": Choice((1, 2))}))}).size == 2**101 - 1
    assert Space({}).size == 1
    assert Space({}).unrank(0) == {}
    assert Space({"x": Float(0, 1), **{f"d{i}": Choice((1, 2, 3)) for i in range(1000)}}).size == math.inf
    assert Space({"r": Repeat(Int(0, 1), Space({"x": Float(0, 1)}))}).size == math.inf


def test_the_numbers_of_an_infinite_space_are_refused_with_the_dimensions_that_make_it_so() -> None:
    for call in (lambda: FAMILY.unrank(0), lambda: FAMILY.rank({}), lambda: FAMILY.uniform(rng_of(0))):
        with pytest.raises(ValueError, match=r"'learner.inner_lr'.*gridded\(points\)"):
            call()


def test_a_grid_has_points_of_floats_all_values_of_the_rest_and_conditionals_only_in_force() -> None:
    configs = list(FAMILY.grid(3))
    learners = 3 * 5 + 3 * 2 + 1
    cells = 3 + 9 + 27 + 81
    assert len(configs) == len({canonical(c) for c in configs}) == learners * cells == FAMILY.gridded(3).size
    rates = sorted({float(c["learner.inner_lr"]) for c in configs if "learner.inner_lr" in c})
    assert rates == pytest.approx([1e-3, 10**-1.5, 1.0])
    assert rates[0] == 1e-3
    assert all(FAMILY.problems(c) == [] for c in configs)
    assert next(Space({"x": Float(0, 4)}).grid(1)) == {"x": 2.0}
    assert [c["x"] for c in Space({"x": Float(0, 4)}).grid(2)] == [0.0, 4.0]
    for points in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="at least 1 point"):
            list(FAMILY.grid(points))  # type: ignore[arg-type]


def test_uniform_counts_configs_where_sample_counts_options() -> None:
    """`big` holds 9 of 10 configs: uniform draws take it in 9 of 10 cases, independent decisions in one of two.

    2,000 draws, 6 standard errors: a false alarm in one of 5e8 seeds.
    """
    space = Space({"kind": Choice({"small": Space({}), "big": Space({"n": Int(1, 9)})})})
    rng = rng_of(0)
    uniform = Counter(space.uniform(rng)["kind"] for _ in range(2000))
    sampled = Counter(space.sample(rng)["kind"] for _ in range(2000))
    assert abs(uniform["big"] / 2000 - 0.9) < 6 * math.sqrt(0.9 * 0.1 / 2000)
    assert abs(sampled["big"] / 2000 - 0.5) < 6 * math.sqrt(0.25 / 2000)


def test_below_is_uniform_and_reaches_beyond_64_bits() -> None:
    rng = rng_of(1)
    counts = Counter(below(5, rng) for _ in range(5000))
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert max(abs(n - 1000) for n in counts.values()) < 6 * math.sqrt(5000 * 0.2 * 0.8)
    drawn = [below(3**200, rng) for _ in range(200)]
    assert all(0 <= k < 3**200 for k in drawn)
    assert max(drawn) > 3**200 // 2
    assert below(1, rng) == 0


# -- mutation ------------------------------------------------------------------------------------------------------------------


def _edited(space: Space, parent: Config, child: Config, moved: dict[str, str]) -> list[str]:
    """The decisions of the child that are not what the parent's, brought to their new places, would be."""
    return [path for path in child if (old := origin(path, moved)) is None or old not in parent or parent[old] != child[path]]


@given(ANY, SEEDS)
@settings(max_examples=300, deadline=None)
def test_a_mutation_is_valid_and_different_wherever_there_is_an_alternative(space: Space, seed: int) -> None:
    rng = rng_of(seed)
    parent = space.sample(rng)
    before = dict(parent)
    alternatives = [len(d.values) > 1 if isinstance(d, Choice) else d.size > 1 for _, d in space.active(parent)]
    for _ in range(5):
        child, moved = space.mutate(parent, rng)
        assert same(parent, before)
        assert space.problems(child) == []
        assert [path for path, _ in space.active(child)] == list(child)
        assert same(child, parent) == (not any(alternatives))
        if same(child, parent):
            assert moved == {}


@given(ANY, SEEDS)
@settings(max_examples=300, deadline=None)
def test_a_mutation_changes_one_decision_and_what_hangs_on_it(space: Space, seed: int) -> None:
    rng = rng_of(seed)
    parent = space.sample(rng)
    child, moved = space.mutate(parent, rng)
    edited = _edited(space, parent, child, moved)
    if not edited:
        assert same(child, parent)
        return
    first = edited[0]
    counted = [path for path, *_, repeat in space._walk(child) if repeat is not None and path == first]
    hangs = first.removesuffix("count") if counted else first + "."
    assert all(path.startswith(hangs) for path in edited[1:])
    if counted:
        assert abs(int(child[first]) - int(parent[first])) == 1
    else:
        assert moved == {}


def test_every_decision_is_mutated_and_every_neighbour_is_reached() -> None:
    rng = rng_of(0)
    parent: Config = {"learner": "protonet", "cell.count": 2, "cell.0.op": "conv3", "cell.1.op": "conv5"}
    seen: Counter[str] = Counter()
    for _ in range(1000):
        child, moved = FAMILY.mutate(parent, rng)
        seen[_edited(FAMILY, parent, child, moved)[0]] += 1
    assert set(seen) == {"learner", "cell.count", "cell.0.op", "cell.1.op"}
    assert min(seen.values()) > 150  # 250 each, expected: 7 standard errors
    ops = {FAMILY.mutate(parent, rng)[0].get("cell.0.op") for _ in range(300)}
    assert ops == {"conv3", "conv5", "skip"}


def test_an_insertion_in_the_middle_moves_the_layers_behind_it() -> None:
    space = Space({"net": Repeat(Int(1, 9), Space({"width": Int(1, 10**9), "act": Choice(("relu", "gelu"))}))})
    rng = rng_of(0)
    widths, acts = {f"net.{i}.width": 100 + i for i in range(4)}, {f"net.{i}.act": "relu" for i in range(4)}
    parent = space.normal({"net.count": 4, **widths, **acts})
    kinds = set()
    for _ in range(500):
        child, moved = space.mutate(parent, rng)
        if child["net.count"] == 5:
            place = 5 - len(moved) - 1
            assert moved == {f"net.{i}": f"net.{i - 1}" for i in range(place + 1, 5)}
            assert [child[f"net.{i}.width"] for i in range(5) if i != place] == [100, 101, 102, 103]
            assert origin(f"net.{place}.width", moved) == (f"net.{place}.width" if place == 4 else None)
            kinds.add(("insert", place))
        elif child["net.count"] == 3:
            place = 3 - len(moved)
            assert moved == {f"net.{i}": f"net.{i + 1}" for i in range(place, 3)}
            assert [child[f"net.{i}.width"] for i in range(3)] == [100 + i for i in range(4) if i != place]
            kinds.add(("remove", place))
    assert kinds == {("insert", i) for i in range(5)} | {("remove", i) for i in range(4)}


def test_moved_prefixes_are_whole_paths_in_nested_repeats() -> None:
    space = Space({"stage": Repeat(Int(12, 12), Space({"cell": Repeat(Int(0, 3), Space({"op": Int(0, 10**6)}))}))})
    rng = rng_of(0)
    parent = space.sample(rng)
    moves = [m for m in (space.mutate(parent, rng)[1] for _ in range(300)) if m]
    assert moves
    for moved in moves:
        assert len({new.rsplit(".", 1)[0] for new in moved}) == 1
        assert all(new.rsplit(".", 1)[0] == old.rsplit(".", 1)[0] for new, old in moved.items())


def test_a_count_at_its_bound_goes_the_other_way() -> None:
    space = Space({"r": Repeat(Int(1, 2), Space({}))})
    assert space.mutate({"r.count": 1}, rng_of(0))[0] == {"r.count": 2}
    assert space.mutate({"r.count": 2}, rng_of(0))[0] == {"r.count": 1}


def test_bodies_of_their_own_keep_what_their_new_place_admits() -> None:
    """Skip choices: item i may start from any item before it. One that moves may lose its start, and is sampled then."""
    space = Space({"node": Repeat(Int(1, 4), tuple(Space({"from": Choice(tuple(range(i + 1)))}) for i in range(4)))})
    assert space.size == 1 + 1 * 2 + 1 * 2 * 3 + 1 * 2 * 3 * 4
    rng = rng_of(0)
    for i in range(space.size):
        parent = space.unrank(i)
        for _ in range(5):
            child, moved = space.mutate(parent, rng)
            assert space.problems(child) == []
            for path, value in child.items():
                old = origin(path, moved)
                limit = int(path.split(".")[1]) if path.endswith("from") else None
                if moved and limit is not None and old is not None and int(parent[old]) <= limit:
                    assert value == parent[old]


def test_another_option_keeps_what_both_share_and_samples_the_rest() -> None:
    rng = rng_of(0)
    parent: Config = {"learner": "maml", "learner.inner_lr": 0.123, "learner.steps": 3, "cell.count": 1, "cell.0.op": "skip"}
    children = [FAMILY.mutate(parent, rng)[0] for _ in range(200)]
    reptiles = [c for c in children if c["learner"] == "reptile"]
    assert reptiles
    assert {c["learner.inner_lr"] for c in reptiles} == {0.123}
    assert {c["learner.batch"] for c in reptiles} == {5, 10}
    assert all(c["cell.0.op"] == "skip" for c in reptiles)
    assert all(not sub(c, "learner") for c in children if c["learner"] == "protonet")


def test_numbers_mostly_step_and_sometimes_jump() -> None:
    rng = rng_of(0)
    for dim in (Float(0, 1), Int(0, 10**6), Float(1e-9, 1, log=True), Int(1, 10**6, log=True)):
        value = dim.decode(0.5)
        u = np.array([dim.encode(dim.another(value, rng)) for _ in range(1000)])
        near = float((abs(u - 0.5) < 0.1).mean())
        assert 0.35 < near < 0.6  # half of them steps (two thirds within one sigma), half of them draws (a fifth)
        assert u.min() < 0.1
        assert u.max() > 0.9
        ends = [dim.another(end, rng) for end in (dim.low, dim.high) for _ in range(100)]
        assert all(dim.problem(x) is None for x in ends)


@pytest.mark.parametrize("dim", [Float(1.0, 1.0 + 2**-52), Int(3, 4), Int(3, 5), Choice((1, 2))])
def test_another_value_is_always_another(dim: Any) -> None:
    rng = rng_of(0)
    for value in (dim.decode(0.0), dim.decode(1.0)):
        assert all(dim.another(value, rng) != value for _ in range(50))


def test_origin_follows_the_longest_prefix_of_whole_path_parts() -> None:
    moved = {"cell.4": "cell.3", "cell.4.branch.1": "cell.3.branch.0"}
    assert origin("cell.4.op", moved) == "cell.3.op"
    assert origin("cell.4.branch.1.op", moved) == "cell.3.branch.0.op"
    assert origin("cell.3.op", moved) is None  # the parent's item 3 went to 4; the child's is new
    assert origin("cell.40.op", moved) == "cell.40.op"
    assert origin("stem", moved) == "stem"
    assert origin("cell.3.op", {"cell.4": "cell.3", "cell.3": "cell.3"}) == "cell.3.op"  # a copied layer says so


# -- reading configs -----------------------------------------------------------------------------------------------------------


def test_sub_and_items_read_what_lies_below_a_path() -> None:
    config: Config = {"learner": "maml", "learner.lr": 0.1, "learners": 3, "cell.count": 2, "cell.1.op": "b", "cell.0.op": "a"}
    assert sub(config, "learner") == {"lr": 0.1}
    assert items(config, "cell") == [{"op": "a"}, {"op": "b"}]
    assert items({"cell.count": 2}, "cell") == [{}, {}]


def test_active_makes_a_config_while_it_walks_and_says_what_is_missing() -> None:
    config: Config = {}
    for path, dim in FAMILY.active(config):
        config[path] = dim.decode(0.0)
    assert config == {"learner": "maml", "learner.inner_lr": 1e-3, "learner.steps": 1, "cell.count": 1, "cell.0.op": "conv3"}
    with pytest.raises(ValueError, match="'learner' is missing"):
        list(FAMILY.active({}))
    with pytest.raises(ValueError, match=r"'learner' must be one of.*Did you mean 'maml'"):
        list(FAMILY.active({"learner": "mamml"}))


GOOD: Config = {"learner": "maml", "learner.inner_lr": 0.1, "learner.steps": 2, "cell.count": 1, "cell.0.op": "skip"}


@pytest.mark.parametrize(("change", "said"), [
    ({"learner": "mamml"}, ["'learner' must be one of its 3 options, but got 'mamml'. Did you mean 'maml'?"]),
    ({"learner": "protonet"}, [
        "'learner.inner_lr' is not in force: it needs learner = 'maml'", "'learner.steps' is not in force",
    ]),
    ({"learner": "reptile"}, [
        "'learner.batch' is missing. Add it: one of 5, 10", "'learner.steps' is not in force: it needs learner = 'maml'",
    ]),
    ({"learner.inner_lr": None}, ["'learner.inner_lr' is missing. Add it: a float in [0.001, 1.0]"]),
    ({"learner.inner_lr": 1}, ["'learner.inner_lr' must be a float in [0.001, 1.0], but got 1. Write 1.0."]),
    ({"learner.inner_lr": True}, ["must be a float in [0.001, 1.0], but got True."]),
    ({"learner.inner_lr": "0.1"}, ["must be a float"]),
    ({"learner.inner_lr": 2.0}, ["'learner.inner_lr' must lie in [0.001, 1.0], but got 2.0"]),
    ({"learner.inner_lr": math.nan}, ["must lie in [0.001, 1.0], but got nan"]),
    ({"learner.steps": 9}, ["'learner.steps' must lie in 1..5, but got 9"]),
    ({"learner.steps": 2.0}, ["'learner.steps' must be an int in 1..5, but got 2.0. Write 2."]),
    ({"learner.steps": True}, ["must be an int in 1..5, but got True"]),
    ({"cell.count": 2}, ["'cell.1.op' is missing. Add it: one of 'conv3', 'conv5', 'skip'"]),
    ({"cell.count": 7}, ["'cell.count' must lie in 1..4, but got 7"]),
    ({"cell.count": None}, ["'cell.count' is missing. Add it: an int in 1..4"]),
    ({"cell.1.op": "skip"}, ["'cell.1.op' is not in force: it needs cell.count >= 2"]),
    ({"cell.9.op": "skip"}, ["'cell.9.op' is unknown"]),
    ({"cell": 2}, ["'cell' is unknown"]),
    ({"learner.iner_lr": 0.1}, ["'learner.iner_lr' is unknown. Did you mean 'learner.inner_lr'?"]),
    ({"": 1}, ["'' is unknown"]),
    ({"learner": [1]}, ["'learner' must be one of its 3 options, but got [1]"]),
    ({"learner": "x", "cell.count": 0, "lerner": 1}, ["'learner' must", "'cell.count' must lie", "'lerner' is unknown"]),
])
def test_everything_wrong_with_a_config_is_said_at_once(change: dict[str, Any], said: list[str]) -> None:
    config = {path: value for path, value in {**GOOD, **change}.items() if value is not None}
    problems = FAMILY.problems(config)
    assert len(problems) == len(said)
    for problem, expected in zip(problems, said, strict=True):
        assert expected in problem
    with pytest.raises(ValueError) as error:
        FAMILY.validate(config)
    assert str(error.value) == "; ".join(problems)
    for call in (FAMILY.encode, FAMILY.normal):
        if "Write" not in problems[0] or call == FAMILY.encode:
            with pytest.raises(ValueError):
                call(config)


def test_a_choice_tells_equal_values_of_different_types_apart() -> None:
    space = Space({"on": Choice((True, False)), "k": Choice((1, 3)), "x": Choice((0.5, 1.0))})
    assert space.problems({"on": 1, "k": True, "x": 1}) == [
        "'on' must be the bool True, but got the int 1.", "'k' must be the int 1, but got the bool True.",
        "'x' must be the float 1.0, but got the int 1.",
    ]
    for bad in ({"on": 1, "k": 1, "x": 1.0}, {"on": True, "k": True, "x": 1.0}):
        with pytest.raises(ValueError):
            space.encode(bad)


def test_a_message_stays_short_however_many_options_there_are() -> None:
    space = Space({f"d{i}": Choice(tuple(f"option {k}" for k in range(1000))) for i in range(200)})
    config = space.sample(rng_of(0))
    assert all(len(problem) < 250 for problem in space.problems({**config, "zzz": 1, "d0": "zzz"}))
    assert "Did you mean 'option 17'?" in space.problems({**config, "d3": "optoin 17"})[0]


def test_normal_repairs_what_loses_nothing_and_only_that() -> None:
    read = {
        "cell.count": np.int64(1), "cell.0.op": np.str_("skip"), "learner.steps": 2.0, "learner.inner_lr": 1, "learner": "maml",
    }
    assert same(FAMILY.normal(read), {**GOOD, "learner.inner_lr": 1.0})
    assert same(Space({"k": Choice((1, 3))}).normal({"k": 3.0}), {"k": 3})
    for bad in ({"k": True}, {"k": "3"}, {"k": 3.5}):
        with pytest.raises(ValueError, match="'k' must be"):
            Space({"k": Choice((1, 3))}).normal(bad)
    with pytest.raises(ValueError, match="Write 0"):
        Space({"n": Int(0, 1)}).validate({"n": 0.0})
    with pytest.raises(ValueError, match="must be an int"):
        Space({"n": Int(0, 1)}).normal({"n": False})


@pytest.mark.parametrize("u", [[0.5], [[0.5] * 12], [math.nan] * 12, []])
def test_an_encoding_of_another_shape_is_refused(u: list[float]) -> None:
    with pytest.raises(ValueError, match=r"an encoded config is \[\d+\] numbers"):
        FAMILY.decode(u)


# -- spaces that cannot be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Float(3, 1), r"`low < high` must hold for a Float, but got Float\(3.0, 1.0\)"),
    (lambda: Float(1, 1), "A constant is a Choice of one option"),
    (lambda: Float(math.nan, 1), "`low` of a Float must be a finite number, but got nan"),
    (lambda: Float(0, math.inf), "`high` of a Float must be a finite number, but got inf"),
    (lambda: Float(0, 10**400), "`high` of a Float must be a finite number"),
    (lambda: Float(-1.7e308, 1.7e308), "`high - low` must be finite"),
    (lambda: Float(0, 1, log=True), "`low > 0` must hold"),
    (lambda: Float(True, 2), "`low` of a Float must be a finite number, but got True"),
    (lambda: Float("0", 1), "`low` of a Float must be a finite number, but got '0'"),  # type: ignore[arg-type]
    (lambda: Float(0, 1, log=1), "`log` of a Float must be True or False"),  # type: ignore[arg-type]
    (lambda: Int(3, 1), "`low <= high` must hold for an Int"),
    (lambda: Int(1.0, 2), "`low` of an Int must be an int, but got 1.0. For real numbers use Float"),  # type: ignore[arg-type]
    (lambda: Int(False, True), "must be an int, but got False"),
    (lambda: Int(0, 5, log=True), "`low >= 1` must hold for an Int with log=True"),
    (lambda: Int(0, 2**40), r"at most 2\*\*40 values"),
    (lambda: Choice(()), "at least one option"),
    (lambda: Choice({}), "at least one option"),
    (lambda: Choice((1, 2, 1)), "options must differ, but 1 and 1 are equal"),
    (lambda: Choice((1, True)), "options must differ, but 1 and True are equal"),
    (lambda: Choice((0.0, -0.0)), "options must differ"),
    (lambda: Choice((1.0, math.nan)), "a value must be finite, but got nan"),
    (lambda: Choice((math.inf,)), "a value must be finite"),
    (lambda: Choice((None,)), "must be a bool, int, float or str, but got None"),  # type: ignore[arg-type]
    (lambda: Choice(((1, 2),)), "must be a bool, int, float or str"),  # type: ignore[arg-type]
    (lambda: Choice("relu"), "tuple of scalars or a mapping"),  # type: ignore[arg-type]
    (lambda: Choice(3), "tuple of scalars or a mapping"),  # type: ignore[arg-type]
    (lambda: Choice({"a": Int(0, 1)}), "option 'a' must open a Space"),  # type: ignore[dict-item]
    (lambda: Choice({1: Space({})}), "needs a name, but got 1"),  # type: ignore[dict-item]
    (lambda: Choice({"": Space({})}), "needs a name, but got ''"),
    (lambda: Repeat(3, Space({})), r"count must be an Int, but got 3. A fixed number n is Int\(n, n\)"),  # type: ignore[arg-type]
    (lambda: Repeat(Int(-1, 3), Space({})), "0 <= low and 1 <= high"),
    (lambda: Repeat(Int(0, 0), Space({})), "0 <= low and 1 <= high"),
    (lambda: Repeat(Int(1, 2**39), Space({})), "at most 10,000 items"),
    (lambda: Repeat(Int(1, 3), (Space({}),)), "one for each of the 3 items, but got 1"),
    (lambda: Repeat(Int(1, 1), (Int(0, 1),)), "must be a Space or a tuple of Spaces"),  # type: ignore[arg-type]
    (lambda: Repeat(Int(1, 1), Int(0, 1)), "must be a Space or a tuple of Spaces"),  # type: ignore[arg-type]
    (lambda: Space({"a.b": Int(0, 1)}), "letters, digits, '_' and '-', but got 'a.b'"),
    (lambda: Space({"": Int(0, 1)}), "but got ''"),
    (lambda: Space({"a b": Int(0, 1)}), "but got 'a b'"),
    (lambda: Space({"a\n": Int(0, 1)}), "letters, digits"),
    (lambda: Space({1: Int(0, 1)}), "but got 1"),  # type: ignore[dict-item]
    (lambda: Space({"a": 3}), "dimension 'a' must be a Float, Int, Choice or Repeat, but got 3"),  # type: ignore[dict-item]
    (lambda: Space([("a", Int(0, 1))]), "a Space is a mapping"),  # type: ignore[arg-type]
    (lambda: Space.from_json({}), "no space's JSON"),
    (lambda: Space.from_json({"dims": [["a", {"kind": "real"}]]}), "no dimension's JSON"),
    (lambda: Space.from_json({"dims": [["a", {"kind": "int", "low": 0, "high": 1, "step": 2}]]}), "no space's JSON"),
    (lambda: Space.from_json({"dims": [["a", {"kind": "int", "low": 0, "high": 1}]] * 2}), "'a' twice"),
])
def test_a_space_that_cannot_be_says_the_law_and_the_value(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_numpy_bounds_and_lists_of_options_are_taken_for_what_they_mean() -> None:
    assert Int(np.int64(1), np.int64(3)) == Int(1, 3)  # type: ignore[arg-type]
    assert Float(np.float32(0.5), np.float64(1)) == Float(0.5, 1.0)
    assert type(Float(np.float64(0), 1).low) is float
    assert Choice([1, 2]) == Choice((1, 2))  # type: ignore[arg-type]
    assert Choice((np.int64(4), np.float64(0.5))).values == (4, 0.5)
    assert [type(v) for v in Choice((np.int64(4), np.bool_(True))).values] == [int, bool]


# -- speed ---------------------------------------------------------------------------------------------------------------------


def _seconds(call: Callable[[], object], enough: float = 0.0) -> float:
    """CPU seconds, the best of three (other processes share this machine), or the first that is enough."""
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
        if best < enough:
            break
    return best


def test_a_thousand_samples_of_200_conditional_dimensions_take_less_than_a_second() -> None:
    branch = {"conv": Space({"rate": Float(1e-3, 1, log=True)}), "pool": Space({"size": Int(1, 64, log=True)})}
    space = Space({f"d{i}": Choice(branch) for i in range(100)})
    rng = rng_of(0)
    configs = [space.sample(rng) for _ in range(1000)]
    assert all(len(config) == 200 for config in configs)
    points = [space.encode(config) for config in configs]
    assert _seconds(lambda: [space.sample(rng) for _ in range(1000)], 1.0) < 1.0
    assert _seconds(lambda: [space.encode(config) for config in configs], 1.0) < 1.0
    assert _seconds(lambda: [space.decode(u) for u in points], 1.0) < 1.0
    assert _seconds(lambda: [space.problems(config) for config in configs], 1.5) < 1.5
    assert _seconds(lambda: [space.mutate(config, rng) for config in configs], 2.0) < 2.0


def _deep(depth: int) -> Space:
    space = Space({"x": Choice((1, 2))})
    for level in range(depth):
        space = Space({"x": Choice((1, 2)), "d": Choice({"go": space}) if level % 2 else Repeat(Int(1, 1), space)})
    return space


def test_deep_nesting_costs_what_its_decisions_cost() -> None:
    """Four times as deep costs about four times as much (paths grow with depth, by a few characters a level); a walk that went
    through all its ancestors for every decision would cost sixteen times as much."""
    rng = rng_of(0)
    shallow, deep = _deep(60), _deep(240)
    for walk in (lambda s, c: s.sample(rng), lambda s, c: s.encode(c), lambda s, c: s.rank(c), lambda s, c: s.unrank(s.size - 1)):
        times = []
        for space in (shallow, deep):
            config = space.sample(rng)
            times.append(_seconds(lambda space=space, config=config, walk=walk: [walk(space, config) for _ in range(40)]))
        assert times[1] < 10 * times[0] + 0.01
    assert Space.from_json(shallow.to_json()) == shallow
    assert pickle.loads(pickle.dumps(shallow)) == shallow


def test_grids_are_lazy() -> None:
    huge = Space({f"d{i}": Choice((0, 1, 2)) for i in range(100)})
    assert len(list(itertools.islice(huge.grid(3), 5))) == 5


class Op(StrEnum):
    A = "a"
    B = "b"


class Width(IntEnum):
    SMALL = 8
    LARGE = 16


def test_members_of_enums_are_options_as_json_gives_them_back() -> None:
    space = Space({"op": Choice(tuple(Op)), "width": Choice(tuple(Width)), "kind": Choice({Op.A: Space({}), Op.B: Space({})})})
    config = space.sample(np.random.default_rng(0))
    assert [type(value) for value in config.values()] == [str, int, str]
    back = json.loads(json.dumps(config))
    assert space.normal(back) == config
    assert space.problems(back) == []
    assert Space.from_json(space.to_json()) == space
    assert config["op"] in list(Op), "and a recipe may compare them with its members"


@pytest.mark.parametrize("made", [
    lambda: Float(1e10, 10000000000.000002, log=True), lambda: Int(10**400, 10**400 + 5, log=True),
])
def test_a_range_without_a_logarithm_is_refused(made: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="Leave log out"):
        made()


def test_all_names_of_the_module_in_a_space_file_define_none_of_its_optional_names() -> None:
    optional = {"recipe", "RELAXED", "relaxed", "canonical", "mutations", "graph", "derive", "NODE_INPUTS"}
    assert not optional & set(space_room.__all__)


def test_what_every_config_makes_is_in_every_sample_and_the_rest_is_not() -> None:
    inner = Space({"op": Choice(("a", "b"))})
    space = Space({
        "lr": Float(0.1, 1.0), "one": Choice({"only": inner}), "two": Choice({"x": inner, "y": Space({})}),
        "cell": Repeat(Int(1, 3), inner), "fixed": Repeat(Int(2, 2), inner), "none": Repeat(Int(0, 1), inner),
    })
    samples = [set(space.sample(np.random.default_rng(seed))) for seed in range(100)]
    counts = {path for path in set.intersection(*samples) if path.endswith(".count")}
    assert space.always == set.intersection(*samples) - counts
    assert space.always == {"lr", "one", "one.op", "two", "cell.0.op", "fixed.0.op", "fixed.1.op"}
