"""Convolutional Siamese networks: learn whether two inputs are of one class; a query's class is that of its likeliest twin.

Koch, Zemel, Salakhutdinov. "Siamese Neural Networks for One-shot Image Recognition". ICML workshop on deep learning 2015.
https://www.cs.cmu.edu/~rsalakhu/papers/oneshot1.pdf
p(a, b) = sigmoid(w . |f(a) - f(b)| + b), trained with the binary cross-entropy of same and different pairs, half of each
(section 3.2). The paper draws pairs; here they are all those among an episode's rows, with weights that make its same pairs
count as much as its different ones. Nothing is learnt from a support set: it is only compared with. The paper's f is
nets/koch.py.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss
from metasearch.nets import Net, Params
from metasearch.tasks import Episode, Kind

Distance = Literal["l1", "l2", "cosine"]


@dataclass(frozen=True)
class Siamese(Learner):
    """distance: "l1": w . |f(a) - f(b)|, the paper's; "l2": w . (f(a) - f(b))^2; "cosine": w cos(f(a), f(b)), w a number.

    Own keys: `twins/weight` [D] (or [1]), `twins/bias` [1]. They begin as a decision by distance: p = 1/2 where embeddings differ
    by 1/2 on the average (where their cosine is 1/2). From weights without a direction the bias takes thousands of steps there.
    """

    pooled: ClassVar[bool] = True
    head: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    distance: Distance = "l1"

    def __post_init__(self) -> None:
        if self.distance not in ("l1", "l2", "cosine"):
            raise ValueError(f"distance is 'l1', 'l2' or 'cosine', but got {self.distance!r}")

    def init(self, net: Net, generator: Generator) -> Params:
        if self.distance == "cosine":
            weight, bias = torch.full((1,), 10.0), torch.full((1,), -5.0)
        else:
            weight, bias = torch.full((net.features,), -10 / net.features), torch.full((1,), 5.0)
        return {**net.init(generator), "twins/weight": weight, "twins/bias": bias}

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.norm == "transductive":  # supports are embedded together with the queries
            return {"support_x": support_x, "support_y": support_y}
        return {"supports": net.apply(meta, support_x), "support_y": support_y}

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        """[Q, N]: the logit of the best pair with a support of each class."""
        y = task["support_y"]
        if "supports" in task:
            supports, z = task["supports"], net.apply(meta, query_x)
        else:
            both = net.apply(meta, torch.cat([task["support_x"], query_x]))
            supports, z = both[: len(y)], both[len(y):]
        logits = self.logits(meta, z[:, None], supports)  # [Q, M]
        return logits[:, :, None].masked_fill(y == 0, -torch.inf).amax(1)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        z = net.apply(meta, torch.cat([episode.support_x, episode.query_x]))  # [R, D], R = M + Q
        same, different = pair_weights(torch.cat([episode.support_y, episode.query_y]))
        logits = self.logits(meta, z[:, None], z)  # [R, R]
        return (same * F.softplus(-logits) + different * F.softplus(logits)).sum(), {}

    def similarity(self, net: Net, meta: Params, a: Tensor, b: Tensor) -> Tensor:
        """p(a, b) of eq. (3.1)."""
        z = net.apply(meta, torch.cat([a, b]))
        return self.logits(meta, z[: len(a)], z[len(a):]).sigmoid()

    def logits(self, meta: Params, a: Tensor, b: Tensor) -> Tensor:
        """Of "a and b are of one class": embeddings [..., D], [..., D] -> [...]."""
        if self.distance == "cosine":
            apart = F.cosine_similarity(a, b, dim=-1)[..., None]
        else:
            apart = (a - b).abs() if self.distance == "l1" else (a - b).square()
        bias = meta["twins/bias"]
        return (apart @ meta["twins/weight"]).to(bias.dtype) + bias


def pair_weights(y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels [R, N] -> weights [R, R] of all pairs of two rows, as same and as different ones: each sum to 1/2."""
    others = 1 - torch.eye(len(y), dtype=y.dtype, device=y.device)
    same = y @ y.T  # soft labels: how likely it is that both are of one class
    positive, negative = same * others, (1 - same) * others
    return positive / (2 * positive.sum()), negative / (2 * negative.sum())
