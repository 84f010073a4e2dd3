"""Random quadratic functions f(theta) = |W theta - y|^2: the first problem of every learned optimiser.

Andrychowicz et al. "Learning to learn by gradient descent by gradient descent". NeurIPS 2016, section 3.1.
https://arxiv.org/abs/1606.04474; as in its code: entries of W and y ~ U[0, 1], 10 dimensions.

A quadratic is a linear regression (nets/linear_map.py): a row of W is an input, its entry of y the value, and the squared error
of all rows is f. What is asked afterwards is f itself, so a query is a support with both signs turned: another input, the same
equation.
"""
from __future__ import annotations

import hashlib
import json
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from metasearch.tasks import Episode, Kind, Split, TaskDistribution, TaskShape
from metasearch.tasks.sinusoid import _stream


class Quadratics(TaskDistribution):
    """An episode is one function: `shots` rows of W and y (10 in the paper, as many as dimensions), the same rows as queries.
    `ways` is the number of outputs, which is 1. Loss and score are means over rows: f / shots.
    All splits are one law; they are different random streams.
    """

    kind: ClassVar[Kind] = "regression"
    chance: ClassVar[Literal["1/ways"] | None] = None
    unit: ClassVar[str] = "mse"

    def __init__(self, dimensions: int = 10) -> None:
        if dimensions < 1:
            raise ValueError(f"`dimensions >= 1` must hold, but got dimensions={dimensions}")
        self.dimensions = dimensions

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.dimensions,)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(["quadratics", self.dimensions]).encode()).hexdigest()[:16]

    def check(self, shape: TaskShape, split: Split) -> None:
        if tuple(shape.x) != self.input_shape:
            raise ValueError(f"inputs {tuple(shape.x)} were asked for, but these tasks have inputs {self.input_shape}")
        if shape.ways != 1 or shape.shots < 1 or shape.queries != shape.shots:
            raise ValueError(
                "`ways == 1` (a row has one value), `shots >= 1` and `queries == shots` (they are the same equations) must "
                f"hold, but got (ways={shape.ways}, shots={shape.shots}, queries={shape.queries})."
            )

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        generator = _stream(split, generator)
        w = torch.rand(n, shape.shots, self.dimensions, generator=generator)
        y = torch.rand(n, shape.shots, 1, generator=generator)
        return Episode(w, y, -w, -y).to(self.device)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        return -(output - y).square().mean()
