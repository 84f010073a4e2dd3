"""NSGA-II: evolution towards the Pareto front of several objectives.

Deb, Pratap, Agarwal, Meyarivan. "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II." IEEE TEVC 6, 2002. Optuna's
NSGAIISampler with the paper's operators: simulated binary crossover and polynomial mutation of numbers; options are swapped and
drawn anew. A gene is one column of the encoded config; genes that are not in force are silent and are inherited all the same.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import FrozenTrial, TrialState

from metasearch.plugins import did_you_mean
from metasearch.space import Space
from metasearch.strategies._optuna import ByColumn, OptunaStrategy

MEASURED = ("score", "params", "flops", "episode_flops", "latency_ms", "synflow", "naswot", "train_loss", "train_score",
            "train_seconds")  # of every trial
SPREAD = 20.0  # distribution index of both operators, as in the paper's section IV


class NsgaII(OptunaStrategy):
    """Needs several generations: a budget well above `population`. Outcomes that it never asked for join the first generation.

    A trial that went wrong is told with the worst known value of every objective. Raises ValueError when a trial that is done
    does not report an objective.
    """

    example: ClassVar[Mapping[str, Any]] = {"objectives": ("score", "-params"), "population": 6}

    @dataclass(frozen=True)
    class Hyperparameters:
        """objectives: "score" or metrics of the last report, maximised; with '-' in front minimised ("-params").
        population: size of a generation. crossover: probability that a child has two parents, else it is a mutated copy of one.
        mutation: probability for a gene to change; None: 1 / number of genes."""

        objectives: tuple[str, ...] = ("score", "-params")
        population: int = 50
        crossover: float = 0.9
        mutation: float | None = None

        def __post_init__(self) -> None:
            object.__setattr__(self, "objectives", tuple(self.objectives))  # TOML has lists
            names = [objective.removeprefix("-") for objective in self.objectives]
            said = []
            if not names or not all(names) or len(set(names)) < len(names):
                said.append(f"`objectives` must be different metrics, such as ('score', '-params'), but got {self.objectives}")
            said += [
                f"objectives has {name!r}.{hint}"
                for name in names if name and name not in MEASURED and "Did you mean" in (hint := did_you_mean(name, MEASURED))
            ]
            if self.population < 2:
                said.append(f"`population >= 2` must hold, but got {self.population}")
            if not 0 <= self.crossover <= 1:
                said.append(f"`0 <= crossover <= 1` must hold, but got {self.crossover}")
            if self.mutation is not None and not 0 <= self.mutation <= 1:
                said.append(f"`0 <= mutation <= 1` must hold, but got {self.mutation}")
            if said:
                raise ValueError("; ".join(said))

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(
            space, hyperparameters=hyperparameters, seed=seed, spelling=ByColumn(space), objectives=hyperparameters.objectives,
            marks={NSGAIISampler._get_generation_key(): 0},
        )

    @property
    def random_until(self) -> int:
        return int(self.hyperparameters.population)

    def _sampler(self, seed: int) -> BaseSampler:
        h = self.hyperparameters
        return _Sampler(
            population_size=h.population, crossover_prob=h.crossover, mutation_prob=h.mutation,
            crossover=SBXCrossover(eta=SPREAD), mutation=PolynomialMutation(eta=SPREAD), seed=seed,
        )


class _Sampler(NSGAIISampler):  # type: ignore[misc]  # it says nothing of its types
    """All trials have the same parameters, so that the first one that is complete says what all have in common."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        first = next((t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE), None)
        common = {} if first is None else dict(sorted(first.distributions.items()))
        return {name: distribution for name, distribution in common.items() if not distribution.single()}
