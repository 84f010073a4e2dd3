"""MAML++: MAML made steady by a loss at every inner step, learnt rates, and norms of their own for each step.

Antoniou, Edwards, Storkey. "How to Train Your MAML". ICLR 2019. https://arxiv.org/abs/1810.09502; as in the authors' code:
- multi-step loss: sum_j v_j L_Q(theta_j), v moving from equal weights to the last step (section 4, MSL);
- LSLR: one learnt rate a tensor and inner step; BNWB: norm scale and shift of their own in each step, learnt but not adapted;
  batch statistics are always those of the batch (running averages are kept by that code, but never used);
- DA: first order for the first epochs (the paper; the released settings are second order throughout: first_order_epochs = 0).
Cosine annealing of the outer rate is the recipe's (`adam(1e-3, schedule=cosine(0.01))`), as is clamping gradients
(`clipped(..., 10)`, mini-ImageNet only). Their test ensembles the five best epochs; here one set of weights is tested.
Each part has a switch; with all of them off this is MAML (learners/maml.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, gradients, inner
from metasearch.nets import Net, Params, adapted
from metasearch.tasks import Episode


@dataclass(frozen=True)
class MAMLPP(Learner):
    """inner_lr:  of the mean loss over the support set; with learnt_rates, where they begin.
    test_steps:   inner steps when validated or tested; steps beyond those of training repeat the last one's rate and norms.
    multi_step:   the multi-step loss, in the first `multi_step_epochs` of `epochs` equal parts of training.
    first_order_epochs: parts of training, at its beginning, without second derivatives.
    epoch, first_order: of this moment; `at` sets them.

    Keys: `lr/<key>` [inner_steps] for every adapted key; `step/<norm key>` [inner_steps - 1, ...] for all steps but the last,
    whose norms, and those with which queries are answered, are the net's own.
    """

    inner_lr: float | Tensor = 0.1
    inner_steps: int = 5
    test_steps: int | None = None
    multi_step: bool = True
    multi_step_epochs: int = 10
    learnt_rates: bool = True
    norms_per_step: bool = True
    first_order_epochs: int = 0
    epochs: int = 100
    epoch: float | Tensor = 0.0
    first_order: bool = False

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(first_order_epochs=self.first_order_epochs)
        inner.check(least=1, multi_step_epochs=self.multi_step_epochs, epochs=self.epochs)

    def init(self, net: Net, generator: Generator) -> Params:
        inner.check(least=1, inner_steps=self.inner_steps)
        params = net.init(generator)
        rates: Params = {}
        if self.learnt_rates:
            rates = {f"lr/{k}": torch.ones(self.inner_steps) * self.inner_lr for k in params if adapted(k)}
        if not self.norms_per_step or self.inner_steps < 2:
            return params | rates
        norms = {k: v for k, v in params.items() if "/norm/" in k}
        return params | rates | {f"step/{k}": torch.stack([v] * (self.inner_steps - 1)) for k, v in norms.items()}

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        unadapted = {k: v for k, v in meta.items() if adapted(k)} | self._norms(meta, 0)
        return [unadapted, *self._steps(net, loss, meta, support_x, support_y)][-1]

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.multi_step:
            return super().episode_loss(net, loss, meta, episode)
        weights = multi_step_weights(self.inner_steps, self.multi_step_epochs, self.epoch, like=episode.query_x)
        along = self._steps(net, loss, meta, episode.support_x, episode.support_y)
        losses = [loss(self.predict(net, meta, task, episode.query_x), episode.query_y) for task in along]
        return torch.stack(losses) @ weights, {"last_loss": losses[-1]}

    def at(self, progress: float) -> MAMLPP:
        epoch = int(progress * self.epochs)
        return replace(
            self, epoch=float(epoch), multi_step=self.multi_step and epoch < self.multi_step_epochs,
            first_order=epoch < self.first_order_epochs,
        )

    def at_test(self) -> MAMLPP:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)

    def _steps(self, net: Net, loss: Loss, meta: Params, x: Tensor, y: Tensor) -> Iterator[Params]:
        """theta_1, theta_2, ..., each with the norms of the step that made it."""
        theta = {k: v for k, v in meta.items() if adapted(k)}
        for j in range(self.inner_steps):
            norms = self._norms(meta, j)

            def support_loss(fast: Params, norms: Params = norms) -> tuple[Tensor, tuple[()]]:
                return loss(net.apply({**meta, **norms, **fast}, x), y), ()

            _, _, grads = gradients.value_and_gradient(support_loss, theta, differentiable=not self.first_order)
            theta = {k: inner.descend(p, grads[k], self._rate(meta, k, j)) for k, p in theta.items()}
            yield theta | norms

    def _rate(self, meta: Params, key: str, j: int) -> float | Tensor:
        if not self.learnt_rates:
            return self.inner_lr
        rates = meta[f"lr/{key}"]
        return rates[min(j, len(rates) - 1)]

    def _norms(self, meta: Params, j: int) -> Params:
        """The norm keys of inner step j, as the net reads them."""
        rows = {k.removeprefix("step/"): v for k, v in meta.items() if k.startswith("step/")}
        return {k: v[j] if j < len(v) else meta[k] for k, v in rows.items()}


def multi_step_weights(steps: int, epochs: int, epoch: float | Tensor, *, like: Tensor) -> Tensor:
    """v_1 ... v_n of an epoch < epochs: all 1/n at first; each but the last falls by 1/(n epochs) an epoch, down to 0.03/n, and
    the last one gains what they lose. [n], of the dtype and on the device of `like`."""
    n = steps
    now = torch.as_tensor(epoch, dtype=like.dtype, device=like.device)
    early = (1 / n - now / (n * epochs)).clamp(min=0.03 / n)
    last = (1 / n + now * (n - 1) / (n * epochs)).clamp(max=1 - (n - 1) * 0.03 / n)
    return torch.stack([early] * (n - 1) + [last])
