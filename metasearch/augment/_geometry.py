"""Where the pixels of a picture come from: affine operations as five amounts, and the one pass that carries them all out.

A matrix [2, 3] maps a point of the new picture to one of the old, in pixels, with the centres of pixels at 0.5, 1.5, ...: PIL's
`Image.transform(AFFINE)`, in which AutoAugment's operations are defined (shears keep the top left corner, rotations the centre).
Values are interpolated bilinearly, and `fill` lies around the picture.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width
AMOUNTS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")  # slopes, widths, heights, degrees anticlockwise
Amounts = Callable[[Tensor, Tensor, Size], Tensor]  # (magnitude [B], noise [B, NOISE], size) -> [B, 5]


def matrix(amount: Tensor, size: Size) -> Tensor:
    """[B, 5] -> [B, 2, 3]. For one amount at a time, as operations have it: several do not compose."""
    height, width = size
    shear_x, shear_y, translate_x, translate_y, degrees = amount.unbind(1)
    turn = degrees * (math.pi / 180)
    cos, sin = turn.cos(), turn.sin()
    x, y = width / 2, height / 2
    back = x - x * cos + y * sin + width * translate_x, y - x * sin - y * cos + height * translate_y
    return torch.stack([cos, shear_x - sin, back[0], sin + shear_y, cos, back[1]], 1).unflatten(1, (2, 3))


def warp(images: Tensor, matrix: Tensor, fill: float = 0.0) -> Tensor:
    """images [B, C, H, W], matrix [B, 2, 3] -> [B, C, H, W]."""
    return sampled(images, *coordinates(matrix, (int(images.shape[2]), int(images.shape[3]))), fill)


def coordinates(matrix: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """What columns [B, 2, W] and rows [B, 2, H] add to x and y of the old point, -1 to 1 over the picture, as torch counts."""
    height, width = size
    scaled = matrix * torch.tensor([[2 / width], [2 / height]], dtype=matrix.dtype, device=matrix.device)
    x, y = (torch.arange(n, dtype=matrix.dtype, device=matrix.device) + 0.5 for n in (width, height))
    return scaled[:, :, :1] * x, scaled[:, :, 1:2] * y + (scaled[:, :, 2:] - 1)


def sampled(images: Tensor, across: Tensor, down: Tensor, fill: float) -> Tensor:
    grid = (down[..., None] + across[:, :, None]).permute(0, 2, 3, 1)  # [B, H, W, 2]
    if fill == 0:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def along(name: str) -> Amounts:
    """The magnitude is that amount."""
    unit = torch.eye(len(AMOUNTS))[AMOUNTS.index(name)]

    def amounts(magnitude: Tensor, noise: Tensor, size: Size) -> Tensor:
        return magnitude[:, None] * unit.to(magnitude.device, magnitude.dtype)

    return amounts


def crop(magnitude: Tensor, noise: Tensor, size: Size) -> Tensor:
    """Padded by `magnitude` sides all around, then cut out anywhere: moved by whole pixels in both directions."""
    sides = torch.tensor([size[1], size[0]], dtype=magnitude.dtype, device=magnitude.device)
    moved = ((2 * noise[:, :2] - 1) * magnitude[:, None] * sides).round() / sides
    return F.pad(moved, (2, 1))
