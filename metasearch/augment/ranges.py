"""Which magnitudes a level between 0 and 1 means: the published tables, by name.

autoaugment: Cubuk et al. CVPR 2019, as released (also PBA); a level is l / 10. Searched levels are 0..9, so 0.9 is the highest;
             `posterize` keeps 4 to 1 bits there, where the paper means 8 to 4.
randaugment: Cubuk et al. 2020 in ildoonet's code; a level is m / 30. `solarize` and `posterize` get WEAKER with the level, as
             published.
wide:        TrivialAugment, Müller and Hutter, ICCV 2021; a level is m / 30.
dada:        DADA, Li et al. ECCV 2020, and Fast AutoAugment, on which it builds; a level is any number.

Published pixels are those of 32x32 pictures (of 224x224 in `randaugment`); here they are shares of the side, so that 28x28 and
84x84 pictures move as far. What is rounded to whole pixels and degrees there is not rounded here, but bits are. What a paper does
not name (crop, cutmix and so on) is the same in all tables: crop up to 4 pixels of 32, CutMix up to the whole picture.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metasearch import plugins
from metasearch.augment.ops import NUMBER, OPERATIONS

__all__ = ["RANGES", "Range", "check", "magnitudes"]


class Range(NamedTuple):
    """From `low` at level 0 to `high` at level 1. whole: rounded "up" or "down" to whole numbers."""

    low: float
    high: float
    whole: Literal["up", "down"] | None = None


def _table(
    shear: float, translate: float, rotate: float, solarize: Range, posterize: Range, enhance: Range, cutout: float
) -> dict[str, Range]:
    named = {
        "shear_x": Range(0, shear), "shear_y": Range(0, shear), "translate_x": Range(0, translate),
        "translate_y": Range(0, translate), "rotate": Range(0, rotate), "solarize": solarize, "posterize": posterize,
        "contrast": enhance, "color": enhance, "brightness": enhance, "sharpness": enhance, "cutout": Range(0, cutout),
        "sample_pairing": Range(0, 0.4), "crop": Range(0, 4 / 32), "cutmix": Range(0, 1),
    }
    assert set(named) == {operation.name for operation in OPERATIONS if operation.unit}
    return named


RANGES: dict[str, dict[str, Range]] = {
    "autoaugment": _table(0.3, 10 / 32, 30, Range(256, 0), Range(4, 0, "up"), Range(0.1, 1.9), 20 / 32),
    "randaugment": _table(0.3, 100 / 224, 30, Range(0, 256), Range(0, 4, "down"), Range(0.1, 1.9), 40 / 224),
    "wide": _table(0.99, 32 / 32, 135, Range(256, 0), Range(8, 2, "up"), Range(0.01, 2.0), 0.6),
    "dada": _table(0.3, 0.45, 30, Range(0, 256), Range(4, 8, "down"), Range(0.1, 1.9), 0.2),
}


def check(name: str) -> str:
    """The name. Raises ValueError with the nearest known one."""
    if not isinstance(name, str) or name not in RANGES:
        raise ValueError(f"there are no ranges '{name}'.{plugins.did_you_mean(str(name), RANGES)}")
    return name


def magnitudes(ranges: str, operation: Tensor, level: Tensor) -> Tensor:
    """operation: numbers in OPERATIONS; level in 0..1, of the same shape -> magnitudes, each in its operation's unit."""
    low, span, rounding = _COLUMNS[ranges].to(level.device, level.dtype)[:, operation]
    found = low + span * level
    whole = rounding * ((rounding * found) - 1e-4).ceil()  # up: ceil; down: -ceil(-x); the 1e-4 forgives float32
    return torch.where(rounding == 0, found, whole)


def _columns(table: dict[str, Range]) -> Tensor:
    found = torch.zeros(3, len(OPERATIONS))
    for name, (low, high, whole) in table.items():
        found[:, NUMBER[name]] = torch.tensor([low, high - low, {"up": 1.0, "down": -1.0, None: 0.0}[whole]])
    return found


_COLUMNS = {name: _columns(table) for name, table in RANGES.items()}
