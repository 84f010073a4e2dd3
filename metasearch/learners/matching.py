"""Matching Networks: a query takes the label of the supports that it attends to.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra. "Matching Networks for One Shot Learning". NeurIPS 2016.
https://arxiv.org/abs/1606.04080
p(y | x, S) = sum_i a(x, x_i) y_i (eq. 1), a = softmax_i of cos(f(x), g(x_i)). "simple": f = g = the net. "full-context"
(appendix A): g(x_i, S) = g'(x_i) + h_forward_i + h_backward_i, a bidirectional LSTM over the supports as a sequence, in the
episode's order, which is random; f(x, S) is the state of an LSTM that reads the supports `reads` times (eq. 3-6).

A softmax of bare cosines caps confidence: p <= e / (e + (N-1)/e), 0.65 at 5 ways, so the loss cannot fall below 0.433 (1.273
at 20 ways) however well it classifies. Hence `scale`. Batch statistics in training are those of supports and queries together.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _embedding, inner
from metasearch.nets import Net, Params, lstm
from metasearch.tasks import Episode, Kind

Distance = Literal["cosine", "euclid"]
Embedding = Literal["simple", "full-context"]
Logits = Literal["attention", "sum"]


@dataclass(frozen=True)
class Matching(Learner):
    """distance: "cosine": attention to scale * cosine similarity; "euclid": to -scale * squared distance.
    scale: 1.0 is the paper's for cosines, and usual for distances.
    embedding: "simple", or "full-context" with `reads` steps of the queries' LSTM (3 in Ravi & Larochelle's code).
    logits: "attention": log sum_i a_i y_i; "sum": the scores summed class by class, without attention (Ravi & Larochelle, ICLR
    2017, whose cosines are bare: scale 1.0)."""

    pooled: ClassVar[bool] = True
    head: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    distance: Distance = "cosine"
    scale: float | Tensor = 10.0
    embedding: Embedding = "simple"
    reads: int = 3
    logits: Logits = "attention"

    def __post_init__(self) -> None:
        if self.distance not in ("cosine", "euclid"):
            raise ValueError(f"distance is 'cosine' or 'euclid', but got {self.distance!r}")
        if self.embedding not in ("simple", "full-context"):
            raise ValueError(f"embedding is 'simple' or 'full-context', but got {self.embedding!r}")
        if self.logits not in ("attention", "sum"):
            raise ValueError(f"logits is 'attention' or 'sum', but got {self.logits!r}")
        inner.check(scale=self.scale)
        inner.check(least=1, reads=self.reads)

    def init(self, net: Net, generator: Generator) -> Params:
        params = net.init(generator)
        if self.embedding == "simple":
            return params
        d = net.features
        for prefix, inputs in (("fce/forward", d), ("fce/backward", d), ("fce/read", 2 * d)):
            params |= lstm.init(prefix, inputs, d, generator)
        return params

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.norm == "transductive":  # supports are embedded together with the queries
            return {"support_x": support_x, "support_y": support_y}
        return {"supports": self._in_context(meta, net.apply(meta, support_x)), "support_y": support_y}

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        if "supports" in task:
            return self._outputs(meta, net.apply(meta, query_x), task["supports"], task["support_y"])
        return self._together(net, meta, task["support_x"], task["support_y"], query_x)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self._together(net, meta, episode.support_x, episode.support_y, episode.query_x)
        return loss(output, episode.query_y), {}

    def similarity(self, net: Net, meta: Params, a: Tensor, b: Tensor) -> Tensor:
        """Of embeddings without context: a pair has no support set."""
        return _embedding.nearness(net, meta, a, b, cosine=self.distance == "cosine")

    def attention(self, f: Tensor, g: Tensor) -> Tensor:
        """Of queries f [Q, D] to supports g [M, D]: [Q, M], every row sums to 1."""
        return self._scores(f, g).softmax(-1)

    def _together(self, net: Net, meta: Params, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        supports, queries = _embedding.together(net, meta, support_x, query_x)
        return self._outputs(meta, queries, self._in_context(meta, supports), support_y)

    def _outputs(self, meta: Params, z: Tensor, g: Tensor, y: Tensor) -> Tensor:
        """Embedded queries z [Q, D], supports g [M, D] in their context, y [M, N] -> [Q, N]."""
        scores = self._scores(self._reading(meta, z, g), g)
        if self.logits == "sum":
            return scores @ y
        return (scores.log_softmax(-1)[:, :, None] + y.log()).logsumexp(1)  # log sum_i a_i y_i; log 0 = -inf adds nothing

    def _scores(self, f: Tensor, g: Tensor) -> Tensor:
        if self.distance == "cosine":
            return self.scale * (F.normalize(f, dim=-1) @ F.normalize(g, dim=-1).T)
        return -self.scale * (f[:, None] - g).square().sum(-1)

    def _in_context(self, meta: Params, z: Tensor) -> Tensor:
        """g of all supports: z [M, D] -> [M, D]."""
        if self.embedding == "simple":
            return z
        rows = z.unbind(0)
        forward, backward = _states(meta, "fce/forward", rows), _states(meta, "fce/backward", rows[::-1])
        return z + torch.stack(forward) + torch.stack(backward[::-1])

    def _reading(self, meta: Params, z: Tensor, g: Tensor) -> Tensor:
        """f of all queries: z [Q, D] -> [Q, D], each by itself. What is read first is the supports' mean, as in Ravi's code."""
        if self.embedding == "simple":
            return z
        h, c = torch.zeros_like(z), torch.zeros_like(z)
        read = g.mean(0).expand_as(z)
        for _ in range(self.reads):
            h, c = lstm.step(meta, "fce/read", torch.cat([z, read], -1), (h, c))
            h = h + z  # eq. 4
            read = (h @ g.T).softmax(-1) @ g  # eq. 5, 6
        return h


def _states(params: Params, prefix: str, rows: Sequence[Tensor]) -> list[Tensor]:
    h, c = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
    states = []
    for x in rows:
        h, c = lstm.step(params, prefix, x, (h, c))
        states.append(h)
    return states
