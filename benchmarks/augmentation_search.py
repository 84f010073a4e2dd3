"""Augmentation for few-shot learning where pictures are few: searched for, drawn, or set, at each place of an episode.

    python benchmarks/augmentation_search.py --resume                  the whole table: hours, in as many sessions as one likes
    python benchmarks/augmentation_search.py none pba --data cifar     these rows ("none" first, which others are laid beside)
    python benchmarks/augmentation_search.py --minutes .1 --search-minutes .5 --episodes 100 --seeds 2                    a look

CIFAR-FS (5-way 1-shot; 100 pictures of each of 64 classes) and Omniglot (20-way 1-shot) with 100 training characters. A row:

    none              nothing
    rotation-classes  turned classes are further ones: all of Omniglot's (Santoro et al. 2016), in every fourth episode of
                      CIFAR-FS (Ni et al. 2021), where a turned picture may be of the same class
    randaugment       n = 2, m = 9, every support and query by itself
    trivialaugment    the same, wide
    random-policies, autoaugment, pba, dada
                      a study on the local driver searches for --search-minutes; what it found is trained
    support, query, shot, task    one mild policy of each data set, at this place; shots are doubled at test time too

1. autoaugment trains policies for as many steps as let about 48 fit, and ends with the five best side by side; random-policies
   does the same without a controller, in the same space: what searching is worth beyond trying. pba trains a population of 8
   in 10 segments; its schedule is the lineage of the best that trained to the end. dada searches four times, each time at a
   place that it draws, and keeps what scores best after a short training.
2. The policy is used in a training from the beginning, for --minutes, with --seeds seeds. Its speed is measured first,
   augmentation included, beside that of "none", and the number of steps follows from it, so that schedules end with the time.
3. It is scored once on --episodes of the sealed test split, the same for all rows and seeds. `ours` is the mean over seeds, its
   interval one over episodes; `lowest` and `highest` are of the seeds. `gain` is the mean difference to "none" on the same
   episodes, `gain_error` half of its 95 % interval, `p` of a paired test: both are over episodes, for these trainings, and know
   nothing of how trainings differ. `gain_lowest` and `gain_highest` do: of the seeds, each beside "none" by the same seed.
   `found` says which share of pictures gets what.

All minutes are processor time divided by threads, so that a busy machine changes little. The learner is in _augmented.py.
Searches and seeds that have ended are kept under RESULTS/augmentation_search/, with their policies and weights; with --resume
they are not run again, and a search that was cut off goes on. Data are read from METASEARCH_DATA, else from ../shared/data.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import _augmented
import _contest
from _contest import ENOUGH, Parts, cost, middle, over_seeds, pace, percent, percents, read, tasks_of, tasks_table
from _report import Case, Condition, Options, Row, benchmark, data_folder, positive

import metasearch
from metasearch import augment, policies
from metasearch.augment import Places, Policy, RandAugment, Schedule, Shuffled, Step, SubPolicies, TrivialAugment, fixed, saved
from metasearch.driver.folder import locked
from metasearch.ledger import Ledger
from metasearch.objectives import Objective, parcel
from metasearch.objectives.episodic import block_steps
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.records import Config
from metasearch.tasks import TaskShape, open_test
from metasearch.track.statistics import paired_p

HERE = Path(__file__).resolve().parent
BASELINE = "none"
SUB_POLICIES, NUMBERS = "_augmented.py", "_augmented_numbers.py"
SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {  # the space, and what a study's [method] says
    # published settings are for 15,000 policies; these are for 48
    "random-policies": (SUB_POLICIES, {"name": "random"}),
    "autoaugment": (SUB_POLICIES, {"name": "autoaugment", "batch": 4, "lr": 0.01}),
    "pba": (NUMBERS, {"name": "pba", "population": 8, "synchronous": True}),
    # Adam's rate of 1e-3 would look no way ahead, and the published 0.1 doubles the loss of these nets instead of lowering it
    "dada": (SUB_POLICIES, {"name": "dada", "xi": 0.005}),
}
ROWS = (BASELINE, "rotation-classes", "randaugment", "trivialaugment", *SEARCHES, *augment.PLACES)
JOINED = ("random-policies", "autoaugment")
TRIALS, BEST = 48, 5  # of these: that should fit, and that are used in the end
SEGMENTS = 10  # of pba
TIMES = 4  # dada
VALIDATION = 60  # episodes
MIN_STEPS = 5
BLOCKS = 2  # of episodes, for measuring a pace


@dataclass(frozen=True)
class Data:
    """A data set as a study names it, the episodes that are scored, and what is done to its pictures without a search.

    turned: what the tasks say where turned classes are further ones; new_classes: the share of episodes where the places do.
    """

    tasks: Mapping[str, Any]
    ways: int
    queries: int
    mild: Policy
    turned: Mapping[str, Any]
    new_classes: float = 0.0

    def table(self, root: Path, row: str) -> dict[str, Any]:
        """The study's [tasks]. root: of the data."""
        told = {**self.tasks, **(self.turned if row == "rotation-classes" else {})}
        return tasks_table(told, root, self.ways, self.queries)

    def places(self, row: str) -> Places | None:
        """Of a row that does not search."""
        if row in augment.PLACES:
            return augment.at_place(row, self.mild)
        if row == "rotation-classes" and self.new_classes:
            return Places(new_classes=self.new_classes)
        drawn = {"randaugment": RandAugment(2, 9), "trivialaugment": TrivialAugment()}.get(row)
        return None if drawn is None else Places(support=drawn, query=drawn)


DATA = {
    "cifar": Data(
        {"name": "class-arrays", "path": "cifar/cifar100_100.npz", "split": "cifarfs_split", "normalise": "train"}, 5, 15,
        fixed(Step("flip", 0.5), Step("crop", 1.0, 1.0), Step("contrast", 0.5, 0.7), Step("color", 0.5, 0.3)),
        turned={}, new_classes=0.25,
    ),
    "omniglot": Data(
        {"name": "omniglot", "root": "omniglot", "split": "vinyals", "train_classes": 100}, 20, 5,
        fixed(Step("rotate", 1.0, 0.5), Step("shear_x", 0.5, 0.5), *(Step(f"translate_{x}", 0.5, 0.3) for x in "xy")),
        turned={"rotations": "new-classes", "rotate": "train"},
    ),
}


def cases(options: Options) -> Iterator[Case]:
    root = data_folder()
    if root is None:
        raise SystemExit("the pictures are not on this machine: METASEARCH_DATA names the folder that holds omniglot and cifar")
    for data in options.extra.data or DATA:
        for row in options.what:
            contest = Contest(
                row, data, root, options.results, options.extra.minutes, options.extra.search_minutes, options.extra.episodes,
                options.extra.threads, go_on=options.resume,
            )
            key: dict[str, Condition] = {
                "augmentation": row, "data": data, "minutes": contest.minutes,
                "search_minutes": contest.search_minutes if row in SEARCHES else None, "episodes": contest.episodes,
                "threads_used": contest.threads,
            }
            yield from contest.cases(options, key, "policy")


@dataclass(frozen=True)
class Found:
    """What a search came to, or what was set. policy: as JSON, None for no augmentation; the others are None without a search.
    score: on validation, after a short training, of the best; trials: that ended well; steps: outer steps of one of them."""

    policy: dict[str, Any] | None
    score: float | None = None
    trials: int | None = None
    steps: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Tested:
    """What one training came to. scores: of the test episodes, whose digest is `bank`; minutes: of processor time."""

    scores: list[float]
    bank: str
    validation: float
    training: float
    steps: int
    minutes: float


@dataclass(frozen=True)
class Contest(Parts):
    """One row on one data set: see Parts. Weights and the episodes that were opened are kept, too."""

    table = Path(__file__).stem
    least = MIN_STEPS

    augmentation: str
    data: str
    root: Path
    results: Path
    minutes: float
    search_minutes: float
    episodes: int
    threads: int
    go_on: bool = True

    @property
    def stem(self) -> str:
        return f"{self.data}-{self.augmentation}" + (f"-{self.search_minutes:g}m{self.threads}" if self.searches else "")

    @property
    def training_minutes(self) -> float:
        return self.minutes

    @property
    def lasting(self) -> str:
        return f"{self.minutes:g}m{self.threads}"

    def row(self, seeds: int) -> list[Row]:
        found, runs = self.found, [self.tested(seed) for seed in range(seeds)]
        mean, half = percents(across(runs))
        each = [100 * statistics.fmean(run.scores) for run in runs]
        baseline = None if self.augmentation == BASELINE else self.baseline.all_tested(seeds)
        gain: dict[str, Condition] = dict.fromkeys(("gain", "gain_error", "p", "gain_lowest", "gain_highest"))
        reference = None
        if baseline is not None:
            reference, (more, error) = percents(across(baseline))[0], percents(gains(runs, baseline))
            p = paired_p(across(runs), across(baseline))
            of_seeds = [percents(gains([run], [other]))[0] for run, other in zip(runs, baseline, strict=True)]
            gain = {"gain": round(more, 2), "gain_error": round(error, 2), "p": float(f"{p:.2g}"),
                    "gain_lowest": round(min(of_seeds), 2), "gain_highest": round(max(of_seeds), 2)}
        conditions: dict[str, Condition] = {
            "ways": DATA[self.data].ways, "shots": 1, "lowest": round(min(each), 2), "highest": round(max(each), 2), **gain,
            "validation": round(100 * statistics.fmean(run.validation for run in runs), 2),
            "train_tasks": round(100 * statistics.fmean(run.training for run in runs), 2), "train_steps": runs[0].steps,
            "train_cpu_minutes": round(statistics.fmean(run.minutes for run in runs), 2),
            "search_cpu_minutes": None if found.minutes is None else round(found.minutes, 2), "trials": found.trials,
            "trial_steps": found.steps, "search_score": percent(found.score), "found": self.spelled,
        }
        source = "no augmentation, this table" if reference is not None else None
        return [Row("augmentation_search", mean, reference, source, unit="%", error=half, conditions=conditions)]

    @property
    def spelled(self) -> str:
        if self.augmentation == "rotation-classes" and DATA[self.data].turned:
            return "all classes turned"
        return spelled(self.places)

    @property
    def searches(self) -> bool:
        return self.augmentation in SEARCHES

    @property
    def baseline(self) -> Contest:
        return replace(self, augmentation=BASELINE, go_on=True)

    def all_tested(self, seeds: int) -> list[Tested] | None:
        """None unless all seeds have been tested."""
        return [self.tested(seed) for seed in range(seeds)] if self.whole(seeds) else None

    # -- the search ------------------------------------------------------------------------------------------------------------

    @cached_property
    def found(self) -> Found:
        if not self.found_file.is_file():
            raise FileNotFoundError(f"there is no {self.found_file}: the search has not ended")
        return read(Found, self.found_file)

    @cached_property
    def places(self) -> Places | None:
        if self.found.policy is None:
            return None
        places = saved.from_json(self.found.policy)
        assert isinstance(places, Places)
        return places

    def find(self) -> Found:
        if not self.searches:
            return Found(told(DATA[self.data].places(self.augmentation)))
        return self._outcome(self.run()[1])

    def _outcome(self, minutes: float) -> Found:
        """What a search that has ended found."""
        with Ledger.open(self.folder / "ledger.sqlite") as ledger:
            study, trials = metasearch.Study.from_json(ledger.study()["study"]), ledger.trials()
        last = study.train.steps if self.augmentation == "pba" else None  # only those that trained to the end
        ended = {n: row.outcome.score for n, row in trials.items() if row.outcome is not None and row.outcome.status == "done"
                 and row.outcome.score is not None and row.proposal.until == last}
        if not ended:
            raise ValueError(f"the search in {self.folder} found nothing")
        best = max(ended, key=lambda n: ended[n])
        if self.augmentation in JOINED:
            places: Places | None = policies.joined(self.name, best=BEST, home=self.home)
        else:
            places = policies.of_row(trials, best, policies.places_of(study))
        done = sum(row.status == "done" for row in trials.values())
        return Found(told(places), ended[best], done, study.train.steps, minutes)

    def study(self) -> metasearch.Study:
        """At the pace that is measured now."""
        seconds, plain = 60 * self.search_minutes, self.plain
        once, each = _cost(plain.training(), middle(plain), self.threads)
        table = plain.to_json()

        def steps_in(seconds: float, pace: float = each) -> int:
            return max(MIN_STEPS, int(seconds / pace))

        def made(steps: int, budget: dict[str, float], /, **knobs: int) -> metasearch.Study:
            return metasearch.Study.from_json({
                **table, "train": {**table["train"], "steps": steps}, "method": {**table["method"], **knobs}, "budget": budget})

        if self.augmentation in JOINED:
            return made(steps_in(seconds / TRIALS - once), {"hours": self.search_minutes / 60})
        if self.augmentation == "pba":
            population = int(table["method"]["population"])
            steps = steps_in(ENOUGH * seconds / (population * SEGMENTS) - once)
            return made(SEGMENTS * steps, {"trials": population}, steps=steps, max_steps=SEGMENTS * steps)
        short = steps_in(seconds / TRIALS - once)
        endless = made(short, {"trials": 1}, search_steps=10**6)
        rest = ENOUGH * seconds / TIMES - (once + short * each) - 2 * once  # a search validates and is looked at, too
        return made(short, {"trials": TIMES}, search_steps=steps_in(rest, _pace(endless.objective(), plain, self.threads)))

    @cached_property
    def plain(self) -> metasearch.Study:
        """The study before anything was measured."""
        space, method = SEARCHES[self.augmentation]
        knobs = {"steps": MIN_STEPS, "max_steps": MIN_STEPS} if self.augmentation == "pba" else {}
        return metasearch.Study.from_json({
            "name": self.name, "seed": 0, "space": str(HERE / space), "method": {**method, **knobs},
            "tasks": DATA[self.data].table(self.root, self.augmentation), "train": {"mode": "loop"},
            "validation": {"episodes": VALIDATION}, "budget": {"trials": 1}, "driver": {"kind": "local", "cpus": self.threads},
            "track": {"enabled": False},
        })

    # -- what was found, by itself ---------------------------------------------------------------------------------------------

    def tested(self, seed: int) -> Tested:
        """Raises OSError unless it has been trained."""
        return read(Tested, self.seed_file(seed))

    @cached_property
    def train(self) -> Train:
        """The training of what was found, before it is said how long."""
        return self._training(self.augmentation, self.places)

    def _training(self, augmentation: str, places: Places | None) -> Train:
        table = DATA[self.data].table(self.root, augmentation)
        tasks = tasks_of(table)
        shape = tasks.shape(ways=table["ways"], shots=table["shots"], queries=table["queries"])

        def recipe(config: Config, shape: TaskShape) -> Recipe:
            return _augmented.trained(places, shape)

        return Train(recipe, tasks, shape, validation_episodes=VALIDATION, mode="loop")

    def test(self, seed: int) -> Tested:
        train, file = self.train, self.seed_file(seed).with_suffix(".safetensors")

        def weights(step: int, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
            return str(parcel.write(file, tensors, facts))

        report, minutes = self.train_for(train, {}, seed, weights)
        meta = {k.removeprefix("meta/"): v for k, v in parcel.read(file)[0].items() if k.startswith("meta/")}
        with locked(self.folder), (self.folder / "opened.jsonl").open("a") as record:
            opened = open_test(train.tasks, lambda row: record.write(json.dumps({**row, "seed": seed}) + "\n"))
        found, bank = self.scored(train, {}, meta, opened)
        assert report.score is not None
        return Tested(found, bank, report.score, report.metrics["train_score"], self.steps, minutes)

    def cost(self) -> tuple[float, float]:
        return self.measured(self.train, {}, every=_block(self.train), times=BLOCKS)

    @property
    def yardstick(self) -> tuple[Train, Config]:
        return self._training(BASELINE, None), {}


# -- measures ------------------------------------------------------------------------------------------------------------------


def _cost(train: Train, config: Config, threads: int) -> tuple[float, float]:
    return cost(train, config, threads, every=_block(train), times=BLOCKS)


def _pace(objective: Objective, study: metasearch.Study, threads: int) -> float:
    """Processor seconds of an outer step of a search."""
    train = study.training()
    endless = replace(objective, train=replace(train, report_every=_block(train)))  # type: ignore[type-var]
    return pace(endless, middle(study), threads, every=_block(train), times=BLOCKS)


def _block(train: Train) -> int:
    """Outer steps whose episodes are drawn, and augmented, at once: what they cost is part of a step."""
    shape = _augmented.trained(None, train.shape).episode
    assert shape is not None
    return block_steps(shape, 1, 10**6)


def across(runs: Sequence[Tested]) -> list[float]:
    """The mean over seeds of every test episode's score."""
    return over_seeds([run.scores for run in runs])


def gains(runs: Sequence[Tested], baseline: Sequence[Tested]) -> list[float]:
    """Of every test episode. Raises ValueError where these are not the same ones."""
    banks = {run.bank for run in (*runs, *baseline)}
    if len(banks) > 1:
        raise ValueError(f"scores are paired on the same episodes, but these are of {len(banks)} banks: {', '.join(banks)}")
    return [a - b for a, b in zip(across(runs), across(baseline), strict=True)]


# -- small parts ---------------------------------------------------------------------------------------------------------------


def told(places: Places | None) -> dict[str, Any] | None:
    return None if places is None else saved.to_json(places)


def spelled(places: Places | None, most: int = 6) -> str:
    """At which place which share of pictures gets what; of a schedule, over the whole of training."""
    if places is None:
        return "nothing"
    words = [f"new classes {places.new_classes:.0%}"] if places.new_classes else []
    for place, policy in places.policies.items():
        named = [f"{name} {share:.0%}" for name, share in shares(policy).most_common(most) if share >= 0.005]
        words.append(f"{place}: {', '.join(named) or 'nothing'}")
    return "; ".join(words)


def shares(policy: Policy) -> Counter[str]:
    """How many times an operation is applied to a picture, on average (of pba's, as long as its count does not end it)."""
    found = Counter[str]()
    if isinstance(policy, Schedule):
        lengths = policy.lengths or (1.0,) * len(policy.policies)
        for part, length in zip(policy.policies, lengths, strict=True):
            for name, share in shares(part).items():
                found[name] += share * length / sum(lengths)  # type: ignore[assignment]
    elif isinstance(policy, SubPolicies):
        for choice in policy.choices:
            for step in choice:
                found[step.operation] += step.probability / len(policy.choices)  # type: ignore[assignment]
    elif isinstance(policy, Shuffled):
        for step in policy.steps:
            found[step.operation] += step.probability  # type: ignore[assignment]
    else:
        found[type(policy).__name__] = 1
    del found["identity"]
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=positive(float), default=8.0, help="of each training (default: %(default)s)")
    _contest.arguments(parser, DATA)


if __name__ == "__main__":
    sys.exit(benchmark(__file__, __doc__, cases, what=ROWS, default=ROWS, seeds=3, arguments=arguments))
