"""A study is a value: everything that determines a search, as one frozen, validated record that a TOML file describes.

    study = Study.from_toml("study.toml", ["tasks.ways=20", "budget.coverage=0.95"])
    for problem in study.problems(): print(problem)       # the deep checks: the space loads, the strategy fits it, ...

The schema (types, ranges, unknown keys) is checked when a study is built and raises StudyError with all mistakes at once;
`problems()` loads what the names stand for and checks that they fit each other. Workers rebuild a study from `to_json()`.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from metasearch import plugins
from metasearch.driver import study_file
from metasearch.driver.study_file import StudyError
from metasearch.home import study_name

if TYPE_CHECKING:
    from numpy.random import Generator

    from metasearch.budget import Coverage
    from metasearch.objectives import Objective
    from metasearch.objectives.train import Train as TrainObjective
    from metasearch.records import Config
    from metasearch.space import Space
    from metasearch.strategies import Mutate, Strategy
    from metasearch.tasks import TaskDistribution, TaskShape

__all__ = ["Budget", "Driver", "Method", "Study", "StudyError", "Tasks", "Track", "Train", "Validation"]

def _one_line(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(f"must be printable text on one line, but got {text[:80]!r}")
    return text


Word = Annotated[str, Field(max_length=1000), AfterValidator(_one_line)]


class _Table(BaseModel):
    """A table of the TOML file: frozen, no unknown keys, no silent conversions ("5" is no integer), no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, serialize_by_alias=True)


class _OpenTable(_Table):
    """A table whose further keys belong to what its `name` stands for."""

    model_config = ConfigDict(extra="allow")
    name: Word

    @property
    def arguments(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.model_extra or {})


class Method(_OpenTable):
    """What to try next: a strategy, a file of metasearch/methods, or a path to a user's file that defines
    `method(study) -> (strategy, objective)`. Further keys are the strategy's hyper-parameters."""

    name: Word = "random"


class Tasks(_OpenTable):
    """What one problem is. Further keys are the constructor arguments of the task distribution."""

    ways: Annotated[int, Field(ge=1, le=100_000)] | None = None  # None: 5 classes, or 1 output of a regression
    shots: Annotated[int, Field(ge=1, le=100_000)] = 1
    queries: Annotated[int, Field(ge=1, le=100_000)] = 15


class Train(_Table):
    """How one trial is trained; None leaves it to the recipe."""

    steps: Annotated[int, Field(ge=1)] | None = None
    meta_batch: Annotated[int, Field(ge=1)] | None = None
    report_every: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    keep: Literal["last", "best"] = "last"
    mode: Literal["auto", "loop", "vmap", "compiled"] = "auto"
    start: Word | None = None  # "STUDY/NUMBER": the trial with whose weights every trial begins (driver/start.py)


class Limits(_Table):
    """What an architecture may cost, measured before it is trained; a configuration beyond a limit is answered `infeasible`."""

    max_params: Annotated[float, Field(gt=0)] | None = None  # learnt numbers
    max_flops: Annotated[float, Field(gt=0)] | None = None  # of one forward of one input, a multiply-add as two
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None  # of one forward of one input, on the machine that trains it

    def measured(self) -> dict[str, float]:
        """{"params": 100000.0, ...}: those that are set, by the name of what is measured."""
        return {k.removeprefix("max_"): v for k, v in self.model_dump().items() if v is not None}


class Validation(_Table):
    """The bank on which all trials are scored."""

    episodes: Annotated[int, Field(ge=2, le=1_000_000)] = 200
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


def _top(top: Any) -> int | str | None:
    from metasearch.budget import share_of

    try:
        part = None if top is None else share_of(top)
    except ValueError:
        part = Fraction(0)
    if (part is not None and not 0 < part < 1) or (isinstance(top, int) and top < 1):
        raise ValueError(f"must be a number of configurations (10) or a share of the space ('1%'), but got {top!r:.80}")
    return top  # type: ignore[no-any-return]


class Budget(_Table):
    """When to stop: whichever limit is reached first. Coverage is the probability that one of the `top` was looked at."""

    trials: Annotated[int, Field(ge=1, le=10**9)] | None = None
    coverage: Annotated[float, Field(gt=0, lt=1)] | None = None
    top: Annotated[int | str | None, BeforeValidator(_top)] = None
    hours: Annotated[float, Field(gt=0, le=1e6)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.trials is None and self.coverage is None and self.hours is None:
            raise ValueError("needs at least one of trials, coverage (with top), hours")
        if self.coverage is not None and self.top is None:
            raise ValueError("coverage needs top: how many of the best count as a hit (top = 10) or which share (top = '1%')")
        return self


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"must be a part of one GPU (0.5) or a whole number of them, but got {gpus:g}")
    return gpus


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Device = Annotated[str, Field(pattern=r"^(cpu|cuda:\d{1,4})$")]


def _timeout(value: Any) -> Any:
    """None: as older studies say that nothing was said."""
    return "auto" if value is None else "off" if value == 0 and not isinstance(value, bool) else value


Timeout = Annotated[Annotated[float, Field(gt=0)] | Literal["auto", "off"], BeforeValidator(_timeout)]


class Driver(_Table):
    """Where and when it runs. Nothing here changes what a trial computes."""

    kind: Literal["ray", "local"] = "ray"
    lanes: Annotated[int, Field(ge=1, le=100_000)] | None = None  # None: as many as fit
    cpus: Annotated[float, Field(gt=0, le=100_000)] = 1
    gpus: Annotated[float, Field(ge=0, le=1024), AfterValidator(_whole_above_one)] = 0.0
    devices: Annotated[tuple[Device, ...], Field(min_length=1, max_length=1024), BeforeValidator(_listed)] | None = None
    address: Word | None = None
    trial_timeout: Timeout = "auto"  # seconds without a report; auto: ten times the longest so far, at least half an hour
    max_errors: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _has_its_devices(self) -> Self:
        allowed = tuple(f"cuda:{n}" for n in range(math.ceil(self.gpus))) or ("cpu",)
        if wrong := [device for device in self.devices or () if device not in allowed]:
            raise ValueError(
                f"devices must be among those of a trial with gpus = {self.gpus:g}, which are {', '.join(allowed)}, but got "
                f"{', '.join(dict.fromkeys(wrong))}"
            )
        return self

    @property
    def trial_devices(self) -> tuple[str, ...]:
        """The torch devices of one trial, as the trial itself numbers them: a meta-batch is split over them."""
        return self.devices or tuple(f"cuda:{n}" for n in range(math.ceil(self.gpus))) or ("cpu",)


def _no_secret(uri: str) -> str:
    if re.match(r"[a-z+]*://[^/]*@", uri, re.IGNORECASE):
        raise ValueError(
            "must hold no user and password, since studies are kept and shown. "
            "Use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri


class Track(_Table):
    """What people see in MLflow."""

    enabled: bool = True
    uri: Annotated[Word, AfterValidator(_no_secret)] | None = None
    top: Annotated[int, Field(ge=0, le=1000)] = 3  # the weights of so many best trials are kept as artifacts
    pictures: Annotated[int, Field(ge=0, le=100)] = 5  # so many of the best trials are drawn; 0: no pictures at all


class Study(_Table):
    """A search, described in full. See `docs/studies.md` for every key."""

    name: Annotated[str, AfterValidator(study_name)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    space_name: Word = Field(alias="space")  # a name, a path.py or an importable module
    repeats: bool = False  # train a configuration again that was trained before; otherwise its result is reused
    method: Method = Method()
    tasks: Tasks | None = None  # only a user's own method can do without
    train: Train = Train()
    validation: Validation = Validation()
    limits: Limits = Limits()
    budget: Budget
    driver: Driver = Driver()
    track: Track = Track()

    # -- reading and writing ------------------------------------------------------------------------------------------

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Study:
        """Reads a study file and applies `key=value` overrides. Raises StudyError with every mistake at once."""
        plugins.renew()
        return cls.from_source(study_file.read(Path(path), overrides))

    @classmethod
    def from_text(cls, text: str, overrides: Iterable[str] = (), *, where: str = "study") -> Study:
        """The same from a string; paths in it are relative to the current folder."""
        plugins.renew()
        return cls.from_source(study_file.parse(text, overrides, where=where))

    @classmethod
    def from_source(cls, source: study_file.Source) -> Study:
        wrong = list(source.wrong)
        try:
            study = cls.model_validate(source.table)
        except ValidationError as error:
            wrong += study_file.in_words(error, cls, source)
        if wrong:
            raise StudyError(wrong, source.where)
        return study

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Study:
        """From `to_json()` (or any table of the same keys). Raises StudyError."""
        return cls.from_source(study_file.Source(dict(table), where="study"))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON from which `from_json` rebuilds an equal study; paths in it are absolute."""
        return self.model_dump(mode="json", by_alias=True)

    def with_(self, overrides: Iterable[str]) -> Study:
        """The same study with `key=value` overrides."""
        return self.from_source(study_file.overridden(study_file.Source(self.to_json(), where="study"), overrides))

    @property
    def digest(self) -> str:
        """Hash of what determines results (16 hex digits): not the name, the driver or where it is tracked."""
        table = self.to_json()
        for key in ("name", "driver", "track"):
            del table[key]
        if not self.repeats:
            del table["repeats"]  # studies that were begun before there was the key go on
        if table["train"]["start"] is None:
            del table["train"]["start"]  # studies that were begun before there was this key keep their digest
        table["space"] = _identity(self.space_name)
        table["method"]["name"] = _identity(self.method.name)
        text = json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # -- what the names stand for -------------------------------------------------------------------------------------

    def space_module(self) -> ModuleType:
        """The module with SPACE and recipe(config, shape)."""
        return plugins.module("spaces", self.space_name)

    def space(self) -> Space:
        """Raises ValueError if the module has no SPACE."""
        from metasearch.space import Space

        found = getattr(self.space_module(), "SPACE", None)
        if not isinstance(found, Space):
            raise ValueError(f"space '{self.space_name}' must define SPACE = Space({{...}}), but SPACE is {found!r:.80}")
        return found

    def strategy(self) -> Strategy:
        """A fresh strategy, as it is before the first ask."""
        from metasearch import strategies

        if self.has_own_method:
            return self.pair()[0]
        strategy = strategies.build(self.method.name, self.space(), self.method.arguments, seed=self.seed)
        own = getattr(self.space_module(), "mutations", None)
        if own is not None:
            strategy.mutate = self._checked(own)
        return strategy

    def _checked(self, mutations: Mutate) -> Mutate:
        """The space file's own mutation; what it raises is a ValueError with its line and the config. What is no config of the
        space is left to the director, which answers it."""

        def mutate(config: Config, rng: Generator) -> tuple[Config, dict[str, str]]:
            where = f"mutations(config, rng) of space '{self.space_name}'"
            try:
                found: Any = mutations(dict(config), rng)
            except Exception as error:
                raise ValueError(f"{where} fails on {config}: {plugins.reason(error, self.space_name)}") from error
            if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Mapping) for part in found)):
                raise ValueError(f"{where} must return (config, moved), but returned {found!r:.80}")
            return dict(found[0]), dict(found[1])

        return mutate

    def objective(self) -> Objective:
        """What one trial does; built by every worker from the study's JSON."""
        return self.pair()[1] if self.has_own_method else self.training()

    def training(self) -> TrainObjective:
        """The objective `train`: what a trial does unless the method says otherwise, and what methods build on."""
        from metasearch.objectives.train import Train as TrainObjective

        tasks = self.tasks_distribution()
        return TrainObjective(
            recipe=self.space_module().recipe,
            tasks=tasks,
            shape=self.shape(tasks),
            validation_episodes=self.validation.episodes,
            validation_seed=self.validation.seed,
            expected_trials=self._expected_trials(),
            facts={"study": self.to_json()},
            limits=self.limits.measured(),
            **self.train.model_dump(exclude={"start"}),  # which comes as a parcel
        )

    def tasks_distribution(self) -> TaskDistribution:
        """The task distribution, its data loaded. Raises ValueError or OSError if the data are not there."""
        from metasearch import tasks

        wanted = self._wanted_tasks()
        return tasks.build(wanted.name, wanted.arguments)

    def shape(self, tasks: TaskDistribution | None = None) -> TaskShape:
        """The shape of the episodes that trials are scored on."""
        wanted = self._wanted_tasks()
        tasks = tasks if tasks is not None else self.tasks_distribution()
        ways = wanted.ways if wanted.ways is not None else tasks.usual_ways
        return tasks.shape(ways=ways, shots=wanted.shots, queries=wanted.queries)

    @property
    def has_own_method(self) -> bool:
        """Is the method a (strategy, objective) pair of its own, rather than a strategy with the objective `train`?"""
        name = self.method.name
        return name.endswith(".py") or name.replace("_", "-") in plugins.names("methods")

    def coverage(self) -> Coverage | None:
        """The study's coverage goal among the configurations that its strategy draws from, or None. Raises ValueError for a goal
        that they cannot meet."""
        from metasearch.driver import spending

        return None if self.budget.coverage is None else spending.goal(self, self.strategy())

    def planned_trials(self) -> int | None:
        """How many configurations the budget asks for if each is looked at, or None if only the clock limits it."""
        return self._planned(self.coverage())

    def _planned(self, coverage: Coverage | None) -> int | None:
        limits = [self.budget.trials, None if coverage is None else coverage.needed]
        return min((n for n in limits if n is not None), default=None)

    def _expected_trials(self) -> int:
        """The planned ones; of a method of its own, which is built with what this is for, as if it drew from the whole space."""
        from metasearch.budget import Coverage

        if not self.has_own_method:
            return self.planned_trials() or 1
        coverage = None
        if self.budget.coverage is not None and self.budget.top is not None:
            with contextlib.suppress(ValueError):  # `problems` says so, if its strategy cannot meet the goal either
                coverage = Coverage(self.space().size, self.budget.top, self.budget.coverage)
        return self._planned(coverage) or 1

    def problems(self) -> list[str]:
        """What does not fit, in words, all at once; nothing is trained. Empty: the study can start."""
        from metasearch.driver.fit import problems

        return problems(self)

    def _wanted_tasks(self) -> Tasks:
        if self.tasks is None:
            raise ValueError("the study has no [tasks]: add [tasks] with name = 'glyphs' or another task distribution")
        return self.tasks

    def pair(self) -> tuple[Strategy, Objective]:
        """Of a method of its own, fresh. Raises ValueError, in words, for what it is not for."""
        found = plugins.module("methods", self.method.name)
        build = getattr(found, "method", None)
        if not callable(build):
            raise ValueError(f"method '{self.method.name}' must define method(study) -> (strategy, objective)")
        strategy, objective = build(self)
        return strategy, objective


@functools.lru_cache(maxsize=64)
def _identity(name: str) -> str:
    """A name stands for itself, a path for the content of its file."""
    if not name.endswith(".py"):
        return name
    try:
        return "file:" + hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
    except OSError:
        return "file:" + Path(name).name  # `problems` says that it is not there
