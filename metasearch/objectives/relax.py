"""Gradients of an expectation over discrete draws: RELAX, unbiased, and of less variance than the score function alone.

Grathwohl, Choi, Wu, Roeder, Duvenaud. "Backpropagation through the Void: Optimizing control variates for black-box gradient
estimation." ICLR 2018. https://arxiv.org/abs/1711.00123 (eq. 7)
Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein. "REBAR." NeurIPS 2017. https://arxiv.org/abs/1703.07370 (appendix C: z given b)

A draw b = H(z) is what a relaxed one z rounds to; z~ is drawn anew, given that it rounds to the same b. With any c:

    g = (f(b) - c(z~)) d log P(b) + d c(z) - d c(z~)

has the gradient of E[f(b)] for its mean. c learns to make the square of g small, which biases nothing; f needs no gradient.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from metasearch.nets import Params

__all__ = ["Control", "Draw", "bernoulli", "categorical", "control_slope", "drawn", "mlp", "mlp_init", "relax", "uniforms"]

Control = Callable[[Params, Params], Tensor]  # (its own weights, z of every name) -> []
CATEGORICAL = "pi"  # the name of logits [K] of one draw out of K; all others are those of Bernoulli variables, of any shape
TINY = 1e-6


class Draw(NamedTuple):
    """hard: zeros and ones (one-hot where one of K is drawn), without a gradient; z: what rounds to it; given: z~."""

    hard: Tensor
    z: Tensor
    given: Tensor


def bernoulli(logits: Tensor, u: Tensor, v: Tensor) -> Draw:
    """u, v: uniform in (0, 1), of the logits' shape."""
    p = logits.sigmoid()
    z = logits + torch.logit(u)
    hard = (z > 0).to(logits.dtype).detach()
    inside = torch.where(hard > 0, v * p + (1 - p), v * (1 - p))  # u, if it is known on which side of 1 - p it lies
    return Draw(hard, z, logits + torch.logit(inside.clamp(TINY, 1 - TINY)))


def categorical(logits: Tensor, u: Tensor, v: Tensor) -> Draw:
    """One of K by the Gumbel-max trick; logits, u, v: [..., K]."""
    logs = logits.log_softmax(-1)
    z = logs - (-u.log()).log()
    hard = (z == z.amax(-1, keepdim=True)).to(logits.dtype).detach()
    waits = -v.log()  # exponential
    least = (waits * hard).sum(-1, keepdim=True)
    return Draw(hard, z, torch.where(hard > 0, -least.log(), -(waits / logs.exp() + least).log()))


def uniforms(theta: Params, generator: Generator) -> tuple[Params, Params]:
    """The noise (u, v) of one draw of all of theta, from a generator of the CPU."""
    def one() -> Params:
        return {k: torch.rand(t.shape, generator=generator).clamp(TINY, 1 - TINY).to(t) for k, t in theta.items()}

    return one(), one()


def drawn(theta: Params, u: Params, v: Params) -> dict[str, Draw]:
    return {k: (categorical if k == CATEGORICAL else bernoulli)(logits, u[k], v[k]) for k, logits in theta.items()}


def log_prob(theta: Params, hard: Mapping[str, Tensor]) -> Tensor:
    """log P of all draws together, []."""
    found = []
    for k, logits in theta.items():
        b = hard[k]
        each = b * logits.log_softmax(-1) if k == CATEGORICAL else b * logsigmoid(logits) + (1 - b) * logsigmoid(-logits)
        found.append(each.sum())
    return torch.stack(found).sum()


def relax(theta: Params, phi: Params, u: Params, v: Params, value: Tensor, control: Control) -> Params:
    """An estimate of d E[f(b)] / d theta by one draw; value: f of it. With a control that is 0 this is REINFORCE."""
    held = drawn(theta, u, v)
    hard = {k: one.hard for k, one in held.items()}
    advantage = value - control(phi, {k: one.given for k, one in held.items()})

    def surrogate(theta: Params) -> Tensor:
        """Whose gradient is the estimate: the advantage stays as it is."""
        now = drawn(theta, u, v)
        z, given = ({k: getattr(one, name) for k, one in now.items()} for name in ("z", "given"))
        return advantage * log_prob(theta, hard) + control(phi, z) - control(phi, given)

    found: Params = torch.func.grad(surrogate)(theta)
    return found


def control_slope(theta: Params, phi: Params, u: Params, v: Params, value: Tensor, control: Control) -> Params:
    """The gradient in phi of the sum of the squares of `relax`: unbiased for that of its variance, since its mean has none."""
    def square(phi: Params) -> Tensor:
        found = relax(theta, phi, u, v, value, control)
        return torch.stack([(g**2).sum() for g in found.values()]).sum()

    slope: Params = torch.func.grad(square)(phi)
    return slope


def mlp_init(theta: Params, hidden: int, generator: Generator) -> Params:
    """The weights of `mlp` for draws of these shapes; its output begins at 0."""
    inputs = sum(t.numel() for t in theta.values())
    some = next(iter(theta.values()))
    first = (2 * torch.rand(hidden, inputs, generator=generator) - 1) / inputs**0.5
    made = {"first": first, "bias": torch.zeros(hidden), "second": torch.zeros(hidden), "level": torch.zeros(())}
    return {k: t.to(some) for k, t in made.items()}


def mlp(temperature: float) -> Control:
    """A layer of tanh on what z relaxes to: softmax(z / temperature) or sigmoid(z / temperature)."""
    def control(phi: Params, z: Params) -> Tensor:
        soft = [(t / temperature).softmax(-1) if k == CATEGORICAL else (t / temperature).sigmoid() for k, t in z.items()]
        x = torch.cat([t.flatten() for t in soft])
        return phi["second"] @ (phi["first"] @ x + phi["bias"]).tanh() + phi["level"]

    return control
