"""Optuna's samplers as strategies: a sampler is built anew for every ask, over one in-memory study.

Akiba et al. "Optuna: A Next-generation Hyperparameter Optimization Framework." KDD 2019. https://optuna.org

A sampler's random numbers come from (seed, number of the ask) alone, and the study holds what was asked and told in that order,
so replaying the ledger rebuilds it. Trials that run are RUNNING in the study (samplers keep away from them). What is told:

    done                        its score
    diverged, oom, infeasible   the worst score known: the config is to blame, and its neighbours are suspects
    error                       nothing (FAIL): the config is not to blame
    reused                      its score, unless the study has it already

A config that was asked or told before is not proposed again: it is drawn anew (a few times with other random numbers, then at
random), and when a finite space has none left the strategy is finished.
"""
from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Float, Int, Leaf, Space, digest
from metasearch.strategies import Strategy
from metasearch.strategies._draws import Seen, rng_of, seed_of

__all__ = ["ByColumn", "ByPath", "OptunaStrategy", "Spelling", "quiet"]

REDRAWS = 4
HUGE = 1e100  # models square scores
FINITE = frozenset({"synflow", "naswot"})  # what trials tell where it is finite: of a net without any it is the worst there is

Params = dict[str, int | float]  # of Optuna; an option of a Choice is its number


class Spelling(Protocol):
    """How configs and Optuna's parameters correspond."""

    def draw(self, trial: optuna.Trial) -> Config:
        """Lets the sampler suggest a config."""

    def params(self, config: Config) -> Params:
        """A config as the parameters of a trial. Raises ValueError for an invalid config."""

    def drawn(self, config: Config, params: Params) -> Params:
        """The parameters of a config that was drawn with these."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Of every parameter that a trial may have, by name."""


class ByPath:
    """Parameters are the decisions in force, suggested in order, so each trial has its own set (Optuna's define-by-run).

    A parameter is named by its path; where two options share a sub-name with different dimensions, the later one gets a number.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._names: dict[tuple[str, Leaf], str] = {}
        for path, leaf in space.columns():
            alike = sum(known == path for known, _ in self._names)
            self._names.setdefault((path, leaf), f"{path}~{alike}" if alike else path)
        self.distributions = {name: _distribution(leaf) for (_, leaf), name in self._names.items()}

    def draw(self, trial: optuna.Trial) -> Config:
        config: Config = {}
        for path, leaf in self._space.active(config):
            name = self._names[path, leaf]
            config[path] = _value(leaf, _suggest(trial, name, self.distributions[name]))
        return config

    def params(self, config: Config) -> Params:
        self._space.validate(config)
        return {self._names[path, leaf]: _param(leaf, config[path]) for path, leaf in self._space.active(config)}

    def drawn(self, config: Config, params: Params) -> Params:
        return params


class ByColumn:
    """Parameters are the columns of an encoded config, so all trials have the same; those not in force are silent.

    genes: silent columns keep what was drawn for them; otherwise, and in a config from elsewhere, they hold the middle, so that
    a model sees no difference there. Floats are given on [0, 1], in encoded space.
    """

    def __init__(self, space: Space, *, genes: bool = True) -> None:
        self._space, self._genes = space, genes
        self._columns = [(f"{i}:{path}", leaf) for i, (path, leaf) in enumerate(space.columns())]
        self.distributions = {
            name: FloatDistribution(0.0, 1.0) if isinstance(leaf, Float) else _distribution(leaf) for name, leaf in self._columns
        }

    def draw(self, trial: optuna.Trial) -> Config:
        row = []
        for name, leaf in self._columns:
            param = _suggest(trial, name, self.distributions[name])
            row.append(float(param) if isinstance(leaf, Float) else leaf.encode(_value(leaf, param)))
        return self._space.decode(row)

    def params(self, config: Config) -> Params:
        params: Params = {}
        for u, (name, leaf) in zip(self._space.encode(config).tolist(), self._columns, strict=True):
            params[name] = u if isinstance(leaf, Float) else _param(leaf, leaf.decode(u))
        return params

    def drawn(self, config: Config, params: Params) -> Params:
        return params if self._genes else self.params(config)


def _distribution(leaf: Leaf) -> BaseDistribution:
    if isinstance(leaf, Float):
        return FloatDistribution(leaf.low, leaf.high, log=leaf.log)
    if isinstance(leaf, Int):
        return IntDistribution(leaf.low, leaf.high, log=leaf.log)
    return CategoricalDistribution(range(len(leaf.values)))


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> int | float:
    if isinstance(distribution, FloatDistribution):
        return float(trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log))
    if isinstance(distribution, IntDistribution):
        return int(trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log))
    return int(trial.suggest_categorical(name, distribution.choices))


def _value(leaf: Leaf, param: int | float) -> Any:
    if isinstance(leaf, Float):
        return min(max(float(param), leaf.low), leaf.high)  # exp(log(high)) may be one bit above high
    return int(param) if isinstance(leaf, Int) else leaf.values[int(param)]


def _param(leaf: Leaf, value: Any) -> int | float:
    return value if isinstance(leaf, Float | Int) else leaf.index(value)


class OptunaStrategy(Strategy):
    """Everything but the sampler.

    objectives: what Optuna maximises, each "score" or a metric of the last report; "-params" is minimised.
    most:       how many told trials a sampler is shown at most (`kept`). None: all.
    marks:      what a trial that was not asked for needs to be learnt from (nsga-ii: its generation).
    """

    def __init__(
        self,
        space: Space,
        *,
        hyperparameters: Any,
        seed: int,
        spelling: Spelling,
        objectives: Sequence[str] = ("score",),
        most: int | None = None,
        marks: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self._spelling = spelling
        self._objectives = tuple(objectives)
        self._most = most
        self._marks = dict(marks or {})
        self._chosen: tuple[tuple[int, int], set[int]] = (0, 0), set()  # (most, how many were told) and those that were kept
        self._study = self._new_study()
        self._seen = Seen(space)
        self._asked = 0
        self._running: dict[str, list[int]] = {}  # digest of a config -> its running trials in Optuna's study
        self._scored: set[str] = set()
        self._worst: list[float] | None = None
        self._bad: list[int] = []  # trials that went wrong before any score was known: they run until there is a worst one

    @property
    def random_until(self) -> int:
        """Of how many results the sampler draws at random while it has fewer."""
        return 0

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler: ...

    def ask(self) -> Proposal | None:
        if self._seen.everything:
            return None
        drawn = len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < self.random_until
        view = View(self._study, None if self._most is None else self.kept(self._most))
        config = next(filter(None, (self._drawn(attempt, view) for attempt in range(REDRAWS))), None)
        if config is None:
            config = self._seen.another(rng_of(self.seed, self._asked, REDRAWS))
            self._add(config)
        self._asked += 1
        self._seen.add(config)
        return Proposal(config, drawn=drawn)

    def tell(self, outcome: Outcome) -> None:
        config, key = outcome.proposal.config, digest(outcome.proposal.config)
        if key not in self._running:
            self._add(config, self._marks)
            if outcome.status != "error":
                self._seen.add(config)
        number = self._running[key].pop(0)
        if not self._running[key]:
            del self._running[key]
        if outcome.status == "error" or (outcome.status == "reused" and key in self._scored):
            self._study.tell(number, state=TrialState.FAIL)
            return
        values = self._values(outcome)
        if values is not None:
            self._scored.add(key)
            self._worst = values if self._worst is None else list(map(min, self._worst, values))
            self._study.tell(number, values)
        else:
            self._bad.append(number)
        if self._worst is not None:
            for bad in self._bad:
                self._study.tell(bad, self._worst)
            self._bad.clear()

    def state_dict(self) -> dict[str, Any]:
        trials = self._study.get_trials(deepcopy=False)
        return {
            "trials": [[t.state.name, t.params, t.values, t.system_attrs] for t in trials],
            "marks": self._study._storage.get_study_system_attrs(self._study._study_id),  # nsga-ii: each generation's parents
            "seen": self._seen.digests(),
            "asked": self._asked,
            "running": self._running,
            "scored": sorted(self._scored),
            "worst": self._worst,
            "bad": self._bad,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._study = self._new_study()
        self._study.add_trials([self._trial(TrialState[name], *rest) for name, *rest in state["trials"]])
        for key, value in state["marks"].items():
            self._study._storage.set_study_system_attr(self._study._study_id, key, value)
        self._seen = Seen(self.space, state["seen"])
        self._asked = state["asked"]
        self._running = {key: list(numbers) for key, numbers in state["running"].items()}
        self._scored = set(state["scored"])
        self._worst = state["worst"]
        self._bad = list(state["bad"])

    def _drawn(self, attempt: int, view: View) -> Config | None:
        """A new config, running in the study from now on; None if the sampler's was had before, of which no trace is left."""
        with quiet():
            sampler = self._study.sampler = self._sampler(seed_of(self.seed, self._asked, attempt))
            view.marks.clear()
            draw: Any = Draw(view, sampler, self._spelling.distributions)
            config = self._spelling.draw(draw)
        if config in self._seen:
            return None
        self._run(config, self._spelling.drawn(config, draw.params), view.marks)
        return config

    def _run(self, config: Config, params: Params, marks: Mapping[str, Any]) -> None:
        """A running trial, from now on."""
        number = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(self._trial(TrialState.RUNNING, params, None, dict(marks)))
        self._running.setdefault(digest(config), []).append(number)

    def _add(self, config: Config, marks: Mapping[str, Any] | None = None) -> None:
        """A running trial that no sampler drew."""
        self._run(config, self._spelling.params(config), marks or {})

    def _trial(self, state: TrialState, params: Params, values: list[float] | None, marks: dict[str, Any]) -> FrozenTrial:
        distributions = {name: self._spelling.distributions[name] for name in params}
        return create_trial(state=state, params=params, distributions=distributions, values=values, system_attrs=marks)

    def _values(self, outcome: Outcome) -> list[float] | None:
        """What Optuna maximises; None if the trial is bad."""
        if outcome.status not in ("done", "reused") or outcome.score is None:
            return None
        known = {**outcome.metrics, "score": outcome.score}
        wanted = [objective.removeprefix("-") for objective in self._objectives]
        missing = {name for name in wanted if name not in known}
        if missing - FINITE:
            raise ValueError(
                f"objectives are {', '.join(self._objectives)}, but trial {outcome.trial} reports no "
                f"{', '.join(sorted(missing))}. It reports {', '.join(sorted(known))}."
            )
        if missing:
            return None
        signs = [-1.0 if objective.startswith("-") else 1.0 for objective in self._objectives]
        values = [sign * float(known[name]) for sign, name in zip(signs, wanted, strict=True)]
        return [min(max(v, -HUGE), HUGE) for v in values] if all(map(math.isfinite, values)) else None

    def kept(self, most: int) -> set[int]:
        """Numbers of at most so many told trials: the third that is best, and a sample of the rest, spread evenly over the order
        in which they came, so that what was ruled out early stays ruled out."""
        told = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(told) <= most:
            return {t.number for t in told}
        if self._chosen[0] == (most, len(told)):  # nothing was told since
            return self._chosen[1]
        ranked = sorted(told, key=lambda t: (-_first(t), t.number))
        best, rest = ranked[:most // 3], sorted(ranked[most // 3:], key=lambda t: t.number)
        room = most - len(best)
        self._chosen = (most, len(told)), {t.number for t in (*best, *(rest[i * len(rest) // room] for i in range(room)))}
        return self._chosen[1]

    def _new_study(self) -> optuna.Study:
        with quiet():
            return optuna.create_study(directions=["maximize"] * len(self._objectives))


class View:
    """A study as a sampler is shown it during one ask: of the told trials only some (None: all), and what it marks its own
    trial with is kept here, for that one is in no study yet."""

    def __init__(self, study: optuna.Study, kept: set[int] | None) -> None:
        self._study, self._kept = study, kept
        self.marks: dict[str, Any] = {}
        self._storage = Marking(study._storage, self.marks)
        self._found: dict[Any, list[FrozenTrial]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool = False, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        key = None if states is None else tuple(states)
        if key not in self._found:
            found, kept = self._study._get_trials(deepcopy=False, states=states), self._kept
            self._found[key] = [t for t in found if kept is None or t.state != TrialState.COMPLETE or t.number in kept]
        return self._found[key]

    get_trials = _get_trials


class Marking:
    """A study's storage, but for the marks of a trial."""

    def __init__(self, storage: Any, marks: dict[str, Any]) -> None:
        self._kept, self._marks = storage, marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._marks[key] = value


class Draw:
    """What a sampler suggests, as an `optuna.Trial` does, but without entering a study: what was had leaves no trace."""

    def __init__(self, view: Any, sampler: BaseSampler, distributions: Mapping[str, BaseDistribution]) -> None:
        self.params: Params = {}
        self._view, self._sampler, self._distributions = view, sampler, distributions
        self._trial = create_trial(state=TrialState.RUNNING, params={}, distributions={})
        sampler.before_trial(view, self._trial)
        self._together = sampler.sample_relative(view, self._trial, sampler.infer_relative_search_space(view, self._trial))

    def suggest_float(self, name: str, *_: Any, **__: Any) -> float:
        return float(self._suggested(name))

    def suggest_int(self, name: str, *_: Any, **__: Any) -> int:
        return int(self._suggested(name))

    def suggest_categorical(self, name: str, *_: Any) -> int:
        return int(self._suggested(name))

    def _suggested(self, name: str) -> int | float:
        distribution: Any = self._distributions[name]
        value: int | float
        if distribution.single():
            value = distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low
        elif name in self._together and distribution._contains(distribution.to_internal_repr(self._together[name])):
            value = self._together[name]
        else:
            value = self._sampler.sample_independent(self._view, self._trial, name, distribution)
        self.params[name] = value
        return value


def _first(trial: FrozenTrial) -> float:
    assert trial.values is not None
    return float(trial.values[0])


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna announces every study and warns of what is experimental; here it is meant."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
