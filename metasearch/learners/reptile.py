"""Reptile: move the initialisation towards the weights that ordinary training on a task ends in.

Nichol, Achiam, Schulman. "On First-Order Meta-Learning Algorithms". 2018. https://arxiv.org/abs/1803.02999
W = k inner optimiser steps from theta; theta <- theta + eps * mean over tasks of (W - theta) (algorithm 2). What the outer
optimiser is given is theta - W: an outer SGD with rate eps, falling linearly from 1 to 0, is the paper's outer loop.
All learnt keys are moved by the inner steps, those of norms included, as in the authors' code.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metasearch.learners import Learner, Loss, gradients, inner
from metasearch.nets import Net, Params, learnt
from metasearch.tasks import Episode, TaskShape


@dataclass(frozen=True)
class Reptile(Learner):
    """Training knows no queries: supports and queries of an episode are one training set. So an episode of the recipe's own
    shape with shots + queries = 10 is the paper's `train-shots 10`, whatever number of shots is tested.

    optimizer:   "adam": Adam with beta1 = 0, beta2 = 0.999 (the paper's), or "sgd". Second moments start at zero in every
                 episode ("reset"); the authors' code carries them from task to task, which would tie episodes together.
    inner_batch: rows in a minibatch, which walk through reshuffled permutations of the training set without replacement and
                 may straddle two of them; None: all rows in every step.
    test_steps, test_batch: when validated or tested; None: as in training. There minibatches have a fixed order.
    """

    inner_lr: float | Tensor = 1e-3
    inner_steps: int = 5
    inner_batch: int | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    test_steps: int | None = None
    test_batch: int | None = None

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(least=1, inner_batch=self.inner_batch, test_batch=self.test_batch)
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer is 'adam' or 'sgd', but got {self.optimizer!r}")

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        order = inner.fixed_order(support_x.shape[0], support_x.device)
        return self._train(net, loss, meta, support_x, support_y, order)[0]

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def episode_gradient(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Params, dict[str, Tensor]]:
        """theta - W, and the mean loss over the inner steps."""
        x = torch.cat([episode.support_x, episode.query_x])
        y = torch.cat([episode.support_y, episode.query_y])
        if self.inner_batch is None:
            order = inner.fixed_order(x.shape[0], x.device)
        elif "order" in episode.noise:
            order = episode.noise["order"][:, : x.shape[0]].argsort(-1).flatten()
        else:
            raise ValueError("Reptile's minibatches need the noise 'order' (see Reptile.noise), but the episode has none of it.")
        trained, value = self._train(net, loss, meta, x, y, order)
        return {k: (meta[k] - w).detach() for k, w in trained.items()}, {"loss": value}

    def _train(self, net: Net, loss: Loss, meta: Params, x: Tensor, y: Tensor, order: Tensor) -> tuple[Params, Tensor]:
        """(W, mean loss of the minibatches). order: row numbers, walked through and begun again."""
        rows = x.shape[0] if self.inner_batch is None else self.inner_batch
        w = {k: v.detach() for k, v in meta.items() if learnt(k)}
        v = {k: torch.zeros_like(p) for k, p in w.items()}
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for step in range(self.inner_steps):
            bx, by = (x, y) if rows >= x.shape[0] else inner.minibatch(x, y, order, step * rows, rows)

            def objective(p: Params, bx: Tensor = bx, by: Tensor = by) -> tuple[Tensor, tuple[()]]:
                return loss(net.apply({**meta, **p}, bx), by), ()

            value, _, grads = gradients.value_and_gradient(objective, w, differentiable=False)
            total = total + value.detach()
            if self.optimizer == "sgd":
                w = {k: inner.descend(p, grads[k], self.inner_lr) for k, p in w.items()}
            else:
                w, v = inner.adam(w, v, grads, self.inner_lr, step + 1)
        return w, total / max(self.inner_steps, 1)

    def at_test(self) -> Reptile:
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        return replace(self, inner_steps=steps, inner_batch=self.test_batch or self.inner_batch)

    def noise(self, shape: TaskShape) -> Mapping[str, tuple[int, ...]]:
        """"order": normal draws whose ranks are permutations of the training set, one a row."""
        if self.inner_batch is None:
            return {}
        least, most = shape.shots + shape.queries, shape.ways * (shape.shots + shape.queries)  # regression, classes
        return {"order": (-(-self.inner_steps * self.inner_batch // least), most)}
