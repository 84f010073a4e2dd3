"""MANN: a recurrent network writes what it sees into an external memory, over what it has used least.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap. "Meta-Learning with Memory-Augmented Neural Networks". ICML 2016.
https://arxiv.org/abs/1605.06065 (as "One-shot Learning with ...") · https://github.com/tristandeleu/ntm-one-shot
A whole episode is one sequence; at step t the network sees x_t and the label of x_{t-1}, and names x_t: it can be right only by
keeping x until its label comes, and both until the class comes again. The loss is over all steps. Where paper and
reimplementation differ this is the latter: head i writes to the i-th least used slot (the paper: every head to the n least
used), and what is written is a vector of its own (`write`).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _embedding, _linear, gradients, inner
from metasearch.nets import Net, Params, learnt, lstm
from metasearch.tasks import Episode, Kind, TaskShape

State = dict[str, Tensor]  # see MANN.begin
EPS = 1e-6  # beneath the root of the cosine: a slot of zeros has similarity 0
MEMORY = 1e-6  # of every slot in the beginning


@dataclass(frozen=True)
class MANN(Learner):
    """hidden:  units of the LSTM controller. slots, width: of the memory. heads: that read, and that write.
    decay:     of the usage, a step (gamma).
    sharpness: of reading: softmax(sharpness * cosine). 1.0 is the paper's: nearly uniform over 128 slots.
    write:     "add": a vector of its own; "key": the paper's, which writes the key with which it reads.
    normed:    from every item's features `mann/centre` is taken off, and they are brought to mean 0 and variance 1, before the
               controller sees them. Keys are compared by cosine: what all features have in common makes all keys alike, and
               behind a ReLU that is most of them. The centre begins at 0 and is learnt; with a net that was trained before, begin
               with the mean of its features.
    frozen:    the net stays as it is, say as a parent's training left it: no gradient is taken through it, and the optimiser
               must have no rule for `net/` (by_prefix), or the moments that it inherits would move the weights."""

    pooled: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    hidden: int = 200
    slots: int = 128
    width: int = 40
    heads: int = 4
    decay: float | Tensor = 0.95
    sharpness: float | Tensor = 1.0
    write: Literal["add", "key"] = "add"
    normed: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        inner.check(least=1, hidden=self.hidden, slots=self.slots, width=self.width, heads=self.heads)
        inner.check(decay=self.decay, sharpness=self.sharpness)
        if self.heads > self.slots:
            raise ValueError(f"every head writes to a slot of its own, but got {self.heads} heads and {self.slots} slots")
        if self.write not in ("add", "key"):
            raise ValueError(f"write is 'add' or 'key', but got {self.write!r}")

    @property
    def read(self) -> int:
        """Numbers read in one step, by all heads."""
        return self.heads * self.width

    def init(self, net: Net, generator: Generator) -> Params:
        told = (2 if self.write == "add" else 1) * self.read + self.heads
        return (
            _embedding.init(net, generator)
            | lstm.init("mann/controller", net.features + net.outputs + self.read, self.hidden, generator, forget_bias=1.0)
            | _linear.init("mann/interface", self.hidden, told, generator)  # keys, what is written, gates
            | _linear.init("mann/head", self.hidden + self.read, net.outputs, generator)
            | ({"mann/centre": torch.zeros(net.features)} if self.normed else {})
        )

    def noise(self, shape: TaskShape) -> Mapping[str, tuple[int, ...]]:
        return {"order": (shape.ways * (shape.shots + shape.queries),)}

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        z, y = self._ordered(net, meta, episode)
        return loss(self._run(meta, z, y).outputs, y), {}

    def episode_gradient(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Params, dict[str, Tensor]]:
        """The same gradient as Learner's. Every step uses the same two matrices; instead of T outer products that are added up
        one by one (two thirds of all time under vmap), their gradients are one product over all steps: of the slopes of what
        the matrices give, found as those of two terms that are 0, and of what they are given."""
        fixed = {k: v for k, v in meta.items() if not learnt(k)}
        free = {k: v for k, v in meta.items() if learnt(k)}
        steps = episode.noise["order"].shape[0]
        bias, told = meta["mann/controller/bias"], meta["mann/interface/bias"]
        terms = {"gates": bias.new_zeros(steps, len(bias)), "told": told.new_zeros(steps, len(told))}

        def f(p: Params) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            known = {**fixed, **{k: p[k] for k in free}}
            z, y = self._ordered(net, known, episode)
            run = self._run(known, z, y, {k: p[k] for k in terms})
            return loss(run.outputs, y), (run.h, run.r)

        value, (h, r), grads = gradients.value_and_gradient(f, {**free, **terms}, differentiable=False)
        gates, told, h, r = grads.pop("gates"), grads.pop("told"), h.detach(), r.detach()
        grads["mann/interface/weight"] = told.T @ h
        grads["mann/controller/weight_h"] = gates[1:].T @ h[:-1]  # before the first step there was nothing
        of_x = grads["mann/controller/weight_x"]
        grads["mann/controller/weight_x"] = torch.cat([of_x[:, :-self.read], gates[1:].T @ r[:-1]], dim=1)
        return grads, {"loss": value.detach()}

    def _ordered(self, net: Net, meta: Params, episode: Episode) -> tuple[Tensor, Tensor]:
        """Features [T, D] and labels [T, N] of the whole episode in the order of its noise."""
        order = episode.noise["order"].argsort()
        z = self.embed(net, meta, torch.cat([episode.support_x, episode.query_x]))
        return z[order], torch.cat([episode.support_y, episode.query_y])[order]

    def sequence(self, net: Net, meta: Params, x: Tensor, y: Tensor) -> Tensor:
        """Outputs [T, N] of every item of a sequence x [T, *x], of which y [T, N] are shown one step late."""
        return self._run(meta, self.embed(net, meta, x), y).outputs

    def embed(self, net: Net, meta: Params, x: Tensor) -> Tensor:
        """Items [M, *x] -> what the controller is given of them [M, D]."""
        return _embedding.alone(net, meta, x, meta["mann/centre"] if self.normed else None, frozen=self.frozen)

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.norm == "transductive":  # the supports wait for the queries
            return {"support": support_x, "y": support_y}
        return self._run(meta, self.embed(net, meta, support_x), support_y).state

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        """Every query is the item that comes after the supports."""
        if "support" in task:
            y = task["y"]
            support, z = self.embed(net, meta, torch.cat([task["support"], query_x])).tensor_split([len(y)])
            task = self._run(meta, support, y).state
        else:
            z = self.embed(net, meta, query_x)
        each = {k: v.expand(z.shape[0], *v.shape) for k, v in task.items()}
        after = self.step(self.weights(meta), seen(meta, z, each["y"]), each)
        return _linear.apply(meta, "mann/head", torch.cat([after["h"], after["r"]], dim=-1))

    def _run(self, meta: Params, z: Tensor, y: Tensor, terms: Params | None = None) -> Run:
        """Features [T, D], labels [T, N] -> outputs [T, N]. terms: of `episode_gradient`; the matrices are constants then."""
        late = torch.cat([torch.zeros_like(y[:1]), y[:-1]])
        state, known, h, r = self.begin(y), self.weights(meta), [], []
        kind = "cpu" if z.is_meta else z.device.type  # autocast knows no shapes without numbers
        with torch.autocast(kind, enabled=False):  # a memory is a sum of many small parts
            gates, told = seen(meta, z.to(y.dtype), late), known.bias.expand(y.shape[0], -1)
            if terms is not None:
                gates, told = gates + terms["gates"], told + terms["told"]
                known = Weights(known.recurrent.detach(), known.interface.detach(), known.bias)
            for one, bias in zip(gates.unbind(), told.unbind(), strict=True):
                state = self.step(known._replace(bias=bias), one, state)
                h.append(state["h"])
                r.append(state["r"])
            units, reads = torch.stack(h), torch.stack(r)
            outputs = _linear.apply(meta, "mann/head", torch.cat([units, reads], dim=1))
        return Run(outputs, units, reads, {**state, "y": y[-1]})

    def weights(self, meta: Params) -> Weights:
        reads = meta["mann/controller/weight_x"][:, -self.read:]
        recurrent = torch.cat([reads, meta["mann/controller/weight_h"]], dim=1)
        return Weights(recurrent, meta["mann/interface/weight"], meta["mann/interface/bias"])

    def begin(self, like: Tensor) -> State:
        """Before the first step: h, c [H] of the controller; r [R * W], what was read; memory [S, W]; reads [R, S], where
        from; usage [S]. A label y [N], of the last item, is there only in what `adapt` gives."""
        first = torch.arange(self.slots, device=like.device).eq(0).to(like.dtype)
        return {
            "h": like.new_zeros(self.hidden), "c": like.new_zeros(self.hidden), "r": like.new_zeros(self.read),
            "memory": like.new_full((self.slots, self.width), MEMORY), "reads": first.expand(self.heads, -1), "usage": first,
        }

    def step(self, known: Weights, seen: Tensor, state: State) -> State:
        """One step of any number [...] of sequences; seen [..., 4H]: the item's part of the controller's gates."""
        recurrent = F.linear(torch.cat([state["r"], state["h"]], dim=-1), known.recurrent)
        h, c = lstm.cell(seen + recurrent, state["c"])
        told = F.linear(h, known.interface, known.bias)
        gates = told[..., -self.heads:, None].sigmoid()  # [..., R, 1]
        vectors = told[..., :-self.heads].tanh()
        vectors = vectors.reshape(*vectors.shape[:-1], -1, self.width)  # [..., R or 2R, W]
        keys, written = vectors[..., : self.heads, :], vectors[..., -self.heads:, :]
        return {"h": h, "c": c} | self.access(state, keys, written, gates)

    def access(self, state: State, keys: Tensor, written: Tensor, gates: Tensor) -> State:
        """Least recently used access: write (eq. 6-8), then read (eq. 2-4), then count the usage (eq. 5)."""
        free = least_used(state["usage"], self.heads).to(keys.dtype)  # [..., R, S]
        writes = torch.lerp(free, state["reads"], gates)
        memory = state["memory"] * (1 - free[..., 0, :, None]) + writes.mT @ written
        reads = (self.sharpness * cosine(keys, memory)).softmax(dim=-1)
        used = (reads + writes).detach().sum(dim=-2)  # decides, by an order, in which nothing can be differentiated
        r = (reads @ memory).flatten(-2)
        return {"memory": memory, "reads": reads, "usage": self.decay * state["usage"] + used, "r": r}


class Weights(NamedTuple):
    """Of one step, laid out for few products. recurrent: of what was read and the last h [4H, R * W + H]."""

    recurrent: Tensor
    interface: Tensor
    bias: Tensor


class Run(NamedTuple):
    """outputs [T, N]; h [T, H] and r [T, R * W] after every step; state after all of them, and the last label."""

    outputs: Tensor
    h: Tensor
    r: Tensor
    state: State


def seen(meta: Params, z: Tensor, late: Tensor) -> Tensor:
    """What the controller's gates owe to the items z [T, D] and the labels before them [T, N]: one product for all steps."""
    x = torch.cat([z, late], dim=1)
    return F.linear(x, meta["mann/controller/weight_x"][:, : x.shape[1]], meta["mann/controller/bias"])


def least_used(usage: Tensor, n: int) -> Tensor:
    """Usage [..., S] -> where its n smallest entries are, smallest first: bool [..., n, S]."""
    places = usage.topk(n, largest=False, sorted=True).indices
    return places[..., None] == torch.arange(usage.shape[-1], device=usage.device)


def cosine(keys: Tensor, memory: Tensor) -> Tensor:
    """Keys [..., R, W], memory [..., S, W] -> [..., R, S]."""
    squares = keys.square().sum(-1)[..., :, None] * memory.square().sum(-1)[..., None, :]
    return keys @ memory.mT * (squares + EPS).rsqrt()
