"""T-NAS: MAML over weights and architecture; a task adapts both by the same few steps on its supports.

Lian, Zheng, Xu, Lu, Lin, Zhao, Huang, Gao. "Towards Fast Adaptation of Neural Architectures with Meta Learning." ICLR 2020.
https://openreview.net/forum?id=r1eowANFvr; numbers as in the authors' code (dongzelian/T-NAS).
(w, theta)_{m+1} = (w, theta)_m - (inner_lr, arch_lr) * gradient of the support loss, both by one backward ("together", the
code), or theta first and w with the new theta ("alternately"); the outer loss is that of the queries after `inner_steps` of
them. The code is of first order; `first_order = False` differentiates through the steps. A task's architecture is read from
theta by DARTS' rule (nets/discrete.py). Published, each task's net is then trained anew by MAML; here queries are predicted
with the adapted weights, after `tune_steps` more of them in that architecture alone. Without `arch/` this is MAML.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params, adapted
from metasearch.nets.discrete import ARCH, EDGES, Choices, Discrete

Update = Literal["together", "alternately"]


@dataclass(frozen=True)
class TNAS(Learner):
    """inner_lr, arch_lr: of weights and architecture, on the *mean* loss over the supports. That of the architecture is large,
    for a logit's gradient is small (published: 30).

    test_steps: inner steps when validated or tested; None: as in training.
    tune_steps: of the weights alone, in the task's own architecture, where queries are predicted by it.
    discrete:   queries are predicted by one architecture rather than by the mixture: "test": when validated or tested.
    """

    inner_lr: float | Tensor = 0.01
    arch_lr: float | Tensor = 30.0
    inner_steps: int = 5
    test_steps: int | None = None
    first_order: bool = True
    update: Update = "together"
    tune_steps: int = 0
    choices: Choices = EDGES
    discrete: Discrete = "test"

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, arch_lr=self.arch_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(tune_steps=self.tune_steps)
        for name, known in (("update", get_args(Update)), ("discrete", get_args(Discrete))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, but got {getattr(self, name)!r}")

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        def support_loss(p: Params) -> Tensor:
            return loss(net.apply({**meta, **p}, support_x), support_y)

        def steps(p: Params, rest: Params, lr: dict[str, float | Tensor], count: int) -> Params:
            """`count` steps of these keys, the others as `rest` has them. Of views, since `rest` may be a function of p, and an
            inner gradient does not go through that."""
            p = {k: v.view_as(v) for k, v in p.items()}
            return inner.sgd_steps(lambda q: support_loss({**rest, **q}), p, lr=lr, steps=count, first_order=self.first_order)

        w = {k: v for k, v in meta.items() if adapted(k)}
        a = {k: v for k, v in meta.items() if k.startswith(ARCH)}
        of_w = dict.fromkeys(w, self.inner_lr)
        of_a = dict.fromkeys(a, self.arch_lr)
        if self.update == "together":
            both = steps({**w, **a}, {}, of_w | of_a, self.inner_steps)
            w, a = {k: both[k] for k in w}, {k: both[k] for k in a}
        else:
            for _ in range(self.inner_steps):
                a = steps(a, w, of_a, 1) if a else a
                w = steps(w, a, of_w, 1)
        if self.discrete == "always":
            w = steps(w, self.choices.hard(a), of_w, self.tune_steps)
        return {**w, **a}

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        a = {k: v for k, v in task.items() if k.startswith(ARCH)}
        read = self.choices.hard(a) if self.discrete == "always" else self.mixed(a)
        return net.apply({**meta, **task, **read}, query_x)

    def mixed(self, arch: Params) -> Params:
        """What the net reads of a task's adapted architecture where queries are predicted by the mixture."""
        return arch

    def at_test(self) -> TNAS:
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        discrete: Discrete = "always" if self.discrete == "test" else self.discrete
        return replace(self, inner_steps=steps, discrete=discrete)
