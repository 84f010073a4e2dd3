"""The LSTM meta-learner: a learner's weights are the cell of an LSTM, whose gates decide what to forget and how far to step.

Ravi, Larochelle. "Optimization as a Model for Few-Shot Learning". ICLR 2017. https://openreview.net/forum?id=rJY0-Kcll
c_t = f_t c_{t-1} - i_t g_t (eq. 2, the candidate is the negative gradient), one f_t and i_t a coordinate, their weights
shared by all: a small LSTM reads loss and gradient of each coordinate, the gates read it, c_{t-1} and what they were before
(eqs. 3 and 4). c_0 is learnt: it is the initialisation. Gradients are constants to the outer loop, as in the paper: no second
order. With f = 1 and i = lr for good it is SGD.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _coordinates, gradients, inner
from metasearch.nets import Net, Params, adapted, lstm


@dataclass(frozen=True)
class MetaLSTM(Learner):
    """inner_steps: over the whole support set (the authors' 12 for 1 shot, 8 for 5). test_steps: when validated or tested;
    None: as in training. hidden: of the LSTM (`lstm/...`) before the gates (`gates/...`).
    recurrent:   what a gate reads of its past: "logit", before the sigmoid (the authors' code), or "gate", behind it (paper).
    forget_bias, input_bias: biases begin uniform between these and one more; the authors' 4, -5 make f about .99 and i .01.
    p:           of the preprocessing (learners/_coordinates.py).
    """

    inner_steps: int = 12
    test_steps: int | None = None
    hidden: int = 20
    recurrent: Literal["logit", "gate"] = "logit"
    forget_bias: float = 4.0
    input_bias: float = -5.0
    p: int = 10

    def __post_init__(self) -> None:
        inner.check(inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(least=1, hidden=self.hidden, p=self.p)
        if self.recurrent not in ("logit", "gate"):
            raise ValueError(f"recurrent is 'logit' or 'gate', but got {self.recurrent!r}")

    def init(self, net: Net, generator: Generator) -> Params:
        def uniform(*shape: int, low: float = -0.01, high: float = 0.01) -> Tensor:
            return torch.empty(shape).uniform_(low, high, generator=generator)

        meta = net.init(generator)
        meta |= {k: uniform(*v.shape) for k, v in lstm.init("lstm", 4, self.hidden, generator).items()}
        for gate, low in (("forget", self.forget_bias), ("input", self.input_bias)):
            meta[f"gates/{gate}/weight"] = uniform(1, self.hidden + 2)
            meta[f"gates/{gate}/bias"] = uniform(1, low=low, high=low + 1)
        return meta

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        def support_loss(fast: Params) -> tuple[Tensor, tuple[()]]:
            return loss(net.apply({**meta, **fast}, support_x), support_y), ()

        theta = {k: v for k, v in meta.items() if adapted(k)}
        c = _coordinates.flat(theta)  # [P]
        nothing = torch.zeros_like(c)
        forget, step = nothing, nothing
        state = (nothing.expand(self.hidden, -1), nothing.expand(self.hidden, -1))  # coordinates are columns
        for _ in range(self.inner_steps):
            value, _, grads = gradients.value_and_gradient(support_loss, _coordinates.like(c, theta), differentiable=False)
            g = _coordinates.flat(grads).detach()
            told = _coordinates.log_and_sign(value.detach(), self.p)[:, None].expand(2, len(g))
            state = lstm.step_in_columns(meta, "lstm", torch.cat([told, _coordinates.log_and_sign(g, self.p).T]), state)
            forget = self._gate(meta, "forget", state[0], c, forget)  # eq. 4
            step = self._gate(meta, "input", state[0], c, step)  # eq. 3
            c = forget.sigmoid() * c - step.sigmoid() * g  # eq. 2
        return _coordinates.like(c, theta)

    def _gate(self, meta: Params, gate: str, h: Tensor, c: Tensor, before: Tensor) -> Tensor:
        """The gate's logit [P], from the LSTM's output h [H, P], the weights c [P] and its own logit before [P]."""
        own = before.sigmoid() if self.recurrent == "gate" else before
        of_h, of_c, of_own = torch.split(meta[f"gates/{gate}/weight"], [self.hidden, 1, 1], 1)
        return (of_h @ h + of_c * c + of_own * own)[0] + meta[f"gates/{gate}/bias"]

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        return net.apply({**meta, **task}, query_x)

    def at_test(self) -> MetaLSTM:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)
