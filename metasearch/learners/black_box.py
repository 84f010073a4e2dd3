"""Black-box adaptation: a network reads the support set, and what it makes of it is all that a query is given.

h = aggregate of e(x_i, y_i), y* = g(x*, h). "lstm": Hochreiter, Younger, Conwell. "Learning to Learn Using Gradient Descent".
ICANN 2001 · "mean": Garnelo et al. "Conditional Neural Processes". ICML 2018. https://arxiv.org/abs/1807.01613
There is no inner loop, no gradient and no memory but h. The loss is on queries alone.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _embedding, _linear, inner
from metasearch.nets import Net, Params, lstm
from metasearch.tasks import Episode


@dataclass(frozen=True)
class BlackBox(Learner):
    """aggregate: "lstm": the supports in the episode's order, which is random, then each query with a label of zeros as the
               next item; "mean": the mean of e over the supports, in which no order can show.
    hidden:    units of the LSTM, or of e and of the layer in g.
    normed:    from every item's features `black_box/centre` is taken off, and they are brought to mean 0 and variance 1, before
               anything is made of them, as in MANN: behind a ReLU the features of two classes are nearly alike.
    frozen:    the net stays as a parent's training left it: no gradient goes through it, and the optimiser must have no rule for
               `net/` (by_prefix)."""

    pooled: ClassVar[bool] = True

    aggregate: Literal["lstm", "mean"] = "lstm"
    hidden: int = 128
    normed: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.aggregate not in ("lstm", "mean"):
            raise ValueError(f"aggregate is 'lstm' or 'mean', but got {self.aggregate!r}")
        inner.check(least=1, hidden=self.hidden)

    def init(self, net: Net, generator: Generator) -> Params:
        params, pair = _embedding.init(net, generator), net.features + net.outputs
        if self.aggregate == "lstm":
            params |= lstm.init("black_box/lstm", pair, self.hidden, generator, forget_bias=1.0)
        else:
            params |= _linear.init("black_box/pair", pair, self.hidden, generator)
            params |= _linear.init("black_box/code", self.hidden, self.hidden, generator)
            params |= _linear.init("black_box/query", net.features + self.hidden, self.hidden, generator)
        centre = {"black_box/centre": torch.zeros(net.features)} if self.normed else {}
        return params | _linear.init("black_box/head", self.hidden, net.outputs, generator) | centre

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.norm == "transductive":  # the supports wait for the queries
            return {"support": support_x, "y": support_y}
        return self.read(meta, self.embed(net, meta, support_x), support_y)

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        if "support" in task:
            return self.both(net, meta, task["support"], task["y"], query_x)
        return self.answer(meta, task, self.embed(net, meta, query_x))

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(self.both(net, meta, episode.support_x, episode.support_y, episode.query_x), episode.query_y), {}

    def both(self, net: Net, meta: Params, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Supports and queries go through one forward: outputs [Q, N]."""
        support, query = self.embed(net, meta, torch.cat([support_x, query_x])).tensor_split([len(support_y)])
        return self.answer(meta, self.read(meta, support, support_y), query)

    def embed(self, net: Net, meta: Params, x: Tensor) -> Tensor:
        """Items [M, *x] -> what is made of them [M, D]."""
        return _embedding.alone(net, meta, x, meta["black_box/centre"] if self.normed else None, frozen=self.frozen)

    def read(self, meta: Params, z: Tensor, y: Tensor) -> Params:
        """What a support set of features [M, D] with y [M, N] leaves behind: h (and c of an LSTM), [H] each."""
        pairs = torch.cat([z, y.to(z.dtype)], dim=1)
        if self.aggregate == "mean":
            code = _linear.apply(meta, "black_box/code", _linear.apply(meta, "black_box/pair", pairs).relu())
            return {"h": code.mean(0)}
        h = c = z.new_zeros(self.hidden)
        for pair in pairs.unbind():
            h, c = lstm.step(meta, "black_box/lstm", pair, (h, c))
        return {"h": h, "c": c}

    def answer(self, meta: Params, task: Params, z: Tensor) -> Tensor:
        """Outputs [Q, N] for features [Q, D], each on its own."""
        h = task["h"].expand(z.shape[0], -1)
        if self.aggregate == "mean":
            h = _linear.apply(meta, "black_box/query", torch.cat([z, h], dim=1)).relu()
        else:
            blank = z.new_zeros(z.shape[0], meta["black_box/head/weight"].shape[0])
            h, _ = lstm.step(meta, "black_box/lstm", torch.cat([z, blank], dim=1), (h, task["c"].expand(z.shape[0], -1)))
        return _linear.apply(meta, "black_box/head", h)
