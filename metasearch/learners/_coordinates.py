"""What optimisers share that are learnt once for all coordinates: weights as one vector, gradients that an LSTM can read."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from metasearch.nets import Params


def flat(params: Params) -> Tensor:
    """All entries, key by key: [P]."""
    return torch.cat([v.flatten() for v in params.values()])


def like(vector: Tensor, params: Params) -> Params:
    """[P] cut into tensors of the keys and shapes of `params`."""
    parts = torch.split(vector, [v.numel() for v in params.values()])
    return {k: part.view(v.shape) for (k, v), part in zip(params.items(), parts, strict=True)}


def log_and_sign(g: Tensor, p: int) -> Tensor:
    """Size and direction of g on one scale, whatever its magnitude: [...] -> [..., 2].

    (log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g). Andrychowicz et al. NeurIPS 2016, appendix A.
    """
    size = (g.abs() + torch.finfo(g.dtype).eps).log() / p  # eps: the log of 0 is not finite
    return torch.stack([size.clamp(min=-1.0), (g * math.exp(p)).clamp(-1.0, 1.0)], -1)
