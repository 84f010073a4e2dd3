"""Quasi-random search: a scrambled Sobol' sequence, spread more evenly than independent draws.

Sobol' 1967; scrambling: Owen 1998, in scipy.stats.qmc. One coordinate of the unit cube is one decision of the space
(`Space.columns`; the coordinates of decisions that are not in force are not read), so conditional spaces work as they are.
"""
from __future__ import annotations

import math

from metasearch.records import Outcome, Proposal
from metasearch.space import Space
from metasearch.strategies import NoHyperparameters, Strategy
from metasearch.strategies._draws import Seen, rng_of

SKIPS = 100  # points in a row whose configs were had, before one of the rest is drawn at random


class Qmc(Strategy):
    """Proposal n is the config at point n of the sequence; in a finite space points whose config was had are skipped, and when
    all configs were had it is None for ever.

    Every point alone is a uniform draw of `Space.sample`, but the points are not independent, so coverage does not count them.
    """

    adaptive = False

    def __init__(self, space: Space, *, hyperparameters: NoHyperparameters, seed: int) -> None:
        from scipy.stats.qmc import Sobol

        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        if space.width > Sobol.MAXDIM:
            raise ValueError(f"qmc needs a space of at most {Sobol.MAXDIM} dimensions, but this has {space.width}. Use random.")
        self._rng = rng_of(seed)
        self._sobol = Sobol(max(1, space.width), scramble=True, rng=self._rng)
        self._seen = Seen(space)

    def ask(self) -> Proposal | None:
        if self._seen.everything:
            return None
        for _ in range(SKIPS):
            config = self.space.decode(self._sobol.random(1)[0][:self.space.width])
            if config not in self._seen or self.space.size == math.inf:
                break
        else:
            config = self._seen.another(self._rng)
        self._seen.add(config)
        return Proposal(config)

    def tell(self, outcome: Outcome) -> None:
        pass
