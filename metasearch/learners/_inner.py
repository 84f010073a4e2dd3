"""Inner loops: a few steps of gradient descent on a support set, written for one episode."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metasearch.learners._gradient import value_and_gradient
from metasearch.nets import Params

Rate = float | Tensor | Mapping[str, Tensor]


def sgd_steps(
    objective: Callable[[Params], Tensor], params: Params, *, lr: Rate, steps: int, first_order: bool = False
) -> Params:
    """theta_{j+1} = theta_j - lr * grad objective(theta_j), `steps` times.

    lr: one rate, or one tensor a key (elementwise). first_order: no graph behind the gradients (FOMAML).
    """
    for _ in range(steps):
        _, _, grads = value_and_gradient(lambda p: (objective(p), ()), params, differentiable=not first_order)
        params = {k: descend(p, grads[k], lr[k] if isinstance(lr, Mapping) else lr) for k, p in params.items()}
    return params


def descend(p: Tensor, g: Tensor, lr: float | Tensor) -> Tensor:
    """p - lr * g in one pass over memory, and one in its backward."""
    return torch.addcmul(p, g, lr, value=-1) if isinstance(lr, Tensor) else torch.add(p, g, alpha=-lr)


def check(*, least: float = 0, **fields: float | Tensor | None) -> None:
    """ValueError unless every field is finite and at least `least`. Tensors and None pass: a tensor's values are its owner's."""
    for name, value in fields.items():
        if value is None or isinstance(value, Tensor):
            continue
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"`{name} >= {least}` must hold, but got {name}={value}")
