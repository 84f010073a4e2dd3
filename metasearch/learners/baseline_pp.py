"""Baseline++: a frozen body, and a classifier that compares directions.

Chen, Liu, Kira, Wang, Huang. "A Closer Look at Few-shot Classification". ICLR 2019. https://arxiv.org/abs/1904.04232
Logits are scale * cos(f(x), w_k), in pre-training (objectives/pretrain.py with head="cosine") and in the new head that each
episode trains for 100 passes by SGD. As in the authors' code: scale 2 up to 200 classes and 10 beyond, rate 0.01, momentum and
dampening 0.9, weight decay 1e-3. Here a pass is one step on all supports instead of minibatches of four, and a class's weights
have length 1 in the product: the authors' code lets a length be learnt.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _tuning, inner
from metasearch.learners.prototypical import prototypes
from metasearch.nets import Net, Params
from metasearch.tasks import Episode, Kind

__all__ = ["BaselinePP", "cosines", "scale_for"]

WEIGHT = "net/head/weight"


@dataclass(frozen=True)
class BaselinePP(Learner):
    """start: where an episode's head begins: "random": at the net's own `net/head/weight`, which pre-training leaves as it was
    drawn; "prototypes": at the mean directions of the supports.

    Trained episodically it is trained as an episode begins: by the loss of the queries under the head before its first step."""

    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    inner_lr: float | Tensor = 0.01
    inner_steps: int = 100
    scale: float | Tensor = 2.0
    momentum: float | Tensor = 0.9
    dampening: float | Tensor = 0.9
    weight_decay: float | Tensor = 1e-3
    start: Literal["random", "prototypes"] = "random"

    def __post_init__(self) -> None:
        inner.check(
            inner_lr=self.inner_lr, inner_steps=self.inner_steps, scale=self.scale, momentum=self.momentum,
            dampening=self.dampening, weight_decay=self.weight_decay,
        )
        if self.start not in ("random", "prototypes"):
            raise ValueError(f"start is 'random' or 'prototypes', but got {self.start!r}")

    def init(self, net: Net, generator: Generator) -> Params:
        drawn = net.init(generator)
        if self.start == "random" and WEIGHT not in drawn:
            raise ValueError("a random head needs a net with a head. Build it with `outputs`, or choose start='prototypes'.")
        kept = WEIGHT if self.start == "random" else ""
        return {k: v for k, v in drawn.items() if k == kept or not k.startswith("net/head/")}

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        z = F.normalize(net.embed(meta, support_x), dim=-1)  # [M, D]
        w = meta[WEIGHT] if self.start == "random" else prototypes(z, support_y)  # [N, D]
        trained, _ = _tuning.sgd(
            lambda p: loss(cosines(z, p[WEIGHT], self.scale), support_y), {WEIGHT: w}, {}, rates={WEIGHT: self.inner_lr},
            steps=self.inner_steps, momentum=self.momentum, dampening=self.dampening, weight_decay=self.weight_decay,
        )
        return trained

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return cosines(net.embed(meta, query_x), task[WEIGHT], self.scale)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        return Learner.episode_loss(replace(self, inner_steps=0), net, loss, meta, episode)


def cosines(z: Tensor, w: Tensor, scale: float | Tensor) -> Tensor:
    """z [M, D], w [N, D] -> scale * cosine of every pair [M, N]."""
    return scale * (F.normalize(z, dim=-1) @ F.normalize(w, dim=-1).T)


def scale_for(classes: int) -> float:
    """The authors' factor: softmax over many classes needs larger logits to be sure of one."""
    return 2.0 if classes <= 200 else 10.0
