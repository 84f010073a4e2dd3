"""Grid search, walked in random order, so that an interrupted grid has a coverage.

The grid: `points` values of every Float, evenly spaced on its scale (ends included; a single point is the middle), and all
values of everything else; conditional dimensions only where they are in force. Bergstra and Bengio (2012) on why random search
is mostly better: of g^d grid points only g differ along the one axis that matters.
"""
from __future__ import annotations

from dataclasses import dataclass

from metasearch.records import Outcome, Proposal
from metasearch.space import Space
from metasearch.strategies import Strategy
from metasearch.strategies._draws import Permutation


class Grid(Strategy):
    """Every point of the grid once, in a random order, then None for ever.

    In a finite space the grid is the space, whatever `points`, and its proposals are uniform draws without replacement.
    """

    uniform = True
    adaptive = False

    @dataclass(frozen=True)
    class Hyperparameters:
        """points: values of each continuous dimension."""

        points: int = 5

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self._grid = space.gridded(hyperparameters.points)
        assert isinstance(self._grid.size, int)
        self._order = Permutation(self._grid.size, seed)

    @property
    def population(self) -> int | float:
        return self._grid.size

    def ask(self) -> Proposal | None:
        number = self._order.draw()
        return None if number is None else Proposal(self._grid.unrank(number))

    def tell(self, outcome: Outcome) -> None:
        pass
