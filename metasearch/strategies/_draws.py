"""What strategies share about drawing: seeds from numbers, permutations of huge ranges, and memory of what was seen."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from metasearch.records import Config
from metasearch.space import Space, below, digest

__all__ = ["Permutation", "Seen", "rng_of", "seed_of"]

TRIES = 100


def rng_of(seed: int, *numbers: int) -> np.random.Generator:
    """An independent stream for every (seed, numbers), the same in every process."""
    return np.random.default_rng(_hashed(seed, numbers))


def seed_of(seed: int, *numbers: int) -> int:
    """A 32-bit seed from (seed, numbers), for libraries that want one."""
    return _hashed(seed, numbers) % 2**32


def _hashed(seed: int, numbers: tuple[int, ...]) -> int:
    # numpy's SeedSequence pads with zeros, so that it takes (7, 1) and (7, 1, 0) for the same
    return int.from_bytes(hashlib.sha256(repr((seed, *numbers)).encode()).digest()[:16], "big")


class Permutation:
    """A uniformly random order of 0..size-1, drawn one by one: Fisher and Yates' shuffle on an array of which only the
    entries that differ from their place are stored. Memory grows with the draws, not with the size, which may be any int.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.drawn = 0
        self._rng = rng_of(seed)
        self._moved: dict[int, int] = {}  # place -> what stands there, where that is not the place itself

    def draw(self) -> int | None:
        """The next number; None, and nothing changes, when all were drawn."""
        if self.drawn >= self.size:
            return None
        place = self.drawn + below(self.size - self.drawn, self._rng)
        # what stands at `place` is drawn; what stood at the front takes its place, and the front is never looked at again
        front = self._moved.pop(self.drawn, self.drawn)
        found = front if place == self.drawn else self._moved.get(place, place)
        if place != self.drawn:
            self._moved[place] = front
        self.drawn += 1
        return found


class Seen:
    """The configs that were asked or told, and a way to one that was not."""

    def __init__(self, space: Space, digests: Iterable[str] = ()) -> None:
        self._space = space
        self._digests = set(digests)

    def digests(self) -> list[str]:
        return sorted(self._digests)

    def add(self, config: Config) -> None:
        self._digests.add(digest(config))

    def __contains__(self, config: Config) -> bool:
        return digest(config) in self._digests

    @property
    def everything(self) -> bool:
        """True once no config is left (never in an infinite space)."""
        return len(self._digests) >= self._space.size

    def another(self, rng: np.random.Generator) -> Config:
        """A random config that was not seen; in an infinite space any, should a hundred draws all have been seen."""
        for _ in range(TRIES):
            config = self._space.sample(rng)
            if config not in self:
                return config
        if not isinstance(self._space.size, int):
            return config
        start = below(self._space.size, rng)
        for step in range(len(self._digests) + 1):  # among so many different configs one is new
            config = self._space.unrank((start + step) % self._space.size)
            if config not in self:
                return config
        raise ValueError("every config of the space was seen")
