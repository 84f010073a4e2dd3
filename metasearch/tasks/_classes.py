"""What all class tasks share: which classes and drawings an episode takes, where they stand in it, loss and score."""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.tasks import Split, TaskShape

Array = np.ndarray[Any, np.dtype[Any]]  # indices are worked out in numpy: on arrays this small its calls cost a fifth of torch's


def part(count: int, share: float, which: int) -> Array:
    """Which of `count` classes are in a part (0: `share` of them, 1: the others), in order; always the same."""
    order = torch.randperm(count, generator=Generator().manual_seed(0)).numpy()
    first = round(share * count)
    return np.sort(order[first:] if which else order[:first])


class Seats(NamedTuple):
    """Who sits where in n episodes: the label of every row, and which of its class's drawings it is.

    support: [n, N*K] labels; support_place: [n, N*K] in 0..K-1; query: [n, N*Q]; query_place: [n, N*Q] in K..K+Q-1.
    """

    support: Array
    support_place: Array
    query: Array
    query_place: Array


def uniform(generator: Generator, *shape: int) -> Array:
    """float64 in [0, 1)."""
    return np.asarray(torch.rand(shape, dtype=torch.float64, generator=generator).numpy())


def distinct(below: Array, k: int, generator: Generator) -> Array:
    """Ordered draws without replacement, uniform: [rows, k] different integers in 0..below[row]-1 (below [rows], all >= k).

    Of few, they are the places of the k largest of `below` random keys. Of many, the first k places of a Fisher-Yates
    shuffle of which only the places that moved are written down, so that the cost does not grow with `below`.
    """
    rows, most = len(below), int(below.max(initial=k))
    if most <= 64:
        keys = uniform(generator, rows, most)
        keys[np.arange(most) >= below[:, None]] = -1.0
        return np.argsort(-keys, axis=1)[:, :k]
    shuffled = []
    for left, steps in zip(below.tolist(), uniform(generator, rows, k).tolist(), strict=True):
        moved: dict[int, int] = {}
        for place, u in enumerate(steps):
            other = place + int(u * (left - place))
            shuffled.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
    return np.array(shuffled, dtype=np.int64).reshape(rows, k)


def seats(n: int, shape: TaskShape, generator: Generator) -> Seats:
    """The rows of support and query set in random order, so that a row's position says nothing of its label."""
    ways, shots, queries = shape.ways, shape.shots, shape.queries
    support = np.argsort(uniform(generator, n, ways * shots), axis=1)
    query = np.argsort(uniform(generator, n, ways * queries), axis=1)
    return Seats(support % ways, support // ways, query % ways, query // ways + shots)


def one_hot(labels: Array, ways: int) -> Tensor:
    """[..., M] -> float32 [..., M, N]."""
    return torch.from_numpy(np.eye(ways, dtype=np.float32)[labels])


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
