"""One gradient for both worlds: function transforms (under vmap, compiled) and the tape (a plain loop over episodes).

`torch.func.grad` is what vmap needs, but in a loop over episodes it is 2.4 times slower than `torch.autograd.grad`; the
trainer says which world it runs in, learners call `value_and_gradient` and do not care.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]

_on_tape = False
_graphs = True


@contextmanager
def on_tape(*, graphs: bool = True) -> Iterator[None]:
    """Inside, gradients are taken by torch.autograd.grad. Not for code under a function transform.

    graphs: False when nobody will differentiate through what is learnt (evaluation): no graph is then kept behind any gradient.
    """
    global _on_tape, _graphs
    before = _on_tape, _graphs
    _on_tape, _graphs = True, graphs
    try:
        with torch.enable_grad():
            yield
    finally:
        _on_tape, _graphs = before


def value_and_gradient(
    f: Callable[[Params], tuple[Tensor, Any]], params: Params, *, differentiable: bool
) -> tuple[Tensor, Any, Params]:
    """(f(params), what else f returned, d f / d params); f maps params to (a scalar, a pytree of tensors, perhaps `()`).

    differentiable: whether somebody will differentiate through the result. If not, no graph is built behind the gradient.
    """
    if _on_tape:
        leaves = {k: v if v.requires_grad else v.detach().requires_grad_() for k, v in params.items()}
        value, rest = f(leaves)
        grads = torch.autograd.grad(value, list(leaves.values()), create_graph=differentiable and _graphs, materialize_grads=True)
        return value, rest, dict(zip(leaves, grads, strict=True))
    if not differentiable:
        params = {k: v.detach() for k, v in params.items()}

    def swapped(p: Params) -> tuple[Tensor, tuple[Tensor, Any]]:
        value, rest = f(p)
        return value, (value, rest)

    found, (value, rest) = torch.func.grad(swapped, has_aux=True)(params)
    if not differentiable:
        found = {k: g.detach() for k, g in found.items()}
    return value, rest, found
