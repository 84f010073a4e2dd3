"""The benchmark on tables of real trainings: the tables are read right, and random search scores what is known of it."""
from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

from metasearch.records import Config, Outcome, Proposal
from metasearch.strategies import Strategy, build

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import _tables
import tabular_nas


def test_nasbench201_is_read_as_its_publishers_say(data: Path) -> None:
    for dataset, best in {"cifar10": 94.37, "cifar100": 73.51, "imagenet16-120": 47.31}.items():
        assert _tables.nasbench201(data, dataset).best == pytest.approx(best, abs=0.006)
    table = _tables.nasbench201(data, "cifar10")
    # row 0 of the file: |avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|
    config: Config = {
        "e10": "avg_pool_3x3", "e20": "nor_conv_1x1", "e21": "skip_connect", "e30": "nor_conv_1x1", "e31": "skip_connect",
        "e32": "skip_connect",
    }
    assert (table[config].search, table[config].final, table[config].metrics["params"]) == (63.364, 85.8633, 129306)


def test_nasbench_macro_is_read_as_its_publishers_say(data: Path) -> None:
    table = _tables.macro(data)
    best = dict(zip((f"layer{i}" for i in range(8)), (("identity", "mb3_k3", "mb6_k5")[int(d)] for d in "22212202"), strict=True))
    assert (table[best].search + 2 * table[best].final) / 3 == pytest.approx(93.13, abs=0.006)  # the mean of its three runs


def test_random_search_scores_what_is_known(data: Path) -> None:
    """Mean of 60 seeds against 93.7: the standard error is 0.045, so 0.2 is beyond four of them (false alarms: 1e-5)."""
    table = _tables.nasbench201(data, "cifar10")
    finals = [tabular_nas.search(table, build("random", table.space, {}, seed=seed), [100])[0] for seed in range(60)]
    assert statistics.fmean(finals) == pytest.approx(93.7, abs=0.2)


class _Script(Strategy):
    """Proposes what it was given, and remembers what it was told."""

    def __init__(self, table: _tables.Table, numbers: list[int]) -> None:
        super().__init__(table.space, hyperparameters=None, seed=0)
        self.numbers, self.told = list(numbers), list[Outcome]()

    def ask(self) -> Proposal | None:
        return Proposal(self.space.unrank(self.numbers.pop(0))) if self.numbers else None

    def tell(self, outcome: Outcome) -> None:
        self.told.append(outcome)


def test_the_choice_is_made_by_validation_and_scored_by_test() -> None:
    space = _tables.MACRO
    entries = [_tables.Entry(0.0, 50.0, {}) for _ in range(6561)]
    entries[1], entries[2], entries[3] = _tables.Entry(5.0, 10.0, {}), _tables.Entry(9.0, 20.0, {}), _tables.Entry(1.0, 99.0, {})
    table = _tables.Table("toy", "none", space, tuple(entries))
    script = _Script(table, [1, 1, 3, 2])
    assert tabular_nas.search(table, script, [1, 3, 4, 6]) == [10.0, 10.0, 20.0, 20.0]
    assert [o.status for o in script.told] == ["done", "reused", "done", "done"]
    assert [o.score for o in script.told] == [5.0, 5.0, 1.0, 9.0]
