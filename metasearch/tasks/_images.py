"""What all picture tasks share: one uint8 tensor of all drawings on the trial's device; an episode is an index into it."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.tasks import SPLITS, Episode, Split, TaskDistribution, TaskShape, _classes

Rotations = Literal["none", "new-classes", "per-class", "per-episode"]
ROTATIONS: tuple[Rotations, ...] = ("none", "new-classes", "per-class", "per-episode")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Pictures:
    """images: uint8 [P, C, H, W], class by class; offsets: int64 [classes + 1]: class c has drawings offsets[c] to
    offsets[c + 1]; names: one a class; splits: the classes of each split, disjoint; digest: sha256 of images and offsets;
    turned: `images` is [4 P, C, H, W], all drawings four times, turned by 0, 90, 180 and 270 degrees."""

    images: Array
    offsets: Array
    names: Sequence[str]
    splits: Mapping[Split, Sequence[int]]
    digest: str
    turned: bool = False

    def __post_init__(self) -> None:
        taken = [c for split in SPLITS for c in self.splits.get(split, ())]
        if len(taken) != len(set(taken)):
            twice = next(c for c in taken if taken.count(c) > 1)
            raise ValueError(f"the splits' classes must be disjoint, but '{self.names[twice]}' is in two of them")
        if len(self.names) != len(self.offsets) - 1 or self.offsets[-1] * (4 if self.turned else 1) != len(self.images):
            counts = f"{len(self.names)} names, {len(self.offsets) - 1} classes, {len(self.images)} images"
            raise ValueError(f"names, offsets and images must agree, but got {counts}")


class ImageTasks(TaskDistribution):
    """Few-shot classification of the given pictures; x is float32 [C, H, W] in 0..1, normalised if mean and std are given.

    rotations: by multiples of 90 degrees. "new-classes": a class turned is another class, and all four may meet in an episode
               (Prototypical Networks, Reptile); "per-class": every class of an episode is turned by an angle of its own, so its
               four forms never meet (MAML, MAML++); "per-episode": one angle for the whole episode (Relation Networks).
    rotated:   the splits that are rotated.
    """

    pictures = True

    def __init__(
        self, pictures: Pictures, *, told: Mapping[str, object], rotations: Rotations = "none", rotated: Sequence[Split] = SPLITS,
        mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    ) -> None:
        if rotations not in ROTATIONS:
            raise ValueError(f"rotations must be one of {', '.join(ROTATIONS)}, but got {rotations!r}")
        if rotations != "none" and not pictures.turned:
            raise ValueError(f"rotations {rotations!r} need turned pictures")
        self.names = tuple(pictures.names)
        self._x = tuple(int(s) for s in pictures.images.shape[1:])
        self._rotations: dict[Split, Rotations] = {s: rotations if s in rotated else "none" for s in SPLITS}
        self._images = torch.from_numpy(pictures.images)
        self._mean = None if mean is None else torch.tensor(list(mean)).view(-1, 1, 1)
        self._std = None if std is None else torch.tensor(list(std)).view(-1, 1, 1)
        offsets = np.array(pictures.offsets, dtype=np.int64)
        self._drawings = int(offsets[-1])
        self._classes = {s: np.array(list(pictures.splits.get(s, ())), dtype=np.int64) for s in SPLITS}
        self._starts = {s: offsets[self._classes[s]] for s in SPLITS}
        self._counts = {s: offsets[self._classes[s] + 1] - self._starts[s] for s in SPLITS}
        self._fewest = {s: int(self._counts[s].min(initial=2**62)) for s in SPLITS}
        own = {"pictures": pictures.digest, "classes": {s: c.tolist() for s, c in self._classes.items()},
               "rotations": self._rotations, "mean": list(mean or ()), "std": list(std or ()), **told}
        self._digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._x

    @property
    def digest(self) -> str:
        return self._digest

    @property
    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel that are taken off a picture in 0..1; empty lists where nothing is."""
        return tuple([] if m is None else m.flatten().tolist() for m in (self._mean, self._std))  # type: ignore[return-value]

    def classes(self, split: Split) -> int:
        """The number of classes that episodes of a split choose from; rotated ones count where they are classes."""
        return len(self._classes[split]) * (4 if self._rotations[split] == "new-classes" else 1)

    def class_count(self, split: Split) -> int:
        return self.classes(split)

    def check(self, shape: TaskShape, split: Split) -> None:
        _classes.check_shape(shape, self._x, split, self.classes(split))
        need = shape.shots + shape.queries
        if self._fewest[split] < need:
            least = int(self._counts[split].argmin())
            name = self.names[int(self._classes[split][least])]
            raise ValueError(
                f"{split} has {self._fewest[split]} images in class '{name}', but {shape.shots} shots + {shape.queries} queries "
                f"need {need}. Lower shots or queries."
            )

    def _part(self, share: float, which: Literal[0, 1]) -> Self:
        """All turned forms of a class are in one part."""
        mine = copy(self)
        chosen = _classes.part(len(self._classes["train"]), share, which)
        mine._classes, mine._starts, mine._counts = (
            {**of, "train": of["train"][chosen]} for of in (self._classes, self._starts, self._counts)
        )
        mine._fewest = {**self._fewest, "train": int(mine._counts["train"].min(initial=2**62))}
        mine._digest = hashlib.sha256(json.dumps([self._digest, chosen.tolist()]).encode()).hexdigest()[:16]
        return mine

    def to(self, device: torch.device | str) -> Self:
        self._images = self._images.to(device)
        self._mean = None if self._mean is None else self._mean.to(device)
        self._std = None if self._std is None else self._std.to(device)
        return super().to(device)

    def indices(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> tuple[Array, Array, _classes.Seats]:
        """Drawings and quarter turns of n episodes, and who sits where: [n, N, K+Q] int64, [n, N] int64, seats."""
        ways, base = shape.ways, len(self._classes[split])
        style = self._rotations[split]
        chosen = self._chosen(n, split, ways, generator)
        if style == "new-classes":
            turns, chosen = chosen // base, chosen % base
        elif style == "per-class":
            turns = (4 * _classes.uniform(generator, n, ways)).astype(np.int64)
        elif style == "per-episode":
            turns = (4 * _classes.uniform(generator, n, 1)).astype(np.int64).repeat(ways, axis=1)
        else:
            turns = np.zeros((n, ways), dtype=np.int64)
        each = shape.shots + shape.queries
        places = _classes.distinct(self._counts[split][chosen].reshape(-1), each, generator)
        drawings = self._starts[split][chosen][..., None] + places.reshape(n, ways, each)
        return drawings, turns, _classes.seats(n, shape, generator)

    def _chosen(self, n: int, split: Split, ways: int, generator: Generator) -> Array:
        """The classes of n episodes, [n, N] different ones of `classes(split)`; a class turned once counts from there on."""
        return _classes.distinct(np.full(n, self.classes(split)), ways, generator)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        drawings, turns, seats = self.indices(n, split, shape, generator)
        index = turns[..., None] * self._drawings + drawings
        row = np.arange(n)[:, None]

        def inputs(labels: Array, places: Array) -> Tensor:
            return self._gathered(index[row, labels, places])

        def one_hot(labels: Array) -> Tensor:
            return _classes.one_hot(labels, shape.ways).to(self.device)

        return Episode(
            inputs(seats.support, seats.support_place), one_hot(seats.support),
            inputs(seats.query, seats.query_place), one_hot(seats.query),
        )

    def _labelled(self, n: int, split: Split, generator: Generator) -> tuple[Tensor, Tensor]:
        """Every picture of the split is equally likely, and so is every angle at which it may be turned."""
        u = _classes.uniform(generator, n, 2)
        ends = self._counts[split].cumsum()
        place = (u[:, 0] * ends[-1]).astype(np.int64)  # among all pictures of the split
        chosen = np.searchsorted(ends, place, side="right")
        drawings = self._starts[split][chosen] + place - (ends - self._counts[split])[chosen]
        style = self._rotations[split]
        turns = np.zeros(n, dtype=np.int64) if style == "none" else (4 * u[:, 1]).astype(np.int64)
        numbers = chosen + turns * len(self._classes[split]) if style == "new-classes" else chosen
        return self._gathered(turns * self._drawings + drawings), torch.from_numpy(numbers).to(self.device)

    def _gathered(self, index: Array) -> Tensor:
        """Pictures [..., C, H, W] of an index [...], float32."""
        raw = self._images.index_select(0, torch.from_numpy(index.reshape(-1)).to(self.device))  # [M, C, H, W] uint8
        x = raw.to(torch.float32).mul_(1 / 255)
        if self._mean is not None:
            x.sub_(self._mean)
        if self._std is not None:
            x.div_(self._std)
        return x.view(*index.shape, *self._x)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return _classes.cross_entropy(output, y)

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        return _classes.accuracy(output, y)


def turned(images: Array) -> Array:
    """[P, C, S, S] -> [4 P, C, S, S], turned by 0, 90, 180 and 270 degrees."""
    return np.concatenate([np.rot90(images, quarter, (-2, -1)) for quarter in range(4)])


def moments(images: Array, offsets: Array) -> dict[str, Array]:
    """Sums and sums of squares of every class's channels, int64 [classes, C]: exact, kept beside the pictures."""
    values = np.arange(256, dtype=np.int64)
    shape = (len(offsets) - 1, images.shape[1])
    sums, squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for c, channel in np.ndindex(shape):
        counts = np.bincount(images[offsets[c]:offsets[c + 1], channel].reshape(-1), minlength=256)
        sums[c, channel], squares[c, channel] = counts @ values, counts @ values**2
    return {"sums": sums, "squares": squares}


def statistics(arrays: Mapping[str, Array], offsets: Array, classes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pictures of these classes, in 0..1, from their moments."""
    mine = np.array(classes, dtype=np.int64)
    pixels = int((offsets[mine + 1] - offsets[mine]).sum()) * int(np.prod(arrays["images"].shape[2:]))
    if pixels == 0:
        raise ValueError("normalise = 'train' needs training pictures, but there are none")
    mean = arrays["sums"][mine].sum(axis=0) / pixels
    variance = arrays["squares"][mine].sum(axis=0) / pixels - mean**2
    return (mean / 255).tolist(), (np.sqrt(np.maximum(variance, 1.0)) / 255).tolist()  # at least a grey level: never 0
