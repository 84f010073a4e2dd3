"""Pieces of pictures: cut out, turned, and mixed with others.

Cutout: DeVries, Taylor, https://arxiv.org/abs/1708.04552. Sample pairing: Inoue, https://arxiv.org/abs/1801.02929.
CutMix: Yun et al. ICCV 2019, https://arxiv.org/abs/1905.04899.
"""
from __future__ import annotations

import torch
from torch import Tensor


def cutout(images: Tensor, magnitude: Tensor, noise: Tensor, fill: float) -> Tensor:
    """A square of `magnitude` sides of the picture is filled; its centre is anywhere, so it may be cut off by the border."""
    size = magnitude[:, None] * images.shape[-1]  # [B, 1]
    return images.masked_fill(_inside(noise, size, size, images), fill)


def sample_pairing(images: Tensor, weight: Tensor, others: Tensor) -> Tensor:
    """`weight` of another picture; the label stays."""
    return images + (others - images) * weight[:, None, None, None]


def cutmix(images: Tensor, magnitude: Tensor, noise: Tensor, others: Tensor) -> Tensor:
    """A box of another picture lies on this one; its area is uniform between 0 and `magnitude` of the picture's, its centre
    anywhere. The label is mixed as the pixels are: see `cutmix_kept`. One pixel or more stays: else a class of one support could
    vanish from an episode."""
    return torch.where(_box(images, magnitude, noise), others, images)


def cutmix_kept(images: Tensor, magnitude: Tensor, noise: Tensor) -> Tensor:
    """[B]: the share of its own pixels that a picture keeps under `cutmix`."""
    return 1 - _box(images, magnitude, noise).to(images.dtype).mean((1, 2, 3))


def flip(images: Tensor) -> Tensor:
    """Left and right change places."""
    return images.flip(-1)


def turn(images: Tensor, noise: Tensor) -> Tensor:
    """By 90, 180 or 270 degrees anticlockwise, never by 0."""
    return quarters(images, 1 + (3 * noise[:, 0]).floor().clamp(max=2))


def quarters(images: Tensor, count: Tensor) -> Tensor:
    """Turned anticlockwise by `count` [B] quarters of a circle, 0 to 3."""
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"only square pictures can be turned by 90 degrees, but these are {height} x {width}. "
                         f"Leave `turn` and new classes away, or make the pictures square.")
    count = count[:, None, None, None]
    found = images
    for k in (1, 2, 3):
        found = torch.where(count == k, images.rot90(k, (-2, -1)), found)
    return found


def _box(images: Tensor, magnitude: Tensor, noise: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    side = (magnitude * noise[:, 2]).sqrt()[:, None]
    return _inside(noise, (side * width).clamp(max=width - 1), (side * height).clamp(max=height - 1), images)


def _inside(noise: Tensor, width: Tensor, height: Tensor, images: Tensor) -> Tensor:
    """[B, 1, H, W]: the pixels whose centres are in a box of that size [B, 1] in pixels about a random point."""
    def along(side: int, centre: Tensor, size: Tensor) -> Tensor:
        at = torch.arange(side, dtype=images.dtype, device=images.device) + 0.5
        return (at - centre[:, None] * side).abs() * 2 < size  # [B, side]

    rows, columns = along(images.shape[-2], noise[:, 1], height), along(images.shape[-1], noise[:, 0], width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
