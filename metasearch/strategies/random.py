"""Random search: in a finite space uniform over configs without replacement, in an infinite one independent samples.

Bergstra, Bengio. "Random Search for Hyper-Parameter Optimization." JMLR 13, 2012. https://jmlr.org/papers/v13/bergstra12a.html
"Without replacement" is what makes coverage exact (budget.py): x draws are x different configs, and all are equally likely.
"""
from __future__ import annotations

from metasearch.records import Outcome, Proposal
from metasearch.space import Space
from metasearch.strategies import NoHyperparameters, Strategy
from metasearch.strategies._draws import Permutation, rng_of


class Random(Strategy):
    """Finite space: a random order of all configs, then None for ever. Infinite space: proposal n is a sample from (seed, n).

    Proposals depend on the seed and their number only. What is told changes nothing: a warm start is not skipped, for leaving
    out what others chose would make the draws less than uniform.
    """

    uniform = True
    adaptive = False

    def __init__(self, space: Space, *, hyperparameters: NoHyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self._order = Permutation(space.size, seed) if isinstance(space.size, int) else None
        self._asked = 0

    def ask(self) -> Proposal | None:
        if self._order is not None:
            number = self._order.draw()
            return None if number is None else Proposal(self.space.unrank(number))
        self._asked += 1
        return Proposal(self.space.sample(rng_of(self.seed, self._asked)))

    def tell(self, outcome: Outcome) -> None:
        pass
