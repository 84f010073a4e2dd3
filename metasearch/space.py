"""What could be tried: a search space is frozen data, a config is a flat dict from paths to plain values.

    space = Space({
        "learner": Choice({
            "maml": Space({"inner_lr": Float(1e-3, 1.0, log=True), "steps": Int(1, 5)}),
            "protonet": Space({}),
        }),
        "cell": Repeat(Int(1, 4), Space({"op": Choice(("conv3", "conv5", "skip"))})),
    })
    space.sample(rng)  # {"learner": "maml", "learner.inner_lr": 0.03, "learner.steps": 2, "cell.count": 1, "cell.0.op": "skip"}

An option that opens a sub-space is all that a conditional is: the sub-space's dimensions sit under the dimension's own path,
so two options may share a sub-name. A Repeat at path p holds its number in p.count and its items in p.0, p.1, ...
The order of a config is that of `Space.active`; one meaning has one valid config, and `digest` does not depend on the order.

Two kinds of random draw differ in a conditional space: `sample` draws every decision in force independently and uniformly (in
encoded space), so each option of a Choice is equally likely; `uniform` draws uniformly over all configs of a finite space, so an
option with many sub-configs is drawn more often.
"""
from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metasearch.plugins import did_you_mean
from metasearch.records import Config, Value

# not `canonical`, which in a space file is a name of its own
__all__ = ["Choice", "Dim", "Float", "Int", "Leaf", "Repeat", "Space", "digest", "items", "origin", "sub"]

STEP = 0.1  # standard deviation of a mutation's Gaussian step, as a share of the encoded range
MOST_VALUES = 2**40  # of an Int: more could not be told apart in a float64 in [0, 1], on a log scale
MOST_ITEMS = 10_000  # of a Repeat: each has columns of its own in an encoded config
NAME = re.compile(r"[A-Za-z0-9_-]+")


class _Undecided:
    """Stands in a config for a decision that cannot be read, so that `_walk` does not look below it."""


_UNDECIDED = _Undecided()


@dataclass(frozen=True)
class Float:
    """A real number from [low, high]; with log=True uniform in its logarithm.

    Raises ValueError unless low < high, both finite, and low > 0 where log is set.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _set(self, low=_real("Float", "low", self.low), high=_real("Float", "high", self.high))
        _is_bool("Float", self.log)
        got = f"but got Float({self.low!r}, {self.high!r}{', log=True' if self.log else ''})."
        if not self.low < self.high:
            raise ValueError(f"`low < high` must hold for a Float, {got} A constant is a Choice of one option.")
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"`high - low` must be finite for a Float, {got} Use narrower bounds.")
        if self.log and self.low <= 0:
            raise ValueError(f"`low > 0` must hold for a Float with log=True, {got} Raise low, or leave log out.")
        if self.log and not self._log_range > 0:
            raise ValueError(f"the logarithms of the bounds must differ for a Float with log=True, {got} Leave log out.")

    @property
    def size(self) -> float:
        return math.inf

    @property
    def width(self) -> int:
        return 1

    def encode(self, value: Value) -> float:
        """The value's place in [0, 1]."""
        x = self._checked(value)
        if self.log:
            return (math.log(x) - math.log(self.low)) / self._log_range
        return (x - self.low) / (self.high - self.low)

    def decode(self, u: float) -> float:
        if u <= 0:
            return self.low
        if u >= 1:
            return self.high
        x = math.exp(math.log(self.low) + u * self._log_range) if self.log else self.low + u * (self.high - self.low)
        return min(max(x, self.low), self.high)

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, in words; None if nothing is."""
        if isinstance(value, bool) or not isinstance(value, float):
            hint = f" Write {float(value)!r}." if isinstance(value, int) and not isinstance(value, bool) else ""
            return f"must be a float in [{self.low!r}, {self.high!r}], but got {value!r}.{hint}"
        if not self.low <= value <= self.high:
            return f"must lie in [{self.low!r}, {self.high!r}], but got {value!r}."
        return None

    def another(self, value: Value, rng: np.random.Generator) -> float:
        """A different value: a Gaussian step in encoded space, or, half of the time, a new draw."""
        new: float | None = _stepped(self, value, rng)
        if new is None:  # a range of a few floats only
            return self.high if value != self.high else self.low
        return new

    @cached_property
    def _log_range(self) -> float:
        return math.log(self.high) - math.log(self.low)

    def _checked(self, value: Value) -> float:
        if type(value) is float and self.low <= value <= self.high:
            return value
        if said := self.problem(value):
            raise ValueError(f"a value {said}")
        return float(value)


@dataclass(frozen=True)
class Int:
    """A whole number from low..high, both included; with log=True uniform in the logarithm over [low - 1/2, high + 1/2].

    Raises ValueError unless low <= high are ints, at most 2**40 values apart, and low >= 1 where log is set.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _set(self, low=_whole("Int", "low", self.low), high=_whole("Int", "high", self.high))
        _is_bool("Int", self.log)
        got = f"but got Int({self.low}, {self.high}{', log=True' if self.log else ''})."
        if not self.low <= self.high:
            raise ValueError(f"`low <= high` must hold for an Int, {got} Swap the bounds.")
        if self.size > MOST_VALUES:
            raise ValueError(f"an Int has at most 2**40 values, {got} Use narrower bounds, or a Float that the recipe rounds.")
        if self.log and self.low < 1:
            raise ValueError(f"`low >= 1` must hold for an Int with log=True, {got} Raise low, or leave log out.")
        if self.log and self.low >= 2**1023:
            raise ValueError(f"`low < 2**1023` must hold for an Int with log=True, {got} Leave log out.")

    @property
    def size(self) -> int:
        return self.high - self.low + 1

    @property
    def width(self) -> int:
        return 1

    def encode(self, value: Value) -> float:
        """The middle of the value's share of [0, 1]."""
        k = self.rank(value) + 0.5
        return math.log1p(k / (self.low - 0.5)) / self._log_range if self.log else k / self.size

    def decode(self, u: float) -> int:
        # the offset from low is computed alone: low itself may be far larger than the range
        k = (self.low - 0.5) * math.expm1(u * self._log_range) if self.log else u * self.size
        return self.low + min(max(int(k), 0), self.size - 1)

    def rank(self, value: Value) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(f"a value {self.problem(value)}")
        return value - self.low

    def problem(self, value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            hint = f" Write {int(value)}." if isinstance(value, float) and value.is_integer() else ""
            return f"must be an int in {self.low}..{self.high}, but got {value!r}.{hint}"
        if not self.low <= value <= self.high:
            return f"must lie in {self.low}..{self.high}, but got {value!r}."
        return None

    def another(self, value: Value, rng: np.random.Generator) -> int:
        """A different value: a Gaussian step in encoded space, or, half of the time, a new draw. Needs two values at least."""
        new: int | None = _stepped(self, value, rng)
        if new is None:  # values so few, or with so large a share of [0, 1], that it was drawn again and again
            return self.low + (self.rank(value) + 1 + int(rng.integers(self.size - 1))) % self.size
        return new

    @cached_property
    def _log_range(self) -> float:
        return math.log1p(self.size / (self.low - 0.5))


@dataclass(frozen=True, eq=False)
class Choice:
    """One of several scalars, or one of several named sub-spaces.

    options: a tuple of bool | int | float | str, or a mapping from names to the Spaces that they open.
    Raises ValueError for no options, options that are equal (1, 1.0 and True are equal to Python), or options of other types.
    """

    options: tuple[Value, ...] | Mapping[str, Space]
    values: tuple[Value, ...] = field(init=False, repr=False)  # what a config may hold, in order, for both kinds of options
    spaces: tuple[Space, ...] = field(init=False, repr=False)  # what each option opens, in order; () where options are scalars
    size: int | float = field(init=False, repr=False)
    width: int = field(init=False, repr=False)
    _index: dict[Value, int] = field(init=False, repr=False)
    _starts: tuple[int, ...] = field(init=False, repr=False)  # rank of the first config of each option
    _columns: tuple[int, ...] = field(init=False, repr=False)  # first column of each option's sub-space, from the Choice's own
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spaces: tuple[Space, ...] = ()
        if isinstance(self.options, Mapping):
            options = {_scalar(name) if isinstance(name, str) else name: space for name, space in self.options.items()}
            values: tuple[Value, ...] = tuple(options)
            spaces = tuple(options.values())
            for name, space in options.items():
                if not isinstance(name, str) or not name:
                    raise ValueError(f"an option that opens a sub-space needs a name, but got {name!r}.")
                if not isinstance(space, Space):
                    raise ValueError(f"option {name!r} must open a Space, but got {space!r}. An empty one is Space({{}}).")
            _set(self, options=MappingProxyType(options))
        elif isinstance(self.options, Sequence) and not isinstance(self.options, str):
            values = tuple(_scalar(option) for option in self.options)
            _set(self, options=values)
        else:
            raise ValueError(f"options must be a tuple of scalars or a mapping to Spaces, but got {self.options!r}.")
        if not values:
            raise ValueError("a Choice needs at least one option, but got none.")
        index: dict[Value, int] = {}
        for i, value in enumerate(values):
            if value in index:
                raise ValueError(f"options must differ, but {values[index[value]]!r} and {value!r} are equal. Drop one.")
            index[value] = i
        sizes = [space.size for space in spaces] or [1] * len(values)
        starts = tuple(_running(sizes)) if math.inf not in sizes else ()
        columns = tuple(1 + c for c in _running(space.width for space in spaces))
        _set(self, values=values, spaces=spaces, size=_sum(sizes), width=1 + sum(space.width for space in spaces),
             _index=index, _starts=starts, _columns=columns, _hash=hash((values, tuple(map(type, values)), spaces)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Choice):
            return NotImplemented
        return self._hash == other._hash and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Choice({dict(self.options) if isinstance(self.options, Mapping) else self.options!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Choice, (dict(self.options) if isinstance(self.options, Mapping) else self.options,)

    def encode(self, value: Value) -> float:
        return (self.index(value) + 0.5) / len(self.values)

    def decode(self, u: float) -> Value:
        n = len(self.values)
        return self.values[min(max(int(u * n), 0), n - 1)]

    def index(self, value: Value) -> int:
        """The option's number."""
        try:
            i = self._index[value]
        except (KeyError, TypeError):  # TypeError: no scalar at all
            raise ValueError(f"a value {self.problem(value)}") from None
        if type(self.values[i]) is not type(value):
            raise ValueError(f"a value {self.problem(value)}")
        return i

    def problem(self, value: object) -> str | None:
        i = self._index.get(value) if isinstance(value, bool | int | float | str) else None
        if i is None:
            return f"must be one of its {len(self.values)} options, but got {value!r}.{_near(value, self.values)}"
        if type(self.values[i]) is not type(value):
            option = self.values[i]
            return f"must be the {type(option).__name__} {option!r}, but got the {type(value).__name__} {value!r}."
        return None

    def another(self, value: Value, rng: np.random.Generator) -> Value:
        """A different option, uniformly."""
        i, other = self.index(value), int(rng.integers(len(self.values) - 1))
        return self.values[other + (other >= i)]

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.values, tuple(map(type, self.values)), self.spaces  # the types: 1, 1.0 and True are equal to Python


@dataclass(frozen=True)
class Repeat:
    """A variable number of items: path.count of them, each with the dimensions of `body` under path.0, path.1, ...

    body: one Space for all items, or a tuple that gives item i its own (then as many as count.high), e.g. for skip choices.
    Raises ValueError unless 0 <= count.low, 1 <= count.high <= 10,000 and the tuple's length fits.
    """

    count: Int
    body: Space | tuple[Space, ...]
    bodies: tuple[Space, ...] = field(init=False, repr=False, compare=False)
    size: int | float = field(init=False, repr=False, compare=False)
    width: int = field(init=False, repr=False, compare=False)
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)  # rank of the first config of each count
    _columns: tuple[int, ...] = field(init=False, repr=False, compare=False)  # first column of each item, from the Repeat's own

    def __post_init__(self) -> None:
        if not isinstance(self.count, Int):
            raise ValueError(f"a Repeat's count must be an Int, but got {self.count!r}. A fixed number n is Int(n, n).")
        if self.count.low < 0 or self.count.high < 1:
            raise ValueError(f"a Repeat's count must satisfy 0 <= low and 1 <= high, but got {self.count!r}.")
        if self.count.high > MOST_ITEMS:
            raise ValueError(f"a Repeat has at most {MOST_ITEMS:,} items, but got {self.count!r}.")
        if not isinstance(self.body, Space | Sequence):
            raise ValueError(f"a Repeat's body must be a Space or a tuple of Spaces, but got {self.body!r}.")
        bodies = (self.body,) * self.count.high if isinstance(self.body, Space) else tuple(self.body)
        for body in bodies:
            if not isinstance(body, Space):
                raise ValueError(f"a Repeat's body must be a Space or a tuple of Spaces, but got {body!r}.")
        if len(bodies) != self.count.high:
            raise ValueError(f"a tuple of bodies must have one for each of the {self.count.high} items, but got {len(bodies)}.")
        if not isinstance(self.body, Space):
            _set(self, body=bodies)
        products: list[int | float] = [1]
        for body in bodies:
            products.append(_times(products[-1], body.size))
        by_count = products[self.count.low:]
        starts = tuple(_running(by_count)) if math.inf not in by_count else ()
        columns = tuple(1 + c for c in _running(body.width for body in bodies))
        width = 1 + sum(body.width for body in bodies)
        _set(self, bodies=bodies, size=_sum(by_count), width=width, _starts=starts, _columns=columns)


Leaf: TypeAlias = Float | Int | Choice  # what `active` yields: a decision with one value
Dim: TypeAlias = Float | Int | Choice | Repeat


@dataclass(frozen=True, eq=False)
class Space:
    """Named dimensions, in order. Names consist of letters, digits, '_' and '-'.

    size:  number of configs, an exact int; math.inf with a Float in it.
    width: number of columns of an encoded config (every option's sub-space and every possible item has its own).
    """

    dims: Mapping[str, Dim]
    size: int | float = field(init=False, repr=False)
    width: int = field(init=False, repr=False)
    _rows: tuple[tuple[str, Dim, int], ...] = field(init=False, repr=False)  # name, dimension, column; last first, to be stacked
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.dims, Mapping):
            raise ValueError(f"a Space is a mapping from names to dimensions, but got {self.dims!r}.")
        for name, dim in self.dims.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(
                    f"a dimension's name consists of letters, digits, '_' and '-', but got {name!r}. "
                    "A path's dots come from sub-spaces: Choice({option: Space(...)})."
                )
            if not isinstance(dim, Float | Int | Choice | Repeat):
                raise ValueError(f"dimension '{name}' must be a Float, Int, Choice or Repeat, but got {dim!r}.")
        columns = _running(dim.width for dim in self.dims.values())
        rows = tuple((name, dim, column) for (name, dim), column in zip(self.dims.items(), columns, strict=True))
        size: int | float = 1
        for dim in self.dims.values():
            size = _times(size, dim.size)
        _set(self, dims=MappingProxyType(dict(self.dims)), size=size, width=sum(dim.width for dim in self.dims.values()),
             _rows=rows[::-1], _hash=hash(tuple(self.dims.items())))

    def __eq__(self, other: object) -> bool:
        """Equal dimensions in equal order."""
        if not isinstance(other, Space):
            return NotImplemented
        return self._hash == other._hash and tuple(self.dims.items()) == tuple(other.dims.items())

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Space({dict(self.dims)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (dict(self.dims),)

    # -- walking -------------------------------------------------------------------------------------------------------

    def active(self, config: Mapping[str, Value]) -> Iterator[tuple[str, Leaf]]:
        """The decisions in force, in order.

        A decision's value is read only after it was yielded, so that a config can be made while it is walked:

            config: Config = {}
            for path, dim in space.active(config):
                config[path] = dim.decode(rng.random())
        """
        for path, leaf, _, _ in self._walk(config):
            yield path, leaf

    def _walk(self, config: Mapping[str, Any]) -> Iterator[tuple[str, Leaf, int, Repeat | None]]:
        """(path, decision, column, the Repeat whose count it is). A stack, not a recursion: deep spaces stay linear."""
        stack: list[tuple[str, Dim, int]] = list(self._rows)
        while stack:
            path, dim, column = stack.pop()
            if isinstance(dim, Repeat):
                yield f"{path}.count", dim.count, column, dim
                extra = self._read(config, f"{path}.count", dim.count)
                for i in reversed(range(dim.count.low + extra if extra is not None else 0)):
                    first = column + dim._columns[i]
                    stack.extend((f"{path}.{i}.{name}", below, first + offset) for name, below, offset in dim.bodies[i]._rows)
            else:
                yield path, dim, column, None
                if isinstance(dim, Choice) and dim.spaces:
                    option = self._read(config, path, dim)
                    if option is not None:
                        first, rows = column + dim._columns[option], dim.spaces[option]._rows
                        stack.extend((f"{path}.{name}", below, first + offset) for name, below, offset in rows)

    @staticmethod
    def _read(config: Mapping[str, Any], path: str, dim: Int | Choice) -> int | None:
        """The number of the option that a config holds; None where it is undecided."""
        try:
            value = config[path]
        except KeyError:
            raise ValueError(f"'{path}' is missing from the config. Add it: {_allowed(dim)}.") from None
        if value is _UNDECIDED:
            return None
        try:
            return dim.rank(value) if isinstance(dim, Int) else dim.index(value)
        except ValueError:
            raise ValueError(f"'{path}' {dim.problem(value)}") from None

    def columns(self) -> Iterator[tuple[str, Leaf]]:
        """What each column of an encoded config is: (path, decision). Options that share a sub-name have a column each."""
        stack: list[tuple[str, Dim]] = [(name, dim) for name, dim, _ in self._rows]
        while stack:
            path, dim = stack.pop()
            if isinstance(dim, Repeat):
                yield f"{path}.count", dim.count
                for i in reversed(range(dim.count.high)):
                    stack.extend((f"{path}.{i}.{name}", below) for name, below, _ in dim.bodies[i]._rows)
            else:
                yield path, dim
                if isinstance(dim, Choice):
                    for space in reversed(dim.spaces):
                        stack.extend((f"{path}.{name}", below) for name, below, _ in space._rows)

    # -- drawing and changing --------------------------------------------------------------------------------------------

    @property
    def flat(self) -> bool:
        """Whether no decision opens others and all values are alike, so that a sample is uniform over configs."""
        return all(
            not any(space.dims for space in dim.spaces) if isinstance(dim, Choice) else isinstance(dim, Int) and not dim.log
            for dim in self.dims.values()
        )

    def sample(self, rng: np.random.Generator) -> Config:
        """Draws every decision in force independently, uniformly in encoded space (for a Choice: each option alike)."""
        return self._completed({}, rng)

    def uniform(self, rng: np.random.Generator) -> Config:
        """Draws uniformly over all configs. Raises ValueError for an infinite space."""
        return self.unrank(below(self._finite(), rng))

    def mutate(self, config: Mapping[str, Value], rng: np.random.Generator) -> tuple[Config, dict[str, str]]:
        """A copy in which exactly one active decision, drawn uniformly from those that have an alternative, is another.

        The count of a Repeat changes by one: an item is inserted or removed at any place, and `moved` maps path prefixes of the
        child to those of the parent ({"cell.4": "cell.3"}: the parent's item 3 is the child's item 4; `origin` reads it).
        Below a changed decision, values stay wherever the dimension that is now at their path admits them; others are sampled.
        Without any alternative (a space of one config) the copy is equal.
        """
        decisions = [(path, dim, repeat) for path, dim, _, repeat in self._walk(config) if _alternatives(dim)]
        if not decisions:
            return self.normal(config), {}
        path, dim, repeat = decisions[int(rng.integers(len(decisions)))]
        if repeat is None:
            return self._completed({**config, path: dim.another(config[path], rng)}, rng), {}
        start, moved = _shifted(config, path.removesuffix(".count"), repeat.count, rng)
        return self._completed(start, rng), moved

    def _completed(self, start: Mapping[str, Value], rng: np.random.Generator) -> Config:
        """A config that keeps the values of `start` that are admitted and samples the others."""
        config: Config = {}
        for path, dim, _, _ in self._walk(config):
            if path in start and dim.problem(start[path]) is None:
                config[path] = start[path]
            else:
                config[path] = dim.decode(rng.random())
        return config

    # -- numbers -----------------------------------------------------------------------------------------------------------

    def encode(self, config: Mapping[str, Value]) -> NDArray[np.float64]:
        """[width], each in [0, 1]; columns that are not in force hold 0.5. Raises ValueError for an invalid config."""
        row, count = [0.5] * self.width, 0
        try:
            for path, dim, column, _ in self._walk(config):
                row[column] = dim.encode(config[path])
                count += 1
        except (KeyError, ValueError):
            self.validate(config)
            raise
        if count != len(config):
            self.validate(config)
        return np.array(row, dtype=np.float64)

    def decode(self, u: Sequence[float] | NDArray[np.float64]) -> Config:
        """The config of a point of the unit cube (points outside are clipped); decode(encode(c)) == c, floats up to rounding."""
        row = np.asarray(u, dtype=np.float64)
        if row.shape != (self.width,) or np.isnan(row).any():
            raise ValueError(f"an encoded config is [{self.width}] numbers, but got shape {list(row.shape)}"
                             f"{' with NaN' if np.isnan(row).any() else ''}.")
        values = np.clip(row, 0.0, 1.0).tolist()
        config: Config = {}
        for path, dim, column, _ in self._walk(config):
            config[path] = dim.decode(values[column])
        return config

    def gridded(self, points: int) -> Space:
        """The finite space in which every Float is a Choice of `points` values, evenly spaced in encoded space, ends included."""
        if isinstance(points, bool) or not isinstance(points, int) or points < 1:
            raise ValueError(f"a grid needs at least 1 point a continuous dimension, but got {points!r}.")
        return Space({name: _gridded(dim, points) for name, dim in self.dims.items()})

    def grid(self, points: int) -> Iterator[Config]:
        """All combinations of `points` values of each Float and all values of the others, conditional ones only where in force.

        The order is that of `unrank`; a single point is the middle of the (encoded) range.
        """
        finite = self.gridded(points)
        for i in range(finite._finite()):
            yield finite.unrank(i)

    def unrank(self, i: int) -> Config:
        """Config number i of a finite space, 0 <= i < size; the last decision runs fastest."""
        size = self._finite()
        if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < size:
            raise ValueError(f"a config's number lies in 0..{size - 1}, but got {i!r}.")
        config: Config = {}
        stack: list[tuple[str, Dim, int]] = []
        _push_digits(stack, "", self, int(i))
        while stack:
            path, dim, k = stack.pop()
            if isinstance(dim, Repeat):
                extra = bisect_right(dim._starts, k) - 1
                config[f"{path}.count"] = count = dim.count.low + extra
                k -= dim._starts[extra]
                for j in reversed(range(count)):
                    k, digit = divmod(k, int(dim.bodies[j].size))
                    _push_digits(stack, f"{path}.{j}.", dim.bodies[j], digit)
            elif isinstance(dim, Choice):
                option = bisect_right(dim._starts, k) - 1
                config[path] = dim.values[option]
                if dim.spaces:
                    _push_digits(stack, f"{path}.", dim.spaces[option], k - dim._starts[option])
            elif isinstance(dim, Int):
                config[path] = dim.low + k
        return config

    def rank(self, config: Mapping[str, Value]) -> int:
        """The number of a config: unrank(rank(c)) == c. Raises ValueError for an infinite space or an invalid config."""
        self._finite()
        self.validate(config)
        total = 0  # every decision adds its digit times the product of the sizes of what follows it
        stack: list[tuple[str, Dim, int]] = []
        _push_weights(stack, "", self, 1)
        while stack:
            path, dim, weight = stack.pop()
            if isinstance(dim, Repeat):
                count = int(config[f"{path}.count"])
                total += dim._starts[count - dim.count.low] * weight
                for j in reversed(range(count)):
                    _push_weights(stack, f"{path}.{j}.", dim.bodies[j], weight)
                    weight *= int(dim.bodies[j].size)
            elif isinstance(dim, Choice):
                option = dim.index(config[path])
                total += dim._starts[option] * weight
                if dim.spaces:
                    _push_weights(stack, f"{path}.", dim.spaces[option], weight)
            elif isinstance(dim, Int):
                total += dim.rank(config[path]) * weight
        return total

    def _finite(self) -> int:
        if isinstance(self.size, int):
            return self.size
        floats = [path for path, dim in self.columns() if isinstance(dim, Float)]
        raise ValueError(f"only the configs of a finite space have numbers, but {_listed(floats)} are continuous. "
                         "Use sample, or make it finite with gridded(points).")

    # -- judging -----------------------------------------------------------------------------------------------------------

    def validate(self, config: Mapping[str, Value]) -> None:
        """Raises ValueError that names everything wrong with a config: missing, unknown, out of range, of another type."""
        if found := self.problems(config):
            raise ValueError("; ".join(found))

    def problems(self, config: Mapping[str, Value]) -> list[str]:
        """Everything wrong with a config, in words. What lies below a decision that cannot be read is not judged."""
        return self._judged(config)[1]

    def normal(self, config: Mapping[str, Any]) -> Config:
        """The valid config that is meant: in canonical order, numpy scalars made plain, 1 made 1.0 for a Float, 3.0 made 3 for
        an Int. True is never taken for 1, nor "1" for 1. Raises ValueError as `validate` does.
        """
        plain = {path: value.item() if isinstance(value, np.generic) else value for path, value in config.items()}
        values, found = self._judged(plain, bring=True)
        if found:
            raise ValueError("; ".join(found))
        return values

    def _judged(self, config: Mapping[str, Any], *, bring: bool = False) -> tuple[Config, list[str]]:
        """The values of the decisions in force, and what is wrong."""
        values: dict[str, Any] = {}
        found, closed = [], []
        for path, dim, _, repeat in self._walk(values):
            value = _brought(dim, config[path]) if bring and path in config else config.get(path)
            said = dim.problem(value) if path in config else f"is missing. Add it: {_allowed(dim)}."
            values[path] = value if said is None else _UNDECIDED
            if said is not None:
                found.append(f"'{path}' {said}")
                if repeat is not None or (isinstance(dim, Choice) and dim.spaces):
                    closed.append(path.removesuffix("count") if repeat is not None else f"{path}.")
        for path in config:
            if path not in values and not (isinstance(path, str) and path.startswith(tuple(closed))):
                found.append(f"'{path}' is {self._why_not(str(path), config) or 'unknown.' + _near(str(path), list(values))}")
        return values, found

    def _why_not(self, path: str, config: Mapping[str, Any]) -> str | None:
        """Which decisions would bring a path into force, in words; None if none can."""

        def search(space: Space, parts: list[str], prefix: str) -> list[tuple[str, object]] | None:
            dim, here, rest = space.dims.get(parts[0]), prefix + parts[0], parts[1:]
            if isinstance(dim, Repeat) and rest:
                if rest == ["count"]:
                    return []
                if len(rest) > 1 and rest[0].isdecimal() and rest[0] == str(int(rest[0])) and int(rest[0]) < dim.count.high:
                    below = search(dim.bodies[int(rest[0])], rest[1:], f"{here}.{rest[0]}.")
                    return None if below is None else [(f"{here}.count", int(rest[0]) + 1), *below]
            elif isinstance(dim, Choice) and rest:
                for option, opened in zip(dim.values, dim.spaces, strict=False):
                    below = search(opened, rest, f"{here}.")
                    if below is not None:
                        return [(here, option), *below]
            elif dim is not None and not isinstance(dim, Repeat) and not rest:
                return []
            return None

        needed = search(self, path.split("."), "")
        if not needed:
            return None
        unmet = [(key, value) for key, value in needed if key.endswith(".count") or config.get(key) != value]
        said = " and ".join(f"{key} >= {value}" if key.endswith(".count") else f"{key} = {value!r}" for key, value in unmet)
        return f"not in force: it needs {said}. Remove it."

    # -- JSON --------------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain JSON from which `from_json` makes an equal space; dimensions are a list, for their order counts."""
        return {"dims": [[name, _dim_to_json(dim)] for name, dim in self.dims.items()]}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Space:
        """Raises ValueError for what `to_json` cannot have written."""
        try:
            return cls(_unique((name, _dim_from_json(dim)) for name, dim in body["dims"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no space's JSON ({type(error).__name__}: {error}): {str(body)[:200]}") from error

    @cached_property
    def always(self) -> frozenset[str]:
        """The paths of the decisions that every config makes: not those that an option opens beside others, nor those of an item
        that not every config has."""
        return frozenset(_always(self, ""))

    @cached_property
    def digest(self) -> str:
        """Hash of the space, the same in every process: 16 hex digits."""
        return _sha(json.dumps(self.to_json(), separators=(",", ":")))


def canonical(config: Mapping[str, Value]) -> str:
    """A config's canonical JSON: sorted keys, no spaces; 1, 1.0 and true stay different, -0.0 becomes 0.0.

    A valid config has 1.0, never 1, for a Float, so one meaning has one text; `Space.normal` repairs what was read elsewhere.
    Raises ValueError for values that are not plain finite scalars.
    """
    return json.dumps({path: _scalar(value) for path, value in sorted(config.items())}, separators=(",", ":"))


def digest(config: Mapping[str, Value]) -> str:
    """Hash of a config's canonical JSON: 16 hex digits."""
    return _sha(canonical(config))


def sub(config: Mapping[str, Value], prefix: str) -> Config:
    """What lies below a path, with the path taken off: sub(config, "learner") -> {"inner_lr": 0.01}."""
    start = prefix + "."
    return {path[len(start):]: value for path, value in config.items() if path.startswith(start)}


def items(config: Mapping[str, Value], path: str) -> list[Config]:
    """The items of a Repeat, in order: items(config, "cell") -> [{"op": "conv3"}, {"op": "skip"}]."""
    found: list[Config] = [{} for _ in range(int(config[f"{path}.count"]))]
    for key, value in sub(config, path).items():
        number, _, name = key.partition(".")
        if name:
            found[int(number)][name] = value
    return found


def origin(path: str, moved: Mapping[str, str]) -> str | None:
    """The parent's path whose weights a child's path inherits, given the `moved` of a mutation; None for what is new.

    The longest moved prefix counts; a path whose place in the parent moved elsewhere, and is not mapped itself, is new.
    """
    parts = path.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    for prefix in prefixes:
        if prefix in moved:
            return moved[prefix] + path[len(prefix):]
    left = set(moved.values())
    return None if any(prefix in left for prefix in prefixes) else path


def below(n: int, rng: np.random.Generator) -> int:
    """A uniform int from 0..n-1 for any n >= 1, beyond 64 bits too."""
    bits = (n - 1).bit_length()
    while True:
        k = int.from_bytes(rng.bytes((bits + 7) // 8), "little") & ((1 << bits) - 1)
        if k < n:
            return k


# -- inside ------------------------------------------------------------------------------------------------------------------


def _always(space: Space, prefix: str) -> Iterator[str]:
    for name, dim in space.dims.items():
        path = prefix + name
        if isinstance(dim, Repeat):
            for i in range(dim.count.low):
                yield from _always(dim.bodies[i], f"{path}.{i}.")
        else:
            yield path
            if isinstance(dim, Choice) and len(dim.spaces) == 1:
                yield from _always(dim.spaces[0], f"{path}.")


def _set(frozen: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _scalar(value: object) -> Value:
    """A plain finite scalar; numpy's and members of enums are made plain, as JSON gives them back; -0.0 becomes 0.0."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a value must be finite, but got {value!r}.")
        return float(value) + 0.0
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if type(value) is int else int.__int__(value)
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    raise ValueError(f"a value must be a bool, int, float or str, but got {value!r} ({type(value).__name__}).")


def _real(kind: str, bound: str, value: object) -> float:
    value = value.item() if isinstance(value, np.generic) else value
    value = float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023 else value
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"`{bound}` of a {kind} must be a finite number, but got {value!r}.")
    return float(value) + 0.0


def _whole(kind: str, bound: str, value: object) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(f"`{bound}` of an {kind} must be an int, but got {value!r}. For real numbers use Float.")
    return operator.index(value)


def _is_bool(kind: str, log: object) -> None:
    if not isinstance(log, bool):
        raise ValueError(f"`log` of a {kind} must be True or False, but got {log!r}.")


def _times(a: int | float, b: int | float) -> int | float:
    return math.inf if math.inf in (a, b) else a * b  # an int beyond 1e308 times inf would raise


def _sum(sizes: Sequence[int | float]) -> int | float:
    return math.inf if math.inf in sizes else sum(sizes)


def _running(sizes: Iterable[int | float]) -> list[int]:
    """The sum of all sizes before each."""
    total, found = 0, []
    for size in sizes:
        found.append(total)
        total += int(size)
    return found


def _stepped(dim: Float | Int, value: Value, rng: np.random.Generator) -> Any:
    """Another value, by a step or a draw in encoded space; None if 20 tries all gave the same."""
    u = dim.encode(value)
    for _ in range(20):
        new = dim.decode(_reflected(u + STEP * rng.standard_normal()) if rng.random() < 0.5 else rng.random())
        if new != value:
            return new
    return None


def _reflected(u: float) -> float:
    """Back into [0, 1] at its ends, as a step that bounced."""
    u = abs(u) % 2.0
    return 2.0 - u if u > 1.0 else u


def _alternatives(dim: Leaf) -> bool:
    if isinstance(dim, Choice):
        return len(dim.values) > 1
    return dim.size > 1


def _listed(values: Sequence[object], most: int = 8) -> str:
    said = ", ".join(repr(value) for value in values[:most])
    return f"{said}, ... ({len(values)} in all)" if len(values) > most else said


def _near(word: object, known: Sequence[object]) -> str:
    """The nearest known word as a question, or the first of what is known."""
    said = did_you_mean(str(word), [value for value in known if isinstance(value, str)])
    return said if isinstance(word, str) and said.startswith(" Did") else f" Known: {_listed(known)}." if known else ""


def _allowed(dim: Leaf) -> str:
    """What a decision may hold, in words."""
    if isinstance(dim, Choice):
        return f"one of {_listed(dim.values)}"
    if isinstance(dim, Int):
        return f"an int in {dim.low}..{dim.high}"
    return f"a float in [{dim.low!r}, {dim.high!r}]"


def _brought(dim: Leaf, value: Any) -> Any:
    """The value as the dimension's type where nothing is lost; otherwise the value itself."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(dim, Choice):
        same = [option for option in dim.values if not isinstance(option, bool) and option == value]
        return same[0] if same else value
    if isinstance(dim, Float):
        return float(value) if abs(value) <= 2**53 else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shifted(
    config: Mapping[str, Value], path: str, count: Int, rng: np.random.Generator
) -> tuple[Config, dict[str, str]]:
    """A config in which one item of the Repeat at `path` was removed, or the others made room for a new one; and `moved`."""
    n = int(config[f"{path}.count"])
    insert = n == count.low or (n < count.high and rng.random() < 0.5)
    place = int(rng.integers(n + 1 if insert else n))
    if insert:
        number = {i: i if i < place else i + 1 for i in range(n)}
    else:
        number = {i: i if i < place else i - 1 for i in range(n) if i != place}
    changed: Config = {}
    for key, value in config.items():
        if not key.startswith(f"{path}."):
            changed[key] = value
            continue
        item, _, name = key[len(path) + 1:].partition(".")
        if name and int(item) in number:
            changed[f"{path}.{number[int(item)]}.{name}"] = value
    changed[f"{path}.count"] = n + 1 if insert else n - 1
    return changed, {f"{path}.{new}": f"{path}.{old}" for old, new in number.items() if old != new}


def _push_digits(stack: list[tuple[str, Dim, int]], prefix: str, space: Space, k: int) -> None:
    """Splits a number into one for each dimension; the last runs fastest."""
    for name, dim, _ in space._rows:
        k, digit = divmod(k, int(dim.size))
        stack.append((prefix + name, dim, digit))


def _push_weights(stack: list[tuple[str, Dim, int]], prefix: str, space: Space, weight: int) -> None:
    for name, dim, _ in space._rows:
        stack.append((prefix + name, dim, weight))
        weight *= int(dim.size)


def _gridded(dim: Dim, points: int) -> Dim:
    if isinstance(dim, Float):
        places = [i / (points - 1) for i in range(points)] if points > 1 else [0.5]
        return Choice(tuple(dict.fromkeys(dim.decode(u) for u in places)))
    if isinstance(dim, Choice) and isinstance(dim.options, Mapping):
        return Choice({name: space.gridded(points) for name, space in dim.options.items()})
    if isinstance(dim, Repeat):
        body = dim.body
        return Repeat(dim.count, body.gridded(points) if isinstance(body, Space) else tuple(b.gridded(points) for b in body))
    return dim


def _dim_to_json(dim: Dim) -> dict[str, Any]:
    if isinstance(dim, Float):
        return {"kind": "float", "low": dim.low, "high": dim.high, "log": dim.log}
    if isinstance(dim, Int):
        return {"kind": "int", "low": dim.low, "high": dim.high, "log": dim.log}
    if isinstance(dim, Choice):
        if isinstance(dim.options, Mapping):
            return {"kind": "choice", "spaces": [[name, space.to_json()] for name, space in dim.options.items()]}
        return {"kind": "choice", "options": list(dim.options)}
    body = dim.body.to_json() if isinstance(dim.body, Space) else [body.to_json() for body in dim.body]
    return {"kind": "repeat", "count": _dim_to_json(dim.count), "body": body}


def _dim_from_json(body: Mapping[str, Any]) -> Dim:
    kind, rest = body["kind"], {key: value for key, value in body.items() if key != "kind"}
    if kind == "float":
        return Float(**rest)
    if kind == "int":
        return Int(**rest)
    if kind == "choice" and set(rest) == {"options"}:
        return Choice(tuple(rest["options"]))
    if kind == "choice" and set(rest) == {"spaces"}:
        return Choice(_unique((name, Space.from_json(space)) for name, space in rest["spaces"]))
    if kind == "repeat" and set(rest) == {"count", "body"}:
        count, inner = _dim_from_json(rest["count"]), rest["body"]
        if not isinstance(count, Int):
            raise ValueError(f"a Repeat's count must be an Int, but got {rest['count']!r}.")
        if isinstance(inner, list):
            return Repeat(count, tuple(Space.from_json(item) for item in inner))
        return Repeat(count, Space.from_json(inner))
    raise ValueError(f"this is no dimension's JSON: {str(dict(body))[:200]}")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"names must differ, but got {name!r} twice. Rename one.")
        found[name] = value
    return found


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
