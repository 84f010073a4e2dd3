"""Small made-up data sets in the layouts that task distributions read. Random pictures: no two are equal."""
from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]

BACKGROUND = {"Greek": 6, "Hebrew": 4}  # alphabet -> characters; Vinyals: train, val
EVALUATION = {"Kannada": 5}  # test


def png(picture: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def inks(rng: np.random.Generator, side: int = 28) -> Array:
    """A 1-bit picture with ink = 0, as Omniglot's."""
    return rng.random((side, side)) < 0.8


def omniglot(folder: Path, *, side: int = 28, drawings: int = 6, background: Mapping[str, int] = BACKGROUND) -> Path:
    """The background set as a zip archive, the evaluation set as a folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images_background.zip", "w") as archive:
        for alphabet, characters in background.items():
            for c in range(1, characters + 1):
                for d in range(1, drawings + 1):
                    archive.writestr(f"images_background/{alphabet}/character{c:02}/{c:04}_{d:02}.png", png(inks(rng, side)))
    for alphabet, characters in EVALUATION.items():
        for c in range(1, characters + 1):
            place = folder / "images_evaluation" / alphabet / f"character{c:02}"
            place.mkdir(parents=True)
            for d in range(1, drawings + 1):
                (place / f"{c:04}_{d:02}.png").write_bytes(png(inks(rng, side)))
    return folder


def class_arrays(file: Path, *, classes: int = 15, drawings: int = 6, side: int = 8) -> Path:
    rng = np.random.default_rng(0)
    third = classes // 3
    np.savez_compressed(
        file, images=rng.integers(0, 256, (classes, drawings, side, side, 3), dtype=np.uint8),
        class_name=np.array([f"class {c}" for c in range(classes)]), coarse=np.array(["thing"] * classes),
        cifarfs_split=np.array(["train"] * (classes - 2 * third) + ["val"] * third + ["test"] * third),
        fc100_split=np.array(["test"] * third + ["val"] * third + ["train"] * (classes - 2 * third)),
    )
    return file


def colours(rng: np.random.Generator, side: int = 10) -> Array:
    return rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)


def class_folders(folder: Path) -> Path:
    """train, val, test with 6, 4, 4 classes of 5 to 8 pictures."""
    rng = np.random.default_rng(0)
    for split, classes in (("train", 6), ("val", 4), ("test", 4)):
        for c in range(classes):
            place = folder / split / f"{split}{c}"
            place.mkdir(parents=True)
            for d in range(5 + c % 4):
                (place / f"{d}.png").write_bytes(png(colours(rng)))
    return folder


def split_lists(file: Path) -> Path:
    """A zip archive in mini-ImageNet's layout: images/ and one CSV a split."""
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(file, "w") as archive:
        for split, classes in (("train", 5), ("val", 4), ("test", 4)):
            lines = ["filename,label"]
            for c in range(classes):
                for d in range(6):
                    name = f"n{split}{c:02}{d:05}.png"
                    archive.writestr(f"images/{name}", png(colours(rng)))
                    lines.append(f"{name},n{split}{c:02}")
            archive.writestr(f"{split}.csv", "\n".join(lines) + "\n")
    return file


def latency(file: Path, *, architectures: int = 120) -> Path:
    """Made-up milliseconds of the published devices; operations differ in at least one layer."""
    from metasearch.tasks.latency import DEVICES

    rng = np.random.default_rng(0)
    names = sorted(name for devices in DEVICES.values() for name in devices)
    lines = [",".join(("arch_index", "ops", *names))]
    for i in range(architectures):
        operations = " ".join(str(o) for o in (*rng.integers(0, 9, 19), i // 81, i // 9 % 9, i % 9))
        lines.append(",".join((str(i), operations, *(f"{t:.4f}" for t in rng.uniform(5, 50, len(names))))))
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    return file


def lake_runs(folder: Path, *, side: int = 28) -> Path:
    """20 runs beside a made-up Omniglot with two alphabets that are large enough for 20 ways."""
    omniglot(folder, background={"Greek": 22, "Hebrew": 20, "Latin": 3})
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(folder / "all_runs.zip", "w") as archive:
        for r in range(1, 21):
            classes = rng.permutation(20) + 1
            lines = [f"run{r:02}/test/item{i:02}.png run{r:02}/training/class{c:02}.png" for i, c in enumerate(classes, 1)]
            archive.writestr(f"run{r:02}/class_labels.txt", "\n".join(lines))
            for i in range(1, 21):
                archive.writestr(f"run{r:02}/training/class{i:02}.png", png(inks(rng, side)))
                archive.writestr(f"run{r:02}/test/item{i:02}.png", png(inks(rng, side)))
    return folder
