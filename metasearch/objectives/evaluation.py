"""Scores of a meta-learner on a fixed set of episodes: adapt on each support set, predict its queries, score.

Nothing here learns. The norm mode of the net decides what a query's prediction may see: "transductive" all queries of its
episode, "semi" the support set and that query alone, "inductive" and "none" nothing but itself.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, gradients
from metasearch.nets import Net, Params
from metasearch.objectives import Mode
from metasearch.tasks import Episode, TaskDistribution

__all__ = ["outputs", "scores", "similarities"]


def scores(
    net: Net, learner: Learner, tasks: TaskDistribution, meta: Params, episodes: Episode, *, mode: Mode = "vmap",
    chunk: int | None = None,
) -> Tensor:
    """One score an episode, larger is better: [n] on the CPU. Not-finite outputs give not-finite scores."""
    found = [
        torch.stack([tasks.score(o, y) for o, y in zip(part, ys, strict=True)]).cpu()
        for part, ys in outputs(net, learner, tasks, meta, episodes, mode=mode, chunk=chunk)
    ]
    told = torch.cat(found) if found else torch.zeros(0)
    return told if told.is_floating_point() else told.float()  # counts are scores, too


def outputs(
    net: Net, learner: Learner, tasks: TaskDistribution, meta: Params, episodes: Episode, *, mode: Mode = "vmap",
    chunk: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(outputs [b, Q, N], query_y [b, Q, N]) in chunks of b episodes (default: 1 in a loop, 25 under vmap). Where each query sees
    the supports anew ("semi"), they are fewer: a net is given as many inputs at once as in the other modes.

    Evaluation is never compiled: it is rare, and its numbers should not depend on a compiler.
    """
    learner = learner.at_test()

    def one(episode: Episode) -> Tensor:
        task = learner.adapt(net, tasks.loss, meta, episode.support_x, episode.support_y)
        return predictions(net, learner, meta, task, episode.support_x, episode.query_x, looped=looped, chunk=queries)

    looped = mode == "loop" or learner.looped is not None
    size, queries = 1 if looped else chunk or 25, None
    if net.norm == "semi" and not looped and episodes.count:
        m, q = episodes.support_x.shape[1], episodes.query_x.shape[1]
        rows = size * (m + q)
        size, queries = max(1, rows // (q * (m + 1))), max(1, rows // (m + 1))
    for first in range(0, episodes.count, size):
        part = episodes.select(slice(first, first + size))
        if looped:
            with gradients.on_tape(graphs=False):
                found = one(part.select(0)).detach()[None]
        else:
            with torch.no_grad():
                found = torch.func.vmap(one)(part)
        yield found, part.query_y


def similarities(net: Net, learner: Learner, meta: Params, episodes: Episode, *, seed: int) -> tuple[Tensor, Tensor] | None:
    """(similarity, whether of one class), [n] each on the CPU, of balanced pairs: every query with one support of its class and
    one of another, drawn with `seed`. None if the learner cannot say, or if there is but one class.

    The norm mode decides what a pair is normalised with: "transductive" all pairs of its episode, "semi" the support set
    and that query alone.
    """
    learner, generator = learner.at_test(), Generator().manual_seed(seed)
    found, labels = [], []
    for i in range(episodes.count):
        e = episodes.select(i)
        alike = e.query_y.argmax(-1)[:, None] == e.support_y.argmax(-1)  # [Q, M]
        if bool(alike.all()):
            return None
        luck = torch.rand(alike.shape, generator=generator).to(alike.device)
        twin, stranger = luck.masked_fill(~alike, -1).argmax(-1), luck.masked_fill(alike, -1).argmax(-1)
        said = _compared(net, learner, meta, e.support_x, torch.cat([twin, stranger]), torch.cat([e.query_x, e.query_x]))
        if said is None:
            return None
        found.append(said.detach().cpu())
        labels.append(torch.arange(len(said)) < len(twin))
    return (torch.cat(found), torch.cat(labels)) if found else None


def _compared(net: Net, learner: Learner, meta: Params, support_x: Tensor, chosen: Tensor, query_x: Tensor) -> Tensor | None:
    """The similarity of supports [chosen[i]] and queries [i]: [P], under the net's norm mode."""
    if net.norm != "semi":
        with gradients.on_tape(graphs=False):
            return learner.similarity(net, meta, support_x[chosen], query_x)
    m = len(support_x)

    def alone(place: Tensor, x: Tensor) -> Tensor | None:
        """The pair comes first. Behind it every support and the query stand once on either side, so that batch statistics are
        those of the support set and the query (of two rows by themselves every feature would be normed to -1 and 1)."""
        rows = support_x[(place + torch.arange(m, device=place.device)) % m]
        said = learner.similarity(net, meta, torch.cat([rows, x[None]]), torch.cat([x[None], rows]))
        return None if said is None else said[0]

    with gradients.on_tape(graphs=False):
        first = alone(chosen[0], query_x[0])
        if first is None:
            return None
        if learner.looped is not None:
            rest = [alone(place, x) for place, x in zip(chosen[1:], query_x[1:], strict=True)]
            return torch.stack([first, *rest])  # type: ignore[list-item]
    with torch.no_grad():  # as many rows at once as in the other modes
        return torch.func.vmap(alone, chunk_size=max(1, len(chosen) // (m + 1)))(chosen, query_x)


def predictions(
    net: Net, learner: Learner, meta: Params, task: object, support_x: Tensor, query_x: Tensor, *, looped: bool,
    chunk: int | None = None,
) -> Tensor:
    """What `predict` says of the queries [Q, N], under the net's norm mode. chunk: under "semi", at most so many queries are
    asked about at once; None: all."""
    if net.norm != "semi":
        return learner.predict(net, meta, task, query_x)

    def alone(x: Tensor) -> Tensor:
        return learner.predict(net, meta, task, torch.cat([support_x, x[None]]))[-1]

    if looped:
        return torch.stack([alone(x) for x in query_x])
    return torch.func.vmap(alone, chunk_size=chunk if chunk is not None and chunk < len(query_x) else None)(query_x)
