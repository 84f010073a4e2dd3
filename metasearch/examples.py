"""A user's own examples: arrays, tensors or lists become what a net is given, or an error that says what was expected."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metasearch.tasks import _classes

__all__ = ["Array", "Inputs", "Labels", "labels", "values"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Inputs:
    """What a net was trained on. shape: of one input; pictures: bytes 0..255 (or floats 0..1), less `mean`, over `std`, channel
    by channel (empty: as they are). Of other inputs these say what had been taken off by whoever gave them."""

    shape: tuple[int, ...]
    pictures: bool = False
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    def read(self, given: object, what: str) -> Tensor:
        """[M, *shape] float32. what: "supports" or "queries", for errors. One channel may be left away: [M, H, W]."""
        x = _array(given, what)
        if x.dtype.kind not in "buif":
            raise ValueError(f"{what} must be numbers, [M, {_told(self.shape)}], but have dtype {x.dtype}")
        x = self._shaped(x, what)
        if self.pictures:
            x = self._scaled(x, what)
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is named below
            z = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32).copy())
        wrong = (~torch.isfinite(z)).flatten(1).any(1).nonzero().flatten()
        if len(wrong):
            raise ValueError(f"{what} must be finite numbers, but {len(wrong)} of {len(z)} rows are not, first row {wrong[0]}")
        for moment, f in ((self.mean, torch.sub), (self.std, torch.div)):
            if moment and self.pictures:
                z = f(z, torch.tensor(list(moment)).view(-1, *(1 for _ in self.shape[1:])))
        return z

    def _shaped(self, x: Array, what: str) -> Array:
        one = self.shape
        if x.shape[1:] == one and x.ndim:
            return x
        if x.ndim == len(one) and one[:1] == (1,) and x.shape[1:] == one[1:]:  # [M, H, W], or [M] numbers
            return x[:, None]
        hint = ""
        if x.shape == one or (1, *x.shape) == one:
            hint = " That is a single example: give it a first dimension, x[None]."
        elif len(one) == 3 and x.shape[1:] == (*one[1:], one[0]):
            hint = " Channels come first: x.transpose(0, 3, 1, 2)."
        elif len(one) == 3 and x.ndim in (3, 4):
            hint = f" Resize them to {one[1]}x{one[2]} with {one[0]} channel{'s' if one[0] > 1 else ''}."
        raise ValueError(f"{what} must have the shape [M, {_told(one)}], but have [{_told(x.shape)}].{hint}")

    def _scaled(self, x: Array, what: str) -> Array:
        if x.dtype == np.uint8:
            return x.astype(np.float32) * np.float32(1 / 255)  # as the tasks do
        law = f"pictures must be uint8 in 0..255 or floats in 0..1, but {what} are {x.dtype}"
        if x.dtype.kind in "ui":
            raise ValueError(f"{law}. Use x.astype('uint8').")
        if x.dtype.kind == "f" and x.size and np.isfinite(x).all() and (x.min() < -1e-3 or x.max() > 1 + 1e-3):
            raise ValueError(f"{law} in {x.min():g}..{x.max():g}. Divide by 255, and leave other normalisation to the model.")
        return x


class Labels(NamedTuple):
    """classes [N], sorted: what a user calls them; rows [M]: which one each support is of; tensor: were they given as one?"""

    classes: Array
    rows: Array
    tensor: bool

    def one_hot(self, columns: int) -> Tensor:
        """[M, columns]; columns beyond N belong to nobody."""
        return _classes.one_hot(self.rows, columns)

    def named(self, index: Array) -> Array | Tensor:
        """Their names, as an array of the user's own kind."""
        named = self.classes[index]
        return torch.from_numpy(named) if self.tensor else named


def labels(given: object, rows: int) -> Labels:
    """Of `rows` supports: whole numbers or strings [M], or one-hot rows [M, N] (then the classes are 0 .. N-1)."""
    y = _array(given, "labels")
    if y.dtype == object and all(isinstance(one, str) for one in y.flat):
        y = y.astype(str)
    if y.dtype.kind not in "buiU" and not (y.ndim == 2 and y.dtype.kind == "f"):
        raise ValueError(f"labels must be whole numbers or strings [M], or one-hot rows [M, N], but have dtype {y.dtype}")
    if y.ndim not in (1, 2) or len(y) != rows:
        raise ValueError(f"labels must be [{rows}], one a support, or one-hot [{rows}, N], but have the shape [{_told(y.shape)}]")
    if y.ndim == 2:
        if y.dtype.kind == "U" or not (((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()):
            hint = " Use y.ravel()." if y.shape[1] == 1 else ""
            raise ValueError(f"labels of two dimensions must be one-hot: a single 1 in each row, 0 elsewhere.{hint}")
        if empty := np.flatnonzero(y.sum(axis=0) == 0).tolist():
            raise ValueError(f"every class must have a support, but of the one-hot labels [{_told(y.shape)}] these columns have "
                             f"none: {_listed(empty)}")
        classes, index = np.arange(y.shape[1]), y.argmax(axis=1)
    else:
        classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"supports must be of 2 classes or more, but all are of {_listed(classes.tolist())}")
    return Labels(classes, index.astype(np.int64), isinstance(given, Tensor))


def values(given: object, rows: int, outputs: int) -> Array:
    """float64 [M, N] of `rows` supports; [M] where there is one output."""
    y = _array(given, "values")
    shape = f"[{rows}] or [{rows}, 1]" if outputs == 1 else f"[{rows}, {outputs}]"
    if y.dtype.kind not in "buif":
        raise ValueError(f"values must be numbers {shape}, but have dtype {y.dtype}")
    told = y[:, None] if y.ndim == 1 and outputs == 1 else y
    if told.shape != (rows, outputs):
        raise ValueError(f"values must be {shape}, one row a support, but have the shape [{_told(y.shape)}]")
    if not np.isfinite(told).all():
        raise ValueError(f"values must be finite, but {int((~np.isfinite(told)).sum())} of {told.size} are not")
    return told.astype(np.float64)


def _array(given: object, what: str) -> Array:
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        return np.asarray((given.float() if given.dtype == torch.bfloat16 else given).numpy())
    try:
        return np.asarray(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what} must be an array, a tensor or a list of rows of equal shape, but: {error}") from error


def _told(shape: Sequence[int]) -> str:
    return ", ".join(str(n) for n in shape)


def _listed(names: Sequence[object]) -> str:
    return ", ".join(repr(n) for n in names[:8]) + (", ..." if len(names) > 8 else "")
