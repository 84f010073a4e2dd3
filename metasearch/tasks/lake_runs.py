"""Lake's 20 runs: 20 characters of one alphabet, one drawing of each, 20 drawings to classify; the same for everybody since 2011.

Lake, Salakhutdinov, Tenenbaum. "Human-level concept learning through probabilistic program induction." Science 2015; "The
Omniglot challenge: a 3-year progress report." 2019. https://arxiv.org/abs/1902.03477. Published error rates: people 4.5 %,
Bayesian program learning 3.3 %, Prototypical Networks trained on the background set alone 13.7 %, Modified Hausdorff distance
38.8 %. The score is the accuracy; the error rate is what is missing to 1.

train and val are within-alphabet episodes of the background set, test is the 20 runs, whose characters are all of the evaluation
set. (Of Vinyals' split of Omniglot, 39 % of the runs' pictures are in train: whoever trains on that has seen them.)
"""
from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.tasks import Episode, Split, TaskShape, _archive, _cache, _classes
from metasearch.tasks._archive import DataError
from metasearch.tasks._images import Array
from metasearch.tasks.omniglot import Omniglot, _picture

RUNS, WAYS = 20, 20
GET = ("Download all_runs.zip from https://github.com/brendenlake/omniglot (python/one-shot-classification), and the pictures of "
       "omniglot, into METASEARCH_DATA/omniglot.")
LABEL = re.compile(r"run(\d\d)/test/item(\d\d)\.png run\1/training/class(\d\d)\.png")


class LakeRuns(Omniglot):
    """x is [1, 28, 28] in 0..1, resized as Omniglot's pictures are. The test split has 20 ways, 1 shot and 1 query a class.

    Test episodes walk through the runs in random order and begin again after 20: a bank of 20 holds each once, and more say
    nothing new of a learner that does not care which class has which number. So no more than 20 are evaluated.

    root:      the folder that holds all_runs.zip and Omniglot's two parts; default METASEARCH_DATA/omniglot.
    within:    "alphabet": training episodes are within an alphabet, as those of val and test always are; "all": of all classes.
    rotations: of the training classes, as in omniglot; val and test are upright.
    invert:    ink = 1. partial: accept a part of the background set. runs_sha256: checksum of all_runs.zip.
    """

    test_episodes = RUNS

    def __init__(
        self, root: str | None = None, within: Literal["all", "alphabet"] = "alphabet",
        rotations: Literal["none", "new-classes", "per-class", "per-episode"] = "none", invert: bool = True,
        partial: bool = False, runs_sha256: str | None = None,
    ) -> None:
        folder = _archive.found(root, "omniglot", "lake-runs", GET)
        file = folder / "all_runs.zip"
        if not file.is_file():
            raise _archive.DataMissing(f"{folder} has no all_runs.zip. {GET}")
        super().__init__(str(folder), "lake-val", rotations, "train", invert, partial, within=within)
        key = _cache.key("lake_runs", 1, _archive.fingerprint(file, runs_sha256))
        arrays, digest = _cache.kept("lake-runs", key, lambda: read(file))
        told = json.dumps(["lake_runs", self._digest, digest, within])
        self._digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        images = torch.from_numpy(np.array(arrays["images"]))  # [40 R, 1, 28, 28]
        self._runs = images if invert else 255 - images
        self._labels = np.array(arrays["labels"])  # [R, 20]: the class of each drawing that is to be classified

    def _together(self, split: Split) -> bool:
        return split != "train" or self.within == "alphabet"

    def check(self, shape: TaskShape, split: Split) -> None:
        if split != "test":
            super().check(shape, split)
            return
        _classes.check_shape(shape, self.input_shape, split, WAYS)
        if (shape.ways, shape.shots, shape.queries) != (WAYS, 1, 1):
            raise ValueError(f"the runs are test episodes of {WAYS} ways, 1 shot and 1 query a class, but got "
                             f"(ways={shape.ways}, shots={shape.shots}, queries={shape.queries}). "
                             f"Set ways = {WAYS}, shots = 1 and queries = 1: a recipe may train on episodes of its own.")

    def to(self, device: torch.device | str) -> Self:
        self._runs = self._runs.to(device)
        return super().to(device)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        if split != "test":
            return super()._draw(n, split, shape, generator)
        runs = len(self._labels)
        order = _classes.distinct(np.array([runs]), runs, generator)[0]
        run = order[np.arange(n) % runs]  # [n]
        classes = _classes.distinct(np.full(n, WAYS), WAYS, generator)  # [n, 20]: which class of the run has label 0, 1, ...
        support = np.argsort(_classes.uniform(generator, n, WAYS), axis=1)  # the labels, row by row
        query = np.argsort(_classes.uniform(generator, n, WAYS), axis=1)
        item = np.argsort(self._labels[run], axis=1)  # [n, 20]: the drawing of each class that is to be classified
        row = np.arange(n)[:, None]

        def pictures(places: Array) -> Tensor:
            index = torch.from_numpy(run[:, None] * 2 * WAYS + places).to(self.device)
            return self._runs[index].to(torch.float32).mul_(1 / 255)

        def one_hot(labels: Array) -> Tensor:
            return _classes.one_hot(labels, WAYS).to(self.device)

        return Episode(
            pictures(classes[row, support]), one_hot(support), pictures(WAYS + item[row, classes[row, query]]), one_hot(query),
        )


def read(file: Path, side: int = 28) -> dict[str, Array]:
    """images uint8 [40 R, 1, side, side], ink = 255: of each run 20 classes, then 20 drawings; labels int64 [R, 20]: the class of
    each drawing. side = 105: as published."""
    images: list[Array] = []
    labels = np.full((RUNS, WAYS), -1)
    with _archive.opened(file) as source:
        there = set(source.names)
        for run in range(RUNS):
            folder = f"run{run + 1:02}"
            wanted = [f"{folder}/training/class{c + 1:02}.png" for c in range(WAYS)]
            wanted += [f"{folder}/test/item{c + 1:02}.png" for c in range(WAYS)]
            if missing := [name for name in (f"{folder}/class_labels.txt", *wanted) if name not in there]:
                raise DataError(f"{file} must hold {RUNS} runs of {WAYS} classes, but has no {missing[0]}. {GET}")
            for line in source.read(f"{folder}/class_labels.txt").decode("ascii", "replace").splitlines():
                if (found := LABEL.fullmatch(line.strip())) and int(found[1]) == run + 1 and 1 <= int(found[2]) <= WAYS:
                    labels[run, int(found[2]) - 1] = int(found[3]) - 1
            if sorted(labels[run]) != list(range(WAYS)):
                raise DataError(f"{file}: {folder}/class_labels.txt must give each of the {WAYS} classes to one drawing")
            images += [_picture(source.read(name), f"{file}: {name}", side) for name in wanted]
    return {"images": np.stack(images)[:, None], "labels": labels.astype(np.int64)}
