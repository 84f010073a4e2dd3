"""Nets that grow: a chain of convolutions and identities with skips of any length, of shapes that need not fit.

Real, Moore, Selle, Saxena, Suematsu, Tan, Le, Kurakin. "Large-Scale Evolution of Image Classifiers." ICML 2017.
https://arxiv.org/abs/1703.01041, section 3.2: of shapes that conflict, the primary edge (here: the chain) wins; the other is
brought to its shape by zeroth-order interpolation in space, and by cutting off or padding channels.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Net, NormMode, Params
from metasearch.nets.activation import RELU
from metasearch.nets.init import weights
from metasearch.nets.norm import Norm
from metasearch.nets.operations import convolve

__all__ = ["Layer", "evolving", "fitted"]

MOST_SIDE = 7  # of the maps that the last, linear layer reads
NORM = Norm("batch")


@dataclass(frozen=True)
class Layer:
    """channels: of a convolution; 0: an identity. skip: the layer also reads what the layer so many before it read; 0: no skip.
    act: whether norm and ReLU follow the convolution, or nothing (linear)."""

    channels: int = 0
    height: int = 3
    width: int = 3
    stride: int = 1
    act: bool = True
    skip: int = 0


def evolving(
    x_shape: tuple[int, ...], features: int, layers: Sequence[Layer], prefix: str, mode: NormMode = "transductive",
    norm: Norm = NORM,
) -> Net:
    """x [M, C, H, W] -> features [M, D]: the layers, an average over at most 7 x 7 places, a linear layer.

    Keys: net/<prefix>/layers.0/weight, net/<prefix>/layers.0/norm/..., net/<prefix>/out/weight. Another prefix inherits none.
    """
    if len(x_shape) != 3:
        raise ValueError(f"evolving nets take pictures of shape (C, H, W), but got {x_shape}. Use an mlp for vectors.")
    shapes = [x_shape]
    for layer in layers:
        channels, height, width = shapes[-1]
        stride = layer.stride if layer.channels else 1
        shapes.append((layer.channels or channels, (height - 1) // stride + 1, (width - 1) // stride + 1))
    channels, *sides = shapes[-1]
    pool = [-(-side // MOST_SIDE) for side in sides]
    flat = channels * -(-sides[0] // pool[0]) * -(-sides[1] // pool[1])

    def init(generator: Generator) -> Params:
        params: Params = {}
        for i, (before, layer) in enumerate(zip(shapes, layers, strict=False)):
            if layer.channels:
                key = f"{prefix}/layers.{i}"
                params |= weights(key, (layer.channels, before[0], layer.height, layer.width), "torch", generator)
                if layer.act:
                    params |= norm.init(key, layer.channels)
        return params | weights(f"{prefix}/out", (features, flat), "torch", generator)

    def apply(params: Params, x: Tensor) -> Tensor:
        nodes = [x]
        for i, layer in enumerate(layers):
            x = nodes[-1]
            if layer.skip:
                x = x + fitted(nodes[i - layer.skip], (x.shape[1], x.shape[2], x.shape[3]))
            if layer.channels:
                key = f"{prefix}/layers.{i}"
                x = convolve(x, params[f"net/{key}/weight"], (layer.stride, layer.stride))
                x = x + params[f"net/{key}/bias"][:, None, None]
                if layer.act:
                    x = RELU(norm.apply(params, key, x))
            nodes.append(x)
        z = F.avg_pool2d(nodes[-1], pool, ceil_mode=True).flatten(1)
        return F.linear(z, params[f"net/{prefix}/out/weight"], params[f"net/{prefix}/out/bias"])

    normed = any(layer.channels and layer.act for layer in layers)
    return Net(init, apply, norm.mode(mode) if normed else "none", features)


def fitted(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """x [M, c, h, w] -> [M, C, H, W]: the nearest pixel, the first channels, zeros for those that it does not have."""
    channels, height, width = shape
    if x.shape[2:] != (height, width):
        rows = [i * x.shape[2] // height for i in range(height)]
        columns = [i * x.shape[3] // width for i in range(width)]
        x = x[:, :, rows][:, :, :, columns]
    if x.shape[1] >= channels:
        return x[:, :channels]
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
