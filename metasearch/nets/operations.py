"""The primitive operations of architecture search, by the names that papers and code give them.

    conv = operation("sep_conv_3x3", "cell.0.e10", 16, 16, 1, Norm("batch"))
    params = conv.init(generator)
    y = conv.apply(params, x)  # [M, 16, H, W] -> [M, 16, H, W]

NAS-Bench-201 (Dong, Yang. ICLR 2020. https://arxiv.org/abs/2001.00326, the authors' cell_operations): none, skip_connect,
nor_conv_*, avg_pool_3x3. DARTS (Liu et al. ICLR 2019. https://arxiv.org/abs/1806.09055, the authors' operations): sep_conv_*,
dil_conv_*, conv_7x1_1x7. NASNet (Zoph et al. CVPR 2018. https://arxiv.org/abs/1707.07012) adds larger pools. All with weights
are ReLU - convolution - norm, without biases. Stride s makes ceil(H / s) x ceil(W / s) of H x W, whatever the operation.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Apply, Params
from metasearch.nets.activation import RELU
from metasearch.nets.init import weights
from metasearch.nets.native import allowed
from metasearch.nets.norm import Norm

__all__ = ["OPERATIONS", "Operation", "convolve", "operation", "relu_conv_norm"]

Sides = tuple[int, int]


class Operation(NamedTuple):
    """One edge of a cell: init(generator) -> Params; apply(params, x [M, C, H, W]) -> [M, C', ceil(H / s), ceil(W / s)]."""

    init: Callable[[Generator], Params]
    apply: Apply


def operation(name: str, key: str, channels_in: int, channels_out: int, stride: int, norm: Norm) -> Operation:
    """The operation of a name (see OPERATIONS); its weights are `net/<key>/<name>/...`, so that several may share an edge.

    Raises ValueError for an unknown name. Without weights are: none, a skip_connect that keeps its shape, pools that keep their
    channels. Where shapes change, a skip_connect is DARTS' factorized reduction and a pool stands behind a 1x1 convolution.
    """
    if name not in OPERATIONS:
        raise ValueError(f"an operation is one of {', '.join(OPERATIONS)}, but got {name!r}")
    return OPERATIONS[name](f"{key}/{name}", channels_in, channels_out, stride, norm)


# -- with weights ------------------------------------------------------------------------------------------------------------


def convolve(x: Tensor, weight: Tensor, stride: Sides = (1, 1), dilation: int = 1, groups: int = 1) -> Tensor:
    """[M, C, H, W], [D, C / groups, h, w] -> [M, D, ceil(H / s), ceil(W / s)], padded by half of the (odd) kernel."""
    padding = tuple(dilation * (side // 2) for side in weight.shape[2:])
    if allowed() and groups == 1 and x.device.type == "cpu" and x.shape[0] >= 32 and x.shape[1] > 1:  # see conv4.conv3x3
        x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def _weight(key: str, shape: tuple[int, ...], generator: Generator) -> Params:
    """`net/<key>/weight`, uniform in +-1/sqrt(fan_in)."""
    made = weights(key, shape, "torch", generator)
    return {f"net/{key}/weight": made[f"net/{key}/weight"]}


class _Layer(NamedTuple):
    """One convolution of a chain: its kernel's sides; depthwise ones keep the channels."""

    sides: Sides
    channels: Sides  # in, out
    stride: Sides = (1, 1)
    dilation: int = 1
    depthwise: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        before, after = self.channels
        return after, 1 if self.depthwise else before, *self.sides


def _chain(key: str, layers: list[_Layer], norm: Norm) -> Operation:
    """ReLU, convolutions one behind the other, norm. One is `net/<key>/weight`, several are `net/<key>/0/weight`, ..."""
    names = [key] if len(layers) == 1 else [f"{key}/{i}" for i in range(len(layers))]
    channels = layers[-1].channels[1]

    def init(generator: Generator) -> Params:
        params: Params = {}
        for name, layer in zip(names, layers, strict=True):
            params |= _weight(name, layer.shape, generator)
        return params | norm.init(key, channels)

    def apply(params: Params, x: Tensor) -> Tensor:
        x = RELU(x)
        for name, layer in zip(names, layers, strict=True):
            groups = layer.channels[0] if layer.depthwise else 1
            x = convolve(x, params[f"net/{name}/weight"], layer.stride, layer.dilation, groups)
        return norm.apply(params, key, x)

    return Operation(init, apply)


def relu_conv_norm(key: str, channels_in: int, channels_out: int, size: int, stride: int, norm: Norm) -> Operation:
    """ReLU, size x size convolution, norm: weights `net/<key>/weight` and `net/<key>/norm/...`."""
    return _chain(key, [_Layer((size, size), (channels_in, channels_out), (stride, stride))], norm)


def _behind(first: Operation, second: Operation) -> Operation:
    def apply(params: Params, x: Tensor) -> Tensor:
        return second.apply(params, first.apply(params, x))

    return Operation(lambda generator: first.init(generator) | second.init(generator), apply)


def _convolution(size: int) -> _Maker:
    def make(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
        return relu_conv_norm(key, before, after, size, stride, norm)

    return make


def _asymmetric(size: int) -> _Maker:
    """1 x size, then size x 1; each strides over its own side."""

    def make(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
        across, down = _Layer((1, size), (before, after), (1, stride)), _Layer((size, 1), (after, after), (stride, 1))
        return _chain(key, [across, down], norm)

    return make


def _separable(size: int, dilation: int = 1, times: int = 2) -> _Maker:
    """Depthwise, then 1x1: without norm or ReLU in between. The first of several strides, and keeps the channels."""

    def make(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
        found: Operation | None = None
        for i in range(times):
            s, last = stride if i == 0 else 1, i == times - 1
            deep = _Layer((size, size), (before, before), (s, s), dilation, depthwise=True)
            point = _Layer((1, 1), (before, after if last else before))
            one = _chain(key if times == 1 else f"{key}/{i}", [deep, point], norm)
            found = one if found is None else _behind(found, one)
        assert found is not None
        return found

    return make


def _depthwise(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
    """3x3 within every channel; behind it a 1x1 where channels change, for it cannot change them itself."""
    deep = _chain(key, [_Layer((3, 3), (before, before), (stride, stride), depthwise=True)], norm)
    return deep if before == after else _behind(deep, relu_conv_norm(f"{key}/match", before, after, 1, 1, norm))


def _reduction(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
    """DARTS' factorized reduction: half of the channels see the pixels at even places, the others those at odd places."""
    if stride == 1:
        return relu_conv_norm(key, before, after, 1, 1, norm)
    halves = [after // 2, after - after // 2]

    def init(generator: Generator) -> Params:
        params: Params = {}
        for i, half in enumerate(halves):
            if half:
                params |= _weight(f"{key}/{i}", (half, before, 1, 1), generator)
        return params | norm.init(key, after)

    def apply(params: Params, x: Tensor) -> Tensor:
        x = RELU(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]  # an odd side has one odd place less: a zero beyond the edge
        seen = [
            convolve(source, params[f"net/{key}/{i}/weight"], (stride, stride))
            for i, source in enumerate((x, shifted)) if halves[i]
        ]
        return norm.apply(params, key, torch.cat(seen, 1))

    return Operation(init, apply)


# -- without -----------------------------------------------------------------------------------------------------------------


def _no_weights(generator: Generator) -> Params:
    return {}


def _none(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
    def apply(params: Params, x: Tensor) -> Tensor:
        height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
        return x.new_zeros(x.shape[0], after, height, width)

    return Operation(_no_weights, apply)


def _skip(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
    if stride == 1 and before == after:
        return Operation(_no_weights, lambda params, x: x)
    return _reduction(key, before, after, stride, norm)


def _pool(kind: str, size: int) -> _Maker:
    """Padded by half of its size; an average counts no padding."""

    def make(key: str, before: int, after: int, stride: int, norm: Norm) -> Operation:
        def apply(params: Params, x: Tensor) -> Tensor:
            if kind == "max":
                return F.max_pool2d(x, size, stride, size // 2)
            return F.avg_pool2d(x, size, stride, size // 2, count_include_pad=False)

        pool = Operation(_no_weights, apply)
        return pool if before == after else _behind(relu_conv_norm(key, before, after, 1, 1, norm), pool)

    return make


_Maker = Callable[[str, int, int, int, Norm], Operation]

OPERATIONS: dict[str, _Maker] = {
    "none": _none,
    "skip_connect": _skip,
    "nor_conv_1x1": _convolution(1),
    "nor_conv_3x3": _convolution(3),
    "nor_conv_5x5": _convolution(5),
    "nor_conv_7x7": _convolution(7),
    "avg_pool_3x3": _pool("avg", 3),
    "max_pool_3x3": _pool("max", 3),
    "max_pool_5x5": _pool("max", 5),
    "max_pool_7x7": _pool("max", 7),
    "sep_conv_3x3": _separable(3),
    "sep_conv_5x5": _separable(5),
    "sep_conv_7x7": _separable(7),
    "dil_conv_3x3": _separable(3, dilation=2, times=1),
    "dil_conv_5x5": _separable(5, dilation=2, times=1),
    "one_sep_conv_3x3": _separable(3, times=1),
    "depthwise_conv_3x3": _depthwise,
    "conv_7x1_1x7": _asymmetric(7),
    "conv_3x1_1x3": _asymmetric(3),
}
