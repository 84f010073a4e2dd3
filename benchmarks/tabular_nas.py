"""Searchers on tables of real trainings: what is found after 100 and 300 evaluations, mean over seeds.

    python benchmarks/tabular_nas.py random                   all tables
    python benchmarks/tabular_nas.py tpe cma-es --seeds 20 --table nasbench201

WHAT is a strategy (default: random and regularized-evolution; guided-evolution costs 5 s a seed). On NAS-Bench-201 it sees the
validation accuracy after 12 epochs; the cell that it likes best is scored by its test accuracy after 200. On
NAS-Bench-Macro, with three runs and no validation, it sees the first and is scored by the mean of the others. An evaluation is a
training: a config that is asked for again is answered from memory, as the driver does, and counts (no strategy gains by
repeating itself).
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

from _report import Case, Options, Row, benchmark, data_folder
from _tables import Table, macro, nasbench201
from scipy import stats

from metasearch import plugins
from metasearch.records import Outcome, Status
from metasearch.space import digest
from metasearch.strategies import Strategy, build

EVALUATIONS = (100, 300)
DATASETS = ("cifar10", "cifar100", "imagenet16-120")
TABLES = [*(("nasbench201", dataset) for dataset in DATASETS), ("nasbench-macro", "cifar10")]
# The published learning rates of controllers are for 12,800 and 20,000 trainings.
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "nsga-ii": {"objectives": ["score"]},
    "ppo": {"batch": 5, "lr": 0.01},
    "reinforce": {"batch": 1, "lr": 0.01},
}
RANDOM_AT_100 = {"cifar10": 93.7, "cifar100": 71.2, "imagenet16-120": 45.0}
RANDOM_SOURCE = "random search, 100 evaluations, known mean on this table with this protocol, to one decimal"


def search(table: Table, strategy: Strategy, evaluations: Sequence[int]) -> list[float]:
    """The `final` of the config that is best by `search`, after each number of evaluations."""
    seen: dict[str, None] = {}
    best, answer, results = -math.inf, math.nan, []
    for trial in range(1, max(evaluations) + 1):
        proposal = strategy.ask()
        if proposal is not None:
            entry, key = table[proposal.config], digest(proposal.config)
            status: Status = "reused" if key in seen and not strategy.repeats else "done"
            seen[key] = None
            if entry.search > best:
                best, answer = entry.search, entry.final
            strategy.tell(Outcome(trial, proposal, entry.search, entry.metrics, status))
        if trial in evaluations:
            results.append(answer)
    return results


def cases(options: Options) -> Iterator[Case]:
    if data_folder() is None:
        raise SystemExit("the tables are not on this machine: METASEARCH_DATA names the folder that holds nas/nasbench201.csv.gz")
    for strategy in options.what:
        for name, dataset in TABLES:
            if options.extra.table in (None, name):
                key = {"strategy": strategy, "table": name, "dataset": dataset}
                yield Case(key, partial(rows, name, dataset, strategy, options))


@cache
def table_of(name: str, dataset: str) -> Table:
    folder = data_folder()
    assert folder is not None
    return macro(folder) if name == "nasbench-macro" else nasbench201(folder, dataset)


def rows(table_name: str, dataset: str, name: str, options: Options) -> Iterator[Row]:
    table = table_of(table_name, dataset)
    assert options.seeds is not None
    hyperparameters = HYPERPARAMETERS.get(name, {})
    found: list[list[float]] = []
    for seed in range(options.seeds):
        found.append(search(table, build(name, table.space, hyperparameters, seed=seed), EVALUATIONS))
    for evaluations, finals in zip(EVALUATIONS, zip(*found, strict=True), strict=True):
        reference = RANDOM_AT_100.get(table.dataset) if table.name == "nasbench201" and evaluations == 100 else None
        yield Row(
            "tabular_nas",
            ours=statistics.fmean(finals),
            error=_half_width(finals) if len(finals) > 1 else None,
            unit="%",
            reference=reference if reference is not None else table.best,
            reference_source=RANDOM_SOURCE if reference is not None else "best entry of the table",
            conditions={
                "evaluations": evaluations,
                "best_of_table": round(table.best, 2),
                "best_by_search": round(table.by_search, 2),
                "hyperparameters": json.dumps(hyperparameters),
            },
        )


def _half_width(values: Sequence[float]) -> float:
    """Of a 95 % interval of the mean over seeds (Student's t)."""
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", choices=("nasbench201", "nasbench-macro"), help="only this table")


if __name__ == "__main__":
    KNOWN = plugins.names("strategies")
    DEFAULT = [name for name in ("random", "regularized-evolution") if name in KNOWN]
    sys.exit(benchmark(__file__, __doc__, cases, what=KNOWN, default=DEFAULT, seeds=100, arguments=_arguments))
