"""What all class tasks share: which classes and drawings an episode takes, where they stand in it, loss and score."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metasearch.tasks import Split, TaskShape


class Seats(NamedTuple):
    """Who sits where in n episodes: the label of every row, and which of its class's drawings it is.

    support: [n, N*K] labels; support_place: [n, N*K] in 0..K-1; query: [n, N*Q]; query_place: [n, N*Q] in K..K+Q-1.
    """

    support: Tensor
    support_place: Tensor
    query: Tensor
    query_place: Tensor


def distinct(rows: int, k: int, below: Tensor, generator: Generator) -> Tensor:
    """Ordered draws without replacement, uniform: [rows, k] different integers in 0..below-1 (below [rows] or [1], all >= k).

    Few of many are drawn with replacement and rows with a repetition drawn again, so that the cost does not grow with
    `below`; otherwise they are the places of the k largest of `below` random keys.
    """
    most, least = (int(below.max()), int(below.min())) if rows else (k, k)
    below = below.expand(rows)[:, None]
    if k * k > least:
        keys = torch.rand(rows, most, dtype=torch.float64, generator=generator)
        keys.masked_fill_(torch.arange(most) >= below, -1.0)
        return keys.topk(k, dim=1).indices
    drawn = (torch.rand(rows, k, dtype=torch.float64, generator=generator) * below).long()
    while k > 1:
        ordered = drawn.sort(dim=1).values
        again = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero()[:, 0]
        if not len(again):
            break
        drawn[again] = (torch.rand(len(again), k, dtype=torch.float64, generator=generator) * below[again]).long()
    return drawn


def seats(n: int, shape: TaskShape, generator: Generator) -> Seats:
    """The rows of support and query set in random order, so that a row's position says nothing of its label."""
    ways, shots, queries = shape.ways, shape.shots, shape.queries
    support = torch.rand(n, ways * shots, generator=generator).argsort(dim=1)
    query = torch.rand(n, ways * queries, generator=generator).argsort(dim=1)
    return Seats(support % ways, support // ways, query % ways, query // ways + shots)


def one_hot(labels: Tensor, ways: int) -> Tensor:
    """[..., M] -> float32 [..., M, N]."""
    return torch.eye(ways, device=labels.device)[labels]


def check_shape(shape: TaskShape, x: tuple[int, ...], split: Split, classes: int) -> None:
    """Raises ValueError unless the inputs fit, each class has a support and a query, and there are enough classes."""
    if tuple(shape.x) != x:
        raise ValueError(f"episodes of inputs {tuple(shape.x)} were asked for, but these tasks have inputs {x}")
    if shape.ways < 2 or shape.shots < 1 or shape.queries < 1:
        raise ValueError(
            f"`ways >= 2`, `shots >= 1` and `queries >= 1` must hold, but got (ways={shape.ways}, shots={shape.shots}, "
            f"queries={shape.queries})."
        )
    if classes < shape.ways:
        raise ValueError(f"{split} has {classes} classes, but {shape.ways} ways need {shape.ways}. Lower ways.")


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Mean over rows of -sum_N y log softmax(output); y may be soft. [M, N], [M, N] -> []."""
    return -(y * output.log_softmax(dim=-1)).sum(dim=-1).mean()


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Share of rows whose largest output is at the largest label. [Q, N], [Q, N] -> []."""
    return (output.argmax(dim=-1) == y.argmax(dim=-1)).to(output.dtype).mean()
