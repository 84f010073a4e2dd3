"""The outer optimiser: pure (init, update) rules over flat dicts of tensors, as torch.optim does them.

Rates are tensors in a dict of their own (`rates`), an argument of `update`: another rate needs no new compilation, and a second
vmap over rates, state and weights runs several trials as one program. A key prefix may have a rule of its own:

    optimizer = by_prefix({"": adam(1e-3, schedule=cosine(0.01)), "lr/": sgd(1e-4)})
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from metasearch.nets import Params

__all__ = [
    "Optimizer", "Schedule", "adam", "by_prefix", "clipped", "clipped_norm", "constant", "cosine", "head", "linear",
    "sgd", "steps_down",
]

Schedule = Callable[[Tensor], Tensor | float]  # progress [] in [0, 1] -> what the rate is multiplied with


class Optimizer(NamedTuple):
    """init(params) -> state; update(grads, state, params, rates, progress []) -> (params, state). Nothing is changed in place."""

    init: Callable[[Params], Params]
    update: Callable[[Params, Params, Params, Params, Tensor], tuple[Params, Params]]
    rates: Params


def constant(progress: Tensor) -> float:
    return 1.0


def cosine(final: float = 0.0) -> Schedule:
    """From 1 down to `final` along half a cosine (Loshchilov & Hutter 2017, eq. 5, one period)."""
    return lambda progress: final + (1 - final) * 0.5 * (1 + torch.cos(math.pi * progress))


def linear(final: float = 0.0) -> Schedule:
    """From 1 to `final` on a straight line."""
    return lambda progress: 1 + (final - 1) * progress


def steps_down(times: int, factor: float = 0.5) -> Schedule:
    """Multiplied with `factor` at `times` equally spaced points of training (at progress 1/(times+1), 2/(times+1), ...)."""
    return lambda progress: factor ** torch.floor(progress * (times + 1)).clamp(max=times)


def sgd(
    lr: float | Tensor, *, momentum: float | Tensor = 0.0, nesterov: bool = False, weight_decay: float | Tensor = 0.0,
    schedule: Schedule = constant,
) -> Optimizer:
    """torch.optim.SGD: b <- mu b + g (the first b is g); theta <- theta - lr (g + mu b if nesterov else b); L2 added to g."""
    heavy = _positive(momentum)
    if nesterov and not heavy:
        raise ValueError("Nesterov momentum needs momentum > 0, but got momentum=0. Set momentum or drop nesterov.")
    rates = {"lr": _tensor(lr), "momentum": _tensor(momentum), "weight_decay": _tensor(weight_decay)}
    decay = _positive(weight_decay)

    def init(params: Params) -> Params:
        # b starts at 0: mu * 0 + g is the g that torch starts from
        return {f"momentum/{k}": torch.zeros_like(p) for k, p in params.items()} if heavy else {}

    def update(grads: Params, state: Params, params: Params, rates: Params, progress: Tensor) -> tuple[Params, Params]:
        lr_now = rates["lr"] * schedule(progress)
        new, kept = {}, {}
        for k, p in params.items():
            g = grads[k] + rates["weight_decay"] * p if decay else grads[k]
            if heavy:
                kept[f"momentum/{k}"] = b = rates["momentum"] * state[f"momentum/{k}"] + g
                g = g + rates["momentum"] * b if nesterov else b
            new[k] = p - lr_now * g
        return new, kept

    return Optimizer(init, update, rates)


def adam(
    lr: float | Tensor, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float | Tensor = 0.0,
    decoupled: bool = False, schedule: Schedule = constant,
) -> Optimizer:
    """torch.optim.Adam (L2 added to g), or AdamW with decoupled=True. Kingma & Ba 2015, algorithm 1."""
    rates = {"lr": _tensor(lr), "weight_decay": _tensor(weight_decay)}
    decay = _positive(weight_decay)
    beta1, beta2 = betas

    def init(params: Params) -> Params:
        state = {f"{m}/{k}": torch.zeros_like(p) for k, p in params.items() for m in ("first", "second")}
        return state | {f"count/{k}": torch.zeros_like(p.sum()) for k, p in params.items()}

    def update(grads: Params, state: Params, params: Params, rates: Params, progress: Tensor) -> tuple[Params, Params]:
        if not params:
            return {}, {}
        lr_now = rates["lr"] * schedule(progress)
        # as torch has it, a count for every tensor: one that came later, or is not always updated, begins with its own
        counts = torch.stack([state[f"count/{k}"] for k in params]) + 1
        first_scales, second_scales = (lr_now / (1 - beta1**counts)).unbind(), (1 - beta2**counts).rsqrt().unbind()
        new, kept = {}, {f"count/{k}": count for k, count in zip(params, counts.unbind(), strict=True)}
        for (k, p), first_scale, second_scale in zip(params.items(), first_scales, second_scales, strict=True):
            g = grads[k]
            if decay and not decoupled:
                g = g + rates["weight_decay"] * p
            elif decay:
                p = p * (1 - lr_now * rates["weight_decay"])
            kept[f"first/{k}"] = m = beta1 * state[f"first/{k}"] + (1 - beta1) * g
            kept[f"second/{k}"] = v = beta2 * state[f"second/{k}"] + (1 - beta2) * g * g
            new[k] = p - first_scale * m / (v.sqrt() * second_scale + eps)
        return new, kept

    return Optimizer(init, update, rates)


def clipped(inner: Optimizer, limit: float) -> Optimizer:
    """Every element of the gradient is first clamped to [-limit, limit] (MAML and MAML++ on mini-ImageNet: 10)."""
    if not limit > 0:
        raise ValueError(f"a clipping limit must be positive, but got {limit}")

    def update(grads: Params, state: Params, params: Params, rates: Params, progress: Tensor) -> tuple[Params, Params]:
        return inner.update({k: g.clamp(-limit, limit) for k, g in grads.items()}, state, params, rates, progress)

    return inner._replace(update=update)


def clipped_norm(inner: Optimizer, limit: float) -> Optimizer:
    """The whole gradient is first scaled down to a Euclidean norm of at most `limit` (torch.nn.utils.clip_grad_norm_)."""
    if not limit > 0:
        raise ValueError(f"a clipping limit must be positive, but got {limit}")

    def update(grads: Params, state: Params, params: Params, rates: Params, progress: Tensor) -> tuple[Params, Params]:
        if not grads:
            return inner.update(grads, state, params, rates, progress)
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        share = (limit / (norm + 1e-6)).clamp(max=1.0)
        return inner.update({k: g * share for k, g in grads.items()}, state, params, rates, progress)

    return inner._replace(update=update)


def by_prefix(rules: Mapping[str, Optimizer]) -> Optimizer:
    """A rule for each key prefix; the longest that fits wins ("" is the rule of all others). Unmatched keys stay as they are."""

    def split(params: Params) -> dict[str, Params]:
        parts: dict[str, Params] = {prefix: {} for prefix in rules}
        for k, p in params.items():
            fitting = [prefix for prefix in rules if k.startswith(prefix)]
            if fitting:
                parts[max(fitting, key=len)][k] = p
        return parts

    def init(params: Params) -> Params:
        return {f"{prefix}:{k}": v for prefix, part in split(params).items() for k, v in rules[prefix].init(part).items()}

    def update(grads: Params, state: Params, params: Params, rates: Params, progress: Tensor) -> tuple[Params, Params]:
        new, kept = dict(params), {}
        for prefix, part in split(params).items():
            head = f"{prefix}:"
            own_state = {k[len(head):]: v for k, v in state.items() if k.startswith(head)}
            own_rates = {k[len(head):]: v for k, v in rates.items() if k.startswith(head)}
            changed, after = rules[prefix].update({k: grads[k] for k in part}, own_state, part, own_rates, progress)
            new.update(changed)
            kept.update({head + k: v for k, v in after.items()})
        return new, kept

    return Optimizer(init, update, {f"{prefix}:{k}": v for prefix, rule in rules.items() for k, v in rule.rates.items()})


def head(rates: Params, key: str) -> str | None:
    """How the names begin that the rule which moves `key` has in rates and state: "", or "lr/:" of `by_prefix`; None: no rule
    moves it. A rule without rates is not seen."""
    found = ""
    while True:
        below = [name.removeprefix(found).split(":") for name in rates if name.startswith(found)]
        prefixes = {path[0] for path in below if len(path) > 1}
        if not prefixes:
            return found
        fitting = [prefix for prefix in prefixes if key.startswith(prefix)]
        if not fitting:
            return None
        found += max(fitting, key=len) + ":"


def _tensor(x: float | Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(float(x))


def _positive(x: float | Tensor) -> bool:
    return isinstance(x, Tensor) or x > 0
