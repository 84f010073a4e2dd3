"""For methods whose objective chooses the architecture: one config again and again, each time under another seed."""
from __future__ import annotations

from collections.abc import Sequence

from metasearch.records import Outcome, Proposal
from metasearch.space import Space
from metasearch.strategies import NoHyperparameters, Strategy
from metasearch.strategies._draws import rng_of

__all__ = ["Seeds"]


class Seeds(Strategy):
    """Dimensions in `held` have the value in their middle, which nobody reads; all others are drawn anew in every proposal.

    Driver and trial number make the seed of a trial, so equal configs are not equal trials.
    """

    adaptive = False
    repeats = True

    def __init__(self, space: Space, held: Sequence[str], *, seed: int) -> None:
        super().__init__(space, hyperparameters=NoHyperparameters(), seed=seed)
        middle = space.decode([0.5] * space.width)
        self._held = {path: middle[path] for path in held if path in middle}
        self.held = tuple(self._held)
        self._asked = 0

    def ask(self) -> Proposal | None:
        self._asked += 1
        return Proposal(self.space.normal({**self.space.sample(rng_of(self.seed, self._asked)), **self._held}))

    def tell(self, outcome: Outcome) -> None:
        pass
