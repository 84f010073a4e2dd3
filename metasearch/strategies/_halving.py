"""What successive halving, ASHA and Hyperband share: the steps of their rungs, their inner strategy, ranking."""
from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from metasearch.records import Outcome, Proposal
from metasearch.space import Space, digest
from metasearch.strategies import Mutate, Strategy, build

__all__ = ["Inner", "Key", "Member", "best", "levels", "place", "problems"]


class Key(NamedTuple):
    """By what an outcome's proposal is known again (the driver stamps a seed on it)."""

    config: str
    parent: int | None
    until: int | None

    @classmethod
    def of(cls, proposal: Proposal) -> Key:
        return cls(digest(proposal.config), proposal.parent, proposal.until)


@dataclass(frozen=True)
class Member:
    """A finished trial in a rung. score: -inf for what diverged, failed or has no finite score."""

    trial: int
    proposal: Proposal
    score: float

    @classmethod
    def of(cls, outcome: Outcome) -> Member:
        finished = outcome.status in ("done", "reused") and outcome.score is not None and math.isfinite(outcome.score)
        return cls(outcome.trial, outcome.proposal, float(outcome.score or 0.0) if finished else -math.inf)


    def to_json(self) -> list[Any]:
        return [self.trial, self.proposal.to_json(), self.score if self.score > -math.inf else None]

    @classmethod
    def from_json(cls, body: Sequence[Any]) -> Member:
        trial, proposal, score = body
        return cls(trial, Proposal.from_json(proposal), -math.inf if score is None else score)


def place(members: list[Member], member: Member) -> None:
    """Into a rung's members, which stand best first, and equals in order of arrival."""
    insort(members, member, key=lambda m: -m.score)


def best(members: list[Member], number: int) -> list[Member]:
    """The `number` best, best first. Never one without a score, so there may be fewer."""
    return [m for m in members[:number] if m.score > -math.inf]


def levels(min_steps: int, max_steps: int, eta: int) -> list[int]:
    """The absolute steps at which rungs end: max_steps divided by eta as often as that leaves at least min_steps, rounded.

    levels(1, 81, 3) -> [1, 3, 9, 27, 81]; the last is exactly max_steps, the first at least min_steps.
    """
    power = 0
    while min_steps * eta ** (power + 1) <= max_steps:
        power += 1
    return [round(max_steps / eta**k) for k in reversed(range(power + 1))]


def problems(min_steps: int, max_steps: int, eta: int, inner: Mapping[str, Any]) -> list[str]:
    """What is wrong with the hyper-parameters, in words."""
    found = []
    if not 1 <= min_steps <= max_steps:
        found.append(f"`1 <= min_steps <= max_steps` must hold, but got (min_steps={min_steps}, max_steps={max_steps})")
    if eta < 2:
        found.append(f"`eta >= 2` must hold, but got {eta}: one in eta configs goes on")
    if not isinstance(inner.get("name"), str):
        found.append(f"`inner` needs the name of a strategy, such as {{'name': 'random'}}, but got {dict(inner)}")
    return found


@dataclass
class Inner:
    """The strategy that chooses the configs: told each config once, at the base rung, as if its own proposal had been run."""

    strategy: Strategy
    waiting: dict[str, list[Proposal]] = field(default_factory=dict)  # its proposals that were not told yet, by config

    @classmethod
    def build(cls, space: Space, spec: Mapping[str, Any], seed: int) -> Inner:
        """Raises ValueError for an unknown name or hyper-parameter, and for a strategy whose trials have parents."""
        strategy = build(spec["name"], space, {k: v for k, v in spec.items() if k != "name"}, seed=seed)
        if strategy.children:
            raise ValueError(f"`inner` must propose configs only, but '{spec['name']}' lets trials go on from others. Use tpe.")
        return cls(strategy)

    def ask(self, until: int, mutate: Mutate) -> Proposal | None:
        """mutate: of the strategy around it, for the driver sets that of the space's file there."""
        self.strategy.mutate = mutate
        proposal = self.strategy.ask()
        if proposal is None:
            return None
        self.waiting.setdefault(digest(proposal.config), []).append(proposal)
        return Proposal(proposal.config, until=until, drawn=self.strategy.uniform or proposal.drawn)

    @property
    def drawn_from(self) -> int | float:
        return self.strategy.population if self.strategy.uniform else self.strategy.drawn_from

    def state_dict(self) -> dict[str, Any] | None:
        state = self.strategy.state_dict()
        if state is None:
            return None  # then a replay is cheap, or the inner strategy is no better off
        waiting = {key: [p.to_json() for p in proposals] for key, proposals in self.waiting.items()}
        return {"strategy": state, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strategy.load_state_dict(state["strategy"])
        self.waiting = {key: [Proposal.from_json(p) for p in proposals] for key, proposals in state["waiting"].items()}

    def tell(self, outcome: Outcome) -> None:
        """Of a base rung, or a warm start."""
        waiting = self.waiting.pop(digest(outcome.proposal.config), [])
        proposal = waiting.pop(0) if waiting else Proposal(outcome.proposal.config)
        if waiting:
            self.waiting[digest(outcome.proposal.config)] = waiting
        self.strategy.tell(replace(outcome, proposal=proposal))
