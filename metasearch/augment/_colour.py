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
    return (images[:, :1] * red).add_(images[:, 1:2], alpha=green).add_(images[:, 2:], alpha=blue)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: black, 1: the picture, above: brighter."""
    return _clipped(images * _each(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: all grey, of the picture's mean luma."""
    grey = luma(images.mean((2, 3), keepdim=True))
    return _clipped((images * _each(factor)).add_(grey * _each(1 - factor)))


def color(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: the grey picture. Of one channel every factor gives the picture itself, as in pillow."""
    if images.shape[1] == 1:
        return images
    return _clipped(torch.addcmul(luma(images) * _each(1 - factor), images, _each(factor)))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """factor 0: smoothed by pillow's SMOOTH, the mean of nine pixels of which the middle one counts five times; the outermost
    pixels stay as they are."""
    height, width = images.shape[-2:]
    if min(height, width) < 3 or not images.numel():
        return images
    row = images.flatten()  # of all pixels: torch is faster along one; what goes over a picture's border weighs nothing below
    nine = (row[:-2 * width] + row[width:-width]).add_(row[2 * width:])
    nine = (nine[:-2] + nine[1:-1]).add_(nine[2:])
    edges = row.clone()
    edges[width + 1:-width - 1].sub_(nine, alpha=1 / 9)  # 13 / 9 of picture - smoothed
    weight = F.pad(images.new_full((height - 2, width - 2), 9 / 13), (1, 1, 1, 1)) * _each(factor - 1)
    return _clipped(torch.addcmul(images, edges.view(images.shape), weight))


def invert(images: Tensor) -> Tensor:
    return 1 - images


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts what is at or above a grey level; threshold 0..256: at 256 nothing is."""
    side = (images - _each(threshold - ALMOST) / 255).sign_()  # comparing and choosing would take ten times as long
    return torch.addcmul(side.clamp(min=0), side, images, value=-1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps so many of a level's eight bits: 1 at least; 8 is the picture (to float32's precision)."""
    kept = bits.round().clamp(1, 8)
    step = _each(torch.exp2(torch.where(kept == 8, -16.0, 8 - kept)) / 255)
    return (images / step).add_(ALMOST).floor_().mul_(step)


def autocontrast(images: Tensor) -> Tensor:
    """Every channel stretched to 0..1; one of a single value stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    low, high = torch.where(flat, 0.0, low), torch.where(flat, 1.0, high)
    return (images - low).div_(high - low)


def equalize(images: Tensor) -> Tensor:
    """Every channel's levels spread to be about equally frequent, by pillow's integer arithmetic: to the level the same. Counts
    are exact in float32 up to 4096 x 4096 pixels."""
    level = (images.detach().flatten(2) * 255).round_()  # [B, C, H*W]
    level = torch.fmax(level, level.new_zeros(())).clamp_max_(255)  # fmax: what is no number is a level too, 0
    top, level = level.amax(2, keepdim=True).long(), level.long()
    one = torch.ones(1, dtype=images.dtype, device=images.device)
    counts = torch.zeros(*level.shape[:2], 256, dtype=images.dtype, device=images.device)
    counts = counts.scatter_add(2, level, one.expand(level.shape))
    step = torch.div(level.shape[2] - counts.gather(2, top), 255, rounding_mode="floor")
    below = (counts.cumsum(2) - counts).add_(torch.div(step, 2, rounding_mode="floor"))
    table = below.div_(step.clamp(min=1)).floor_().clamp_max_(255)
    same = torch.arange(256, dtype=images.dtype, device=images.device).expand(table.shape)
    table = torch.lerp(table, same, (step == 0).to(images.dtype)).div_(255)
    return table.gather(2, level).view(images.shape)


def channel_permutation(images: Tensor, noise: Tensor) -> Tensor:
    """Channels in random order, all orders alike; one channel stays as it is."""
    channels = images.shape[1]
    if channels > noise.shape[1]:
        raise ValueError(f"channel_permutation takes pictures of up to {noise.shape[1]} channels, but got {channels}")
    order = noise[:, :channels].argsort(1)  # [B, C]
    return images.gather(1, order[:, :, None, None].expand(images.shape))


def _clipped(images: Tensor) -> Tensor:
    """In place: these are nobody else's."""
    return images.clamp_min_(0).clamp_max_(1)  # vmap has no rule for clamp_


def _each(magnitude: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return magnitude.view(-1, 1, 1, 1)
