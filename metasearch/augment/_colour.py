"""What the values of a picture become: pillow's ImageOps and ImageEnhance on batches, in which AutoAugment is defined.

Every function takes images [B, C, H, W] in 0..1 and magnitudes [B]. pillow works on whole grey levels and cuts fractions off
after each operation; here values stay real numbers, so that enhancing is differentiable in its magnitude. Only `equalize` and
`posterize` are about levels: a value in 0..1 counts as the nearest of 256, or as the one below.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as pillow's convert("L")
ALMOST = 1e-3  # of a grey level: float32 holds v / 255 * 255 to 1e-5


def luma(images: Tensor) -> Tensor:
    """The brightness of every pixel [B, 1, H, W]: of three channels as of a colour picture, otherwise their mean."""
    if images.shape[1] != 3:
        return images if images.shape[1] == 1 else images.mean(1, keepdim=True)
    red, green, blue = LUMA
    return (images[:, :1] * red).add(images[:, 1:2], alpha=green).add(images[:, 2:], alpha=blue)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: black, 1: the picture, above: brighter."""
    return (images * _each(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: all grey, of the picture's mean luma."""
    return _away_from(luma(images.mean((2, 3), keepdim=True)), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: the grey picture. Of one channel every factor gives the picture itself, as in pillow."""
    return images if images.shape[1] == 1 else _away_from(luma(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: smoothed by pillow's SMOOTH, the mean of nine pixels of which the middle one counts five times; the outermost
    pixels stay as they are."""
    if min(images.shape[-2:]) < 3:
        return images
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    nine = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    edges = F.pad(torch.sub(images[..., 1:-1, 1:-1], nine, alpha=1 / 9), (1, 1, 1, 1))  # 13 / 9 of picture - smoothed
    return torch.addcmul(images, edges, (_each(factor) - 1) * (9 / 13)).clamp(0, 1)


def invert(images: Tensor) -> Tensor:
    return 1 - images


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts what is at or above a grey level; threshold 0..256: at 256 nothing is."""
    side = (images - _each(threshold - ALMOST) / 255).sign()  # comparing and choosing would take ten times as long
    return torch.addcmul(side.clamp(min=0), side, images, value=-1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps so many of a level's eight bits: 1 at least, as pillow does; 8 is the picture (to float32's precision)."""
    kept = bits.round().clamp(1, 8)
    step = _each(torch.exp2(torch.where(kept == 8, -16.0, 8 - kept)) / 255)
    return (images / step).add_(ALMOST).floor_().mul_(step)


def autocontrast(images: Tensor) -> Tensor:
    """Every channel stretched to 0..1; one of a single value stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    low, high = torch.where(flat, 0.0, low), torch.where(flat, 1.0, high)
    return (images - low) / (high - low)


def equalize(images: Tensor) -> Tensor:
    """Every channel's levels spread to be about equally frequent, by pillow's integer arithmetic: to the level the same."""
    level = (images.detach().flatten(2) * 255).round().clamp(0, 255)  # [B, C, H*W]
    top, level = level.amax(2, keepdim=True).long(), level.long()
    one = torch.ones(1, dtype=images.dtype, device=images.device)  # counts are exact in float32 up to 4096 x 4096 pixels
    counts = torch.zeros(*level.shape[:2], 256, dtype=images.dtype, device=images.device)
    counts = counts.scatter_add(2, level, one.expand(level.shape))
    step = torch.div(level.shape[2] - counts.gather(2, top), 255, rounding_mode="floor")
    below = counts.cumsum(2) - counts + torch.div(step, 2, rounding_mode="floor")
    table = (below / step.clamp(min=1)).floor().clamp(max=255)
    same = torch.arange(256, dtype=images.dtype, device=images.device).expand(table.shape)
    return (torch.lerp(table, same, (step == 0).to(images.dtype)) / 255).gather(2, level).view(images.shape)


def channel_permutation(images: Tensor, noise: Tensor) -> Tensor:
    """Channels in random order, all orders alike; one channel stays as it is."""
    channels = images.shape[1]
    if channels > noise.shape[1]:
        raise ValueError(f"channel_permutation takes pictures of up to {noise.shape[1]} channels, but got {channels}")
    order = noise[:, :channels].argsort(1)  # [B, C]
    return images.gather(1, order[:, :, None, None].expand(images.shape))


def _away_from(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """`other` at factor 0, the picture at 1, and beyond."""
    return torch.addcmul(other * _each(1 - factor), images, _each(factor)).clamp(0, 1)


def _each(magnitude: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return magnitude[:, None, None, None]
