"""Generations, for strategies that evolve: of a brood nobody enters the population before all of it has ended.

Asynchronous evolution is not the same twice with several workers: whoever ends first is a parent first. With broods the parents
are those of the time when the brood before was complete, and its members enter in the order in which they were asked for (that
of their trials' numbers), so that neither the number of workers nor the order of outcomes changes anything.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["Brood"]

T = TypeVar("T")


class Brood(Generic[T]):
    """The present brood. size: children of one; 0: there are none, and everybody enters as soon as he has ended."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.wanted = 0  # still to be asked for
        self._whole = 0  # how many it will be
        self._ended: list[tuple[bool, int, T | None]] = []  # (is it a stranger, trial, None for what failed)

    def ready(self, running: bool) -> bool:
        """May somebody be asked for? Not between a brood's last ask and its last end."""
        return self.size == 0 or self.wanted > 0 or not running

    def asked(self, size: int) -> None:
        """Somebody was. size: of the brood, if this one begins it."""
        if self.size == 0:
            return
        if self.wanted == 0:
            self.wanted = self._whole = size
        self.wanted -= 1

    @property
    def born(self) -> int:
        """How many of the present brood were asked for, whatever became of them; 0 when it is complete."""
        return self._whole - self.wanted if self.wanted else 0

    def ended(self, trial: int, one: T | None, *, own: bool, running: bool) -> list[T]:
        """Who enters the population now, oldest first. own: it was asked for; running: others still do."""
        self._ended.append((not own, trial, one))
        if self.size and (running or self.wanted):
            return []
        entering = [one for _, _, one in sorted(self._ended, key=lambda ended: ended[:2]) if one is not None]
        self._ended = []
        return entering

    def state_dict(self, to_json: Callable[[T], Any]) -> dict[str, Any]:
        ended = [[stranger, trial, None if one is None else to_json(one)] for stranger, trial, one in self._ended]
        return {"wanted": self.wanted, "whole": self._whole, "ended": ended}

    def load_state_dict(self, state: Mapping[str, Any], from_json: Callable[[Any], T]) -> None:
        self.wanted, self._whole = state["wanted"], state["whole"]
        self._ended = [(stranger, trial, None if one is None else from_json(one)) for stranger, trial, one in state["ended"]]
