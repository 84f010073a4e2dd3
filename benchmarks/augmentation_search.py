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
    autoaugment, pba, dada    a study on the local driver searches for --search-minutes; what it found is trained
    support, query, shot, task    one mild policy of each data set, at this place; shots are doubled at test time too

1. autoaugment trains policies for as many steps as let about 48 fit, and ends with the five best side by side. pba trains a
   population of 8 in 10 segments; its schedule is the lineage of the best that trained to the end. dada searches four times,
   each time at a place that it draws, and keeps what scores best after a short training.
2. The policy is used in a training from the beginning, for --minutes, with --seeds seeds. Its speed is measured first,
   augmentation included, and the number of steps follows from it, so that schedules end with the time.
3. It is scored once on --episodes of the sealed test split, the same for all rows and seeds. `ours` is the mean over seeds, its
   interval one over episodes; `lowest` and `highest` are of the seeds. `gain` is the mean difference to "none" on the same
   episodes, `gain_error` half of its 95 % interval, `p` of a paired test. `found` says which share of pictures gets what.

All minutes are processor time divided by threads, so that a busy machine changes little. The learner is in _augmented.py.
Searches and seeds that have ended are kept under RESULTS/augmentation_search/, with their policies and weights; with --resume
they are not run again, and a search that was cut off goes on. Data are read from METASEARCH_DATA, else from ../shared/data.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import _augmented
from _report import Case, Condition, Kept, Options, Row, benchmark, data_folder, positive
from architecture_search import ENOUGH, Clock, middle, percent, replaced

import metasearch
from metasearch import augment, policies
from metasearch.augment import Places, Policy, RandAugment, Schedule, Shuffled, Step, SubPolicies, TrivialAugment, fixed, saved
from metasearch.driver.folder import locked
from metasearch.ledger import Ledger
from metasearch.objectives import Objective, Trial, augmenting, parcel
from metasearch.objectives.episodic import block_steps
from metasearch.objectives.evaluation import scores
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import TaskShape, build, open_test
from metasearch.track.statistics import mean_interval, paired_p

HERE = Path(__file__).resolve().parent
BASELINE = "none"
SUB_POLICIES, NUMBERS = "_augmented.py", "_augmented_numbers.py"
SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {  # the space, and what a study's [method] says
    # published settings are for 15,000 policies; these are for 48
    "autoaugment": (SUB_POLICIES, {"name": "autoaugment", "batch": 4, "lr": 0.01}),
    "pba": (NUMBERS, {"name": "pba", "population": 8, "synchronous": True}),
    # Adam's rate of 1e-3 would look no way ahead, and the published 0.1 doubles the loss of these nets instead of lowering it
    "dada": (SUB_POLICIES, {"name": "dada", "xi": 0.005}),
}
ROWS = (BASELINE, "rotation-classes", "randaugment", "trivialaugment", *SEARCHES, *augment.PLACES)
TRIALS, BEST = 48, 5  # of autoaugment: that should fit, and that are used in the end
SEGMENTS = 10  # of pba
TIMES = 4  # dada
VALIDATION = 60  # episodes
BANK = 100  # episodes of the test split that are drawn at once
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
        table = {k: str(root / v) if k in ("root", "path") else v for k, v in told.items()}
        return {**table, "ways": self.ways, "shots": 1, "queries": self.queries}

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
            assert options.seeds is not None
            if not kept(options, key):
                yield Case({**key, "part": "policy"}, contest.searched)
                for seed in range(options.seeds):
                    yield Case({**key, "part": f"seed {seed}"}, partial(contest.trained, seed))
            yield Case(key, partial(contest.row, options.seeds))


def kept(options: Options, key: Mapping[str, Condition]) -> bool:
    """Is the row in the results file? Then its parts need not be."""
    file = options.results / f"{Path(__file__).stem}.jsonl"
    return options.resume and bool(Kept(file).rows({**key, "seeds": options.seeds}))


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
class Contest:
    """One row on one data set. What has ended is in `folder`: found.json, and scores and weights of every seed.

    go_on: the last row of these minutes and threads, whole or cut off, is this one; otherwise a new one begins.
    """

    augmentation: str
    data: str
    root: Path
    results: Path
    minutes: float
    search_minutes: float
    episodes: int
    threads: int
    go_on: bool = True

    # -- the case's parts ------------------------------------------------------------------------------------------------------

    def searched(self) -> list[Row]:
        if not self.found_file.is_file():
            write(self.found_file, self._search() if self.searches else Found(told(DATA[self.data].places(self.augmentation))))
        return []

    def trained(self, seed: int) -> list[Row]:
        if not self.seed_file(seed).is_file():
            write(self.seed_file(seed), self._trained(seed))
        return []

    def row(self, seeds: int) -> list[Row]:
        found, runs = self.found, [self.tested(seed) for seed in range(seeds)]
        mean, half = percents(across(runs))
        each = [100 * statistics.fmean(run.scores) for run in runs]
        baseline = None if self.augmentation == BASELINE else self.baseline.all_tested(seeds)
        gain: dict[str, Condition] = {"gain": None, "gain_error": None, "p": None}
        reference = None
        if baseline is not None:
            reference, (more, error) = percents(across(baseline))[0], percents(gains(runs, baseline))
            p = paired_p(across(runs), across(baseline))
            gain = {"gain": round(more, 2), "gain_error": round(error, 2), "p": float(f"{p:.2g}")}
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
        whole = all(self.seed_file(seed).is_file() for seed in range(seeds))
        return [self.tested(seed) for seed in range(seeds)] if whole else None

    # -- where things are ------------------------------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        return (self.results / Path(__file__).stem).resolve()

    @cached_property
    def name(self) -> str:
        """Of the study; rows of the same kind are numbered."""
        stem = f"{self.data}-{self.augmentation}" + (f"-{self.search_minutes:g}m{self.threads}" if self.searches else "")
        last = max((int(p.name.rpartition("-")[2]) for p in self.home.glob(f"{stem}-[0-9]*")), default=0)
        return f"{stem}-{max(1, last + (not self.go_on))}"

    @property
    def folder(self) -> Path:
        return self.home / self.name

    @property
    def found_file(self) -> Path:
        return self.folder / "found.json"

    def seed_file(self, seed: int) -> Path:
        return self.folder / "tested" / f"{self.minutes:g}m{self.threads}-{self.episodes}-{seed}.json"

    # -- the search ------------------------------------------------------------------------------------------------------------

    @cached_property
    def found(self) -> Found:
        if not self.found_file.is_file():
            raise FileNotFoundError(f"there is no {self.found_file}: the search has not ended")
        return Found(**json.loads(self.found_file.read_text()))

    @cached_property
    def places(self) -> Places | None:
        if self.found.policy is None:
            return None
        places = saved.from_json(self.found.policy)
        assert isinstance(places, Places)
        return places

    def _search(self) -> Found:
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
        return self._outcome(clock.seconds / 60)

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
        if self.augmentation == "autoaugment":
            places: Places | None = policies.joined(self.name, best=BEST, home=self.home)
        else:
            places = policies.of_row(trials, best, policies.places_of(study))
        done = sum(row.status == "done" for row in trials.values())
        return Found(told(places), ended[best], done, study.train.steps, minutes)

    def study(self) -> metasearch.Study:
        """The search, so long as the minutes last at the pace that is measured now."""
        seconds, plain = 60 * self.search_minutes, self.plain
        once, each = cost(plain.training(), middle(plain), self.threads)
        table = plain.to_json()

        def steps_in(seconds: float, pace: float = each) -> int:
            return max(MIN_STEPS, int(seconds / pace))

        def made(steps: int, budget: dict[str, float], /, **knobs: int) -> metasearch.Study:
            return metasearch.Study.from_json({
                **table, "train": {**table["train"], "steps": steps}, "method": {**table["method"], **knobs}, "budget": budget})

        if self.augmentation == "autoaugment":
            return made(steps_in(seconds / TRIALS - once), {"hours": self.search_minutes / 60})
        if self.augmentation == "pba":
            population = int(table["method"]["population"])
            steps = steps_in(ENOUGH * seconds / (population * SEGMENTS) - once)
            return made(SEGMENTS * steps, {"trials": population}, steps=steps, max_steps=SEGMENTS * steps)
        short = steps_in(seconds / TRIALS - once)
        endless = made(short, {"trials": 1}, search_steps=10**6)
        rest = ENOUGH * seconds / TIMES - (once + short * each) - 2 * once  # a search validates and is looked at, too
        return made(short, {"trials": TIMES}, search_steps=steps_in(rest, pace(endless.objective(), plain, self.threads)))

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
        return Tested(**json.loads(self.seed_file(seed).read_text()))

    @cached_property
    def train(self) -> Train:
        """The training of what was found, before it is said how long."""
        table = DATA[self.data].table(self.root, self.augmentation)
        tasks = build(table["name"], {k: v for k, v in table.items() if k not in ("name", "ways", "shots", "queries")})
        shape = tasks.shape(ways=table["ways"], shots=table["shots"], queries=table["queries"])
        places = self.places

        def recipe(config: Config, shape: TaskShape) -> Recipe:
            return _augmented.trained(places, shape)

        return Train(recipe, tasks, shape, validation_episodes=VALIDATION, mode="loop")

    def _trained(self, seed: int) -> Tested:
        keep_freed_memory()
        steps, file = self.steps, self.seed_file(seed).with_suffix(".safetensors")
        train = replace(self.train, steps=steps, report_every=max(1, steps // 10), checkpoint_every=steps)
        begin = time.process_time()

        def weights(step: int, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
            return str(parcel.write(file, tensors, facts))

        for report in train(Proposal({}, seed=seed), Trial(seed, threads=self.threads, save=weights)):
            loss = report.metrics.get("train_loss")
            said = f"loss {loss:.3f}" if loss is not None else f"validation {percent(report.score)}"
            print(f"  seed {seed}: step {report.step}/{steps}, {said}", file=sys.stderr, flush=True)
        minutes = (time.process_time() - begin) / 60 / self.threads
        assert report.score is not None
        recipe = train.built({})
        meta = {k.removeprefix("meta/"): v for k, v in parcel.read(file)[0].items() if k.startswith("meta/")}
        learner, told, how = recipe.learner.at(1.0), report.metrics, augmenting.moments(train.tasks)
        with locked(self.folder), (self.folder / "opened.jsonl").open("a") as record:
            opened = open_test(train.tasks, lambda row: record.write(json.dumps({**row, "seed": seed}) + "\n"))
        found, digest = list[float](), hashlib.sha256()
        for first in range(0, self.episodes, BANK):
            bank = opened.bank(min(BANK, self.episodes - first), seed=first, shape=train.shape)
            digest.update(bank.digest.encode())
            episodes = augmenting.tested(recipe.augment, bank.episodes, how)
            found += scores(recipe.net, learner, train.tasks, meta, episodes, mode="loop").tolist()
        return Tested(found, digest.hexdigest()[:16], report.score, told["train_score"], steps, minutes)

    @cached_property
    def steps(self) -> int:
        """Of a training by itself: as many as fit into its minutes at the pace that is measured once for all seeds."""
        file = self.seed_file(0).with_name(f"{self.minutes:g}m{self.threads}.json")
        if not file.is_file():
            once, each = cost(self.train, {}, self.threads)
            write(file, Pace(once, each, max(MIN_STEPS, int((60 * self.minutes - once) / each))))
        return Pace(**json.loads(file.read_text())).steps


# -- measures ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Processor seconds that a training costs whatever its length, and of an outer step; the steps that this makes."""

    once: float
    each: float
    steps: int


def cost(train: Train, config: Config, threads: int) -> tuple[float, float]:
    """(processor seconds of a training that are not steps, of an outer step)."""
    each = _pace(replace(train, steps=10**6, report_every=_block(train)), config, _block(train), threads)
    begin = time.process_time()
    for _ in replace(train, steps=1)(Proposal(config, seed=0), Trial(0, threads=threads)):
        pass
    return max(0.0, (time.process_time() - begin) / threads - each), each


def pace(objective: Objective, study: metasearch.Study, threads: int) -> float:
    """Processor seconds of an outer step of a search."""
    train = study.training()
    endless = replace(objective, train=replace(train, report_every=_block(train)))  # type: ignore[type-var]
    return _pace(endless, middle(study), _block(train), threads)


def _block(train: Train) -> int:
    """Outer steps whose episodes are drawn, and augmented, at once: what they cost is part of a step."""
    shape = _augmented.trained(None, train.shape).episode
    assert shape is not None
    return block_steps(shape, 1, 10**6)


def _pace(objective: Objective, config: Config, steps: int, threads: int) -> float:
    running = objective(Proposal(config, seed=0), Trial(0, threads=threads))
    next(running)  # warms up
    begin = time.process_time()
    for _ in range(BLOCKS):
        next(running)
    found = (time.process_time() - begin) / (BLOCKS * steps)
    running.close()  # type: ignore[attr-defined]
    return found / threads


def across(runs: Sequence[Tested]) -> list[float]:
    """The mean over seeds of every test episode's score: every seed saw the same ones."""
    return [statistics.fmean(of) for of in zip(*(run.scores for run in runs), strict=True)]


def gains(runs: Sequence[Tested], baseline: Sequence[Tested]) -> list[float]:
    """Of every test episode. Raises ValueError where these are not the same ones."""
    banks = {run.bank for run in (*runs, *baseline)}
    if len(banks) > 1:
        raise ValueError(f"scores are paired on the same episodes, but these are of {len(banks)} banks: {', '.join(banks)}")
    return [a - b for a, b in zip(across(runs), across(baseline), strict=True)]


def percents(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of its 95 % interval), in percent."""
    mean, low, high, _ = mean_interval(values)
    return 100 * mean, 50 * (high - low)


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


def write(file: Path, body: Found | Tested | Pace) -> None:
    replaced(file, json.dumps(asdict(body)))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=tuple(DATA), action="append", help="only this data set (default: all)")
    parser.add_argument("--minutes", type=positive(float), default=8.0, help="of each training (default: %(default)s)")
    parser.add_argument("--search-minutes", type=positive(float), default=30.0, help="of a search (default: %(default)s)")
    parser.add_argument("--episodes", type=positive(int), default=1000, help="of the test split (default: %(default)s)")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1, help="CPU threads (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(benchmark(__file__, __doc__, cases, what=ROWS, default=ROWS, seeds=3, arguments=arguments))
