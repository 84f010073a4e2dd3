"""A multi-layer perceptron; as it stands, the sine net of MAML (1-40-40-1).

Finn, Abbeel, Levine. ICML 2017, section 5.1 (authors' initialisation: init="trunc_normal"). https://arxiv.org/abs/1703.03400
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Block, Net, NormMode, Params
from metasearch.nets.activation import Activation, activation
from metasearch.nets.init import Init, weights
from metasearch.nets.norm import Norm

__all__ = ["mlp"]


def mlp(
    inputs: int | tuple[int, ...],
    outputs: int | None,
    hidden: Sequence[int] = (40, 40),
    act: Activation = "relu",
    init: Init = "torch",
    norm: Norm | None = None,
    mode: NormMode = "transductive",
) -> Net:
    """x [M, *inputs] (flattened) -> [M, outputs], or the last hidden layer [M, hidden[-1]] if outputs is None.

    Keys: net/layer1/weight, net/layer1/bias, net/layer1/norm/..., ..., net/head/weight, net/head/bias.
    norm: between a hidden layer and its activation, with `mode` as in Net; None: no norm.
    """
    norm = norm or Norm("none")
    widths = [inputs if isinstance(inputs, int) else math.prod(inputs), *hidden]
    if min(widths) < 1 or (outputs is not None and outputs < 1):
        raise ValueError(f"every width must be at least 1, but got inputs={inputs}, hidden={tuple(hidden)}, outputs={outputs}")
    f = activation(act)

    def begin(generator: Generator) -> Params:
        params: Params = {}
        for i, (before, after) in enumerate(pairwise(widths), 1):
            params |= weights(f"layer{i}", (after, before), init, generator) | norm.init(f"layer{i}", after)
        return params if outputs is None else params | weights("head", (outputs, widths[-1]), init, generator)

    def layer(i: int) -> Block:
        def apply(params: Params, x: Tensor) -> Tensor:
            z = F.linear(x.flatten(1), params[f"net/layer{i}/weight"], params[f"net/layer{i}/bias"])
            return f(norm.apply(params, f"layer{i}", z))

        return Block(f"layer{i}", apply)

    if len(widths) == 1:  # no hidden layer: the features are the inputs
        blocks = [Block("inputs", lambda params, x: x.flatten(1))]
    else:
        blocks = [layer(i) for i in range(1, len(widths))]
    return Net.of(begin, blocks, outputs=outputs, norm=norm.mode(mode), features=widths[-1])
