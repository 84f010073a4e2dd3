"""How long 5,000 networks take on 27 devices: few-shot regression on real measurements. One device is one task.

Lee, Lee, Chong, Hwang. "HELP: Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning." NeurIPS 2021.
https://arxiv.org/abs/2106.08630; latencies of FBNet architectures (22 layers, one of 9 operations each), in milliseconds.
Devices are split as there: 9 train, 4 validate, 3 test. The first 4,000 architectures are for training; val and test take
supports and queries from the others, so that neither the device nor any of its architectures was seen.

Published, mean Spearman over the 3 test devices from 10 supports: MAML .736, Meta-SGD .806, HELP .910. Two things differ there:
supports are of the 4,000 training architectures, and targets are scaled by minimum and maximum over 3,200 measurements of the
device. Here they are standardised by the episode's supports alone: nothing of the queries is needed. Ranks are the same.
"""
from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.tasks import SPLITS, Episode, Kind, Split, TaskDistribution, TaskShape, _archive, _cache, _classes
from metasearch.tasks._archive import DataError
from metasearch.tasks._values import standard

Array = np.ndarray[Any, np.dtype[Any]]
LAYERS, OPERATIONS = 22, 9
DEVICES: dict[Split, tuple[str, ...]] = {
    "train": ("1080ti_1", "1080ti_32", "1080ti_64", "silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1",
              "samsung_s7"),
    "val": ("titanx_1", "titanx_32", "titanx_64", "gold_6240"),
    "test": ("fpga", "raspi4", "eyeriss"),
}
LARGEST = 2**28  # bytes of the inflated file
GET = ("It is a .csv.gz with the columns arch_index, ops (22 numbers 0..8) and one of milliseconds a device, made from the "
       "measurements at https://github.com/HayeonLee/HELP (data/fbnet).")


class Latency(TaskDistribution):
    """x is [198]: the operation of each of 22 layers, one-hot of 9. y is [1]: a latency minus the mean of the episode's supports,
    over their standard deviation. The loss is the squared error, the score Spearman's rank correlation over the queries.

    path:   the .csv.gz; default METASEARCH_DATA/regression/help_fbnet_latency.csv.gz.
    middle: episodes are drawn from this share of a device's architectures, those of middling latency. 0.8: as published (the
            authors' code leaves out the fastest and the slowest tenth; 800 are left to val and test). 1.0: all, which is easier.
    known:  the first so many architectures are for training.
    sha256: the file's checksum, compared before it is read.
    """

    kind: ClassVar[Kind] = "regression"
    chance: ClassVar[Literal["1/ways"] | None] = None
    unit: ClassVar[str] = "spearman"
    standardised: ClassVar[bool] = True

    def __init__(self, path: str | None = None, middle: float = 0.8, known: int = 4000, sha256: str | None = None) -> None:
        if not 0 < middle <= 1:
            raise ValueError(f"`0 < middle <= 1` must hold, but got middle={middle}")
        file = _archive.found(path, "regression/help_fbnet_latency.csv.gz", "latency", GET)
        if not file.is_file():
            raise DataError(f"{file} must be a .csv.gz file, but is none. {GET}")
        key = _cache.key("latency", 1, _archive.fingerprint(file, sha256))
        arrays, digest = _cache.kept("latency", key, lambda: _read(file))
        operations, latency, devices = arrays["operations"], arrays["latency"], _cache.told(arrays["devices"])
        count = len(operations)
        if not 0 < known < count:
            raise ValueError(f"`0 < known < {count}` (the architectures in {file}) must hold, but got known={known}")
        if missing := [name for split in SPLITS for name in DEVICES[split] if name not in devices]:
            raise DataError(f"{file} must have a column for each device, but has none for {', '.join(missing)}. {GET}")
        self.middle, self.known = float(middle), known
        self._x = torch.from_numpy(np.eye(OPERATIONS, dtype=np.float32)[operations].reshape(count, -1))
        self._latency: dict[Split, Array] = {}
        self._pool: dict[Split, Array] = {}  # [devices, architectures]: those that a device's episodes are drawn from
        for split in SPLITS:
            self._latency[split] = latency[:, [devices.index(name) for name in DEVICES[split]]].T
            first, last = (0, known) if split == "train" else (known, count)
            self._pool[split] = np.stack([first + _middling(row[first:last], middle) for row in self._latency[split]])
        told = json.dumps(["latency", digest, self.middle, known])
        self._digest = hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (LAYERS * OPERATIONS,)

    @property
    def digest(self) -> str:
        return self._digest

    def check(self, shape: TaskShape, split: Split) -> None:
        if tuple(shape.x) != self.input_shape:
            raise ValueError(f"inputs {tuple(shape.x)} were asked for, but these tasks have inputs {self.input_shape}")
        if shape.ways != 1 or shape.shots < 1 or shape.queries < 1:
            raise ValueError(
                f"`ways == 1` (a latency is one output), `shots >= 1` and `queries >= 1` must hold, but got (ways={shape.ways}, "
                f"shots={shape.shots}, queries={shape.queries})."
            )
        have, need = self._pool[split].shape[1], shape.shots + shape.queries
        if have < need:
            raise ValueError(
                f"{split} has {have} architectures a device, but {shape.shots} shots + {shape.queries} queries need {need}. "
                f"Lower shots or queries, or raise middle (now {self.middle})."
            )

    def to(self, device: torch.device | str) -> Self:
        self._x = self._x.to(device)
        return super().to(device)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        pool = self._pool[split]
        device = (len(pool) * _classes.uniform(generator, n, 1)).astype(np.int64)  # [n, 1]
        places = _classes.distinct(np.full(n, pool.shape[1]), shape.shots + shape.queries, generator)
        drawn = pool[device, places]  # [n, K + Q] architectures
        values = self._latency[split][device, drawn]  # milliseconds
        mean, spread = standard(values[:, :shape.shots], axis=1)
        x = self._x[torch.from_numpy(drawn).to(self.device)]
        y = torch.from_numpy((values - mean) / spread)[..., None].to(self.device, torch.float32)
        k = shape.shots
        return Episode(x[:, :k], y[:, :k], x[:, k:], y[:, k:])

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        return spearman(output[:, 0], y[:, 0])


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of [Q] and [Q] -> []: Pearson's of the ranks, those of ties averaged. Exact; can be mapped.

    0 where one of them is constant, since that orders nothing; NaN where an entry is not finite.
    """
    ra, rb = _ranks(a), _ranks(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()
    size = ((ra * ra).sum() * (rb * rb).sum()).sqrt()
    finite = (a * 0).sum() + (b * 0).sum()
    return ((ra * rb).sum() / torch.where(size > 0, size, 1.0)).to(a.dtype) + finite


def _ranks(v: Tensor) -> Tensor:
    """Ranks from 0 of [Q], the mean one for ties; half numbers, so float64 holds them and their sums exactly."""
    below = (v[:, None] > v).sum(1)
    equal = (v[:, None] == v).sum(1)
    return below.double() + 0.5 * (equal.double() - 1)


def _middling(latency: Array, share: float) -> Array:
    """The places of the middle share, by value, in their own order."""
    cut = round(len(latency) * (1 - share) / 2)
    return np.sort(np.argsort(latency, kind="stable")[cut:len(latency) - cut])


def _read(file: Path) -> dict[str, Array]:
    """operations int64 [A, 22], latency float64 [A, D] in milliseconds, devices."""
    try:
        with gzip.open(file) as inflated:
            body = inflated.read(LARGEST + 1)
        if len(body) > LARGEST:
            raise DataError(f"{file} may inflate to {LARGEST} bytes, but has more")
        head, *rows = csv.reader(io.StringIO(body.decode()))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as a .csv.gz: {error}. Get it again. {GET}") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} must have a line of column names, but is empty. {GET}") from error
    if head[:2] != ["arch_index", "ops"] or len(set(head)) != len(head):
        raise DataError(f"{file} must begin with the columns arch_index and ops, each name once, but has {head[:40]}. {GET}")
    operations, latency = np.zeros((len(rows), LAYERS), np.int64), np.zeros((len(rows), len(head) - 2))
    for i, row in enumerate(rows):
        try:
            if int(row[0]) != i:
                raise ValueError(f"arch_index must be {i}, but is {row[0]}")
            operations[i] = [int(one) for one in row[1].split()]
            latency[i] = [float(one) for one in row[2:]]
        except (ValueError, IndexError) as error:
            raise DataError(f"{file}, line {i + 2}: {error}. {GET}") from error
    if (operations < 0).any() or (operations >= OPERATIONS).any():
        raise DataError(f"{file}: operations must be 0..{OPERATIONS - 1}, but go from {operations.min()} to {operations.max()}")
    if not (latency > 0).all() or not np.isfinite(latency).all():
        raise DataError(f"{file}: latencies must be finite and positive, but one is {latency.min()} or not finite")
    if len({row.tobytes() for row in operations}) != len(operations):
        raise DataError(f"{file}: an architecture must be there once, but one is there twice")
    return {"operations": operations, "latency": latency, "devices": _cache.text(head[2:])}
