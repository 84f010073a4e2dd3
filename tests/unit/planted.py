"""Tasks with a planted augmentation: what is tested is shifted sideways, what is trained on is not; and how they are learnt.

A picture is a profile down the rows plus a profile, twice as strong, along the columns, both of its class. Where nothing is
shifted, columns tell classes apart best; where every picture is shifted by an amount of its own, they mislead, and rows alone
tell. A linear map learns to look at rows from pictures that were moved sideways (`translate_x`).
"""
from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from metasearch.augment import Places
from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Block, Net, Params
from metasearch.objectives.optimizer import sgd
from metasearch.objectives.recipe import Recipe
from metasearch.tasks import Episode, Split, TaskShape
from metasearch.tasks.blobs import Blobs

SIDE = 10
FURTHEST = 3  # columns
WIDTH = 16  # features
PLANTED = "translate_x"
OPERATIONS = (PLANTED, "translate_y", "shear_y", "posterize", "brightness", "cutout")


class Shifted(Blobs):
    """x [1, SIDE, SIDE] in 0..1, in val and test rolled by up to FURTHEST columns to either side. The second part of the
    training classes, on which a one-shot search looks at what it did to its weights, is shifted as what is tested is."""

    def __init__(self, train_classes: int = 64) -> None:
        super().__init__(side=SIDE, separation=0.0, train_classes=train_classes)
        drawn = Generator().manual_seed(0)
        self._centres = {
            split: torch.randn(len(t), 1, SIDE, 1, generator=drawn) + 2 * torch.randn(len(t), 1, 1, SIDE, generator=drawn)
            for split, t in self._centres.items()
        }
        self.shifted_splits: tuple[Split, ...] = ("val", "test")

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        drawn = super()._draw(n, split, shape, generator)
        moved = split in self.shifted_splits

        def seen(x: Tensor) -> Tensor:
            far = torch.randint(-FURTHEST, FURTHEST + 1, x.shape[:2], generator=generator) * moved
            column = (torch.arange(SIDE) - far[..., None]) % SIDE  # [n, M, SIDE]
            return (0.5 + 0.1 * x.gather(-1, column[:, :, None, None].expand(x.shape))).clamp(0, 1)

        return drawn._replace(support_x=seen(drawn.support_x), query_x=seen(drawn.query_x))

    def _part(self, share: float, which: Literal[0, 1]) -> Blobs:
        mine = super()._part(share, which)
        assert isinstance(mine, Shifted)
        if which:
            mine.shifted_splits = ("train", *self.shifted_splits)
        return mine


def trained(places: Places | None, shape: TaskShape) -> Recipe:
    """Prototypical Networks on a linear map; a study says for how many steps."""
    def init(generator: Generator) -> Params:
        return {"net/eye/weight": 0.3 * torch.randn(WIDTH, SIDE * SIDE, generator=generator)}

    def eye(params: Params, x: Tensor) -> Tensor:
        return x.flatten(1) @ params["net/eye/weight"].T

    net = Net.of(init, [Block("eye", eye)], outputs=None, norm="none", features=WIDTH)
    return Recipe(net, Prototypical(), sgd(0.3), meta_batch=2, steps=60, episode=shape._replace(queries=3), augment=places)
