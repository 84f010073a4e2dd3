"""Nearest centroid: a class is the mean of its supports as they are, and nothing is learnt.

The floor of every few-shot table: on an identity net (nets/identity.py) it says how far raw pixels go; on a net with random or
inherited weights, how far those go without any meta-training. The rule is that of learners/prototypical.py.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metasearch.learners import Learner, Loss
from metasearch.learners.prototypical import Distance, Prototypical, prototypes
from metasearch.nets import Net, Params, learnt
from metasearch.tasks import Episode, Kind


@dataclass(frozen=True)
class Centroid(Learner):
    """distance: "cosine": the centroid at the smallest angle; "euclid": the nearest one."""

    head: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    distance: Distance = "cosine"

    def __post_init__(self) -> None:
        Prototypical(self.distance)  # refuses other distances

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Tensor:
        return prototypes(net.apply(meta, support_x), support_y)

    def predict(self, net: Net, meta: Params, task: Tensor, query_x: Tensor) -> Tensor:
        return Prototypical(self.distance).logits(net.apply(meta, query_x), task)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Nothing is learnt, no scale either: cosines, which lie between -1 and 1, are taken times 10."""
        return super().probabilities(10 * outputs if self.distance == "cosine" else outputs)

    def episode_gradient(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Params, dict[str, Tensor]]:
        """Zero for whatever weights the net has: they stay as they are."""
        value, metrics = self.episode_loss(net, loss, meta, episode)
        return {k: torch.zeros_like(v) for k, v in meta.items() if learnt(k)}, {"loss": value.detach(), **metrics}

    def similarity(self, net: Net, meta: Params, a: Tensor, b: Tensor) -> Tensor:
        return Prototypical(self.distance).similarity(net, meta, a, b)
