"""Synthetic Gaussian classes: a class is a point, a drawing is that point plus noise. Solved in seconds; for tests.

The centres of all classes are drawn once from `data_seed`, splits take different ones; drawings are drawn afresh, so there are
as many as an episode wants. At the default separation a nearest-centroid rule is right in about 19 of 20 cases (5-way 1-shot).
"""
from __future__ import annotations

import hashlib
import json
from copy import copy
from typing import Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.tasks import SPLITS, Episode, Split, TaskDistribution, TaskShape, _classes


class Blobs(TaskDistribution):
    """x = separation * centre + noise; centre and noise ~ N(0, I).

    dimensions: of x, [dimensions]; side: if given, x is a picture [1, side, side] instead.
    train_classes, val_classes, test_classes: number of classes of each split.
    """

    def __init__(
        self, dimensions: int = 8, side: int | None = None, separation: float = 2.0,
        train_classes: int = 64, val_classes: int = 32, test_classes: int = 32, data_seed: int = 0,
    ) -> None:
        self._shape = (dimensions,) if side is None else (1, side, side)
        counts = (train_classes, val_classes, test_classes)
        if min(self._shape) < 1 or min(counts) < 0 or separation < 0:
            raise ValueError(
                "dimensions and side must be 1 or more, numbers of classes and separation 0 or more, but got "
                f"inputs {self._shape}, classes {counts}, separation {separation}"
            )
        generator = Generator().manual_seed(data_seed)
        centres = torch.randn(sum(counts), *self._shape, generator=generator) * separation
        self._centres = dict(zip(SPLITS, torch.split(centres, list(counts)), strict=True))
        told = json.dumps(["blobs", self._shape, separation, counts, data_seed]).encode() + centres.numpy().tobytes()
        self._digest = hashlib.sha256(told).hexdigest()[:16]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def digest(self) -> str:
        return self._digest

    def check(self, shape: TaskShape, split: Split) -> None:
        _classes.check_shape(shape, self._shape, split, len(self._centres[split]))

    def to(self, device: torch.device | str) -> Self:
        self._centres = {split: centres.to(device) for split, centres in self._centres.items()}
        return super().to(device)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        centres = self._centres[split]
        classes = _classes.distinct(np.full(n, len(centres)), shape.ways, generator)
        seats = _classes.seats(n, shape, generator)

        def inputs(labels: _classes.Array) -> Tensor:
            noise = torch.randn(n, labels.shape[1], *self._shape, generator=generator)
            index = torch.from_numpy(np.take_along_axis(classes, labels, axis=1)).to(self.device)
            mine: Tensor = centres[index]
            return mine + noise.to(self.device)

        def labels(seated: _classes.Array) -> Tensor:
            return _classes.one_hot(seated, shape.ways).to(self.device)

        return Episode(inputs(seats.support), labels(seats.support), inputs(seats.query), labels(seats.query))

    def _part(self, share: float, which: Literal[0, 1]) -> Blobs:
        mine = copy(self)
        chosen = _classes.part(self.class_count("train"), share, which)
        mine._centres = {**self._centres, "train": self._centres["train"][torch.from_numpy(chosen).to(self.device)]}
        mine._digest = hashlib.sha256(json.dumps([self._digest, chosen.tolist()]).encode()).hexdigest()[:16]
        return mine

    def class_count(self, split: Split) -> int:
        return len(self._centres[split])

    def _labelled(self, n: int, split: Split, generator: Generator) -> tuple[Tensor, Tensor]:
        numbers = torch.randint(self.class_count(split), (n,), generator=generator)
        noise = torch.randn(n, *self._shape, generator=generator)
        numbers = numbers.to(self.device)
        return self._centres[split][numbers] + noise.to(self.device), numbers

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return _classes.cross_entropy(output, y)

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        return _classes.accuracy(output, y)
