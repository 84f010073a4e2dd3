"""The convolutional net of Siamese networks: four wide convolutions, then 4096 sigmoids; made for pictures of 105 x 105.

Koch, Zemel, Salakhutdinov. "Siamese Neural Networks for One-shot Image Recognition". ICML workshop on deep learning 2015,
figure 4 and section 3.2 (initialisation). https://www.cs.cmu.edu/~rsalakhu/papers/oneshot1.pdf
64 filters of 10 x 10, 128 of 7 x 7, 128 of 4 x 4, 256 of 4 x 4, without padding, ReLU, 2 x 2 max pooling behind the first
three. With the learner's weighted distance (learners/siamese.py) 38,951,745 parameters, nearly all in the last layer.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator

from metasearch.nets import Block, Net, Params
from metasearch.nets.activation import RELU

__all__ = ["koch"]

LAYERS = ((64, 10), (128, 7), (128, 4), (256, 4))  # filters, side
FEATURES = 4096


def koch(x_shape: tuple[int, ...] = (1, 105, 105), features: int = FEATURES) -> Net:
    """x [M, C, H, W] -> [M, features], each in (0, 1).

    Keys: net/conv1/weight, net/conv1/bias, ..., net/full/weight, net/full/bias.
    Raises ValueError for pictures that its convolutions and poolings leave nothing of (84 x 84 are enough).
    """
    if len(x_shape) != 3:
        raise ValueError(f"the net takes pictures of shape (C, H, W), but got {x_shape}. Use an mlp for vectors.")
    height, width = (_size(side) for side in x_shape[1:])
    if min(height, width) < 1:
        size = f"{x_shape[1]}x{x_shape[2]}"
        raise ValueError(f"four convolutions and three poolings leave nothing of {size} pictures. Use conv4.")
    flat = LAYERS[-1][0] * height * width

    def begin(generator: Generator) -> Params:
        params: Params = {}
        before = x_shape[0]
        for i, (filters, side) in enumerate(LAYERS, 1):
            params |= _weights(f"conv{i}", (filters, before, side, side), 0.01, generator)
            before = filters
        return params | _weights("full", (features, flat), 0.2, generator)

    def layer(i: int) -> Block:
        def apply(params: Params, x: torch.Tensor) -> torch.Tensor:
            x = RELU(F.conv2d(x, params[f"net/conv{i}/weight"], params[f"net/conv{i}/bias"]))
            return F.max_pool2d(x, 2) if i < len(LAYERS) else x.flatten(1)

        return Block(f"conv{i}", apply)

    def full(params: Params, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, params["net/full/weight"], params["net/full/bias"]).sigmoid()

    blocks = [*(layer(i) for i in range(1, len(LAYERS) + 1)), Block("full", full)]
    return Net.of(begin, blocks, outputs=None, norm="none", features=features)


def _size(side: int) -> int:
    for i, (_, kernel) in enumerate(LAYERS, 1):
        side = (side - kernel + 1) // (2 if i < len(LAYERS) else 1)
    return side


def _weights(key: str, shape: tuple[int, ...], std: float, generator: Generator) -> Params:
    """Weights of mean 0, biases of mean 0.5 and standard deviation 0.01."""
    return {
        f"net/{key}/weight": std * torch.randn(shape, generator=generator),
        f"net/{key}/bias": 0.5 + 0.01 * torch.randn(shape[0], generator=generator),
    }
