"""What a strategy itself costs: processor seconds of 2,000 proposals, of coming back after a kill, and memory.

    python benchmarks/strategy_time.py                all strategies but gp, whose asks cost up to seconds
    python benchmarks/strategy_time.py tpe --proposals 200

A director with its ledger on NAS-Bench-201 (the table's accuracies where they are on this machine, else a smooth function), one
lane, trials that cost nothing. `strategy`: inside ask and tell. `reopening`: a new director on the ledger of a study that was
killed when all but ten trials had ended, so that ninety outcomes are behind the last snapshot. `memory`: growth of the process
over the second half of the study, the ledger's own rows included.
"""
from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from _report import Case, Options, Row, benchmark, data_folder
from _tables import nasbench201

from metasearch import plugins
from metasearch.driver.director import Director
from metasearch.driver.messages import Assignment, Ending
from metasearch.driver.study import Study
from metasearch.records import Config, Proposal
from metasearch.space import Space
from metasearch.strategies import Strategy

PROPOSALS = 2000
BEHIND = 10  # trials that are missing when the driver is killed
T = TypeVar("T")


def hyperparameters(name: str, proposals: int) -> dict[str, Any]:
    """Defaults, and where there are none, a choice that uses the study up."""
    return {
        "asha": {"min_steps": 1, "max_steps": 64},
        "hyperband": {"min_steps": 1, "max_steps": 81},
        "large-scale-evolution": {"steps": 10, "evaluations": proposals, "population": 100},
        "nsga-ii": {"objectives": ["score", "-params"]},
        "pba": {"steps": 10, "max_steps": 10 * math.ceil(proposals / 2)},  # copies of others skip what those have done
    }.get(name, {})


@dataclass(frozen=True)
class Cost:
    """strategy, driver, reopening: processor seconds; memory: MiB; slowest: seconds of the slowest ask or tell."""

    strategy: float
    driver: float
    reopening: float
    memory: float
    slowest: float
    proposals: int


def cost(name: str, proposals: int, score: Callable[[Config], float], folder: Path) -> Cost:
    study = Study.from_json({
        "name": "t", "space": "nasbench201", "method": {"name": name, **hyperparameters(name, proposals)},
        "budget": {"trials": proposals}, "driver": {"kind": "local"},
    })
    director = Director(study, folder)
    clock = Clock(director.strategy)
    began, half = time.process_time(), 0.0
    said = director.next("a", "1")
    while isinstance(said, Assignment) and said.trial <= proposals - BEHIND:
        half = half if said.trial > proposals // 2 else memory()
        said = director.next("a", "1", ending(said.trial, said.proposal, score))
    driver, grown = time.process_time() - began - clock.seconds, memory() - half
    reached = len(director.ledger.trials())
    director.ledger.close()  # as kill -9 leaves it
    director._lock.close()
    began = time.process_time()
    director = Director(study, folder)
    reopening = time.process_time() - began
    notes = [row.body["what"] for row in director.ledger.rows(kinds=["note"])]
    director.close()
    if notes:
        raise RuntimeError(f"{name} came back another: {notes}")
    return Cost(clock.seconds, driver, reopening, grown, clock.slowest, reached)


def ending(trial: int, proposal: Proposal, score: Callable[[Config], float]) -> Ending:
    value = score(proposal.config) - 1.0 / (proposal.until or 1000)
    return Ending(trial, "done", value, {"params": 100.0 + abs(value)}, step=proposal.until or 1)


class Clock:
    """Processor seconds inside a strategy's ask and tell."""

    def __init__(self, strategy: Strategy) -> None:
        self.seconds = self.slowest = 0.0
        strategy.ask, strategy.tell = self._timed(strategy.ask), self._timed(strategy.tell)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., T]) -> Callable[..., T]:
        def timed(*given: Any) -> T:
            began = time.process_time()
            try:
                return call(*given)
            finally:
                spent = time.process_time() - began
                self.seconds += spent
                self.slowest = max(self.slowest, spent)

        return timed


def memory() -> float:
    """MiB of this process, now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no Linux
        return 0.0
    return pages * 4096 / 2**20


def smooth(space: Space, config: Config) -> float:
    """For machines without the table."""
    u = space.encode(config)
    return -float(((u - 0.3) ** 2).sum())


@cache
def scores() -> Callable[[Config], float]:
    folder = data_folder()
    if folder is None or not (folder / "nas" / "nasbench201.csv.gz").is_file():
        from search_spaces.nasbench201 import SPACE

        return partial(smooth, SPACE)
    table = nasbench201(folder, "cifar10")
    return lambda config: table[config].search


def cases(options: Options) -> Iterator[Case]:
    import torch

    torch.set_num_threads(1)
    for name in options.what:
        yield Case({"strategy": name, "proposals": options.extra.proposals}, partial(rows, name, options.extra.proposals))


def rows(name: str, proposals: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = cost(name, proposals, scores(), Path(folder) / "t")
    told = {"asked": found.proposals, "driver_s": round(found.driver, 2), "slowest_ms": round(1e3 * found.slowest, 1)}
    wanted = "what a search of 2,000 proposals may cost"
    yield Row("strategy", found.strategy, 60.0 * proposals / PROPOSALS, wanted, "s", "lower", conditions=told)
    yield Row("reopening", found.reopening, 2.0, "what reopening 2,000 proposals may cost", "s", "lower")
    yield Row("memory", found.memory, unit="MiB", better="lower")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--proposals", type=int, default=PROPOSALS, help="of each study (default: %(default)s)")


if __name__ == "__main__":
    KNOWN = plugins.names("strategies")
    sys.exit(benchmark(__file__, __doc__, cases, what=KNOWN, default=[n for n in KNOWN if n != "gp"], arguments=_arguments))
