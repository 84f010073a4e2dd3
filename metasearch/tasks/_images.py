"""What all picture tasks share: one uint8 tensor of all drawings on the trial's device; an episode is an index into it."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
    """images: uint8 [P, C, H, W], class by class; offsets: int64 [classes + 1], class c has drawings offsets[c] to offsets[c + 1];
    names: one a class; splits: the classes of each split, disjoint; digest: sha256 of the images and the offsets."""

    images: Array
    offsets: Array
    names: Sequence[str]
    splits: Mapping[Split, Sequence[int]]
    digest: str

    def __post_init__(self) -> None:
        taken = [c for split in SPLITS for c in self.splits.get(split, ())]
        if len(taken) != len(set(taken)):
            twice = next(c for c in taken if taken.count(c) > 1)
            raise ValueError(f"the splits' classes must be disjoint, but '{self.names[twice]}' is in two of them")
        if len(self.names) != len(self.offsets) - 1 or self.offsets[-1] != len(self.images):
            raise ValueError(f"{len(self.names)} names, {len(self.offsets) - 1} classes and {len(self.images)} images do not agree")


class ImageTasks(TaskDistribution):
    """Few-shot classification of the given pictures; x is float32 [C, H, W] in 0..1, normalised if mean and std are given.

    rotations: by multiples of 90 degrees. "new-classes": a class turned is another class, and all four may meet in an episode
               (Prototypical Networks, Reptile); "per-class": every class of an episode is turned by an angle of its own, so its
               four forms never meet (MAML, MAML++); "per-episode": one angle for the whole episode (Relation Networks).
    rotated:   the splits that are rotated.
    """

    def __init__(
        self, pictures: Pictures, *, told: Mapping[str, object], rotations: Rotations = "none", rotated: Sequence[Split] = SPLITS,
        mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    ) -> None:
        if rotations not in ROTATIONS:
            raise ValueError(f"rotations must be one of {', '.join(ROTATIONS)}, but got {rotations!r}")
        side = pictures.images.shape[-2:]
        if rotations != "none" and side[0] != side[1]:
            raise ValueError(f"only square pictures can be rotated by 90 degrees, but these are {side[0]}x{side[1]}")
        self.names = tuple(pictures.names)
        self._x = tuple(int(s) for s in pictures.images.shape[1:])
        self._rotations: dict[Split, Rotations] = {s: rotations if s in rotated else "none" for s in SPLITS}
        self._images = torch.from_numpy(pictures.images)
        self._mean = None if mean is None else torch.tensor(list(mean)).view(-1, 1, 1)
        self._std = None if std is None else torch.tensor(list(std)).view(-1, 1, 1)
        offsets = torch.from_numpy(np.array(pictures.offsets, dtype=np.int64))
        classes = {s: torch.tensor(list(pictures.splits.get(s, ())), dtype=torch.int64) for s in SPLITS}
        self._classes = classes
        self._starts = {s: offsets[classes[s]] for s in SPLITS}
        self._counts = {s: offsets[classes[s] + 1] - offsets[classes[s]] for s in SPLITS}
        self._fewest = {s: int(self._counts[s].min()) if len(classes[s]) else 0 for s in SPLITS}
        own = {"pictures": pictures.digest, "classes": {s: classes[s].tolist() for s in SPLITS}, "rotations": self._rotations,
               "mean": list(mean or ()), "std": list(std or ()), **told}
        self._digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._x

    @property
    def digest(self) -> str:
        return self._digest

    def classes(self, split: Split) -> int:
        """The number of classes that episodes of a split choose from; rotated ones count where they are classes."""
        return len(self._classes[split]) * (4 if self._rotations[split] == "new-classes" else 1)

    def check(self, shape: TaskShape, split: Split) -> None:
        _classes.check_shape(shape, self._x, split, self.classes(split))
        need = shape.shots + shape.queries
        if self._fewest[split] < need:
            least = int(self._counts[split].argmin())
            name = self.names[int(self._classes[split][least])]
            raise ValueError(
                f"{split} has {self._fewest[split]} images in class '{name}', but {shape.shots} shots + {shape.queries} queries need "
                f"{need}. Lower shots or queries."
            )

    def to(self, device: torch.device | str) -> Self:
        self._images = self._images.to(device)
        self._mean = None if self._mean is None else self._mean.to(device)
        self._std = None if self._std is None else self._std.to(device)
        return super().to(device)

    def indices(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> tuple[Tensor, Tensor, _classes.Seats]:
        """Drawings and quarter turns of n episodes, and who sits where: [n, N, K+Q] int64, [n, N] int64, seats."""
        ways, base = shape.ways, len(self._classes[split])
        style = self._rotations[split]
        chosen = _classes.distinct(n, ways, torch.tensor([self.classes(split)]), generator)  # [n, N]
        if style == "new-classes":
            turns, chosen = chosen // base, chosen % base
        elif style == "per-class":
            turns = torch.randint(4, (n, ways), generator=generator)
        elif style == "per-episode":
            turns = torch.randint(4, (n, 1), generator=generator).expand(n, ways)
        else:
            turns = torch.zeros(n, ways, dtype=torch.int64)
        starts, counts = self._starts[split][chosen], self._counts[split][chosen]
        places = _classes.distinct(n * ways, shape.shots + shape.queries, counts.view(-1), generator)
        return starts[..., None] + places.view(n, ways, -1), turns, _classes.seats(n, shape, generator)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        drawings, turns, seats = self.indices(n, split, shape, generator)
        flat, per_class = drawings.view(n, -1), drawings.shape[2]
        turned = self._rotations[split] != "none"

        def inputs(labels: Tensor, places: Tensor) -> Tensor:
            index = flat.gather(1, labels * per_class + places)
            return self._gathered(index, turns.gather(1, labels) if turned else None)

        def one_hot(labels: Tensor) -> Tensor:
            return _classes.one_hot(labels.to(self.device), shape.ways)

        return Episode(
            inputs(seats.support, seats.support_place), one_hot(seats.support),
            inputs(seats.query, seats.query_place), one_hot(seats.query),
        )

    def _gathered(self, index: Tensor, turns: Tensor | None) -> Tensor:
        """Pictures [..., C, H, W] of an index [...], float32, turned by quarter turns [...] if any."""
        raw = self._images[index.view(-1).to(self.device)]  # [M, C, H, W] uint8
        if turns is not None:
            turns = turns.reshape(-1)
            for k in (1, 2, 3):
                mine = (turns == k).nonzero()[:, 0].to(self.device)
                raw[mine] = raw[mine].rot90(k, (-2, -1))
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
