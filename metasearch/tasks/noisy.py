"""Any class tasks with wrong labels or unequal classes in the support set; queries stay clean and balanced.

The noises of Ren, Zeng, Yang, Urtasun. "Learning to Reweight Examples for Robust Deep Learning". ICML 2018.
https://arxiv.org/abs/1803.09050 and of Shu et al. NeurIPS 2019 (learners/meta_weight_net.py), for one episode:

    [tasks]
    name = "noisy"
    tasks = { name = "glyphs", drawings = 20 }
    flip = 0.4

Wrong labels trade places: as many supports leave a class as come into it, so that every label keeps its K supports, as it must
where a learner divides by their number. Drawn after the episode itself: equal generators draw equal pictures, whatever `flip`.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.tasks import Episode, Split, TaskDistribution, TaskShape, _classes, build

Wrong = Literal["uniform", "pair"]
Array = np.ndarray[Any, np.dtype[Any]]


class Noisy(TaskDistribution):
    """tasks:  the table of the clean ones: {"name": ..., and their arguments}.
    flip:      the share of each class's supports that have a wrong label. Where it times K is no whole number, an episode has
               one more or one fewer, right on average.
    wrong:     "uniform": any other label; "pair": each class is taken for one other class of the episode.
    imbalance: how many times more supports the commonest class has than the rarest, on a geometric scale between them (as near
               as whole numbers come; each has one at least). Which class is rare changes from episode to episode; an episode
               still has N*K supports. 1: all have K.
    """

    def __init__(
        self, tasks: dict, flip: float = 0.0, wrong: Wrong = "uniform", imbalance: float = 1.0,  # type: ignore[type-arg]
    ) -> None:
        if not 0 <= flip <= 1:
            raise ValueError(f"`0 <= flip <= 1` must hold, but got flip={flip}")
        if not imbalance >= 1:
            raise ValueError(f"`imbalance >= 1` must hold (commonest class / rarest), but got imbalance={imbalance}")
        name = tasks.get("name")
        if not isinstance(name, str):
            raise ValueError(f"`tasks` must name the clean tasks, as in {{name = 'glyphs'}}, but got {tasks}")
        clean = build(name, {k: v for k, v in tasks.items() if k != "name"})
        if clean.kind != "classes":
            raise ValueError(f"labels can be wrong only where there are classes, but {name} is of {clean.kind}")
        self.flip, self.wrong, self.imbalance = float(flip), wrong, float(imbalance)
        self._clean, self.pictures, self.test_episodes = clean, clean.pictures, clean.test_episodes
        self.mislabelled = self.flip > 0 or clean.mislabelled

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._clean.input_shape

    @property
    def moments(self) -> tuple[Sequence[float], Sequence[float]]:
        """How the clean tasks' pictures are normalised."""
        return getattr(self._clean, "moments", ((), ()))

    @property
    def digest(self) -> str:
        told = json.dumps(["noisy", self._clean.digest, self.flip, self.wrong, self.imbalance])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def check(self, shape: TaskShape, split: Split) -> None:
        self._clean.check(shape, split)
        most = max(self.counts(shape))
        try:
            self._clean.check(shape._replace(shots=most), split)
        except ValueError as error:
            raise ValueError(f"at imbalance={self.imbalance} the commonest class has {most} supports: {error}") from error

    def to(self, device: torch.device | str) -> Self:
        self._clean.to(device)
        return super().to(device)

    def shifted(self, strength: float = 1.0) -> TaskDistribution:
        moved = copy(self)
        moved._clean = self._clean.shifted(strength)
        moved.pictures, moved.test_episodes = moved._clean.pictures, moved._clean.test_episodes
        return moved

    def _part(self, share: float, which: Literal[0, 1]) -> TaskDistribution:
        mine = copy(self)
        mine._clean = self._clean.part(share, which)
        return mine

    def class_count(self, split: Split) -> int:
        return self._clean.class_count(split)

    def _labelled(self, n: int, split: Split, generator: Generator) -> tuple[Tensor, Tensor]:
        return self._clean._labelled(n, split, generator)  # wrong labels are those of supports

    def counts(self, shape: TaskShape) -> list[int]:
        """Supports of each class, commonest first; N*K in all."""
        if self.imbalance == 1:
            return [shape.shots] * shape.ways
        share = self.imbalance ** -np.linspace(0.0, 1.0, shape.ways)
        wanted = shape.ways * shape.shots * share / share.sum()
        counts = np.ones(shape.ways, dtype=int)
        for _ in range(shape.ways * (shape.shots - 1)):
            counts[(wanted - counts).argmax()] += 1
        return sorted(counts.tolist(), reverse=True)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        counts = np.array(self.counts(shape))
        e = self._clean._draw(n, split, shape._replace(shots=int(counts.max())), generator)
        labels = e.support_y.argmax(-1).cpu().numpy()  # [n, N * most]
        place = _places(labels, shape.ways)
        if self.imbalance > 1:
            rank = np.argsort(_classes.uniform(generator, n, shape.ways), axis=1)  # [n, N]: 0 is the commonest
            kept = place < counts[np.take_along_axis(rank, labels, axis=1)]
            rows = kept.nonzero()[1].reshape(n, shape.ways * shape.shots)  # every episode keeps as many
            e = e._replace(support_x=_rows(e.support_x, rows))
            labels, place = (np.take_along_axis(a, rows, axis=1) for a in (labels, place))
        labels = self._flipped(labels, place, shape.ways, generator)
        return e._replace(support_y=_classes.one_hot(labels, shape.ways).to(e.support_x))

    def _flipped(self, labels: Array, place: Array, ways: int, generator: Generator) -> Array:
        """The first few supports of every class move `shift` labels on, all classes' j-th by the same shift."""
        n, rows = labels.shape
        counts = np.stack([(labels == c).sum(1) for c in range(ways)], axis=1)  # [n, N]
        moved = np.floor(self.flip * counts + _classes.uniform(generator, n, 1)).astype(int)
        shift = 1 + np.floor((ways - 1) * _classes.uniform(generator, n, rows)).astype(int)  # of place j
        if self.wrong == "pair":
            shift = shift[:, :1].repeat(rows, axis=1)
        leaves = place < np.take_along_axis(moved, labels, axis=1)
        return np.asarray(np.where(leaves, (labels + np.take_along_axis(shift, place, axis=1)) % ways, labels))

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return self._clean.loss(output, y)

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        return self._clean.score(output, y)


def _places(labels: Array, ways: int) -> Array:
    """[n, M] labels -> how many rows of the same label stand before each row."""
    own = labels[..., None] == np.arange(ways)
    return np.asarray((own.cumsum(axis=1) * own).sum(-1) - 1)


def _rows(x: Tensor, rows: Array) -> Tensor:
    """[n, M, *x], [n, R] -> [n, R, *x]."""
    return x[torch.arange(len(x), device=x.device)[:, None], torch.from_numpy(rows).to(x.device)]
