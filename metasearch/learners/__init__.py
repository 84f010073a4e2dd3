"""HOW ONE EPISODE IS LEARNT: pure functions on ONE episode; the trainer does the vmap.

One file is one learner: a frozen dataclass of hyper-parameters with no other state. Float fields may be tensors, so that
`replace(MAML(), inner_lr=tensor)` under a second vmap runs several trials as one program.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Generator, Tensor

from metasearch.learners import _gradient as gradients
from metasearch.learners import _inner as inner
from metasearch.nets import Net, Params, learnt
from metasearch.tasks import Episode, Kind, TaskDistribution, TaskShape

__all__ = ["Learner", "Loss", "gradients", "inner"]

Loss = Callable[[Tensor, Tensor], Tensor]  # (output [M, N], y [M, N]) -> []


@dataclass(frozen=True)
class Learner(ABC):
    """Learns one episode.

    head:   True if the net's outputs are the N logits (or values) of the episode; False if they are an embedding [M, D].
    looped: a reason, in words, why the trainer must not vmap this learner; None if it may.
    pooled: True if no gradient is taken inside an episode: the trainer then differentiates the mean loss of a batch of episodes
            once, instead of every episode's. The numbers are the same; a big net's gradients are not written B times.
    kinds:  of tasks that it can learn. A study that pairs it with others is refused before it starts.
    """

    head: ClassVar[bool] = True
    looped: ClassVar[str | None] = None
    pooled: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("classes", "regression")

    def init(self, net: Net, generator: Generator) -> Params:
        """Everything that the outer loop learns."""
        return net.init(generator)

    def check(self, tasks: TaskDistribution, shape: TaskShape) -> None:
        """Raises ValueError (law, value, way out) for tasks, or episodes of a shape, that it cannot learn; by default: for tasks
        of another kind than `kinds`."""
        if tasks.kind not in self.kinds:
            learns = f"{type(self).__name__} learns tasks of {' and '.join(self.kinds)}"
            raise ValueError(f"{learns}, but {type(tasks).__name__} is of {tasks.kind}")

    @abstractmethod
    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Any:
        """What was learnt from the support set [M, *x], [M, N]: a tensor or a (nested) dict or tuple of tensors."""

    @abstractmethod
    def predict(self, net: Net, meta: Params, task: Any, query_x: Tensor) -> Tensor:
        """Output [Q, N] for the queries [Q, *x], given what `adapt` learnt."""

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The outer loss of one episode and what else is worth showing (scalars)."""
        task = self.adapt(net, loss, meta, episode.support_x, episode.support_y)
        return loss(self.predict(net, meta, task, episode.query_x), episode.query_y), {}

    def episode_gradient(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Params, dict[str, Tensor]]:
        """What the outer optimiser is given for one episode: d episode_loss / d meta, for every learnt key."""
        fixed = {k: v for k, v in meta.items() if not learnt(k)}

        def f(free: Params) -> tuple[Tensor, dict[str, Tensor]]:
            return self.episode_loss(net, loss, {**fixed, **free}, episode)

        free = {k: v for k, v in meta.items() if learnt(k)}
        value, metrics, grads = gradients.value_and_gradient(f, free, differentiable=False)
        return grads, {k: m.detach() for k, m in {"loss": value, **metrics}.items()}

    def probabilities(self, outputs: Tensor) -> Tensor:
        """What `predict` says of classes [..., N] as probabilities [..., N] that add to 1: their softmax, unless outputs are no
        logits."""
        return outputs.softmax(-1)

    def similarity(self, net: Net, meta: Params, a: Tensor, b: Tensor) -> Tensor | None:
        """How surely a[i] and b[i] are of one class: [P, *x], [P, *x] -> [P], larger is surer; None if the learner cannot say."""
        return None

    def at(self, progress: float) -> Learner:
        """The learner at a point of training, progress in [0, 1] (step-dependent learners); itself by default."""
        return self

    def at_test(self) -> Learner:
        """The learner that is validated and tested (more inner steps, say); itself by default."""
        return self

    def noise(self, shape: TaskShape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the standard normal noise that one episode needs; the trainer draws it as `episode.noise`."""
        return {}
