"""TPE: a density of good configs over a density of the others, and the candidate where their ratio is largest.

Bergstra, Bardenet, Bengio, Kegl. "Algorithms for Hyper-Parameter Optimization." NeurIPS 2011. Multivariate as in BOHB: Falkner,
Klein, Hutter, ICML 2018, https://arxiv.org/abs/1807.01774. Optuna's TPESampler: running trials count among the bad ones
("constant liar"), and decisions that are in force together share one multivariate density (`group`), so conditional spaces are
searched as such.

A draw costs time in the number of trials. Of more than 300 told ones it sees 300: the 100 best, of which at most 25 are its
good ones, and 200 spread evenly over the order in which the others came, which are enough for the density of those.
"""
from __future__ import annotations

from dataclasses import dataclass

from optuna.samplers import BaseSampler, TPESampler

from metasearch.space import Space
from metasearch.strategies._optuna import ByPath, OptunaStrategy

MOST = 300


class Tpe(OptunaStrategy):
    """The first `startup` scores come from random configs. Its fallback for repeated configs is a random one."""

    @dataclass(frozen=True)
    class Hyperparameters:
        """startup: scores known before densities are used. candidates: draws from the density of the good ones."""

        startup: int = 10
        candidates: int = 24

        def __post_init__(self) -> None:
            if self.startup < 1 or self.candidates < 1:
                raise ValueError(f"`startup >= 1` and `candidates >= 1` must hold, but got {self}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed, spelling=ByPath(space), most=MOST)

    @property
    def random_until(self) -> int:
        return int(self.hyperparameters.startup)

    def _sampler(self, seed: int) -> BaseSampler:
        return TPESampler(
            n_startup_trials=self.hyperparameters.startup,
            n_ei_candidates=self.hyperparameters.candidates,
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )
