"""Pictures in folders, or in one folder with a list a split: mini-ImageNet and anything of its kind.

Class folders: ROOT/train/CLASS/*.jpg, ROOT/val/..., ROOT/test/... Lists, as in Ravi and Larochelle, "Optimization as a model for
few-shot learning", ICLR 2017: ROOT/train.csv, val.csv, test.csv with the columns filename,label, and ROOT/images/FILENAME.
ROOT is a folder or a zip archive. Pictures are resized directly (their aspect is not kept), by Lanczos as MAML's code did.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from metasearch.tasks import SPLITS, Split, _archive, _cache
from metasearch.tasks._archive import DataError, Source
from metasearch.tasks._images import Array, ImageTasks, Pictures, moments, statistics

GET = ("Name a folder (or zip) with train/CLASS/*, val/CLASS/*, test/CLASS/*, or with train.csv, val.csv, test.csv "
       "(filename,label) and images/.")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
Listed = dict[tuple[Split, str], list[str]]  # (split, class) -> the names of its pictures


class ImageFolder(ImageTasks):
    """x is [C, size, size] in 0..1, or normalised: "train" by the training classes' mean and standard deviation a channel.

    root:      the folder or zip; default METASEARCH_DATA/images.
    size:      side of the pictures, in pixels. grey: one channel in place of three.
    sha256:    of the zip, compared before it is read.
    """

    def __init__(
        self, root: str | None = None, size: int = 84, grey: bool = False, normalise: Literal["none", "train"] = "none",
        sha256: str | None = None,
    ) -> None:
        if not 1 <= size <= 1024:
            raise ValueError(f"`1 <= size <= 1024` must hold, but got size={size}")
        path = _archive.found(root, "images", "image-folder", GET)
        key = _cache.key("image_folder", 3, _archive.fingerprint(path, sha256), size, grey)
        arrays, digest = _cache.kept("image-folder", key, lambda: _read(path, size, grey))
        classes = _cache.told(arrays["classes"])
        splits: dict[Split, list[int]] = {s: [c for c, (split, _) in enumerate(classes) if split == s] for s in SPLITS}
        offsets = arrays["offsets"]
        pictures = Pictures(arrays["images"], offsets, [name for _, name in classes], splits, digest)
        mean, std = statistics(arrays, offsets, splits["train"]) if normalise == "train" else (None, None)
        super().__init__(pictures, told={"tasks": "image_folder"}, mean=mean, std=std)


def _read(path: Path, size: int, grey: bool) -> dict[str, Array]:
    """images uint8 [P, C, size, size], offsets, moments, classes: (split, name) each."""
    with _archive.opened(path) as source:
        listed = _from_lists(source) if _has_lists(source) else _from_folders(source)
        if not listed:
            raise DataError(f"{path} has no pictures in that layout. {GET}")
        images = _decoded(source, [name for names in listed.values() for name in names], size, grey)
    offsets = np.cumsum([0, *(len(names) for names in listed.values())], dtype=np.int64)
    return {"images": images, "offsets": offsets, "classes": _cache.text(list(listed)), **moments(images, offsets)}


def _has_lists(source: Source) -> bool:
    return any(name in source.names for name in ("train.csv", "val.csv", "test.csv"))


def _from_folders(source: Source) -> Listed:
    listed: Listed = {}
    for name in source.names:
        parts = name.split("/")
        if len(parts) >= 3 and parts[-1].lower().endswith(PICTURES):
            split, label = parts[-3], parts[-2]
            for known in SPLITS:
                if split == known:
                    listed.setdefault((known, label), []).append(name)
    _check_disjoint(source, listed)
    return dict(sorted(listed.items()))


def _from_lists(source: Source) -> Listed:
    listed: Listed = {}
    there = set(source.names)
    for split in SPLITS:
        if f"{split}.csv" not in there:
            continue
        where = f"{source.path}: {split}.csv"
        try:
            rows = list(csv.DictReader(io.StringIO(source.read(f"{split}.csv").decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{where} must be a CSV in UTF-8, but cannot be read: {error}") from error
        for number, row in enumerate(rows, start=2):
            file, label = row.get("filename"), row.get("label")
            if not file or not label:
                raise DataError(f"{where} must have the columns filename,label, but line {number} lacks one")
            if f"images/{file}" not in there:
                raise DataError(f"{where}, line {number}: there is no images/{file[:200]}")
            listed.setdefault((split, label), []).append(f"images/{file}")
    _check_disjoint(source, listed)
    return dict(sorted(listed.items()))


def _check_disjoint(source: Source, listed: Listed) -> None:
    """A class belongs to one split, and a picture to one class."""
    where: dict[str, Split] = {}
    for split, label in listed:
        if where.setdefault(label, split) != split:
            both = f"'{label}' is in {where[label]} and {split}"
            raise DataError(f"{source.path}: the splits' classes must be disjoint, but {both}")
    owner: dict[str, str] = {}
    for (_, label), names in listed.items():
        for name in names:
            if name in owner:
                raise DataError(f"{source.path}: a picture is listed once, but {name} is in '{owner[name]}' and in '{label}'")
            owner[name] = label


def _decoded(source: Source, files: Sequence[str], size: int, grey: bool) -> Array:
    """uint8 [P, C, size, size]; threads, as PIL lets go of the interpreter while it decodes."""
    from PIL import Image

    images = np.empty((len(files), 1 if grey else 3, size, size), dtype=np.uint8)

    def decode(number: int) -> None:
        picture = _archive.picture(source.read(files[number]), f"{source.path}: {files[number]}").convert("L" if grey else "RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        images[number] = np.asarray(picture).reshape(size, size, -1).transpose(2, 0, 1)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(files)), chunksize=64):
            pass
    return images
