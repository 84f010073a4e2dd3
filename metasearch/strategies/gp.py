"""Gaussian process with log expected improvement: few, expensive trials.

Optuna's GPSampler: Matern 5/2 kernel with a length scale a dimension, logEI (Ament et al., NeurIPS 2023), running trials taken
into account. One parameter is one column of the encoded config, so conditional spaces are searched as a whole.

A fit costs O(n^3). Of more than 300 told trials it sees 300: the 100 best, for the optimum is there, and 200 spread evenly over
the order in which the others came, so that what was ruled out early stays ruled out.
"""
from __future__ import annotations

from dataclasses import dataclass

from optuna.samplers import BaseSampler, GPSampler, RandomSampler

from metasearch.space import Space
from metasearch.strategies._optuna import ByColumn, OptunaStrategy

MOST = 300


class Gp(OptunaStrategy):
    """The first `startup` scores come from random configs. An ask costs up to seconds: meant for up to some hundred trials."""

    @dataclass(frozen=True)
    class Hyperparameters:
        """startup: scores known before the model is used."""

        startup: int = 10

        def __post_init__(self) -> None:
            if self.startup < 1:
                raise ValueError(f"`startup >= 1` must hold, but got {self.startup}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed, spelling=ByColumn(space, genes=False), most=MOST)

    @property
    def random_until(self) -> int:
        return int(self.hyperparameters.startup)

    def _sampler(self, seed: int) -> BaseSampler:
        return GPSampler(
            n_startup_trials=self.hyperparameters.startup,
            independent_sampler=RandomSampler(seed=seed),
            warn_independent_sampling=False,
            seed=seed,
        )
