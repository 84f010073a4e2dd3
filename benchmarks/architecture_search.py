"""Architecture search for few-shot learning on real pictures, beside a Conv-4 that random search has tuned.

    python benchmarks/architecture_search.py --resume                 the whole table: hours, in as many sessions as one likes
    python benchmarks/architecture_search.py enas --data cifar        one row (of "conv4" first, if it is to be laid beside it)
    python benchmarks/architecture_search.py --search-minutes 1 --train-minutes .2 --episodes 100 --seeds 2             a look

A row is one method on Omniglot (20-way 1-shot; Vinyals' split, turned characters as further classes) or on CIFAR-FS (5-way
1-shot):

1. A study on the local driver searches for --search-minutes. Methods search in _block_nets.py, whose members all have at most
   as many parameters as Conv-4 at its usual width, which is the study's limit too; the baseline "conv4" tunes Conv-4 by random
   search (_conv4_tuned.py). Methods that train one architecture after the other train each for as many steps as let about 32
   of a middling size fit.
   One-shot methods train their supernet in the time that is left when five finalists (of which the best by itself is taken) and
   8 architectures drawn at random have been trained for as many steps: the rank correlation of these 8 with the scores that they
   have with shared weights says whether sharing told the truth. "random" is what the space gives without a method.
2. What was found is trained from the beginning for --train-minutes, with --seeds seeds. Its speed is measured first, beside that
   of a Conv-4, and the number of steps follows from it, so that schedules end with the time: a slow net gets fewer steps.
3. It is scored once on --episodes of the sealed test split, the same for all. `ours` is the mean over seeds, its interval one
   over episodes; `lowest` and `highest` are of the seeds, `found` the choices in the order of the space.

All minutes are processor time divided by threads, so that a busy machine changes little. The learner is Prototypical Networks,
trained on 20-way episodes with 5 queries in bfloat16, in all rows; batch norms use the statistics of an episode's pictures.
Searches and seeds that have ended are kept under RESULTS/architecture_search/; with --resume they are not run again, and a
search that was cut off goes on. Data are read from METASEARCH_DATA, else from ../shared/data.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import _contest
import _conv4_tuned
from _contest import ENOUGH, Parts, cost, middle, over_seeds, pace, percent, percents, read, tasks_of, tasks_table
from _report import Case, Condition, Options, Row, benchmark, data_folder, positive
from torch import Generator

import metasearch
from metasearch import measure, plugins
from metasearch.driver.folder import locked
from metasearch.ledger import Ledger
from metasearch.objectives import Objective, Trial
from metasearch.objectives.one_shot import Last
from metasearch.objectives.shared import Shared
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import open_test

HERE = Path(__file__).resolve().parent
SPACE, CONV4_SPACE = "_block_nets.py", "_conv4_tuned.py"
BASELINE = "conv4"
METHODS: dict[str, dict[str, Any]] = {  # what a study's [method] says
    BASELINE: {"name": "random"},
    "random": {"name": "random"},
    "regularized-evolution": {"name": "regularized-evolution", "population": 10, "sample": 5},
    "reinforce": {"name": "reinforce", "batch": 1, "lr": 0.01},  # the published batch and rate are for 12,800 trainings
    # in minutes no supernet learns enough to be left the last choice
    "enas": {"name": "enas", "every": 4, "aggregate": 5, "candidates": 40, "finalists": 5},
    "random-sharing": {"name": "random-sharing", "candidates": 40, "finalists": 5},
    # minutes are no 50 epochs: 3e-4, as published, would leave every mixture nearly even, and weights that know nothing yet would
    # prefer what has none
    "darts-first": {"name": "darts", "hypergradient": "first", "arch_lr": 1e-2, "warm_up": 0.5, "finalists": 5},
    # differences of gradients say little where ReLU and max pooling have kinks between the two points
    "darts-second": {"name": "darts", "hypergradient": "exact", "arch_lr": 1e-2, "warm_up": 0.5, "finalists": 5},
    # the tasks' own nets are no row of this table; inner rates as published for Omniglot, the outer one is for hundreds of steps
    "metanas": {"name": "metanas", "alone": True, "inner_lr": 5e-3, "arch_lr": 5e-3, "meta_lr": 0.2, "test_steps": 2,
                "finalists": 5},
}
TRIALS = 32  # that should fit into a search
CHECKED = 8  # architectures that are trained by themselves to see whether a supernet ranks them rightly
MIN_STEPS = 20  # of any training
MEASURED = {"every": 3, "times": 5}  # for measuring a pace
SOURCE = "Conv-4 tuned by random search, this table"


@dataclass(frozen=True)
class Data:
    """A data set as a study names it, and the shape of the episodes that are scored. validation: episodes of every trial."""

    tasks: Mapping[str, Any]
    ways: int
    queries: int
    validation: int

    def table(self, root: Path) -> dict[str, Any]:
        """The study's [tasks]. root: of the data."""
        return tasks_table(self.tasks, root, self.ways, self.queries)


DATA = {
    "omniglot": Data({"name": "omniglot", "root": "omniglot", "split": "vinyals", "rotations": "new-classes"}, 20, 5, 30),
    "cifar": Data(
        {"name": "class-arrays", "path": "cifar/cifar100_100.npz", "split": "cifarfs_split", "normalise": "train"}, 5, 15, 120
    ),
}


def cases(options: Options) -> Iterator[Case]:
    root = data_folder()
    if root is None:
        raise SystemExit("the pictures are not on this machine: METASEARCH_DATA names the folder that holds omniglot and cifar")
    for data in options.extra.data or DATA:
        for method in options.what:
            contest = Contest(
                method, data, root, options.results, options.extra.search_minutes, options.extra.train_minutes,
                options.extra.episodes, options.extra.threads, go_on=options.resume,
            )
            key: dict[str, Condition] = {
                "method": method, "data": data, "search_minutes": contest.search_minutes,
                "train_minutes": contest.train_minutes, "episodes": contest.episodes, "threads_used": contest.threads,
            }
            yield from contest.cases(options, key, "search")


@dataclass(frozen=True)
class Found:
    """What a search came to. score: on validation, after a short training; architectures: that were trained or scored, None
    where all learn at once; of one-shot methods: the supernet's own score, and the rank correlation with CHECKED trainings."""

    config: Config
    trial: int
    score: float
    architectures: int | None
    short_steps: int
    supernet_steps: int | None
    minutes: float
    supernet_score: float | None
    rank_correlation: float | None


@dataclass(frozen=True)
class Tested:
    """What one training came to. scores: of the test episodes; minutes: of processor time."""

    scores: list[float]
    validation: float
    training: float
    steps: int
    minutes: float
    params: float
    flops: float


@dataclass(frozen=True)
class Contest(Parts):
    """One method on one data set: see Parts."""

    table = Path(__file__).stem
    least = MIN_STEPS

    method: str
    data: str
    root: Path
    results: Path
    search_minutes: float
    train_minutes: float
    episodes: int
    threads: int
    go_on: bool = True

    @property
    def stem(self) -> str:
        return f"{self.data}-{self.method}-{self.search_minutes:g}m{self.threads}"

    @property
    def training_minutes(self) -> float:
        return self.train_minutes

    @property
    def lasting(self) -> str:
        return f"{self.train_minutes:g}m"

    def row(self, seeds: int) -> list[Row]:
        found, runs = self.found, [self.tested(seed) for seed in range(seeds)]
        mean, half = across(runs)
        each = [100 * statistics.fmean(run.scores) for run in runs]
        reference = None if self.method == BASELINE else self.baseline.mean(seeds)
        conditions: dict[str, Condition] = {
            "ways": DATA[self.data].ways, "shots": 1, "lowest": round(min(each), 2),
            "highest": round(max(each), 2), "params": int(runs[0].params), "mflops": round(runs[0].flops / 1e6, 2),
            "train_steps": runs[0].steps, "train_cpu_minutes": round(statistics.fmean(run.minutes for run in runs), 2),
            "train_tasks": round(100 * statistics.fmean(run.training for run in runs), 2),
            "search_cpu_minutes": round(found.minutes, 2), "architectures": found.architectures,
            "short_steps": found.short_steps, "supernet_steps": found.supernet_steps, "search_score": percent(found.score),
            "supernet_score": percent(found.supernet_score),
            "rank_correlation": None if found.rank_correlation is None else round(found.rank_correlation, 3),
            "found": spelled(found.config),
        }
        source = SOURCE if reference is not None else None
        return [Row("architecture_search", mean, reference, source, unit="%", error=half, conditions=conditions)]

    @property
    def baseline(self) -> Contest:
        return replace(self, method=BASELINE, go_on=True)

    def mean(self, seeds: int) -> float | None:
        """The accuracy in percent over the seeds; None unless all of them have been tested."""
        return across([self.tested(seed) for seed in range(seeds)])[0] if self.whole(seeds) else None

    # -- the search ------------------------------------------------------------------------------------------------------------

    @cached_property
    def found(self) -> Found:
        if not self.found_file.is_file():
            raise FileNotFoundError(f"there is no {self.found_file}: the search has not ended")
        return read(Found, self.found_file)

    def find(self) -> Found:
        if METHODS[self.method]["name"] not in (*plugins.names("methods"), *plugins.names("strategies")):
            raise ValueError(f"this version of metasearch has no method {METHODS[self.method]['name']}")
        result, minutes = self.run()
        best = result.best
        if best is None or best.outcome is None or best.outcome.score is None:
            raise ValueError(f"the search in {self.folder} found nothing: {result.status}")
        with Ledger.open(self.folder / "ledger.sqlite") as ledger:
            study = metasearch.Study.from_json(ledger.study()["study"])
        told, looked = best.outcome.metrics, result.status.done + result.status.diverged
        assert study.train.steps is not None
        return Found(
            config=best.proposal.config if best.report is None or best.report.found is None else best.report.found,
            trial=best.id, score=best.outcome.score, short_steps=study.train.steps,
            architectures=sampled(study, told) if study.has_own_method else looked,
            supernet_steps=study.method.arguments.get("search_steps"), minutes=minutes,
            supernet_score=told.get("supernet/score"), rank_correlation=told.get("supernet/rank_correlation"),
        )

    def study(self) -> metasearch.Study:
        """At the pace that is measured now."""
        seconds, plain = 60 * self.search_minutes, self.plain
        once, each = cost(plain.training(), middle(plain), self.threads, **MEASURED)
        short = max(MIN_STEPS, int((seconds / TRIALS - once) / each))
        table = {**plain.to_json(), "train": {"steps": short, "mode": "loop"}}
        if not plain.has_own_method:
            return metasearch.Study.from_json({**table, "budget": {"hours": self.search_minutes / 60}})
        known = {f.name for f in fields(plugins.module("methods", plain.method.name).Hyperparameters)}

        def with_knobs(**knobs: float) -> dict[str, Any]:
            return {**table, "method": {**table["method"], **{k: v for k, v in knobs.items() if k in known}}}

        often = {**table["train"], "report_every": MEASURED["every"]}

        def paced(**knobs: float) -> float:
            endless = metasearch.Study.from_json({**with_knobs(search_steps=10**6, **knobs), "train": often})
            return pace(endless.objective(), middle(endless), self.threads, **MEASURED)

        rest = ENOUGH * seconds - (once + short * each)  # what is found is trained once
        if "check" in known:  # CHECKED others are trained and scored with shared weights
            rest -= CHECKED * (1.5 * once + short * each) + 5 * once  # for a mixture a validation and the like cost more
            rest -= plain.method.arguments.get("finalists", 0) * (once + short * each)
        if "alone" in known:  # the tasks' own nets are looked at
            brief = {**table["train"], "steps": 1}
            shortest = metasearch.Study.from_json({**with_knobs(search_steps=1, check=0, finalists=1), "train": brief})
            rest -= spent(shortest.objective(), middle(shortest), self.threads) - once
        if "warm_up" in known:  # a share of the steps, in which the architecture stays: they cost less
            share = plugins.module("methods", plain.method.name).Hyperparameters(**plain.method.arguments).warm_up
            a_step = share * paced(warm_up=1.0) + (1 - share) * paced(warm_up=0.0)
        else:
            a_step = paced()
        steps = max(MIN_STEPS, int(rest / a_step))
        knobs = with_knobs(search_steps=steps, check=CHECKED, check_steps=short)
        return metasearch.Study.from_json({**knobs, "budget": {"trials": 1}})  # no hours: a busy machine would cut it short

    @cached_property
    def plain(self) -> metasearch.Study:
        """The study before anything was measured."""
        tasks = DATA[self.data].table(self.root)
        most = measure.parameters(_conv4_tuned.standard(tasks_of(tasks).input_shape).init(Generator().manual_seed(0)))
        return metasearch.Study.from_json({
            "name": self.name, "seed": 0, "space": str(HERE / (CONV4_SPACE if self.method == BASELINE else SPACE)),
            "method": METHODS[self.method], "tasks": tasks, "train": {"mode": "loop"},
            "validation": {"episodes": DATA[self.data].validation},
            "limits": {"max_params": most}, "budget": {"trials": 1}, "driver": {"kind": "local", "cpus": self.threads},
            "track": {"enabled": False},
        })

    # -- what was found, by itself ---------------------------------------------------------------------------------------------

    def tested(self, seed: int) -> Tested:
        """Raises OSError unless it has been trained."""
        return read(Tested, self.seed_file(seed))

    def test(self, seed: int) -> Tested:
        config, train, last = self.found.config, self.plain.training(), Last(None)
        report, minutes = self.train_for(train, config, seed, last)
        with locked(self.folder), Ledger.open(self.folder / "ledger.sqlite", write=True) as ledger:
            opened = open_test(train.tasks, lambda row: ledger.append("opened", {**row, "seed": seed}, trial=self.found.trial))
        found, _ = self.scored(train, config, last.meta, opened)
        told = report.metrics
        assert report.score is not None
        return Tested(found, report.score, told["train_score"], self.steps, minutes, told["params"], told["flops"])

    def cost(self) -> tuple[float, float]:
        return self.measured(self.plain.training(), self.found.config, **MEASURED)

    @property
    def yardstick(self) -> tuple[Train, Config]:
        plain = self.baseline.plain
        return plain.training(), middle(plain)


# -- small parts ---------------------------------------------------------------------------------------------------------------


def spent(objective: Objective, config: Config, threads: int) -> float:
    """Processor seconds of all that a trial does."""
    begin = time.process_time()
    for _ in objective(Proposal(config, seed=0), Trial(0, threads=threads)):
        pass
    return (time.process_time() - begin) / threads


def sampled(study: metasearch.Study, told: Mapping[str, float]) -> int | None:
    """The architectures that a one-shot search drew; None where it draws none."""
    objective = study.objective()
    if not isinstance(objective, Shared) or objective.steps is None:
        return None
    rewarded = objective.steps // objective.every * objective.aggregate if objective.every else 0
    return objective.steps + rewarded + int(told["supernet/candidates"])


def across(runs: Sequence[Tested]) -> tuple[float, float]:
    """(mean over seeds and episodes, half of its 95 % interval over episodes), in percent."""
    return percents(over_seeds([run.scores for run in runs]))


def spelled(config: Config) -> str:
    """The values in the order of the space."""
    return " ".join(f"{value:.2g}" if isinstance(value, float) else str(value) for value in config.values())


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-minutes", type=positive(float), default=10.0, help="of each training (default: %(default)s)")
    _contest.arguments(parser, DATA)


if __name__ == "__main__":
    HERE_NOW = {*plugins.names("methods"), *plugins.names("strategies")}
    DEFAULT = [name for name, method in METHODS.items() if method["name"] in HERE_NOW]
    sys.exit(benchmark(__file__, __doc__, cases, what=tuple(METHODS), default=DEFAULT, seeds=3, arguments=arguments))
