"""Inner loops: a few steps of gradient descent on a support set, written for one episode."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metasearch.learners._gradient import value_and_gradient
from metasearch.nets import Params

Rate = float | Tensor | Mapping[str, float | Tensor]


def sgd_steps(
    objective: Callable[[Params], Tensor], params: Params, *, lr: Rate, steps: int, first_order: bool = False
) -> Params:
    """theta_{j+1} = theta_j - lr * grad objective(theta_j), `steps` times.

    lr: one rate, or one a key (elementwise where it is a tensor). first_order: no graph behind the gradients (FOMAML).
    """
    for _ in range(steps):
        _, _, grads = value_and_gradient(lambda p: (objective(p), ()), params, differentiable=not first_order)
        params = {k: descend(p, grads[k], lr[k] if isinstance(lr, Mapping) else lr) for k, p in params.items()}
    return params


def descend(p: Tensor, g: Tensor, lr: float | Tensor) -> Tensor:
    """p - lr * g in one pass over memory, and one in its backward."""
    return torch.addcmul(p, g, lr, value=-1) if isinstance(lr, Tensor) else torch.add(p, g, alpha=-lr)


def adam(w: Params, v: Params, grads: Params, lr: float | Tensor, t: int) -> tuple[Params, Params]:
    """Step t = 1, 2, ... of Kingma, Ba. ICLR 2015, algorithm 1 with beta1 = 0, beta2 = 0.999, eps = 1e-8. v begins at zero."""
    beta2, eps = 0.999, 1e-8
    v = {k: beta2 * s + (1 - beta2) * grads[k] ** 2 for k, s in v.items()}
    w = {k: p - lr * grads[k] / ((v[k] / (1 - beta2**t)).sqrt() + eps) for k, p in w.items()}
    return w, v


def minibatch(x: Tensor, y: Tensor, order: Tensor, start: int, rows: int) -> tuple[Tensor, Tensor]:
    """`rows` rows from place `start` of an order that is walked through and begun again."""
    places = torch.arange(start, start + rows, device=x.device) % order.shape[0]
    chosen = order[places]
    return x[chosen], y[chosen]


def fixed_order(count: int, device: torch.device) -> Tensor:
    """0 ... count - 1 in golden-ratio strides, so that a minibatch of class-sorted rows holds many classes."""
    ratios = torch.arange(count, dtype=torch.float64) * 0.6180339887498949
    return (ratios % 1).argsort().to(device)


def check(*, least: float = 0, **fields: float | Tensor | None) -> None:
    """ValueError unless every field is finite and at least `least`. Tensors and None pass: a tensor's values are its owner's."""
    for name, value in fields.items():
        if value is None or isinstance(value, Tensor):
            continue
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"`{name} >= {least}` must hold, but got {name}={value}")
