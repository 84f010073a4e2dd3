"""How weights begin. Every function draws from the generator that it is given, on the CPU, in float32."""
from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from metasearch.nets import Params

__all__ = ["Init", "weights"]

Init = Literal["torch", "xavier", "trunc_normal", "normal"]


def weights(key: str, shape: tuple[int, ...], init: Init, generator: Generator) -> Params:
    """`net/<key>/weight` [out, in, ...] and `net/<key>/bias` [out].

    "torch":        both uniform in +-1/sqrt(fan_in), the default of torch.nn.Linear and torch.nn.Conv2d.
    "xavier":       uniform in +-sqrt(6 / (fan_in + fan_out)), biases 0 (Glorot, Bengio. AISTATS 2010), the default of TF layers.
    "trunc_normal": normal, standard deviation 0.01, drawn again beyond two of them; biases 0 (the sine net of MAML's authors).
    "normal":       standard normal, biases 0 (the last layer of their Omniglot net).
    """
    weight, bias = torch.empty(shape), torch.zeros(shape[0])
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    if init == "torch":
        bound = 1 / math.sqrt(fan_in)
        weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
    elif init == "xavier":
        bound = math.sqrt(6 / (fan_in + fan_out))
        weight.uniform_(-bound, bound, generator=generator)
    elif init == "trunc_normal":
        _truncated(weight, 0.01, generator)
    elif init == "normal":
        weight.normal_(generator=generator)
    else:
        raise ValueError(f"init is 'torch', 'xavier', 'trunc_normal' or 'normal', but got {init!r}")
    return {f"net/{key}/weight": weight, f"net/{key}/bias": bias}


def _truncated(weight: Tensor, std: float, generator: Generator) -> None:
    torch.nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
