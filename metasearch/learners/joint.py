"""Plain joint training: one net for all tasks at once, adapted to none of them.

The oldest baseline of meta-learning: minimise the mean loss over all tasks (Caruana. "Multitask Learning". 1997), and fine-tune
when tested. Where a task is told to the net (tasks `sinusoid` with oracle = true) it is the oracle of Finn et al. ICML 2017,
section 5.1; where not, it can do no better than the best answer that suits all tasks (for sine waves -1.623 cos x).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params, adapted
from metasearch.tasks import Episode, Kind


@dataclass(frozen=True)
class Joint(Learner):
    """inner_lr, inner_steps: of SGD on the supports when validated or tested; training takes none.

    Regression only: labels of class episodes are drawn afresh, so a net that adapts to none of them has nothing to learn.
    For classes, see objectives/pretrain.py."""

    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)

    inner_lr: float | Tensor = 0.01
    inner_steps: int = 0

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        def support_loss(p: Params) -> Tensor:
            return loss(net.apply({**meta, **p}, support_x), support_y)

        theta = {k: v for k, v in meta.items() if adapted(k)}
        return inner.sgd_steps(support_loss, theta, lr=self.inner_lr, steps=self.inner_steps, first_order=True)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the unadapted net on supports and queries together."""
        x = torch.cat([episode.support_x, episode.query_x])
        return loss(net.apply(meta, x), torch.cat([episode.support_y, episode.query_y])), {}
