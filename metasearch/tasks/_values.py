"""What regressions with units of their own share: targets as deviations from the supports' mean."""
from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def standard(known: Array, axis: int) -> tuple[Array, Array]:
    """Mean and standard deviation of an episode's supports, in whose terms its targets are told; kept dimensions.

    Equal supports, or a single one, have no spread: then it is a hundredth of the mean, or 1 where that is 0 too.
    """
    mean = known.mean(axis=axis, keepdims=True)
    spread = np.maximum(known.std(axis=axis, keepdims=True), 0.01 * np.abs(mean))
    return mean, np.where(spread > 0, spread, 1.0)
