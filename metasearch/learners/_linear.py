"""Linear layers of a learner's own, under keys of its own: torch.nn.Linear's default initialisation, on a dict of weights."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Params


def init(prefix: str, inputs: int, outputs: int, generator: Generator) -> Params:
    """`<prefix>/weight` [outputs, inputs] and `<prefix>/bias` [outputs], uniform in +-1/sqrt(inputs)."""
    bound = 1 / math.sqrt(inputs)
    return {
        f"{prefix}/weight": torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator),
        f"{prefix}/bias": torch.empty(outputs).uniform_(-bound, bound, generator=generator),
    }


def apply(params: Params, prefix: str, x: Tensor) -> Tensor:
    """x [..., inputs] -> [..., outputs]."""
    return F.linear(x, params[f"{prefix}/weight"], params[f"{prefix}/bias"])
