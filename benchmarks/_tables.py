"""Tables of real trainings, and the spaces that they cover, so that searchers can be measured without a GPU.

Files: `nas/nasbench201.csv.gz` and `nas/nasbench_macro_cifar10.csv.gz` under the data folder (see its README for columns).
NAS-Bench-201: Dong and Yang, ICLR 2020, https://arxiv.org/abs/2001.00326. NAS-Bench-Macro: Su et al., CVPR 2021,
https://arxiv.org/abs/2103.11922.
"""
from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metasearch.records import Config
from metasearch.space import Choice, Space

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # 0..4 in the table
EDGES = ("e10", "e20", "e21", "e30", "e31", "e32")  # eAB: the edge from node B to node A

NASBENCH201 = Space({edge: Choice(OPERATIONS) for edge in EDGES})
MACRO = Space({f"layer{i}": Choice(("identity", "mb3_k3", "mb6_k5")) for i in range(8)})


@dataclass(frozen=True)
class Entry:
    """One architecture: `search` is what a searcher sees, `final` what counts; both in percent, larger is better."""

    search: float
    final: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A space with a result for every config. best: the largest `final`. by_search: the `final` of the largest `search`."""

    name: str
    dataset: str
    space: Space
    entries: tuple[Entry, ...]  # in the order of the space's numbers

    def __getitem__(self, config: Config) -> Entry:
        return self.entries[self.space.rank(config)]

    @property
    def best(self) -> float:
        return max(e.final for e in self.entries)

    @property
    def by_search(self) -> float:
        return max(self.entries, key=lambda e: e.search).final


def nasbench201(folder: Path, dataset: str) -> Table:
    """Searched by 12-epoch validation, scored by 200-epoch test (mean over the published seeds)."""
    entries: dict[int, Entry] = {}
    for row in _rows(folder / "nas" / "nasbench201.csv.gz"):
        config: Config = {edge: OPERATIONS[int(row[f"op_{edge}"])] for edge in EDGES}
        entries[NASBENCH201.rank(config)] = Entry(
            float(row[f"{dataset}_val_acc_ep12"]), float(row[f"{dataset}_test_acc_ep200"]), _costs(row)
        )
    return _whole("nasbench201", dataset, NASBENCH201, entries)


def macro(folder: Path) -> Table:
    """Searched by the first of three runs (the table has no validation), scored by the mean of the other two."""
    entries: dict[int, Entry] = {}
    options = MACRO.dims["layer0"]
    assert isinstance(options, Choice)
    for row in _rows(folder / "nas" / "nasbench_macro_cifar10.csv.gz"):
        config: Config = {f"layer{i}": options.values[int(digit)] for i, digit in enumerate(row["arch"])}
        final = (float(row["test_acc_1"]) + float(row["test_acc_2"])) / 2
        entries[MACRO.rank(config)] = Entry(float(row["test_acc_0"]), final, _costs(row))
    return _whole("nasbench-macro", "cifar10", MACRO, entries)


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def _costs(row: Mapping[str, str]) -> dict[str, float]:
    return {"params": float(row["params"]), "flops": float(row["flops"])}


def _whole(name: str, dataset: str, space: Space, entries: Mapping[int, Entry]) -> Table:
    if len(entries) != space.size:
        raise ValueError(f"the table {name} must hold all {space.size} architectures, but holds {len(entries)}.")
    return Table(name, dataset, space, tuple(entries[i] for i in range(len(entries))))
