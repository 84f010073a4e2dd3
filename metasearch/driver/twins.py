"""What is proposed twice is trained once: a later proposal of the same waits for the first one's result and takes it over.

The same is: the same config, or one that the space's `canonical` says means the same (isomorphic cells), with the same parent,
length and inherited weights.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Container
from typing import Any

from metasearch.driver.messages import Ending
from metasearch.driver.study import Study
from metasearch.ledger import TrialRow
from metasearch.records import Config, Proposal
from metasearch.space import Space, digest
from metasearch.strategies import Strategy

Key = tuple[str, int | None, int | None, tuple[tuple[str, str], ...]]  # digest of a config, parent, until, moved
log = logging.getLogger("metasearch.driver")


class Twins:
    """Which trials of a study are repetitions of which. Where repeats are wanted, none is."""

    def __init__(self, study: Study, strategy: Strategy, space: Space) -> None:
        self._study, self._space = study, space
        self._repeats = study.repeats or strategy.repeats
        canonical = getattr(study.space_module(), "canonical", None)
        # not where trials go on from others: in isomorphic cells equal weights have other names
        shared = not self._repeats and not strategy.children and callable(canonical)
        self._canonical: Callable[[Config], Config] | None = canonical if shared else None
        self._keys: dict[int, Key] = {}  # of every trial: by what a repetition is known
        self._first: dict[Key, int] = {}  # what was proposed -> the trial that runs or ran it
        self._waiting: dict[int, list[int]] = {}  # trial -> later proposals of the same thing, which wait for its result

    def proposed(self, number: int, proposal: Proposal, unended: Container[int]) -> bool:
        """Takes note of a trial; True: it is the first of its kind, and runs."""
        key = self._keys[number] = self._key(proposal)
        first = self._first.get(key)
        if first is None or self._repeats:
            self._first[key] = number
            return True
        if first in unended:
            self._waiting.setdefault(first, []).append(number)
        return False

    def first(self, number: int) -> int:
        """The trial whose result is this one's; itself, if it is the first."""
        return self._first[self._keys[number]]

    def name(self, number: int, proposal: Proposal) -> str:
        """The digest of a trial's own config."""
        return self._keys[number][0] if self._canonical is None else digest(proposal.config)

    def ended(self, row: TrialRow, unended: Container[int]) -> tuple[list[int], int | None]:
        """(the trials that waited for this one and may now be answered, the one that runs in its place, since it failed)."""
        again = self._tried_again(row.status)
        key = self._keys[row.id]
        if again and self._first.get(key) == row.id:
            del self._first[key]
        waiting = [twin for twin in self._waiting.pop(row.id, []) if twin in unended]
        if not waiting or not again:
            return waiting, None
        first, rest = waiting[0], waiting[1:]
        self._first[key] = first
        if rest:
            self._waiting[first] = rest
        return [], first

    def _tried_again(self, status: str) -> bool:
        """Is a trial that ended so no answer to whoever asks for the same? Nor are the limits that one cell exceeds (with
        weights that nothing reads) those of an isomorphic one."""
        return status == "error" or (status in ("oom", "infeasible") and self._canonical is not None)

    def _key(self, proposal: Proposal) -> Key:
        name = digest(proposal.config)
        if self._canonical is not None and not self._space.problems(proposal.config):
            try:
                name = digest(self._canonical(dict(proposal.config)))
            except Exception as error:  # a mistake in the space's file: this config then stands for itself
                log.warning("canonical(%s) of space '%s' fails: %s", proposal.config, self._study.space_name, error)
        return name, proposal.parent, proposal.until, tuple(sorted(proposal.moved.items()))


def reuse(number: int, proposal: Proposal, first: TrialRow) -> Ending:
    """The recorded result. Of another config that means the same there is no parcel: its weights have other names."""
    outcome, equal = first.outcome, proposal.config == first.proposal.config
    assert outcome is not None
    status: Any = outcome.status if outcome.status in ("infeasible", "oom") else "reused"
    return Ending(
        number, status, score=outcome.score, metrics=outcome.metrics,
        step=outcome.step, reason=f"{'' if equal else 'it means '}the same as trial {first.id}, which is {outcome.status}",
        checkpoint=first.checkpoint if equal else None,
        episodes=None if first.episodes is None else first.episodes.tobytes(),
    )
