"""Guided evolution: many children are made, a Gaussian process says which of them is worth a training.

Wei, Niu, Tang, Wang, Hu, Liang. "NPENAS: Neural Predictor Guided Evolution for Neural Architecture Search." 2020.
https://arxiv.org/abs/2003.12857 (its NPENAS-BO: candidates are mutants of the best, chosen by expected improvement)
White, Neiswanger, Savani. "BANANAS." AAAI 2021. https://arxiv.org/abs/1910.11858 (mutation as the optimiser of an acquisition)

Their predictors are networks; here it is a Gaussian process on the distance of configs, which needs no training. d(a, b) is the
number of Choices that differ plus the distances of numbers in encoded space; a decision that is in force in one only counts 1.
k = exp(-theta d), theta by marginal likelihood; scores enter as normal quantiles of their ranks, so that neither their scale
nor a few ruined trainings matter. What is running counts as seen, with its prediction as its score.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Choice, Space, digest
from metasearch.strategies import Strategy
from metasearch.strategies._draws import Seen, rng_of
from metasearch.strategies.regularized_evolution import Individual

__all__ = ["Distances", "GuidedEvolution", "Process"]

Array = NDArray[np.float64]

THETAS = (0.25, 0.5, 1.0, 2.0, 4.0)  # over the mean distance of what was seen
NOISE = 0.1  # variance of a score beside that of the process
RECENT = 100  # results that the process sees, beside the best 50 of all


class GuidedEvolution(Strategy):
    """The first `startup` results come from random configs. No config is proposed twice; what fails is not learnt from."""

    @dataclass(frozen=True)
    class Hyperparameters:
        """startup: random configs before the process is asked. parents: the best so many of all results have children.
        children: mutants among the candidates of a proposal (half of them mutated twice). strangers: random ones among them."""

        startup: int = 20
        parents: int = 5
        children: int = 50
        strangers: int = 20

        def __post_init__(self) -> None:
            if min(self.startup, self.parents, self.children) < 1 or self.strangers < 0:
                raise ValueError(f"`startup`, `parents`, `children >= 1` and `strangers >= 0` must hold, but got {self}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self._distances = Distances(space)
        self._seen = Seen(space)
        self._asked = 0
        self._running: dict[str, list[Config]] = {}
        self._elite: list[Individual] = []  # the best of all, best first
        self._recent: list[Individual] = []  # the latest, oldest first
        self._finished = 0

    def ask(self) -> Proposal | None:
        if self._seen.everything:
            return None
        self._asked += 1
        rng = rng_of(self.seed, self._asked)
        waiting = sum(map(len, self._running.values()))
        founder = not self._elite or self._finished + waiting < self.hyperparameters.startup
        config = self._seen.another(rng) if founder else self._promising(rng)
        self._seen.add(config)
        self._running.setdefault(digest(config), []).append(dict(config))
        return Proposal(config, drawn=founder)

    def _promising(self, rng: np.random.Generator) -> Config:
        candidates = self._candidates(rng)
        if len(candidates) < 2:
            return candidates[0] if candidates else self._seen.another(rng)
        known = list({(one.trial, digest(one.config)): one for one in (*self._elite, *self._recent)}.values())
        rows = self._distances.rows([one.config for one in known])
        process = Process(self._distances, rows, normal_scores([one.score for one in known]))
        running = [config for configs in self._running.values() for config in configs]
        if running:
            process = process.believing(self._distances.rows(running))
        return candidates[int(np.argmax(process.improvement(self._distances.rows(candidates))))]

    def _candidates(self, rng: np.random.Generator) -> list[Config]:
        """New configs: mutants of the best, and random ones."""
        h = self.hyperparameters
        parents = self._elite[:h.parents]
        found: dict[str, Config] = {}
        for i in range(h.children + h.strangers):
            if i < h.children:
                config, _ = self.mutate(parents[int(rng.integers(len(parents)))].config, rng)
                if rng.random() < 0.5:
                    config, _ = self.mutate(config, rng)
            else:
                config = self.space.sample(rng)
            if config not in self._seen:
                found.setdefault(digest(config), config)
        return list(found.values())

    def tell(self, outcome: Outcome) -> None:
        key, individual = digest(outcome.proposal.config), Individual.of(outcome)
        waiting = self._running.get(key, [])
        if waiting:
            waiting.pop()
        if not waiting:
            self._running.pop(key, None)
        if individual is None:
            return
        self.space.validate(individual.config)
        self._seen.add(individual.config)
        if outcome.status == "reused":
            return  # the same number again would look like a second measurement
        self._finished += 1
        self._recent = [*self._recent, individual][-RECENT:]
        elite = max(self.hyperparameters.parents, RECENT // 2)
        self._elite = sorted([*self._elite, individual], key=lambda one: -one.score)[:elite]

    def state_dict(self) -> dict[str, Any]:
        return {
            "elite": [one.to_json() for one in self._elite], "recent": [one.to_json() for one in self._recent],
            "finished": self._finished, "seen": self._seen.digests(), "asked": self._asked, "running": self._running,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._elite = [Individual.from_json(body) for body in state["elite"]]
        self._recent = [Individual.from_json(body) for body in state["recent"]]
        self._finished, self._asked = state["finished"], state["asked"]
        self._seen = Seen(self.space, state["seen"])
        self._running = {key: [dict(config) for config in configs] for key, configs in state["running"].items()}


def normal_scores(scores: Sequence[float]) -> Array:
    """Normal quantiles of ranks; equals share theirs."""
    quantiles: Array = ndtri((rankdata(scores) - 0.5) / len(scores))
    return quantiles


class Distances:
    """How far apart configs are, decision by decision. A decision at one path is one column, whichever option opened it."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._columns: dict[tuple[str, int], int] = {}
        self._chosen: list[bool] = []
        for path, leaf in space.columns():
            if (path, id(leaf)) not in self._columns:
                self._columns[path, id(leaf)] = len(self._columns)
                self._chosen.append(isinstance(leaf, Choice))

    def rows(self, configs: Sequence[Config]) -> Array:
        """[n, columns]: the number of an option, the encoded place of a number, -1 for what is not in force."""
        found = np.full((len(configs), len(self._columns)), -1.0)
        for row, config in zip(found, configs, strict=True):
            for path, leaf in self._space.active(config):
                value = config[path]
                row[self._columns[path, id(leaf)]] = leaf.index(value) if isinstance(leaf, Choice) else leaf.encode(value)
        return found

    def between(self, a: Array, b: Array) -> Array:
        """[n, columns], [m, columns] -> [n, m]."""
        total = np.zeros((len(a), len(b)))
        for column, chosen in enumerate(self._chosen):
            x, y = a[:, column, None], b[None, :, column]
            if chosen:
                total += x != y
            else:
                total += np.where((x < 0) | (y < 0), (x < 0) != (y < 0), np.abs(x - y))
        return total


class Process:
    """A Gaussian process with mean 0 after rows [n, columns] with values [n] were seen."""

    def __init__(self, distances: Distances, rows: Array, values: Array, theta: float | None = None) -> None:
        self._distances, self._rows, self._values = distances, rows, values
        apart = distances.between(rows, rows)
        pairs = len(rows) * (len(rows) - 1)
        mean = float(apart.sum()) / pairs if pairs and apart.any() else 1.0
        fits = [self._fitted(apart, share / mean) for share in THETAS] if theta is None else [self._fitted(apart, theta)]
        _, self._theta, self._root, self._weights, self._variance = max(fits, key=lambda fit: fit[0])

    def _fitted(self, apart: Array, theta: float) -> tuple[float, float, Array, Array, float]:
        """(log marginal likelihood with the best variance, theta, Cholesky root, K^-1 y, that variance)"""
        root = np.linalg.cholesky(np.exp(-theta * apart) + NOISE * np.eye(len(apart))).astype(np.float64)
        weights: Array = cho_solve((root, True), self._values)
        variance = max(float(self._values @ weights) / len(apart), 1e-12)
        return -0.5 * len(apart) * math.log(variance) - float(np.log(np.diag(root)).sum()), theta, root, weights, variance

    def predict(self, rows: Array) -> tuple[Array, Array]:
        """Means and standard deviations of what is without noise."""
        across: Array = np.exp(-self._theta * self._distances.between(self._rows, rows))
        mean: Array = across.T @ self._weights
        explained: Array = (solve_triangular(self._root, across, lower=True) ** 2).sum(0)
        return mean, np.sqrt(self._variance * np.maximum(1 - explained, 1e-9))

    def believing(self, rows: Array) -> Process:
        """The process after its own predictions for these rows had come true: it then looks elsewhere."""
        mean, _ = self.predict(rows)
        return Process(self._distances, np.concatenate([self._rows, rows]), np.concatenate([self._values, mean]), self._theta)

    def improvement(self, rows: Array) -> Array:
        """Expected improvement over the best value."""
        mean, deviation = self.predict(rows)
        u = (mean - self._values.max()) / deviation
        gain: Array = deviation * (u * ndtr(u) + np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi))
        return gain
