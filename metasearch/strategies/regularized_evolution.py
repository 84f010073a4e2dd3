"""Regularized (ageing) evolution: a tournament chooses the parent, one mutation makes the child, and the oldest dies.

Real, Aggarwal, Huang, Le. "Regularized Evolution for Image Classifier Architecture Search." AAAI 2019.
https://arxiv.org/abs/1802.01548 (algorithm 1, and the authors' notebook)

The population is a queue of P. A child goes in at one end, and whoever is at the other leaves, however good: what lasts must
be found again and again, so that a score that was luck does not rule for ever. The sample of S is drawn with replacement, as in
the authors' code (the paper: "a random subset"). The answer is the best of the whole history, not of the population.
"""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Space, digest
from metasearch.strategies import Mutate, Strategy
from metasearch.strategies._brood import Brood
from metasearch.strategies._draws import TRIES, Seen, rng_of

__all__ = ["Individual", "RegularizedEvolution", "offspring", "tournament"]


@dataclass(frozen=True)
class Individual:
    """A finished trial and its score."""

    trial: int
    config: Config
    score: float

    @classmethod
    def of(cls, outcome: Outcome) -> Individual | None:
        """None for what failed, diverged or has no finite score: it is never a parent."""
        if outcome.status not in ("done", "reused") or outcome.score is None or not math.isfinite(outcome.score):
            return None
        return cls(outcome.trial, dict(outcome.proposal.config), float(outcome.score))

    def to_json(self) -> list[Any]:
        return [self.trial, self.config, self.score]

    @classmethod
    def from_json(cls, body: Sequence[Any]) -> Individual:
        trial, config, score = body
        return cls(int(trial), dict(config), float(score))


def tournament(population: Sequence[Individual], size: int, rng: np.random.Generator) -> Individual:
    """The best of `size` draws with replacement."""
    drawn: list[Individual] = [population[i] for i in rng.integers(len(population), size=size)]
    return max(drawn, key=lambda individual: individual.score)


def offspring(parent: Individual, mutate: Mutate, seen: Seen | None, rng: np.random.Generator) -> Config:
    """The parent, mutated once; where some configs were seen, on until it is none of them."""
    child, _ = mutate(dict(parent.config), rng)
    if seen is None:
        return child
    for i in range(TRIES):
        if child not in seen:
            return child
        child, _ = mutate(dict(parent.config) if i < TRIES // 2 else child, rng)  # its neighbours first, then a walk
    return seen.another(rng)


class RegularizedEvolution(Strategy):
    """Any number of trials run at once: a child is made of those who have finished, and age is the order of finishing.

    Until P individuals have finished or are on their way, configs are random ones; what fails is replaced. Outcomes that were
    never asked for are individuals like others. A child that repeats a config would not be trained again but get the recorded
    score, and use up a trial: unless `avoid_repeats` is off, it is mutated on until it is new.

    `generation = n`: children come in broods of n (_brood.py), and the number of workers changes nothing.
    """

    @dataclass(frozen=True)
    class Hyperparameters:
        """population: P. The paper's 100 (of 20,000 evaluations) is random search for the first 100 evaluations; a strategy
        does not know its budget, and min(100, a fifth of the evaluations) is a good choice: 20 is that for 100.
        sample: S, of which the best is the parent (paper: 25 of 100; tried too: 2 and 50 of 100, 20 of 20, 16 of 64).
        avoid_repeats: mutate on until a config is new. The paper trains repeats again; here they would learn nothing new.
        generation: children of a brood; 0: none waits for another."""

        population: int = 20
        sample: int = 10
        avoid_repeats: bool = True
        generation: int = 0

        def __post_init__(self) -> None:
            if self.population < 1 or self.sample < 1 or self.generation < 0:
                raise ValueError(f"`population >= 1`, `sample >= 1` and `generation >= 0` must hold, but got {self}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self.alive: deque[Individual] = deque(maxlen=hyperparameters.population)  # oldest first
        self.best: Individual | None = None  # of the whole history
        self.finished = 0  # individuals that ever entered
        self._seen = Seen(space)
        self._asked = 0
        self._running: dict[str, list[int]] = {}  # digest of a config -> the numbers of its asks
        self._founding: set[int] = set()  # running asks for random configs
        self._brood = Brood[Individual](hyperparameters.generation)

    # -- asking --------------------------------------------------------------------------------------------------------------

    def ask(self) -> Proposal | None:
        if self._seen.everything or not self._brood.ready(bool(self._running)):
            return None
        missing = self._founders_missing
        self._brood.asked(max(missing, 0) or self._brood.size)
        self._asked += 1
        rng = rng_of(self.seed, self._asked)
        if missing > 0 or not self.alive:
            config = self._founder(rng)
            self._founding.add(self._asked)
        else:
            config = self._child(rng)
        self._seen.add(config)
        self._running.setdefault(digest(config), []).append(self._asked)
        return Proposal(config, drawn=self._asked in self._founding)

    @property
    def _founders_missing(self) -> int:
        return int(self.hyperparameters.population) - self.finished - len(self._founding)

    def _founder(self, rng: np.random.Generator) -> Config:
        return self._seen.another(rng) if self.hyperparameters.avoid_repeats else self.space.sample(rng)

    def _child(self, rng: np.random.Generator) -> Config:
        parent = tournament(self.alive, self.hyperparameters.sample, rng)
        return offspring(parent, self.mutate, self._seen if self.hyperparameters.avoid_repeats else None, rng)

    # -- being told ----------------------------------------------------------------------------------------------------------

    def tell(self, outcome: Outcome) -> None:
        key, individual = digest(outcome.proposal.config), Individual.of(outcome)
        if individual is not None:
            self.space.validate(individual.config)
            self._seen.add(individual.config)
        numbers = self._running.get(key, [])
        number = numbers.pop(0) if numbers else None
        if key in self._running and not numbers:
            del self._running[key]
        self._founding.discard(number or 0)
        for one in self._brood.ended(outcome.trial, individual, own=number is not None, running=bool(self._running)):
            self._enter(one)

    def _enter(self, individual: Individual) -> None:
        """A child comes in, and the oldest leaves."""
        self.alive.append(individual)  # a deque with a longest length: the other end falls off
        self.finished += 1
        if self.best is None or individual.score > self.best.score:
            self.best = individual

    # -- snapshots -----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "population": [individual.to_json() for individual in self.alive],
            "best": None if self.best is None else self.best.to_json(),
            "finished": self.finished, "seen": self._seen.digests(), "asked": self._asked, "running": self._running,
            "founding": sorted(self._founding), "brood": self._brood.state_dict(Individual.to_json),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.alive = deque(map(Individual.from_json, state["population"]), maxlen=self.hyperparameters.population)
        self.best = None if state["best"] is None else Individual.from_json(state["best"])
        self.finished, self._asked = state["finished"], state["asked"]
        self._seen = Seen(self.space, state["seen"])
        self._running = {key: list(numbers) for key, numbers in state["running"].items()}
        self._founding = set(state["founding"])
        self._brood.load_state_dict(state["brood"], Individual.from_json)
