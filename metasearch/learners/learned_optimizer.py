"""Learning to learn by gradient descent by gradient descent: the inner loop's update rule is a small LSTM.

Andrychowicz, Denil, Gomez, Hoffman, Pfau, Schaul, Shillingford, de Freitas. NeurIPS 2016. https://arxiv.org/abs/1606.04474
theta_{t+1} = theta_t + g_t, [g_t, h_{t+1}] = m(gradient_t, h_t, phi) (eq. 3): m is two LSTM layers and a linear one, the same
for all coordinates, each with a memory of its own. What is minimised is the sum of f(theta_t) over all steps (w_t = 1), and
gradients are constants to it, as in the authors' code. f is the loss of the queries: other data of the same function, or the
same data (quadratics).

Two ways to train it: `fit=unroll` (objectives/unroll.py) is the paper's, in which the optimiser alone is learnt and weights
begin anywhere; `episodic` training learns the initialisation, too, through `inner_steps` steps.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import linear

from metasearch.learners import Learner, Loss, _coordinates, gradients, inner
from metasearch.nets import Net, Params, adapted, lstm
from metasearch.tasks import Episode, TaskDistribution, TaskShape


@dataclass(frozen=True)
class LearnedOptimizer(Learner):
    """inner_steps: of training; those of a truncation where it is unrolled (the paper's 20). test_steps: when validated or
    tested (its 100 on quadratics); None: as in training.
    core:   m. "lstm"; or "rate": -a times the gradient with a learnt a (`optimizer/rate`), the simplest optimiser of all.
    hidden: of both LSTM layers. scale: what m's output is multiplied with (and where `optimizer/rate` begins).
    p:      of the preprocessing (learners/_coordinates.py), 10 in the paper; None: m reads the gradient as it is, as on
            quadratics.
    """

    inner_steps: int = 20
    test_steps: int | None = None
    core: Literal["lstm", "rate"] = "lstm"
    hidden: int = 20
    scale: float | Tensor = 0.1
    p: int | None = 10

    def __post_init__(self) -> None:
        inner.check(scale=self.scale, inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(least=1, hidden=self.hidden, p=self.p)
        if self.core not in ("lstm", "rate"):
            raise ValueError(f"core is 'lstm' or 'rate', but got {self.core!r}")

    def check(self, tasks: TaskDistribution, shape: TaskShape) -> None:
        super().check(tasks, shape)
        inner.check(least=1, inner_steps=self.inner_steps)  # tested after 0 steps it may be (an adaptation curve begins there)

    def init(self, net: Net, generator: Generator) -> Params:
        meta = net.init(generator)
        if self.core == "rate":
            return meta | {"optimizer/rate": torch.as_tensor(self.scale, dtype=torch.float32)}
        meta |= lstm.init("optimizer/lstm1", 1 if self.p is None else 2, self.hidden, generator, forget_bias=1.0)
        meta |= lstm.init("optimizer/lstm2", self.hidden, self.hidden, generator, forget_bias=1.0)
        weight = torch.empty(1, self.hidden).uniform_(-(self.hidden**-0.5), self.hidden**-0.5, generator=generator)
        return meta | {"optimizer/out/weight": weight, "optimizer/out/bias": torch.zeros(1)}

    def memory(self, theta: Params) -> Params:
        """h_0 of every coordinate: [P, H] each."""
        zeros = _coordinates.flat(theta).detach()[:, None].expand(-1, self.hidden) * 0
        return {} if self.core == "rate" else dict.fromkeys(("h1", "c1", "h2", "c2"), zeros)

    def update(self, meta: Params, g: Tensor, memory: Params) -> tuple[Tensor, Params]:
        """m: gradient [P], h_t -> update [P], h_{t+1}."""
        if self.core == "rate":
            return -meta["optimizer/rate"] * g, {}
        x = g[:, None] if self.p is None else _coordinates.log_and_sign(g, self.p)
        h1, c1 = lstm.step(meta, "optimizer/lstm1", x, (memory["h1"], memory["c1"]))
        h2, c2 = lstm.step(meta, "optimizer/lstm2", h1, (memory["h2"], memory["c2"]))
        out = linear(h2, meta["optimizer/out/weight"], meta["optimizer/out/bias"])[:, 0]
        return self.scale * out, {"h1": h1, "c1": c1, "h2": h2, "c2": c2}

    def step(
        self, net: Net, loss: Loss, meta: Params, theta: Params, memory: Params, x: Tensor, y: Tensor
    ) -> tuple[Params, Params]:
        """(theta_{t+1}, h_{t+1}), on the loss of x and y."""
        def objective(p: Params) -> tuple[Tensor, tuple[()]]:
            return loss(net.apply({**meta, **p}, x), y), ()

        _, _, grads = gradients.value_and_gradient(objective, theta, differentiable=False)
        change, memory = self.update(meta, _coordinates.flat(grads).detach(), memory)
        return {k: theta[k] + d for k, d in _coordinates.like(change, theta).items()}, memory

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        theta = {k: v for k, v in meta.items() if adapted(k)}
        memory = self.memory(theta)
        for _ in range(self.inner_steps):
            theta, memory = self.step(net, loss, meta, theta, memory, support_x, support_y)
        return theta

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of f over all steps; shown as their mean, and f at the end."""
        theta = {k: v for k, v in meta.items() if adapted(k)}
        total, last, _, _ = self.unrolled(net, loss, meta, theta, self.memory(theta), episode)
        return total, {"loss": total / self.inner_steps, "last": last}

    def unrolled(
        self, net: Net, loss: Loss, meta: Params, theta: Params, memory: Params, episode: Episode
    ) -> tuple[Tensor, Tensor, Params, Params]:
        """(sum of f(theta_t) for t = 1 ... inner_steps, the last of them, theta and h at the end)."""
        values = []
        for _ in range(self.inner_steps):
            theta, memory = self.step(net, loss, meta, theta, memory, episode.support_x, episode.support_y)
            values.append(loss(net.apply({**meta, **theta}, episode.query_x), episode.query_y))
        return torch.stack(values).sum(), values[-1], theta, memory

    def at_test(self) -> LearnedOptimizer:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)
