"""MetaNAS: Reptile over weights and architecture; every task ends in an architecture of its own, without training it again.

Elsken, Staffler, Metzen, Hutter. "Meta-Learning of Neural Architectures for Few-Shot Learning." CVPR 2020.
https://arxiv.org/abs/1911.11090; numbers as in the authors' code (boschresearch/metanas).
An inner step is one of DARTS, first order: the architecture `arch/` by its own Adam, then the weights by theirs, as Reptile
has it (learners/reptile.py). Shares are softmax(alpha / T), T falling linearly over the inner steps, so that they end nearly
one-hot (soft pruning), and queries are predicted with what is then chosen for good (nets/discrete.py). The outer loop is
given theta - W of weights and architecture. `none` takes no part, and where a space names the inputs of its nodes, a softmax
over pairs of them decides which two are read. A first part of training, `warm_up`, leaves the architecture alone. Without
`arch/` this is Reptile.
Not here: the authors' drop-path, and second moments that outlive their task (as in learners/reptile.py).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, gradients, inner
from metasearch.nets import Net, Params, learnt
from metasearch.nets.discrete import ARCH, EDGES, Choices, Discrete, entropy
from metasearch.tasks import Episode, TaskShape

Rows = Literal["all", "half"]


@dataclass(frozen=True)
class MetaNAS(Learner):
    """Training knows no queries: supports and queries of an episode are one training set, as for Reptile.

    inner_lr, arch_lr: of the weights and of the architecture; arch_decay: L2 of the latter, where it is still open.
    inner_batch:  rows of a step; architecture and weights have minibatches of their own. None: all rows in every step.
    arch_rows:    "all": both learn on the same rows (the authors' code); "half": each on one half of them, as DARTS does.
    t_max, t_min: temperature in the first and in the last inner step.
    prune:        shares below it are left away: those of the meta-architecture at t_min for a whole task, others step by step.
    warm_up:      share of training in which the architecture, and T = t_max, stay as they are.
    test_steps, test_batch: when validated or tested; None: as in training. There minibatches have a fixed order.
    discrete:     queries are predicted by one architecture rather than by the mixture: "test": when validated or tested.
    searching:    whether the architecture is adapted (`at` says so).
    """

    inner_lr: float | Tensor = 1e-3
    arch_lr: float | Tensor = 1e-3
    inner_steps: int = 5
    inner_batch: int | None = None
    arch_rows: Rows = "all"
    arch_decay: float | Tensor = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    t_max: float | Tensor = 1.0
    t_min: float | Tensor = 0.05
    prune: float | Tensor = 0.01
    warm_up: float | Tensor = 0.5
    test_steps: int | None = None
    test_batch: int | None = None
    choices: Choices = EDGES
    discrete: Discrete = "test"
    searching: bool = True

    def __post_init__(self) -> None:
        inner.check(inner_lr=self.inner_lr, arch_lr=self.arch_lr, inner_steps=self.inner_steps, test_steps=self.test_steps)
        inner.check(arch_decay=self.arch_decay, prune=self.prune, warm_up=self.warm_up)
        inner.check(least=1, inner_batch=self.inner_batch, test_batch=self.test_batch)
        if not isinstance(self.t_min, Tensor) and not isinstance(self.t_max, Tensor) and not 0 < self.t_min <= self.t_max:
            raise ValueError(f"`0 < t_min <= t_max` must hold, but got t_min={self.t_min}, t_max={self.t_max}")
        if not isinstance(self.prune, Tensor) and self.prune >= 1:
            raise ValueError(f"`0 <= prune < 1` must hold, but got prune={self.prune}")
        for name, known in (("optimizer", ("adam", "sgd")), ("arch_rows", get_args(Rows)), ("discrete", get_args(Discrete))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, but got {getattr(self, name)!r}")

    def init(self, net: Net, generator: Generator) -> Params:
        return net.init(generator) | self.choices.begin(generator)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        order = inner.fixed_order(support_x.shape[0], support_x.device)
        w, a, _ = self._train(net, loss, meta, support_x, support_y, order, order.flip(0))
        return {**w, **a}

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        a = {k: v for k, v in task.items() if k.startswith(ARCH)}
        read = self.choices.hard(a) if self.discrete == "always" else self.mixed(a)
        return net.apply({**meta, **task, **read}, query_x)

    def mixed(self, arch: Params) -> Params:
        """What the net reads of a task's adapted architecture where queries are predicted by the mixture."""
        return self._mixed(arch, self.inner_steps - 1)

    def episode_gradient(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Params, dict[str, Tensor]]:
        """theta - W, and the mean loss of the weights' inner steps."""
        x = torch.cat([episode.support_x, episode.query_x])
        y = torch.cat([episode.support_y, episode.query_y])
        order = inner.fixed_order(x.shape[0], x.device)
        orders = [order, order.flip(0)]
        if self.inner_batch is not None:
            if not {"order", "arch order"} <= episode.noise.keys():
                raise ValueError("minibatches need the noise 'order' and 'arch order' (see MetaNAS.noise), but there is none")
            orders = [episode.noise[name][:, : x.shape[0]].argsort(-1).flatten() for name in ("order", "arch order")]
        w, a, value = self._train(net, loss, meta, x, y, *orders)
        moved = {k: (meta[k] - v).detach() for k, v in w.items()}
        # what was closed for this task has not moved
        moved |= {k: torch.where(v.isfinite(), meta[k] - v, 0.0).detach() for k, v in a.items()}
        if not a:
            return moved, {"loss": value}
        return moved, {"loss": value, "arch_entropy": entropy(self.mixed(a)).detach()}

    def _train(
        self, net: Net, loss: Loss, meta: Params, x: Tensor, y: Tensor, order: Tensor, arch_order: Tensor
    ) -> tuple[Params, Params, Tensor]:
        """(weights, architecture, mean loss of the weights' minibatches) after the inner steps."""
        free = {k: v.detach() for k, v in meta.items() if learnt(k)}
        w = {k: v for k, v in free.items() if not k.startswith(ARCH)}
        a = {k: v for k, v in free.items() if k.startswith(ARCH)}
        a = self.choices.closed(a, temperature=self.t_min, least=self.prune if self.searching else 0.0)
        of_w = of_a = (x, y)
        if self.arch_rows == "half":
            if len(x) < 2:
                raise ValueError(f"arch_rows='half' needs 2 rows or more, but a task has {len(x)}. Choose 'all'.")
            of_w, of_a = ((x[rows], y[rows]) for rows in (order[: len(x)][0::2], order[: len(x)][1::2]))
            order = arch_order = torch.arange(len(of_a[0]), device=x.device)
        second: list[Params] = [{k: torch.zeros_like(p) for k, p in part.items()} for part in (w, a)]
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for step in range(self.inner_steps):
            if a and self.searching:
                bx, by = self._rows(*of_a, arch_order, step)

                def by_arch(
                    p: Params, bx: Tensor = bx, by: Tensor = by, w: Params = w, step: int = step
                ) -> tuple[Tensor, tuple[()]]:
                    return loss(net.apply({**meta, **w, **self._mixed(p, step)}, bx), by), ()

                _, _, grads = gradients.value_and_gradient(by_arch, a, differentiable=False)
                grads = {k: g + torch.where(a[k].isfinite(), self.arch_decay * a[k], 0.0) for k, g in grads.items()}
                a, second[1] = self._stepped(a, second[1], grads, self.arch_lr, step)
            read = self._mixed(a, step)
            bx, by = self._rows(*of_w, order, step)

            def by_weights(p: Params, bx: Tensor = bx, by: Tensor = by, read: Params = read) -> tuple[Tensor, tuple[()]]:
                return loss(net.apply({**meta, **p, **read}, bx), by), ()

            value, _, grads = gradients.value_and_gradient(by_weights, w, differentiable=False)
            total = total + value.detach()
            w, second[0] = self._stepped(w, second[0], grads, self.inner_lr, step)
        return w, a, total / max(self.inner_steps, 1)

    def _mixed(self, a: Params, step: int) -> Params:
        """What the net reads in an inner step; T as in the authors' linear schedule."""
        if not self.searching:
            return self.choices.mixed(a, temperature=self.t_max)
        done = step / (self.inner_steps - 1) if self.inner_steps > 1 else 1.0
        return self.choices.mixed(a, temperature=self.t_max + (self.t_min - self.t_max) * done, least=self.prune)

    def _rows(self, x: Tensor, y: Tensor, order: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if self.inner_batch is None or self.inner_batch >= x.shape[0]:
            return x, y
        return inner.minibatch(x, y, order, step * self.inner_batch, self.inner_batch)

    def _stepped(self, p: Params, v: Params, grads: Params, lr: float | Tensor, step: int) -> tuple[Params, Params]:
        if self.optimizer == "sgd":
            return {k: inner.descend(q, grads[k], lr) for k, q in p.items()}, v
        return inner.adam(p, v, grads, lr, step + 1)

    def at(self, progress: float) -> MetaNAS:
        return replace(self, searching=bool(progress >= self.warm_up))

    def at_test(self) -> MetaNAS:
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        discrete: Discrete = "always" if self.discrete == "test" else self.discrete
        return replace(self, inner_steps=steps, inner_batch=self.test_batch or self.inner_batch, discrete=discrete)

    def noise(self, shape: TaskShape) -> Mapping[str, tuple[int, ...]]:
        """"order", "arch order": normal draws whose ranks are permutations of the training set, one a row."""
        if self.inner_batch is None:
            return {}
        least, most = shape.shots + shape.queries, shape.ways * (shape.shots + shape.queries)  # regression, classes
        return dict.fromkeys(("order", "arch order"), (-(-self.inner_steps * self.inner_batch // least), most))
