"""WHAT ONE PROBLEM IS: a distribution over few-shot tasks draws episodes and says what is right.

The sealed meta-test is opened here and only here: `open_test(tasks, record)`.
"""
from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Generator, Tensor

__all__ = ["Bank", "Episode", "Split", "TaskDistribution", "TaskShape", "TestSplit", "concatenate", "open_test"]

Split = Literal["train", "val", "test"]


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

    def to(self, device: torch.device | str) -> Episode:
        def move(t: Tensor) -> Tensor:
            return t.to(device)

        return Episode(*(move(t) for t in self[:4]), {k: move(v) for k, v in self.noise.items()})

    def select(self, index: int | slice | Tensor) -> Episode:
        """Episode(s) number `index` of a batch."""
        fields = (t[index] for t in self[:4])
        return Episode(*fields, {k: v[index] for k, v in self.noise.items()})

    @property
    def count(self) -> int:
        return int(self.support_x.shape[0])


def concatenate(parts: list[Episode]) -> Episode:
    """Several batches of episodes as one."""
    fields = [torch.cat([p[i] for p in parts]) for i in range(4)]
    return Episode(*fields, {k: torch.cat([p.noise[k] for p in parts]) for k in parts[0].noise})


class Bank(NamedTuple):
    """A fixed set of episodes on which all trials of a study are scored, so that scores are paired."""

    episodes: Episode
    digest: str  # sha256 of everything in it, first 16 hex digits


class TaskDistribution(ABC):
    """Draws episodes of any TaskShape from the splits "train" and "val" (and "test", but only through `open_test`).

    Subclasses implement `_draw`, `loss`, `score`, `digest`, `input_shape`. Tensors live on `device` (`to`); generators are CPU
    generators, so that the same seed draws the same episodes on every device.
    """

    kind: ClassVar[Literal["classes", "regression"]] = "classes"
    chance: ClassVar[Literal["1/ways"] | None] = "1/ways"
    unit: ClassVar[str] = "accuracy"  # what tables call a score; "mse" tables show minus the score
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

    def sample_episodes(self, n: int, *, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        """n episodes, every field with a leading dimension n. The split "test" is sealed: see `open_test`."""
        if split == "test":
            raise PermissionError(
                "the test split is sealed: it opens only through open_test(tasks, record), which records each opening. "
                "Use split='val' to choose between configurations."
            )
        return self._draw(n, split, shape, generator)

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
        return self._tasks._draw(n, "test", shape, generator)

    def bank(self, n: int, *, seed: int, shape: TaskShape) -> Bank:
        episodes = self.sample_episodes(n, shape=shape, generator=_bank_generator("test", seed))
        return Bank(episodes, _hash_episodes(episodes))


def open_test(tasks: TaskDistribution, record: Callable[[dict[str, str]], object]) -> TestSplit:
    """Opens the sealed meta-test. `record` is called first, with what is opened; the driver's writes a ledger row."""
    record({"tasks": type(tasks).__name__, "digest": tasks.digest, "split": "test"})
    return TestSplit(tasks)


def _bank_generator(split: str, seed: int) -> Generator:
    number = int.from_bytes(hashlib.sha256(f"bank {split} {seed}".encode()).digest()[:8], "big") >> 1
    return Generator().manual_seed(number)


def _hash_episodes(episodes: Episode) -> str:
    digest = hashlib.sha256()
    for tensor in (episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y):
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
