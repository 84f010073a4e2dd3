"""Pictures that are already arrays, class by class, in one .npz file: CIFAR-FS, FC100.

CIFAR-FS: Bertinetto, Henriques, Torr, Vedaldi. "Meta-learning with differentiable closed-form solvers." ICLR 2019.
FC100: Oreshkin, Rodriguez, Lacoste. "TADAM." NeurIPS 2018. Both split the 100 classes of CIFAR-100 (Krizhevsky 2009).

The file holds `images` uint8 [classes, drawings, H, W, C] (or [classes, drawings, H, W]), `class_name` [classes], and columns
[classes] of "train", "val" or "test", one for each way to split.
"""
from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np

from metasearch import plugins
from metasearch.tasks import SPLITS, Split, _archive, _cache
from metasearch.tasks._archive import DataError, Source
from metasearch.tasks._images import Array, ImageTasks, Pictures, moments, statistics

GET = "It is an .npz file with `images` uint8 [classes, drawings, H, W, C], `class_name` and split columns of train, val, test."


class ClassArrays(ImageTasks):
    """x is [C, H, W] in 0..1, or with the training classes' mean 0 and standard deviation 1 a channel.

    path:      the .npz file; default METASEARCH_DATA/cifar/cifar100_100.npz (100 pictures a class).
    split:     the name of a split column, such as "cifarfs_split" (64 / 16 / 20 classes) or "fc100_split" (60 / 20 / 20).
    normalise: "none" or "train".
    sha256:    the file's checksum, compared before it is read.
    """

    def __init__(
        self, path: str | None = None, split: str = "cifarfs_split", normalise: Literal["none", "train"] = "none",
        sha256: str | None = None,
    ) -> None:
        file = _archive.found(path, "cifar/cifar100_100.npz", "class-arrays", GET)
        if not file.is_file():
            raise DataError(f"{file} must be an .npz file, but is none. {GET}")
        key = _cache.key("class_arrays", 3, _archive.fingerprint(file, sha256))
        arrays, digest = _cache.kept("class-arrays", key, lambda: _read(file))
        images, offsets, columns = arrays["images"], arrays["offsets"], _cache.told(arrays["columns"])
        known = [name for name, column in columns.items() if set(column) <= set(SPLITS)]
        if split not in known:
            raise DataError(f"{file}: '{split}' is no column of train, val, test.{plugins.did_you_mean(split, known)}")
        splits: dict[Split, list[int]] = {s: [c for c, at in enumerate(columns[split]) if at == s] for s in SPLITS}
        names = columns.get("class_name", [f"class {c}" for c in range(len(offsets) - 1)])
        mean, std = statistics(arrays, offsets, splits["train"]) if normalise == "train" else (None, None)
        super().__init__(Pictures(images, offsets, names, splits, digest), told={"tasks": "class_arrays"}, mean=mean, std=std)


def _read(file: Path) -> dict[str, Array]:
    """images uint8 [P, C, H, W], offsets, moments, and the columns [classes] of text."""
    with _archive.opened(file) as source:
        names = [name.removesuffix(".npy") for name in source.names if name.endswith(".npy")]
        if "images" not in names:
            raise DataError(f"{file} must hold `images`, but holds {', '.join(names) or 'no arrays'}. {GET}")
        arrays = {name: _array(source, name) for name in names}
    images = arrays.pop("images")
    if images.dtype != np.uint8 or images.ndim not in (4, 5) or 0 in images.shape:
        raise DataError(f"{file}: `images` must be uint8 [classes, drawings, H, W(, C)], but is {images.dtype} {images.shape}")
    classes, drawings, height, width = images.shape[:4]
    columns = {name: a.tolist() for name, a in arrays.items() if a.shape == (classes,) and a.dtype.kind == "U"}
    images = np.ascontiguousarray(images.reshape(classes * drawings, height, width, -1).transpose(0, 3, 1, 2))
    offsets = np.arange(classes + 1, dtype=np.int64) * drawings
    return {"images": images, "offsets": offsets, "columns": _cache.text(columns), **moments(images, offsets)}


def _array(source: Source, name: str) -> Array:
    try:
        return np.asarray(np.lib.format.read_array(io.BytesIO(source.read(f"{name}.npy")), allow_pickle=False))
    except DataError:
        raise
    except (ValueError, EOFError) as error:
        raise DataError(f"{source.path}: `{name}` must be a plain array, but cannot be read: {error}") from error
