"""Architecture search for few-shot learning on real pictures, beside a Conv-4 that random search has tuned.

    python benchmarks/architecture_search.py --resume                 the whole table: hours, in as many sessions as one likes
    python benchmarks/architecture_search.py enas --data cifar        one row (of "conv4" first, if it is to be laid beside it)
    python benchmarks/architecture_search.py --search-minutes 1 --train-minutes .2 --episodes 100 --seeds 2             a look

A row is one method on Omniglot (20-way 1-shot; Vinyals' split, turned characters as further classes) or on CIFAR-FS (5-way
1-shot):

1. A study on the local driver searches for --search-minutes. Methods search in _block_nets.py, whose members all have at most
   as many parameters as Conv-4 at its usual width, which is the study's limit too; the baseline "conv4" tunes Conv-4 by random
   search (_conv4_tuned.py). Methods that train one architecture after the other train each for as many steps as let about 32
   of a middling size fit. One-shot methods train their supernet in the time that is left when what they found, and 8
   architectures drawn at random, have been trained for a while too: the rank correlation of these 8 with the scores that they
   have with shared weights says whether sharing told the truth. "random" is what the space gives without a method.
2. What was found is trained from the beginning for --train-minutes, with --seeds seeds. Its speed is measured first and the
   number of steps follows from it, so that schedules end with the time: a slow net gets fewer steps.
3. It is scored once on --episodes of the sealed test split, the same for all. `ours` is the mean over seeds, its interval one
   over episodes; `lowest` and `highest` are of the seeds, `found` the choices in the order of the space.

All minutes are processor time divided by threads, so that a busy machine changes little. The learner is Prototypical Networks,
trained on 20-way episodes with 5 queries in bfloat16, in all rows; batch norms use the statistics of an episode's pictures.
Searches and seeds that have ended are kept under RESULTS/architecture_search/; with --resume they are not run again, and a
search that was cut off goes on. Data are read from METASEARCH_DATA, else from ../shared/data.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import _conv4_tuned
from _report import Case, Condition, Kept, Options, Row, benchmark, data_folder, positive
from torch import Generator

import metasearch
from metasearch import measure, plugins
from metasearch.driver.folder import locked
from metasearch.driver.status import Status
from metasearch.ledger import Ledger
from metasearch.objectives import Objective, Trial
from metasearch.objectives.evaluation import scores
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.one_shot import Last
from metasearch.objectives.shared import Shared
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import build, open_test
from metasearch.track.statistics import mean_interval

HERE = Path(__file__).resolve().parent
SPACE, CONV4_SPACE = "_block_nets.py", "_conv4_tuned.py"
BASELINE = "conv4"
METHODS: dict[str, dict[str, Any]] = {  # what a study's [method] says
    BASELINE: {"name": "random"},
    "random": {"name": "random"},
    "regularized-evolution": {"name": "regularized-evolution", "population": 10, "sample": 5},
    "reinforce": {"name": "reinforce", "batch": 1, "lr": 0.01},  # the published batch and rate are for 12,800 trainings
    "enas": {"name": "enas", "every": 4, "aggregate": 5, "candidates": 20},
    "random-sharing": {"name": "random-sharing", "candidates": 50},
    # minutes are no 50 epochs: 3e-4, as published, would leave every mixture nearly even
    "darts-first": {"name": "darts", "hypergradient": "first", "arch_lr": 3e-3},
    "darts-second": {"name": "darts", "hypergradient": "difference", "arch_lr": 3e-3},
    "metanas": {"name": "metanas"},
}
TRIALS = 32  # that should fit into a search
CHECKED = 8  # architectures that are trained by themselves to see whether a supernet ranks them rightly
BANK = 100  # episodes of the test split that are drawn at once
ENOUGH = 0.97  # of the minutes
MIN_STEPS = 20  # of any training
INTERVAL, INTERVALS = 3, 5  # steps, for measuring a pace
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
        table = {k: str(root / v) if k in ("root", "path") else v for k, v in self.tasks.items()}
        return {**table, "ways": self.ways, "shots": 1, "queries": self.queries}


DATA = {
    "omniglot": Data({"name": "omniglot", "root": "omniglot", "split": "vinyals", "rotations": "new-classes"}, 20, 5, 30),
    "cifar": Data(
        {"name": "class-arrays", "path": "cifar/cifar100_100.npz", "split": "cifarfs_split", "normalise": "train"}, 5, 15, 60
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
            assert options.seeds is not None
            if not kept(options, key):
                yield Case({**key, "part": "search"}, contest.searched)
                for seed in range(options.seeds):
                    yield Case({**key, "part": f"seed {seed}"}, partial(contest.trained, seed))
            yield Case(key, partial(contest.row, options.seeds))


def kept(options: Options, key: Mapping[str, Condition]) -> bool:
    """Is the row in the results file? Then its parts need not be."""
    file = options.results / f"{Path(__file__).stem}.jsonl"
    return options.resume and bool(Kept(file).rows({**key, "seeds": options.seeds}))


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
class Contest:
    """One method on one data set. What has ended is in `folder`: found.json, and the scores of every seed.

    go_on: the last search of these minutes and threads, whole or cut off, is this one's; otherwise a new one begins.
    """

    method: str
    data: str
    root: Path
    results: Path
    search_minutes: float
    train_minutes: float
    episodes: int
    threads: int
    go_on: bool = True

    # -- the case's parts ------------------------------------------------------------------------------------------------------

    def searched(self) -> list[Row]:
        if not self.found_file.is_file():
            write(self.found_file, self._search())
        return []

    def trained(self, seed: int) -> list[Row]:
        if not self.seed_file(seed).is_file():
            write(self.seed_file(seed), self._trained(seed))
        return []

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
        whole = all(self.seed_file(seed).is_file() for seed in range(seeds))
        return across([self.tested(seed) for seed in range(seeds)])[0] if whole else None

    # -- where things are ------------------------------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        return (self.results / Path(__file__).stem).resolve()

    @cached_property
    def name(self) -> str:
        """Of the study; searches of the same kind are numbered."""
        stem = f"{self.data}-{self.method}-{self.search_minutes:g}m{self.threads}"
        last = max((int(p.name.rpartition("-")[2]) for p in self.home.glob(f"{stem}-[0-9]*")), default=0)
        return f"{stem}-{max(1, last + (not self.go_on))}"

    @property
    def folder(self) -> Path:
        return self.home / self.name

    @property
    def found_file(self) -> Path:
        return self.folder / "found.json"

    def seed_file(self, seed: int) -> Path:
        return self.folder / "tested" / f"{self.train_minutes:g}m-{self.episodes}-{seed}.json"

    # -- the search ------------------------------------------------------------------------------------------------------------

    @cached_property
    def found(self) -> Found:
        if not self.found_file.is_file():
            raise FileNotFoundError(f"there is no {self.found_file}: the search has not ended")
        return Found(**json.loads(self.found_file.read_text()))

    def _search(self) -> Found:
        if METHODS[self.method]["name"] not in (*plugins.names("methods"), *plugins.names("strategies")):
            raise ValueError(f"this version of metasearch has no method {METHODS[self.method]['name']}")
        keep_freed_memory()
        begun = (self.folder / "ledger.sqlite").is_file()
        study = None if begun else self.study()
        clock = Clock(self.folder / "processor.txt", self.threads)
        result = metasearch.resume(self.name, home=self.home, show=clock) if study is None else metasearch.run(
            study, home=self.home, show=clock
        )
        wanted = 60 * self.search_minutes
        while result.status.reason == "hours" and clock.seconds < ENOUGH * wanted:  # the machine was busy with other things
            hours = (result.status.elapsed_seconds + wanted - clock.seconds) / 3600
            result = metasearch.resume(self.name, home=self.home, show=clock, overrides=(f"budget.hours={hours}",))
        clock.write()
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
            supernet_steps=study.method.arguments.get("search_steps"), minutes=clock.seconds / 60,
            supernet_score=told.get("supernet/score"), rank_correlation=told.get("supernet/rank_correlation"),
        )

    def study(self) -> metasearch.Study:
        """The search, so long as the minutes last at the pace that is measured now."""
        seconds, plain = 60 * self.search_minutes, self.plain
        once, each = cost(plain.training(), middle(plain), self.threads)
        short = max(MIN_STEPS, int((seconds / TRIALS - once) / each))
        table = {**plain.to_json(), "train": {"steps": short, "mode": "loop"}}
        if not plain.has_own_method:
            return metasearch.Study.from_json({**table, "budget": {"hours": self.search_minutes / 60}})
        known = {f.name for f in fields(plugins.module("methods", plain.method.name).Hyperparameters)}

        def with_knobs(**knobs: int) -> dict[str, Any]:
            return {**table, "method": {**table["method"], **{k: v for k, v in knobs.items() if k in known}}}

        often = {**table["train"], "report_every": INTERVAL}
        endless = metasearch.Study.from_json({**with_knobs(search_steps=10**6), "train": often})
        checked = max(MIN_STEPS, short // 2)
        # what is found is trained once, and CHECKED others are trained and scored with shared weights; `once` is what a
        # validation and the like cost, for a mixture several times
        rest = ENOUGH * seconds - (once + short * each) - CHECKED * (1.5 * once + checked * each) - 5 * once
        steps = max(MIN_STEPS, int(rest / pace(endless.objective(), middle(endless), self.threads)))
        knobs = with_knobs(search_steps=steps, check=CHECKED, check_steps=checked)
        return metasearch.Study.from_json({**knobs, "budget": {"trials": 1}})  # no hours: a busy machine would cut it short

    @cached_property
    def plain(self) -> metasearch.Study:
        """The study before anything was measured."""
        tasks = DATA[self.data].table(self.root)
        x = build(tasks["name"], {k: v for k, v in tasks.items() if k not in ("name", "ways", "shots", "queries")}).input_shape
        most = measure.parameters(_conv4_tuned.standard(x).init(Generator().manual_seed(0)))
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
        return Tested(**json.loads(self.seed_file(seed).read_text()))

    def _trained(self, seed: int) -> Tested:
        keep_freed_memory()
        config, train, last = self.found.config, self.plain.training(), Last(None)
        begin = time.process_time()
        train = replace(train, steps=self.steps, report_every=max(1, self.steps // 10))
        for report in train(Proposal(config, seed=seed), Trial(seed, threads=self.threads, save=last)):
            loss = report.metrics.get("train_loss", math.nan)
            print(f"  seed {seed}: step {report.step}/{self.steps}, loss {loss:.3f}", file=sys.stderr, flush=True)
        minutes = (time.process_time() - begin) / 60 / self.threads
        assert report.score is not None
        recipe = train.built(config)
        learner, told = recipe.learner.at(1.0), report.metrics
        found: list[float] = []
        with locked(self.folder), Ledger.open(self.folder / "ledger.sqlite", write=True) as ledger:
            opened = open_test(train.tasks, lambda row: ledger.append("opened", {**row, "seed": seed}, trial=self.found.trial))
        for first in range(0, self.episodes, BANK):
            episodes = opened.bank(min(BANK, self.episodes - first), seed=first, shape=train.shape).episodes
            found += scores(recipe.net, learner, train.tasks, last.meta, episodes, mode="loop").tolist()
        return Tested(found, report.score, told["train_score"], self.steps, minutes, told["params"], told["flops"])

    @cached_property
    def steps(self) -> int:
        """Of a training by itself: as many as fit into its minutes at the pace that is measured once for all seeds."""
        file = self.folder / "tested" / f"{self.train_minutes:g}m.json"
        if not file.is_file():
            once, each = cost(self.plain.training(), self.found.config, self.threads)
            write(file, Pace(once, each, max(MIN_STEPS, int((60 * self.train_minutes - once) / each))))
        return Pace(**json.loads(file.read_text())).steps


# -- measures ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Processor seconds that a training costs whatever its length, and of an outer step; the steps that this makes."""

    once: float
    each: float
    steps: int


class Clock:
    """Processor time of a search over all of its sessions, kept in a file while the driver shows where it stands."""

    def __init__(self, file: Path, threads: int) -> None:
        self._file, self._threads = file, threads
        self._earlier = float(file.read_text()) if file.is_file() else 0.0
        self._begin, self._written, self._said = time.process_time(), -math.inf, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._earlier + (time.process_time() - self._begin) / self._threads

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        if now - self._written >= 2:
            self.write()
            self._written = now
        if now - self._said >= 60:
            self._said = now
            best = "" if status.best_score is None else f", best {100 * status.best_score:.2f}"
            print(f"  {self.seconds / 60:.1f} min: {status.done} trials{best}", file=sys.stderr, flush=True)

    def write(self) -> None:
        replaced(self._file, repr(self.seconds))


def cost(train: Train, config: Config, threads: int) -> tuple[float, float]:
    """(processor seconds of a training that are not steps, of an outer step)."""
    each = pace(replace(train, steps=10**6, report_every=INTERVAL), config, threads)
    begin = time.process_time()
    for _ in replace(train, steps=1)(Proposal(config, seed=0), Trial(0, threads=threads)):
        pass
    return max(0.0, (time.process_time() - begin) / threads - each), each


def pace(objective: Objective, config: Config, threads: int) -> float:
    """Processor seconds of an outer step of a training or a search that reports every INTERVAL steps: the median of some."""
    running = objective(Proposal(config, seed=0), Trial(0, threads=threads))
    next(running)  # warms up
    times = [time.process_time()]
    for _ in range(INTERVALS):
        next(running)
        times.append(time.process_time())
    running.close()  # type: ignore[attr-defined]
    return statistics.median(b - a for a, b in pairwise(times)) / INTERVAL / threads


def sampled(study: metasearch.Study, told: Mapping[str, float]) -> int | None:
    """The architectures that a one-shot search drew; None where it draws none."""
    objective = study.objective()
    if not isinstance(objective, Shared) or objective.steps is None:
        return None
    rewarded = objective.steps // objective.every * objective.aggregate if objective.every else 0
    return objective.steps + rewarded + int(told["supernet/candidates"])


def across(runs: Sequence[Tested]) -> tuple[float, float]:
    """(mean over seeds and episodes, half of its 95 % interval over episodes), in percent: every seed saw the same episodes."""
    each = [statistics.fmean(of) for of in zip(*(run.scores for run in runs), strict=True)]
    mean, low, high, _ = mean_interval(each)
    return 100 * mean, 50 * (high - low)


# -- small parts ---------------------------------------------------------------------------------------------------------------


def middle(study: metasearch.Study) -> Config:
    space = study.space()
    return space.decode([0.5] * space.width)


def percent(score: float | None) -> float | None:
    return None if score is None else round(100 * score, 2)


def spelled(config: Config) -> str:
    """The values in the order of the space."""
    return " ".join(f"{value:.2g}" if isinstance(value, float) else str(value) for value in config.values())


def write(file: Path, body: Found | Tested | Pace) -> None:
    replaced(file, json.dumps(asdict(body)))


def replaced(file: Path, text: str) -> None:
    """A file that is there is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    os.replace(new, file)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=tuple(DATA), action="append", help="only this data set (default: all)")
    parser.add_argument("--search-minutes", type=positive(float), default=30.0, help="of a search (default: %(default)s)")
    parser.add_argument("--train-minutes", type=positive(float), default=10.0, help="of each training (default: %(default)s)")
    parser.add_argument("--episodes", type=positive(int), default=1000, help="of the test split (default: %(default)s)")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1, help="CPU threads (default: %(default)s)")


if __name__ == "__main__":
    HERE_NOW = {*plugins.names("methods"), *plugins.names("strategies")}
    DEFAULT = [name for name, method in METHODS.items() if method["name"] in HERE_NOW]
    sys.exit(benchmark(__file__, __doc__, cases, what=tuple(METHODS), default=DEFAULT, seeds=3, arguments=arguments))
