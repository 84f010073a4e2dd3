"""WHAT TO TRY NEXT: strategies see numbers only; no device, no net, no task, no clock.

One file is one strategy, its module's name is its name. A strategy is deterministic in (seed, order of calls), so that
replaying the ledger rebuilds it.
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from metasearch import plugins
from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Space

__all__ = ["Mutate", "NoHyperparameters", "Strategy", "build"]

Mutate = Callable[[Config, np.random.Generator], tuple[Config, dict[str, str]]]


@dataclass(frozen=True)
class NoHyperparameters:
    """For strategies that have none."""


class Strategy(ABC):
    """Ask it what to try, tell it what came of it.

        strategy = build("random", space, {}, seed=0)
        while (proposal := strategy.ask()) is not None:
            strategy.tell(Outcome(trial, proposal, score, metrics, "done"))

    ask() -> None while something runs means "not yet"; while nothing runs it means "finished". An ask that answers None
    changes no state. tell() comes in any order, for failures too, and for outcomes that it never asked for (warm start).

    closed: set by the driver, before an ask, when the budget of roots is spent (and unset when a root failed and is to be
    replaced). A strategy with `children = True` then answers with children (proposals that have a parent) or None; the
    others are not asked while they are closed.

    mutate: (config, rng) -> (a changed copy, moved), for strategies that evolve: the space's, unless its file has its own
    (`mutations`), which the driver then sets before the first ask.
    """

    Hyperparameters: ClassVar[type] = NoHyperparameters
    uniform: ClassVar[bool] = False  # True if its proposals are uniform draws that coverage may count
    adaptive: ClassVar[bool] = True  # False if proposals depend on nothing that is told (random, grid, qmc)
    repeats: ClassVar[bool] = False  # True if it asks for the same config again on purpose (the driver then runs it again)
    children: ClassVar[bool] = False  # True if it may propose trials that go on from a parent
    inherits: ClassVar[bool] = False  # True if a child is a config of its own, that only begins with its parent's weights: then
    # `until` says how long a lineage has trained, and all trials compare; otherwise it is a rung, and only equal ones do
    example: ClassVar[Mapping[str, Any]] = {}  # hyper-parameters that tests and docs use, where some have no default
    held: tuple[str, ...] = ()  # dimensions that a trial decides by itself: what proposals say of them nobody reads
    closed: bool = False

    def __init__(self, space: Space, *, hyperparameters: Any, seed: int) -> None:
        self.space = space
        self.hyperparameters = hyperparameters
        self.seed = seed
        self.mutate: Mutate = space.mutate

    @property
    def drawn_from(self) -> int | float:
        """Of how many configs what a strategy marks as `drawn` is a uniform draw; math.inf: it is one of `Space.sample`, which
        is not uniform over configs where a decision opens others."""
        return self.space.size if self.space.flat else math.inf

    @property
    def population(self) -> int | float:
        """How many configs the proposals are drawn from: the space's size, less where only a part is ever asked for."""
        return self.space.size

    @abstractmethod
    def ask(self) -> Proposal | None: ...

    @abstractmethod
    def tell(self, outcome: Outcome) -> None: ...

    def state_dict(self) -> dict[str, Any] | None:
        """A snapshot (JSON and tensors, no pickle), or None: the ledger is then replayed from its beginning."""
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise TypeError(f"{type(self).__name__} keeps no snapshots: replay its ledger instead")


def build(name: str, space: Space, hyperparameters: Mapping[str, Any], *, seed: int) -> Strategy:
    """The strategy of a name. Raises ValueError that names all unknown (with the nearest known one) and missing
    hyper-parameters; a strategy's own checks raise ValueError too."""
    kind = plugins.find("strategies", name, Strategy)
    declared = fields(kind.Hyperparameters)
    known = [f.name for f in declared]
    needed = [f.name for f in declared if f.default is MISSING and f.default_factory is MISSING]
    unknown = [key for key in hyperparameters if key not in known]
    said = [f"'{key}' is no hyper-parameter of {name}.{plugins.did_you_mean(key, known)}" for key in unknown]
    said += [f"{name} needs the hyper-parameter '{key}'." for key in needed if key not in hyperparameters]
    if said:
        raise ValueError("; ".join(said))
    strategy: Strategy = kind(space, hyperparameters=kind.Hyperparameters(**hyperparameters), seed=seed)
    return strategy
