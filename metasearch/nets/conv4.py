"""Conv-4, the backbone of few-shot learning, in the seven variants that published numbers were made with.

Vinyals et al. 2016 https://arxiv.org/abs/1606.04080 · Finn et al. 2017 https://arxiv.org/abs/1703.03400 (and their code) ·
Snell et al. 2017 https://arxiv.org/abs/1703.05175 · Nichol et al. 2018 https://arxiv.org/abs/1803.02999 ·
Antoniou et al. 2019 https://arxiv.org/abs/1810.09502 · Sung et al. 2018 https://arxiv.org/abs/1711.06025. They differ in
downsampling, padding, width, norm and initialisation (VARIANTS).
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Block, Net, NormMode, Params
from metasearch.nets.activation import MONOTONE, Activation, activation
from metasearch.nets.init import Init, weights
from metasearch.nets.native import allowed
from metasearch.nets.norm import Norm

__all__ = ["VARIANTS", "Conv4", "conv3x3", "conv4"]

Down = Literal["pool", "pool_same", "average", "stride"]


@dataclass(frozen=True)
class Conv4:
    """What a Conv-4 is made of: `layers` blocks of 3x3 convolution (padded by 1), norm, activation, downsampling by 2.

    down:         "pool": 2x2 max pooling, odd edges dropped; "pool_same": odd edges kept (TensorFlow's SAME);
                  "average": 2x2 average pooling; "stride": the convolution has stride 2.
    spatial_mean: features are the mean over space (C of them) instead of all of C*H*W.
    pooled:       only the first so many blocks downsample; None: all of them.
    unpadded:     the first so many convolutions have no padding.
    """

    channels: int = 64
    layers: int = 4
    down: Down = "pool"
    act: Activation = "relu"
    norm: Norm = Norm("batch")  # noqa: RUF009  frozen, so it may be shared
    spatial_mean: bool = False
    init: Init = "torch"
    head_init: Init = "torch"
    pooled: int | None = None
    unpadded: int = 0

    def __post_init__(self) -> None:
        if self.channels < 1 or self.layers < 1:
            raise ValueError(f"`channels >= 1` and `layers >= 1` must hold, but got {self.channels} and {self.layers}")
        if self.down not in ("pool", "pool_same", "average", "stride"):
            raise ValueError(f"down is 'pool', 'pool_same', 'average' or 'stride', but got {self.down!r}")
        if min(self.pooled or 0, self.unpadded) < 0:
            raise ValueError(f"`pooled >= 0` and `unpadded >= 0` must hold, but got {self.pooled} and {self.unpadded}")

    def downsamples(self, block: int) -> bool:
        """Does block 1, 2, ... halve its pictures?"""
        return self.pooled is None or block <= self.pooled

    def padding(self, block: int) -> int:
        return 0 if block <= self.unpadded else 1

    def sizes(self, size: int) -> list[int]:
        """Side lengths before the first block and after each."""
        sizes = [size]
        for block in range(1, self.layers + 1):
            size = sizes[-1] - 2 + 2 * self.padding(block)
            if self.downsamples(block):
                size = (size + 1) // 2 if self.down in ("stride", "pool_same") else size // 2
            sizes.append(size)
        return sizes


_TF = Norm("batch", eps=1e-3)  # TensorFlow's default eps
_BETA = Norm("batch", scale=False, eps=1e-3)  # MAML's: beta only

VARIANTS: dict[str, Conv4] = {
    "maml_omniglot": Conv4(64, down="stride", norm=_BETA, spatial_mean=True, init="xavier", head_init="normal"),
    "maml_mini": Conv4(32, down="pool", norm=_BETA, init="xavier", head_init="xavier"),
    "reptile_omniglot": Conv4(64, down="stride", norm=_TF, init="xavier", head_init="xavier"),
    "reptile_mini": Conv4(32, down="pool_same", norm=_TF, init="xavier", head_init="xavier"),
    "protonet": Conv4(64, down="pool"),
    "relation": Conv4(64, down="pool", pooled=2, unpadded=2),  # feature maps 64 x 5 x 5 at 28, 64 x 19 x 19 at 84
    "maml_pp": Conv4(64, down="pool", act="leaky_relu", init="xavier", head_init="xavier"),  # 48 channels on miniImageNet
}


def conv4(
    x_shape: tuple[int, ...], outputs: int | None, variant: str | Conv4 = "protonet", mode: NormMode = "transductive"
) -> Net:
    """x [M, C, H, W] -> [M, outputs], or features [M, D] if outputs is None.

    variant: a name in VARIANTS, or a Conv4 of one's own (`replace(VARIANTS["protonet"], act="gelu")`).
    Keys: net/conv1/weight, net/conv1/bias, net/conv1/norm/bias (and /weight), ..., net/head/weight, net/head/bias.
    Strided convolutions pad by 1 on all sides, where TensorFlow's SAME pads an even input on the far side only.
    """
    design = _named(variant) if isinstance(variant, str) else variant
    if len(x_shape) != 3:
        raise ValueError(f"Conv-4 takes pictures of shape (C, H, W), but got {x_shape}. Use an mlp for vectors.")
    sizes = [design.sizes(side) for side in x_shape[1:]]
    height, width = sizes[0][-1], sizes[1][-1]
    if min(height, width) < 1:
        size = f"{x_shape[1]}x{x_shape[2]}"
        raise ValueError(f"{design.layers} blocks halve {size} pictures to nothing. Use fewer layers or down='stride'.")
    features = design.channels * (1 if design.spatial_mean else height * width)
    widths = [x_shape[0]] + [design.channels] * design.layers

    def begin(generator: Generator) -> Params:
        params: Params = {}
        for i, (before, after) in enumerate(pairwise(widths), 1):
            params |= weights(f"conv{i}", (after, before, 3, 3), design.init, generator) | design.norm.init(f"conv{i}", after)
        return params if outputs is None else params | weights("head", (outputs, features), design.head_init, generator)

    def layer(i: int) -> Block:
        def apply(params: Params, x: Tensor) -> Tensor:
            x = _block(design, params, i, x)
            if i < design.layers:
                return x
            return x.mean((2, 3)) if design.spatial_mean else x.flatten(1)

        return Block(f"conv{i}", apply)

    return Net.of(
        begin, [layer(i) for i in range(1, len(widths))], outputs=outputs, norm=design.norm.mode(mode), features=features,
        maps=None if design.spatial_mean else (design.channels, height, width),
    )


def _named(variant: str) -> Conv4:
    if variant not in VARIANTS:
        raise ValueError(f"a Conv-4 variant is one of {', '.join(VARIANTS)}, but got {variant!r}")
    return VARIANTS[variant]


def _block(design: Conv4, params: Params, number: int, x: Tensor) -> Tensor:
    """[M, C, H, W] -> [M, C', H', W']."""
    key, down = f"conv{number}", design.down if design.downsamples(number) else None
    weight, bias = params[f"net/{key}/weight"], params[f"net/{key}/bias"]
    x = conv3x3(x, weight, bias, 2 if down == "stride" else 1, design.padding(number))
    x = design.norm.apply(params, key, x)
    f = activation(design.act)
    if down is None or down == "stride":
        return f(x)
    if down.startswith("pool") and design.act in MONOTONE:
        return f(_pool(down, x))  # the same numbers as pooling last, on a quarter of the entries
    return _pool(down, f(x))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int = 1) -> Tensor:
    """[M, C, H, W], [D, C, 3, 3], [D] -> [M, D, H', W'].

    On a CPU's plain tape many pictures are computed with their channels last in memory: 1.2 to 1.7 times faster, forwards and
    backwards (with few pictures it is slower, hence 32). oneDNN does not do so for a single channel: there it is nine columns
    times a matrix.
    """
    if not (allowed() and x.device.type == "cpu" and x.shape[0] >= 32):
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)
    if x.shape[1] > 1:
        return F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, stride=stride, padding=padding)
    height, width = ((side + 2 * padding - 3) // stride + 1 for side in x.shape[2:])
    columns = F.unfold(x, 3, padding=padding, stride=stride).transpose(1, 2)  # [M, H' * W', 9]
    return F.linear(columns, weight.flatten(1), bias).view(len(x), height, width, -1).permute(0, 3, 1, 2)


def _pool(down: Down, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2) if down == "average" else F.max_pool2d(x, 2, ceil_mode=down == "pool_same")
