"""The activations that nets know by name."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "MONOTONE", "RELU", "RELU6", "Activation", "activation", "recorded", "straight"]

Activation = Literal["relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "tanh", "sigmoid", "softplus", "identity"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "identity": lambda x: x,
}
assert set(ACTIVATIONS) == set(get_args(Activation))

MONOTONE: frozenset[Activation] = frozenset({"relu", "relu6", "leaky_relu", "elu", "tanh", "sigmoid", "softplus", "identity"})


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """The function of a name; ValueError if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, but got {name!r}")
    f = ACTIVATIONS[name]

    def applied(x: Tensor) -> Tensor:
        if _signs is not None:
            _signs.append(x.detach() > 0)
        return F.relu(x) if _straight else f(x)

    return applied


RELU, RELU6 = activation("relu"), activation("relu6")


_straight = False


@contextmanager
def straight() -> Iterator[None]:
    """Inside, every activation is ReLU: what is positive passes as it is (for scores that follow an architecture's paths)."""
    global _straight
    before, _straight = _straight, True
    try:
        yield
    finally:
        _straight = before


_signs: list[Tensor] | None = None


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """Inside, every activation notes which of its inputs are positive, bool [M, ...]. Not for code under a function transform."""
    global _signs
    before, _signs = _signs, []
    try:
        yield _signs
    finally:
        _signs = before
