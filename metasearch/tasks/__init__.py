"""WHAT ONE PROBLEM IS: a distribution over few-shot tasks draws episodes and says what is right.

The sealed meta-test is opened here and only here: `open_test(tasks, record)`.
"""
from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, ClassVar, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

import torch
from torch import Generator, Tensor

from metasearch import plugins

__all__ = [
    "SPLITS", "Bank", "Episode", "Kind", "Split", "TaskDistribution", "TaskShape", "TestSplit", "build", "concatenate",
    "open_test", "problems",
]

Split = Literal["train", "val", "test"]
Kind = Literal["classes", "regression", "control"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class TaskShape(NamedTuple):
    """Of one episode: x is the shape of one input; a class task has `ways` classes with `shots` supports and `queries`
    queries each; a regression task has `ways` outputs (dimensions of y), `shots` supports and `queries` queries."""

    x: tuple[int, ...]
    ways: int
    shots: int
    queries: int


class Episode(NamedTuple):
    """One episode, or n of them with a leading dimension n in every field (a pytree, so that vmap maps over it).

    support_x: [M, *x]; support_y: [M, N] one-hot or soft labels, or [M, N] values for regression;
    query_x: [Q, *x];  query_y: [Q, N];  noise: what the learner draws for an episode, by name (usually empty).
    Class episodes hold N*K supports and N*Q queries; labels are drawn afresh in every episode.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    noise: Mapping[str, Tensor] = {}

    def map(self, f: Callable[[Tensor], Tensor]) -> Episode:
        """f of every tensor in it."""
        return Episode(
            f(self.support_x), f(self.support_y), f(self.query_x), f(self.query_y), {k: f(v) for k, v in self.noise.items()}
        )

    def to(self, device: torch.device | str) -> Episode:
        return self.map(lambda t: t.to(device))

    def select(self, index: int | slice | Tensor) -> Episode:
        """Episode(s) number `index` of a batch."""
        return self.map(lambda t: t[index])

    @property
    def count(self) -> int:  # type: ignore[override]  # a tuple's own `count` is of no use here
        """The number of episodes in a batch."""
        return int(self.support_x.shape[0])


def concatenate(parts: list[Episode]) -> Episode:
    """Several batches of episodes as one."""
    return Episode(
        torch.cat([p.support_x for p in parts]), torch.cat([p.support_y for p in parts]),
        torch.cat([p.query_x for p in parts]), torch.cat([p.query_y for p in parts]),
        {k: torch.cat([p.noise[k] for p in parts]) for k in parts[0].noise},
    )


class Bank(NamedTuple):
    """A fixed set of episodes on which all trials of a study are scored, so that scores are paired."""

    episodes: Episode
    digest: str  # sha256 of everything in it, first 16 hex digits


class TaskDistribution(ABC):
    """Draws episodes of any TaskShape from the splits "train" and "val" (and "test", but only through `open_test`).

    Subclasses implement `_draw`, `loss`, `score`, `digest`, `check`, `input_shape`; their constructors take plain JSON values, so
    that a study's [tasks] table can name them. Tensors live on `device` (`to`); generators are CPU generators, so that the same
    seed draws the same episodes on every device.
    """

    kind: ClassVar[Kind] = "classes"
    chance: ClassVar[Literal["1/ways"] | None] = "1/ways"
    unit: ClassVar[str] = "accuracy"  # what tables call a score; "mse" tables show minus the score
    standardised: ClassVar[bool] = False  # are targets told as deviations from the supports' mean, over their spread?
    mislabelled: bool = False  # may supports have wrong labels? (queries never)
    test_episodes: int | None = None  # so many different ones has the test split; None: there is no end of them
    pictures: bool = False  # is x a picture, made of bytes? (less `moments`: mean and standard deviation of each channel)
    device: torch.device = torch.device("cpu")

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hash of the data and of everything that shapes an episode: two equal digests draw equal episodes."""

    @abstractmethod
    def check(self, shape: TaskShape, split: Split) -> None:
        """Raises ValueError (law, value, way out) if the split cannot give such episodes."""

    @abstractmethod
    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode: ...

    @property
    def usual_ways(self) -> int:
        """What a study that does not say `ways` gets: 5 classes, or the number of values of a target."""
        return 5 if self.kind == "classes" else 1

    @abstractmethod
    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean over the rows of one episode; output [M, N], y [M, N] -> []."""

    @abstractmethod
    def score(self, output: Tensor, y: Tensor) -> Tensor:
        """One number an episode, larger is better: output [Q, N], y [Q, N] -> []."""

    def to(self, device: torch.device | str) -> Self:
        """Moves its data to a device (in place) and returns itself."""
        self.device = torch.device(device)
        return self

    def shape(self, *, ways: int, shots: int, queries: int) -> TaskShape:
        return TaskShape(self.input_shape, ways, shots, queries)

    def shifted(self, strength: float = 1.0) -> TaskDistribution:
        """Tasks away from these, to see what a learner does outside of what it was trained on. strength 0 moves nothing,
        1 is the usual amount. Raises ValueError where there are none."""
        raise ValueError(
            f"{type(self).__name__} has no shifted tasks. Evaluate without a shift, or on sinusoid, glyphs or omniglot."
        )

    def part(self, share: float, which: Literal[0, 1]) -> TaskDistribution:
        """These tasks with a part of their training classes, for what must be learnt on different ones: 0 has `share` of them, 1
        the others, the same ones in every process; val and test stay as they are. Where no two tasks have a class in common
        (regression, control), there is nothing to divide: the part is the whole. Raises ValueError where it cannot be done."""
        if not 0 < share < 1 or which not in (0, 1):
            raise ValueError(f"`0 < share < 1` and `which` 0 or 1 must hold, but got share={share}, which={which}")
        return self._part(share, which) if self.kind == "classes" else self

    def _part(self, share: float, which: Literal[0, 1]) -> TaskDistribution:
        raise ValueError(f"{type(self).__name__} does not say how its training classes are divided: it must implement _part.")

    def sample_episodes(self, n: int, *, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        """n episodes, every field with a leading dimension n. The split "test" is sealed: see `open_test`."""
        _unsealed(split)
        return _drawn(self, n, split, shape, generator)

    def class_count(self, split: Split) -> int:
        """How many classes a split has that are the same in all its episodes. Raises ValueError where there are none."""
        raise ValueError(
            f"{type(self).__name__} has no classes that last from episode to episode, so nothing can be trained to tell them "
            "apart. Train on its episodes, or choose tasks over a fixed set of classes, such as glyphs, omniglot or blobs."
        )

    def labelled(self, n: int, split: Split, generator: Generator) -> tuple[Tensor, Tensor]:
        """n inputs [n, *x] of a split, drawn with replacement, each with the number of its class, int64 [n] below
        `class_count`: what ordinary supervised training reads. The split "test" is sealed, as for episodes."""
        _unsealed(split)
        if n < 0:
            raise ValueError(f"the number of inputs must be 0 or more, but got {n}")
        if self.class_count(split) == 0:
            raise ValueError(f"{split} has 0 classes, so there is no input to draw. Choose another split.")
        return self._labelled(n, split, generator)

    def _labelled(self, n: int, split: Split, generator: Generator) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} counts classes, so it must implement _labelled")

    def bank(self, split: Split, n: int, *, seed: int, shape: TaskShape) -> Bank:
        """n fixed episodes; equal arguments and data give equal banks on every machine."""
        episodes = self.sample_episodes(n, split=split, shape=shape, generator=_bank_generator(split, seed))
        return Bank(episodes, _hash_episodes(episodes))


class TestSplit:
    """An opened test split; made by `open_test` alone."""

    __test__ = False  # no pytest class

    def __init__(self, tasks: TaskDistribution) -> None:
        self._tasks = tasks

    def sample_episodes(self, n: int, *, shape: TaskShape, generator: Generator) -> Episode:
        return _drawn(self._tasks, n, "test", shape, generator)

    def bank(self, n: int, *, seed: int, shape: TaskShape) -> Bank:
        episodes = self.sample_episodes(n, shape=shape, generator=_bank_generator("test", seed))
        return Bank(episodes, _hash_episodes(episodes))


def open_test(tasks: TaskDistribution, record: Callable[[dict[str, str]], object]) -> TestSplit:
    """Opens the sealed meta-test. `record` is called first, with what is opened; the driver's writes a ledger row."""
    record({"tasks": type(tasks).__name__, "digest": tasks.digest, "split": "test"})
    return TestSplit(tasks)


def problems(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong, in words, with a [tasks] table's arguments; empty if nothing. Builds nothing and reads no data.

    Raises UnknownName for a name that no task distribution has.
    """
    kind = plugins.find("tasks", name, TaskDistribution)
    known = inspect.signature(kind).parameters
    types = get_type_hints(kind.__init__)
    said = []
    for key, value in arguments.items():
        if key not in known:
            said.append(f"'{key}' is no argument of {name}.{plugins.did_you_mean(key, known)}")
        elif not _fits(value, hint := types.get(key, Any)):
            said.append(f"{key} of {name} must be {_words(hint)}, but got {value!r}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in arguments]
    said.extend(f"{name} needs the argument '{key}' ({_words(types.get(key, Any))})" for key in missing)
    return said


def build(name: str, arguments: Mapping[str, Any]) -> TaskDistribution:
    """The task distribution of a name. Raises ValueError with everything that is wrong with its arguments."""
    said = problems(name, arguments)
    if said:
        raise ValueError("; ".join(said))
    built: TaskDistribution = plugins.find("tasks", name, TaskDistribution)(**arguments)
    return built


def _fits(value: object, hint: Any) -> bool:
    """Is a plain value of an annotated type? An int is a float, a bool is no number; what else is annotated, the constructor
    checks."""
    kind, options = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in options and isinstance(value, str)
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, dict) and all(_fits(each, hint) for each in value.values() for hint in options[1:])
    if kind in (list, tuple, set, frozenset, Sequence, Collection, Iterable):
        if not isinstance(value, list | tuple):
            return False
        if kind is tuple and options and options[-1] is not ...:
            return len(value) == len(options) and all(map(_fits, value, options))
        return all(_fits(each, hint) for each in value for hint in options[:1])
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint not in (str, bool, list, dict, type(None)) or isinstance(value, hint)


def _words(hint: Any) -> str:
    options = get_args(hint)
    if options and get_origin(hint) in (Literal, Union, UnionType):
        return " or ".join(_words(o) for o in options if o is not type(None))
    if isinstance(hint, str):
        return repr(hint)  # an option of a Literal
    named = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}
    return named.get(hint, str(hint))


def _unsealed(split: Split) -> None:
    if split == "test":
        raise PermissionError(
            "the test split is sealed: it opens only through open_test(tasks, record), which records each opening. "
            "Use split='val' to choose between configurations."
        )


def _drawn(tasks: TaskDistribution, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
    if n < 0:
        raise ValueError(f"the number of episodes must be 0 or more, but got {n}")
    tasks.check(shape, split)
    return tasks._draw(n, split, shape, generator)


def _bank_generator(split: str, seed: int) -> Generator:
    number = int.from_bytes(hashlib.sha256(f"bank {split} {seed}".encode()).digest()[:8], "big") >> 1
    return Generator().manual_seed(number)


def _hash_episodes(episodes: Episode) -> str:
    digest = hashlib.sha256()
    for tensor in (episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y):
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
