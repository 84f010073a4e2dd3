"""Hierarchical evolution: a population that only grows, tournaments of a twentieth of it, founders mutated a thousand times.

Liu, Simonyan, Vinyals, Fernando, Kavukcuoglu. "Hierarchical Representations for Efficient Architecture Search." ICLR 2018.
https://arxiv.org/abs/1711.00436 (algorithms 1 and 2)

Nobody ever dies: selection grows harder with the population, as the best of 5 % of it becomes a parent. Founders are the
simplest of configs after very many random mutations, which makes them different without favouring any. The hierarchy itself is
the space's: search_spaces/hierarchical_motifs.py says what its motifs are, and mutates a level, then a motif, then an entry.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Space, digest
from metasearch.strategies import Strategy
from metasearch.strategies._brood import Brood
from metasearch.strategies._draws import Seen, rng_of
from metasearch.strategies.large_scale_evolution import simplest
from metasearch.strategies.regularized_evolution import Individual, offspring

__all__ = ["HierarchicalEvolution", "tournament"]


def tournament(population: Sequence[Individual], share: float, rng: np.random.Generator) -> Individual:
    """The best of a random share of the population, at least of one."""
    size = max(1, round(share * len(population)))
    drawn: list[Individual] = [population[i] for i in rng.choice(len(population), size=size, replace=False)]
    return max(drawn, key=lambda individual: individual.score)


class HierarchicalEvolution(Strategy):
    """Asynchronous: children are made of those who have finished. What fails never enters, and failed founders are replaced.

    `generation = n`: children come in broods of n (_brood.py), and the number of workers changes nothing.
    """

    example: ClassVar[Mapping[str, Any]] = {"mutations": 10, "population": 8}

    @dataclass(frozen=True)
    class Hyperparameters:
        """population: founders (paper: 200, of 7,000 evaluations). tournament: its share. mutations: of a founder.
        avoid_repeats: mutate on until a config is new; otherwise the driver answers a repeat with its recorded score.
        generation: children of a brood; 0: none waits for another."""

        population: int = 200
        tournament: float = 0.05
        mutations: int = 1000
        avoid_repeats: bool = True
        generation: int = 0

        def __post_init__(self) -> None:
            if self.population < 1 or self.mutations < 0 or self.generation < 0:
                raise ValueError(f"`population >= 1`, `mutations >= 0` and `generation >= 0` must hold, but got {self}")
            if not 0 < self.tournament <= 1:
                raise ValueError(f"`0 < tournament <= 1` must hold, for it is a share, but got {self.tournament}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self.alive: list[Individual] = []  # in the order of finishing
        self._seen = Seen(space)
        self._running: Counter[str] = Counter()
        self._founding: Counter[str] = Counter()
        self._asked = 0
        self._brood = Brood[Individual](hyperparameters.generation)

    def ask(self) -> Proposal | None:
        if self._seen.everything or not self._brood.ready(bool(self._running)):
            return None
        h = self.hyperparameters
        missing = h.population - len(self.alive) - self._founding.total()
        self._brood.asked(max(missing, 0) or h.generation)
        self._asked += 1
        rng = rng_of(self.seed, self._asked)
        seen = self._seen if h.avoid_repeats else None
        founder = not self.alive or missing > 0
        if founder:
            config = self._founder(rng)
        else:
            config = offspring(tournament(self.alive, h.tournament, rng), self.mutate, seen, rng)
        self._seen.add(config)
        self._running[digest(config)] += 1
        if founder:
            self._founding[digest(config)] += 1
        return Proposal(config)

    def _founder(self, rng: np.random.Generator) -> Config:
        config = simplest(self.space)
        for _ in range(self.hyperparameters.mutations):
            config, _ = self.mutate(config, rng)
        if self.hyperparameters.avoid_repeats and config in self._seen:
            return self._seen.another(rng)
        return config

    def tell(self, outcome: Outcome) -> None:
        key = digest(outcome.proposal.config)
        own = key in self._running
        for counter in (self._running, self._founding):
            if counter[key] > 1:
                counter[key] -= 1
            else:
                del counter[key]
        individual = Individual.of(outcome)
        if individual is not None:
            self.space.validate(individual.config)
            self._seen.add(individual.config)
        self.alive += self._brood.ended(outcome.trial, individual, own=own, running=bool(self._running))

    def state_dict(self) -> dict[str, Any]:
        return {
            "alive": [individual.to_json() for individual in self.alive], "seen": self._seen.digests(), "asked": self._asked,
            "running": dict(self._running), "founding": dict(self._founding),
            "brood": self._brood.state_dict(Individual.to_json),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.alive = [Individual.from_json(body) for body in state["alive"]]
        self._seen = Seen(self.space, state["seen"])
        self._asked = state["asked"]
        self._running, self._founding = Counter(state["running"]), Counter(state["founding"])
        self._brood.load_state_dict(state["brood"], Individual.from_json)
