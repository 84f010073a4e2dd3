"""Where the pixels of a picture come from: affine operations as five amounts, and the one pass that carries them all out.

Amounts say which point of the old picture a point of the new one shows, as PIL's `Image.transform(AFFINE)` does, in which
AutoAugment's operations are defined: shears keep the top left corner, rotations the centre. Values are interpolated bilinearly,
and `fill` lies around the picture.
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


def warp(images: Tensor, amounts: Tensor, fill: float = 0.0) -> Tensor:
    """images [B, C, H, W], amounts [B, 5], of which one is not 0 (several would not compose) -> [B, C, H, W]."""
    return sampled(images, *lines(amounts, (int(images.shape[2]), int(images.shape[3]))), fill)


def lines(amounts: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """What each column [B, 2, W] and each row [B, 2, H] adds to x and y of the old point; these run from -1 to 1 over the
    picture, as torch counts."""
    side = torch.tensor([[size[1]], [size[0]]], dtype=amounts.dtype, device=amounts.device)  # width, height
    turn = amounts[:, 4:] * (math.pi / 180)
    cos, sin = turn.cos(), turn.sin()
    by_x = torch.cat([cos, sin + amounts[:, 1:2]], 1)[..., None]  # [B, 2, 1]: x_old, y_old for a step in x
    by_y = torch.cat([amounts[:, :1] - sin, cos], 1)[..., None]
    moved = amounts[:, :2, None] * side.flip(0) + 2 * amounts[:, 2:4, None] * side  # twice: halves of sides are what counts
    x, y = (torch.arange(1 - n, n, 2, dtype=amounts.dtype, device=amounts.device) for n in (size[1], size[0]))  # from the centre
    return by_x / side * x, (by_y * y + moved) / side


def sampled(images: Tensor, across: Tensor, down: Tensor, fill: float) -> Tensor:
    """images [B, C, H, W] at the points that `lines` describe."""
    grid = (down[..., None] + across[:, :, None]).permute(0, 2, 3, 1)  # [B, H, W, 2]
    if fill == 0:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False).add_(fill)


def along(name: str) -> Amounts:
    """The magnitude is that amount."""
    unit = torch.eye(len(AMOUNTS))[AMOUNTS.index(name)]

    def amounts(magnitude: Tensor, noise: Tensor, size: Size) -> Tensor:
        return magnitude[:, None] * unit.to(magnitude.device, magnitude.dtype)

    return amounts


def crop(magnitude: Tensor, noise: Tensor, size: Size) -> Tensor:
    """Padded by `magnitude` sides all around, then cut out anywhere: moved by whole pixels in both directions, -k, ..., k, by one
    number as often as by another."""
    sides = torch.tensor([size[1], size[0]], dtype=magnitude.dtype, device=magnitude.device)
    k = (magnitude[:, None] * sides).round()
    moved = torch.minimum((noise[:, :2] * (2 * k + 1)).floor(), 2 * k) - k
    return F.pad(moved / sides, (2, 1))
