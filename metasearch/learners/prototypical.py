"""Prototypical Networks: a class is the mean of its supports' embeddings, and the nearest one wins.

Snell, Swersky, Zemel. "Prototypical Networks for Few-shot Learning". NeurIPS 2017. https://arxiv.org/abs/1703.05175
c_k = mean of the support embeddings of class k (eq. 1); p(y = k | x) = softmax_k(-d(f(x), c_k)) (eq. 2). The authors' d is the
squared Euclidean distance, not divided by the dimension and without a temperature. Batch statistics in training are those of
supports and queries together: one forward.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from metasearch.learners import Learner, Loss, _embedding, inner
from metasearch.nets import Net, Params
from metasearch.tasks import Episode, Kind

Distance = Literal["euclid", "cosine"]


@dataclass(frozen=True)
class Prototypical(Learner):
    """distance: "euclid": logits are -scale * squared distance; "cosine": scale * cosine similarity.
    scale: 1.0 is the paper's for Euclid; a cosine needs about 10, since softmax of numbers in [-1, 1] is nearly flat."""

    pooled: ClassVar[bool] = True
    head: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    distance: Distance = "euclid"
    scale: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if self.distance not in ("euclid", "cosine"):
            raise ValueError(f"distance is 'euclid' or 'cosine', but got {self.distance!r}")
        inner.check(scale=self.scale)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.norm == "transductive":  # supports are embedded together with the queries
            return {"support_x": support_x, "support_y": support_y}
        return {"prototypes": prototypes(net.apply(meta, support_x), support_y)}

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        if "prototypes" in task:
            return self.logits(net.apply(meta, query_x), task["prototypes"])
        return self._together(net, meta, task["support_x"], task["support_y"], query_x)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self._together(net, meta, episode.support_x, episode.support_y, episode.query_x)
        return loss(output, episode.query_y), {}

    def similarity(self, net: Net, meta: Params, a: Tensor, b: Tensor) -> Tensor:
        return _embedding.nearness(net, meta, a, b, cosine=self.distance == "cosine")

    def _together(self, net: Net, meta: Params, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        supports, queries = _embedding.together(net, meta, support_x, query_x)
        return self.logits(queries, prototypes(supports, support_y))

    def logits(self, z: Tensor, c: Tensor) -> Tensor:
        """z [Q, D], prototypes c [N, D] -> [Q, N]."""
        if self.distance == "cosine":
            return self.scale * (F.normalize(z, dim=-1) @ F.normalize(c, dim=-1).T)
        return -self.scale * (z[:, None] - c).square().sum(-1)


def prototypes(z: Tensor, y: Tensor) -> Tensor:
    """Means of z [M, D] weighted by y [M, N] (one-hot or soft) -> [N, D]."""
    return y.T @ z / y.sum(0)[:, None]
