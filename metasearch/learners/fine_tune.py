"""Fine-tuning: a net that was trained in the ordinary way is trained a little further on each episode's supports.

The practice of the field as fields: new heads and frozen layers (Yosinski et al. NeurIPS 2014), lower rates for lower layers
and gradual unfreezing (Howard, Ruder. ACL 2018. https://arxiv.org/abs/1801.06146), a head that begins at the prototypes
(Triantafillou et al. ICLR 2020. https://arxiv.org/abs/1903.03096), and the SGD with momentum, dampening and weight decay of
Chen et al. ICLR 2019. https://arxiv.org/abs/1904.04232.

Meant for nets trained by `objectives.pretrain`. Trained episodically it is trained as an episode begins: by the loss of the
queries before the first step. With head="kept" that is joint training, with "prototypes" Prototypical Networks, and with "zero"
there is nothing to learn.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _tuning, inner
from metasearch.learners.prototypical import prototypes
from metasearch.nets import Block, Net, Params, adapted
from metasearch.tasks import Episode, TaskDistribution, TaskShape

Head = Literal["zero", "random", "prototypes", "kept"]
HEADS: tuple[Head, ...] = ("zero", "random", "prototypes", "kept")
HEAD = ("net/head/weight", "net/head/bias")


@dataclass(frozen=True)
class FineTune(Learner):
    """inner_lr:       of the head, on the mean loss over the support set. inner_steps: all supports in each.
    layer_decay:    a layer's rate is that of the layer above it times this; 1: one rate for all.
    frozen:         so many of the lowest blocks of the net stay as they are; all of them: the head alone is trained.
    unfreeze_every: the head begins alone, and every so many steps one more block from the top joins; 0: all at once.
    start:          where the head begins, a linear layer on the net's features: "zero"; "prototypes": as the rule of
                    Prototypical Networks, whose logits are linear in the features (class tasks only); "random": at the net's
                    own `net/head/`, which pre-training on classes leaves as it was drawn; "kept": at the same layer, where it
                    was trained (regression).
    momentum, dampening, weight_decay: of torch.optim.SGD.

    Norm parameters are not tuned. A net that is no chain of blocks counts as one block."""

    inner_lr: float | Tensor = 0.01
    inner_steps: int = 50
    layer_decay: float | Tensor = 1.0
    frozen: int = 0
    unfreeze_every: int = 0
    start: Head = "prototypes"
    momentum: float | Tensor = 0.0
    dampening: float | Tensor = 0.0
    weight_decay: float | Tensor = 0.0

    def __post_init__(self) -> None:
        inner.check(
            inner_lr=self.inner_lr, inner_steps=self.inner_steps, layer_decay=self.layer_decay, frozen=self.frozen,
            unfreeze_every=self.unfreeze_every, momentum=self.momentum, dampening=self.dampening,
            weight_decay=self.weight_decay,
        )
        if self.start not in HEADS:
            raise ValueError(f"start is one of {', '.join(HEADS)}, but got {self.start!r}")

    def check(self, tasks: TaskDistribution, shape: TaskShape) -> None:
        super().check(tasks, shape)
        if self.start == "prototypes" and tasks.kind != "classes":
            raise ValueError(f"start='prototypes' begins at the means of classes, but {type(tasks).__name__} is of {tasks.kind}. "
                             "Choose zero or kept.")

    def init(self, net: Net, generator: Generator) -> Params:
        drawn = net.init(generator)
        if self.start in ("random", "kept"):
            if HEAD[0] not in drawn:
                raise ValueError(f"start={self.start!r} needs a net with a head. Build it with `outputs`, or choose "
                                 f"zero or prototypes.")
            return drawn
        return {k: v for k, v in drawn.items() if k not in HEAD}

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        blocks, keys = _layers(net, meta)
        rates: dict[str, float | Tensor] = {
            k: self.inner_lr * self.layer_decay ** (len(blocks) - i) for i, own in enumerate(keys) for k in own
        }
        task = self._head(net, meta, support_x, support_y)
        rates |= dict.fromkeys(task, self.inner_lr)
        velocity: Params = {}
        for steps, lowest in self._stages(len(blocks)):
            z = _through(blocks[:lowest], meta, support_x)  # what is not tuned yet is computed once
            tuned = {k: meta[k] for own in keys[lowest:] for k in own} | task

            def support_loss(p: Params, z: Tensor = z, above: tuple[Block, ...] = blocks[lowest:]) -> Tensor:
                return loss(_read({**meta, **p}, _through(above, {**meta, **p}, z)), support_y)

            task, velocity = _tuning.sgd(
                support_loss, tuned, velocity, rates=rates, steps=steps, momentum=self.momentum, dampening=self.dampening,
                weight_decay=self.weight_decay,
            )
        return task

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        now = {**meta, **task}
        return _read(now, net.embed(now, query_x))

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        return Learner.episode_loss(replace(self, inner_steps=0), net, loss, meta, episode)

    def _head(self, net: Net, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        """weight [N, D], bias [N]."""
        if self.start in ("random", "kept"):
            return {k: meta[k] for k in HEAD}
        z = net.embed(meta, support_x)  # [M, D]
        if self.start == "zero":
            weight = torch.zeros_like(support_y.T @ z)
            return {HEAD[0]: weight, HEAD[1]: torch.zeros_like(weight[:, 0])}
        c = prototypes(z, support_y)
        return {HEAD[0]: 2 * c, HEAD[1]: -c.square().sum(-1)}  # -|z - c|^2 less |z|^2, which all classes share

    def _stages(self, blocks: int) -> Iterator[tuple[int, int]]:
        """(steps, number of the lowest block that is tuned in them; `blocks` where the head is alone)."""
        least = min(self.frozen, blocks)
        lowest, left = (blocks if self.unfreeze_every else least), self.inner_steps
        while left > 0:
            steps = left if lowest == least else min(left, self.unfreeze_every)
            yield steps, lowest
            left, lowest = left - steps, max(least, lowest - 1)


def _layers(net: Net, meta: Params) -> tuple[tuple[Block, ...], list[list[str]]]:
    """The blocks of a net's body, lowest first, and the keys of each that may be tuned."""
    body = [k for k in meta if adapted(k) and k not in HEAD]
    if not net.blocks:
        return (Block("", net.embed),), [body]
    return net.blocks, [[k for k in body if k.startswith(f"net/{block.key}/")] for block in net.blocks]


def _through(blocks: tuple[Block, ...], params: Params, x: Tensor) -> Tensor:
    for block in blocks:
        x = block.apply(params, x)
    return x


def _read(params: Params, z: Tensor) -> Tensor:
    return F.linear(z, params[HEAD[0]], params[HEAD[1]])
