"""Ordinary training of some parameters on a support set; nobody differentiates through it."""
from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from metasearch.learners._gradient import value_and_gradient
from metasearch.learners._inner import descend
from metasearch.nets import Params


def sgd(
    objective: Callable[[Params], Tensor], params: Params, velocity: Params, *, rates: Mapping[str, float | Tensor], steps: int,
    momentum: float | Tensor = 0.0, dampening: float | Tensor = 0.0, weight_decay: float | Tensor = 0.0,
) -> tuple[Params, Params]:
    """torch.optim.SGD: b <- mu b + (1 - dampening) g, but a key's first b is its first g; theta <- theta - lr b.

    rates: one a key. velocity: the b of earlier steps, by key. -> (params, velocity).
    """
    heavy, decays = _may_be_positive(momentum), _may_be_positive(weight_decay)
    for _ in range(steps):
        _, _, slopes = value_and_gradient(lambda p: (objective(p), ()), params, differentiable=False)
        if decays:
            slopes = {k: g + weight_decay * params[k] for k, g in slopes.items()}
        if heavy:
            slopes = {k: momentum * velocity[k] + (1 - dampening) * g if k in velocity else g for k, g in slopes.items()}
            velocity = {**velocity, **slopes}
        params = {k: descend(p, slopes[k], rates[k]) for k, p in params.items()}
    return params, velocity


def _may_be_positive(x: float | Tensor) -> bool:
    """A tensor's value may be traced, so it is not looked at."""
    return isinstance(x, Tensor) or x > 0
