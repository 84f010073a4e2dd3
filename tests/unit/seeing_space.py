"""A tiny space of one edge that sees the first half of the input or the second; tasks whose classes differ in one of them."""
from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Block, Net, Params
from metasearch.nets.init import weights
from metasearch.nets.mixture import begin, read
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import Episode, Split, TaskShape
from metasearch.tasks.blobs import Blobs

OPTIONS = ("none", "first", "second")
RELAXED = ("sees",)
SPACE = Space({"sees": Choice(OPTIONS)})
WIDTH = 6


class Halves(Blobs):
    """Blobs of which one half is noise: in every task the second ("first"), or in every other task the first ("both")."""

    def __init__(self, family: Literal["first", "both"], train_classes: int = 64) -> None:
        super().__init__(dimensions=8, train_classes=train_classes, separation=3.0)
        self.family = family

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        e = super()._draw(n, split, shape, generator)
        first = torch.rand(n, generator=generator) < (0.5 if self.family == "both" else 2.0)
        blind = torch.where(first[:, None], torch.arange(8) >= 4, torch.arange(8) < 4)[:, None]  # [n, 1, 8]
        x = [torch.where(blind, 3 * torch.randn(v.shape, generator=generator), v) for v in (e.support_x, e.query_x)]
        return e._replace(support_x=x[0], query_x=x[1])


def recipe(config: Config, shape: TaskShape) -> Recipe:
    return _recipe(shape, OPTIONS.index(str(config["sees"])))


def relaxed(config: Config, shape: TaskShape) -> Recipe:
    return _recipe(shape, None)


def _recipe(shape: TaskShape, fixed: int | None) -> Recipe:
    half = shape.x[0] // 2

    def init(generator: Generator) -> Params:
        params = weights("eye", (WIDTH, half), "torch", generator)
        return params if fixed is not None else params | begin(RELAXED, len(OPTIONS), generator)

    def apply(params: Params, x: Tensor) -> Tensor:
        shares = read(params, "sees") if fixed is None else torch.eye(3, dtype=x.dtype)[fixed]
        seen = shares[1] * x[:, :half] + shares[2] * x[:, half:]  # type: ignore[index]
        return torch.tanh(seen @ params["net/eye/weight"].T + params["net/eye/bias"])

    net = Net.of(init, [Block("eye", apply)], outputs=None, norm="none", features=WIDTH)
    return Recipe(net, Prototypical(), adam(0.01), meta_batch=4, steps=30)
