"""Large-scale evolution: of two individuals the worse dies, and the better has a child that goes on with its weights.

Real, Moore, Selle, Saxena, Suematsu, Tan, Le, Kurakin. "Large-Scale Evolution of Image Classifiers." ICML 2017.
https://arxiv.org/abs/1703.01041

A population of trained models. Whoever has time picks two at random, kills the worse, copies the better and mutates the copy,
which trains on from its parent's weights wherever their shapes match (`parent` and `moved`; objectives/parcel.py). Everybody
begins as the simplest of nets. The space's own file says what a mutation is (search_spaces/evolving_nets.py: the eleven of the
paper); IDENTITY, which only trains on, is this file's, for it is no change.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Choice, Float, Space
from metasearch.strategies import Strategy
from metasearch.strategies._brood import Brood
from metasearch.strategies._draws import rng_of
from metasearch.strategies._halving import Key
from metasearch.strategies.regularized_evolution import Individual

__all__ = ["LargeScaleEvolution", "simplest"]

Trained = tuple[Individual, int]  # and the steps to which it trained


def simplest(space: Space) -> Config:
    """As few items as possible, every first option, every lowest Int, and the middle of every Float."""
    config: Config = {}
    for path, leaf in space.active(config):
        if isinstance(leaf, Choice):
            config[path] = leaf.values[0]
        else:
            config[path] = leaf.decode(0.5) if isinstance(leaf, Float) else leaf.low
    return config


class LargeScaleEvolution(Strategy):
    """Asynchronous by nature. Whom a trial in flight replaces is dead already, so that alive and running are `population`; a
    child that fails is made up for by a birth without a death.

    A trial trains for `steps` more than its parent, so that what has lived long has trained long. Outcomes that were never
    asked for do not enter: their weights need not be here. Founders are the budget's roots; everything after them costs none,
    so that `evaluations` says when it ends.

    `generation = n`: children come in broods of n (_brood.py), whose deaths, too, are those of the time when the brood before
    was complete, and the number of workers changes nothing.
    """

    children = True
    inherits = True
    repeats = True  # equal founders begin with different weights, and IDENTITY trains the same net on
    example: ClassVar[Mapping[str, Any]] = {"steps": 10, "evaluations": 40, "population": 6}

    @dataclass(frozen=True)
    class Hyperparameters:
        """steps: outer steps of each individual's training (paper: 25,600 batches of 50). evaluations: individuals in all, with
        the founders. population: paper: 1000. identity: share of children that only train on (paper: one in 11 mutations).
        founders: "simplest" (paper: single-layer nets without convolutions) or "random". generation: children of a brood; 0
        (paper): none waits for another."""

        steps: int
        evaluations: int
        population: int = 1000
        identity: float = 1 / 11
        founders: str = "simplest"
        generation: int = 0

        def __post_init__(self) -> None:
            if self.steps < 1 or self.evaluations < 1 or self.population < 2:
                raise ValueError(f"`steps >= 1`, `evaluations >= 1` and `population >= 2` must hold, but got {self}")
            if not 0 <= self.identity <= 1:
                raise ValueError(f"`identity` is a share of the children, in [0, 1], but got {self.identity}")
            if self.founders not in ("simplest", "random"):
                raise ValueError(f"founders are 'simplest' or 'random', but got {self.founders!r}")
            if not 0 <= self.generation < self.population:
                raise ValueError(f"`0 <= generation < population` must hold: each child takes somebody's place, but got {self}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self.alive: list[Trained] = []
        self._running: Counter[Key] = Counter()
        self._asked = 0
        self._founded = 0
        self._brood = Brood[Trained](hyperparameters.generation)

    def ask(self) -> Proposal | None:
        h = self.hyperparameters
        if self._asked >= h.evaluations:
            return None
        rng = rng_of(self.seed, self._asked + 1)
        running = self._running.total()
        founding = sum(n for key, n in self._running.items() if key.parent is None)
        nobody = not self.alive and not running
        if not self.closed and (self._founded + founding < h.population or nobody):
            proposal = Proposal(self._founder(rng), until=h.steps, drawn=h.founders == "random")
        elif not self._brood.ready(running > 0):
            return None
        elif len(self.alive) >= 2:
            others = self._brood.born if self._brood.size else running
            self._brood.asked(self._brood.size)
            proposal = self._born(rng, death=len(self.alive) + others >= h.population)
        elif self.alive and not running:
            self._brood.asked(self._brood.size)
            proposal = self._child(*self.alive[0], rng)
        else:
            return None
        self._asked += 1
        self._running[Key.of(proposal)] += 1
        return proposal

    def _founder(self, rng: np.random.Generator) -> Config:
        return simplest(self.space) if self.hyperparameters.founders == "simplest" else self.space.sample(rng)

    def _born(self, rng: np.random.Generator, *, death: bool) -> Proposal:
        """Two at random: the better has a child, the worse dies."""
        pair = [self.alive[int(i)] for i in rng.choice(len(self.alive), size=2, replace=False)]
        worse, better = sorted(pair, key=lambda one: one[0].score)
        if death:
            self.alive.remove(worse)
        return self._child(*better, rng)

    def _child(self, parent: Individual, steps: int, rng: np.random.Generator) -> Proposal:
        config, moved = dict(parent.config), dict[str, str]()
        if rng.random() >= self.hyperparameters.identity:
            config, moved = self.mutate(parent.config, rng)
        return Proposal(config, parent=parent.trial, until=steps + self.hyperparameters.steps, moved=moved)

    def tell(self, outcome: Outcome) -> None:
        key = Key.of(outcome.proposal)
        if not self._running[key]:
            del self._running[key]
            return
        self._running[key] -= 1
        self._running += Counter()  # drops zeros
        individual = Individual.of(outcome)
        self._founded += individual is not None and outcome.proposal.parent is None
        trained = None if individual is None else (individual, outcome.proposal.until or outcome.step)
        self.alive += self._brood.ended(outcome.trial, trained, own=True, running=bool(self._running))

    def state_dict(self) -> dict[str, Any]:
        return {
            "alive": [_to_json(one) for one in self.alive],
            "running": [[list(key), n] for key, n in self._running.items()],
            "asked": self._asked, "founded": self._founded, "brood": self._brood.state_dict(_to_json),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.alive = [_from_json(body) for body in state["alive"]]
        self._running = Counter({Key(*key): n for key, n in state["running"]})
        self._asked, self._founded = state["asked"], state["founded"]
        self._brood.load_state_dict(state["brood"], _from_json)


def _to_json(trained: Trained) -> list[Any]:
    individual, steps = trained
    return [individual.to_json(), steps]


def _from_json(body: Sequence[Any]) -> Trained:
    individual, steps = body
    return Individual.from_json(individual), steps
