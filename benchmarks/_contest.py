"""What the searches have in common that are contests: rows in parts that survive a stop, minutes of processor time, seeds.

A row (`Parts`) is a search, then a training for every seed, then a look at what they left behind. All of it is kept in a folder
under RESULTS/TABLE/, so that what has ended is not run again, and a search that was cut off goes on:

    found.json, processor.txt     what the search came to, and the processor time that it took so far
    tested/LASTING.json           how fast a training runs, hence its number of steps
    tested/LASTING-EPISODES-SEED.json    what one training came to

Minutes are processor time divided by threads, so that a busy machine changes little. Little is half, where cores share caches and
pipelines with what else runs: of two equal trainings one would get 2,200 steps, the other 1,300. So a training's steps follow
from its pace beside that of a yardstick, one and the same training for all rows of a data set, in turns: whatever slows one slows
the other. What the yardstick took when it was first measured is kept in TABLE/yardstick-DATA.json, and gives the minute.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from _report import Case, Condition, Kept, Options, Row, positive

import metasearch
from metasearch.driver.launch import Result
from metasearch.driver.status import Status
from metasearch.objectives import Objective, Trial, augmenting
from metasearch.objectives.evaluation import scores
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import TaskDistribution, TestSplit, build
from metasearch.track.statistics import mean_interval

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor

    Save = Callable[[int, Mapping[str, Tensor], Mapping[str, Any]], str]

D = TypeVar("D")
BANK = 100  # episodes of the test split that are drawn at once
ENOUGH = 0.97  # of the minutes


class Parts(ABC):
    """One row on one data set.

    table: the results file's name without its end. least: outer steps of any training. data, search_minutes, episodes, threads:
    of the row. go_on: the last row of its stem, whole or cut off, is this one; otherwise a new one begins.
    """

    table: ClassVar[str]
    least: ClassVar[int]
    results: Path
    data: str
    search_minutes: float
    episodes: int
    threads: int
    go_on: bool

    @property
    @abstractmethod
    def stem(self) -> str:
        """Of the study's name; rows of the same stem are numbered."""

    @property
    @abstractmethod
    def training_minutes(self) -> float: ...

    @property
    @abstractmethod
    def lasting(self) -> str:
        """The minutes of a training, as the names of files say them."""

    @abstractmethod
    def study(self) -> metasearch.Study:
        """The search, so long as its minutes last."""

    @abstractmethod
    def find(self) -> DataclassInstance:
        """Searches; returns what came of it."""

    @abstractmethod
    def test(self, seed: int) -> DataclassInstance:
        """Trains what was found; returns what came of it."""

    @abstractmethod
    def cost(self) -> tuple[float, float]:
        """See `cost`, of a training of what was found."""

    @property
    @abstractmethod
    def yardstick(self) -> tuple[Train, Config]:
        """The training beside which the trainings of all rows of this data set are measured."""

    @abstractmethod
    def row(self, seeds: int) -> list[Row]:
        """Made of what is kept."""

    # -- the case's parts ------------------------------------------------------------------------------------------------------

    def cases(self, options: Options, key: dict[str, Condition], first: str) -> Iterator[Case]:
        """The row's, and before it those of its parts, the search being called `first`, unless the row is kept."""
        assert options.seeds is not None
        file = options.results / f"{self.table}.jsonl"
        if not (options.resume and Kept(file).rows({**key, "seeds": options.seeds})):
            yield Case({**key, "part": first}, self.searched)
            for seed in range(options.seeds):
                yield Case({**key, "part": f"seed {seed}"}, partial(self.trained, seed))
        yield Case(key, partial(self.row, options.seeds))

    def searched(self) -> list[Row]:
        if not self.found_file.is_file():
            write(self.found_file, self.find())
        return []

    def trained(self, seed: int) -> list[Row]:
        if not self.seed_file(seed).is_file():
            write(self.seed_file(seed), self.test(seed))
        return []

    def whole(self, seeds: int) -> bool:
        """Have all seeds been tested?"""
        return all(self.seed_file(seed).is_file() for seed in range(seeds))

    # -- where things are ------------------------------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        return (self.results / self.table).resolve()

    @cached_property
    def name(self) -> str:
        """Of the study."""
        last = max((int(p.name.rpartition("-")[2]) for p in self.home.glob(f"{self.stem}-[0-9]*")), default=0)
        return f"{self.stem}-{max(1, last + (not self.go_on))}"

    @property
    def folder(self) -> Path:
        return self.home / self.name

    @property
    def found_file(self) -> Path:
        return self.folder / "found.json"

    def seed_file(self, seed: int) -> Path:
        return self.folder / "tested" / f"{self.lasting}-{self.episodes}-{seed}.json"

    # -- searches and trainings by minutes -------------------------------------------------------------------------------------

    def run(self) -> tuple[Result, float]:
        """(what the study came to, its minutes): begun, or gone on with until its minutes are over."""
        keep_freed_memory()
        study = None if (self.folder / "ledger.sqlite").is_file() else self.study()
        clock = Clock(self.folder / "processor.txt", self.threads)
        if study is None:
            result = metasearch.resume(self.name, home=self.home, show=clock)
        else:
            result = metasearch.run(study, home=self.home, show=clock)
        wanted = 60 * self.search_minutes
        while result.status.reason == "hours" and clock.seconds < ENOUGH * wanted:  # the machine was busy with other things
            hours = (result.status.elapsed_seconds + wanted - clock.seconds) / 3600
            result = metasearch.resume(self.name, home=self.home, show=clock, overrides=(f"budget.hours={hours}",))
        clock.write()
        return result, clock.seconds / 60

    @cached_property
    def steps(self) -> int:
        """Of a training: as many as fit into its minutes at the pace that is measured once for all seeds."""
        file = self.folder / "tested" / f"{self.lasting}.json"
        if not file.is_file():
            once, each = self.cost()
            write(file, Pace(once, each, max(self.least, int((60 * self.training_minutes - once) / each))))
        return read(Pace, file).steps

    def measured(self, train: Train, config: Config, *, every: int, times: int) -> tuple[float, float]:
        """See `cost`; the seconds of an outer step are those of when the yardstick was first measured."""
        once, _ = cost(train, config, self.threads, every=every, times=times)
        yardstick, its_config = self.yardstick
        both = [(endless(train, every), config), (endless(yardstick, every), its_config)]
        ours, theirs = paces(both, self.threads, every=every, times=times)
        file = self.home / f"yardstick-{self.data}.json"
        if not file.is_file():
            write(file, Yardstick(theirs))
        return once, ours / theirs * read(Yardstick, file).each

    def train_for(self, train: Train, config: Config, seed: int, save: Save) -> tuple[Report, float]:
        """(the last report of a training of `steps`, the minutes that it took)."""
        keep_freed_memory()
        steps = self.steps
        train = replace(train, steps=steps, report_every=max(1, steps // 10), checkpoint_every=steps)
        begin = time.process_time()
        for report in train(Proposal(config, seed=seed), Trial(seed, threads=self.threads, save=save)):
            loss = report.metrics.get("train_loss")
            said = f"loss {loss:.3f}" if loss is not None else f"validation {percent(report.score)}"
            print(f"  seed {seed}: step {report.step}/{steps}, {said}", file=sys.stderr, flush=True)
        return report, (time.process_time() - begin) / 60 / self.threads

    def scored(self, train: Train, config: Config, meta: Mapping[str, Tensor], opened: TestSplit) -> tuple[list[float], str]:
        """(the scores of the test episodes, the same for all rows and seeds; the digest of these)."""
        recipe, found, digest = train.built(config), list[float](), hashlib.sha256()
        learner, how = recipe.learner.at(1.0), augmenting.moments(train.tasks)
        for first in range(0, self.episodes, BANK):
            bank = opened.bank(min(BANK, self.episodes - first), seed=first, shape=train.shape)
            digest.update(bank.digest.encode())
            episodes = augmenting.tested(recipe.augment, bank.episodes, how)
            found += scores(recipe.net, learner, train.tasks, dict(meta), episodes, mode="loop").tolist()
        return found, digest.hexdigest()[:16]


# -- measures ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Processor seconds that a training costs whatever its length, and of an outer step; the steps that this makes."""

    once: float
    each: float
    steps: int


@dataclass(frozen=True)
class Yardstick:
    """Processor seconds of an outer step of the yardstick, when it was first measured."""

    each: float


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


def cost(train: Train, config: Config, threads: int, *, every: int, times: int) -> tuple[float, float]:
    """(processor seconds of a training that are not steps, of an outer step). every, times: see `paces`."""
    each = pace(endless(train, every), config, threads, every=every, times=times)
    begin = time.process_time()
    for _ in replace(train, steps=1)(Proposal(config, seed=0), Trial(0, threads=threads)):
        pass
    return max(0.0, (time.process_time() - begin) / threads - each), each


def endless(train: Train, every: int) -> Train:
    return replace(train, steps=10**6, report_every=every)


def pace(objective: Objective, config: Config, threads: int, *, every: int, times: int) -> float:
    return paces([(objective, config)], threads, every=every, times=times)[0]


def paces(what: Sequence[tuple[Objective, Config]], threads: int, *, every: int, times: int) -> list[float]:
    """Processor seconds of an outer step of each training or search, which report `every` so many: the median of `times`. They
    take turns, so that what else the machine does slows all alike."""
    running = [objective(Proposal(config, seed=0), Trial(0, threads=threads)) for objective, config in what]
    for one in running:
        next(one)  # warms up
    spent: list[list[float]] = [[] for _ in what]
    for _ in range(times):
        for one, seconds in zip(running, spent, strict=True):
            begin = time.process_time()
            next(one)
            seconds.append(time.process_time() - begin)
    for one in running:
        one.close()  # type: ignore[attr-defined]
    return [statistics.median(seconds) / every / threads for seconds in spent]


def over_seeds(runs: Sequence[Sequence[float]]) -> list[float]:
    """The mean over seeds of every test episode's score: every seed saw the same ones."""
    return [statistics.fmean(of) for of in zip(*runs, strict=True)]


def percents(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of its 95 % interval), in percent."""
    mean, low, high, _ = mean_interval(values)
    return 100 * mean, 50 * (high - low)


def percent(score: float | None) -> float | None:
    return None if score is None else round(100 * score, 2)


# -- small parts ---------------------------------------------------------------------------------------------------------------


def tasks_table(tasks: Mapping[str, Any], root: Path, ways: int, queries: int) -> dict[str, Any]:
    """A study's [tasks], 1-shot. root: of the data."""
    table = {k: str(root / v) if k in ("root", "path") else v for k, v in tasks.items()}
    return {**table, "ways": ways, "shots": 1, "queries": queries}


def tasks_of(table: Mapping[str, Any]) -> TaskDistribution:
    """Those of a study's [tasks]."""
    return build(table["name"], {k: v for k, v in table.items() if k not in ("name", "ways", "shots", "queries")})


def middle(study: metasearch.Study) -> Config:
    space = study.space()
    return space.decode([0.5] * space.width)


def read(kind: type[D], file: Path) -> D:
    """What `write` wrote."""
    return kind(**json.loads(file.read_text()))


def write(file: Path, body: DataclassInstance) -> None:
    replaced(file, json.dumps(asdict(body)))


def replaced(file: Path, text: str) -> None:
    """A file that is there is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    os.replace(new, file)


def arguments(parser: argparse.ArgumentParser, data: Collection[str]) -> None:
    parser.add_argument("--data", choices=tuple(data), action="append", help="only this data set (default: all)")
    parser.add_argument("--search-minutes", type=positive(float), default=30.0, help="of a search (default: %(default)s)")
    parser.add_argument("--episodes", type=positive(int), default=1000, help="of the test split (default: %(default)s)")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1, help="CPU threads (default: %(default)s)")
