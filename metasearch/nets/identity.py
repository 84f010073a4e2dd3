"""The net that does nothing: its features are the numbers of the input, and there is nothing to learn.

What a learner gets out of raw pixels is the floor under every learnt embedding.
"""
from __future__ import annotations

import math

from metasearch.nets import Block, Net

__all__ = ["identity"]


def identity(inputs: int | tuple[int, ...]) -> Net:
    """x [M, *inputs] -> [M, D], laid flat. `init` gives no tensors at all."""
    x = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if min(x, default=0) < 1:
        raise ValueError(f"every side of an input must be at least 1, but got inputs={inputs}")
    flat = Block("inputs", lambda params, x: x.flatten(1))
    maps = (x[0], x[1], x[2]) if len(x) == 3 else None
    return Net.of(lambda generator: {}, [flat], outputs=None, norm="none", features=math.prod(x), maps=maps)
