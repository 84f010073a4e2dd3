"""Hyperband: brackets of successive halving, from many configs with few steps each to few configs with all steps.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar. "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization."
JMLR 18, 2018. https://arxiv.org/abs/1603.06560 (algorithm 1). The paper's own numbers, not those of its authors' first code,
which floors earlier: bracket s of s_max..0 begins with n = ceil((s_max + 1) / (s + 1) * eta^s) configs of max_steps * eta^-s
steps, and floor(n * eta^-i) of them reach rung i. For 81 and eta = 3: 81, 34, 15, 8 and 5 configs (`table`).

A rung is halved when all its trials have ended. Where that would make a lane wait, the next bracket begins, so brackets overlap.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from metasearch.records import Outcome, Proposal
from metasearch.space import Space
from metasearch.strategies import Strategy
from metasearch.strategies._halving import Inner, Key, Member, best, levels, place, problems


def table(min_steps: int, max_steps: int, eta: int) -> list[list[tuple[int, int]]]:
    """The brackets of one round, as (configs, steps) of each rung: 81 and 3 give [[(81, 1), (27, 3), (9, 9), ...], ...]."""
    steps = levels(min_steps, max_steps, eta)
    brackets = []
    for s in reversed(range(len(steps))):
        n = -(-len(steps) * eta**s // (s + 1))  # ceil
        brackets.append([(n // eta**i, steps[len(steps) - 1 - s + i]) for i in range(s + 1)])
    return brackets


class Bracket:
    """One successive halving. `asked` counts and `members` holds the trials of each rung; a rung's members have ended.

    short: no further configs will come (the budget of roots is spent, or the inner strategy has no more), so that a base that
    is not full is halved as it is.
    """

    def __init__(self, plan: list[tuple[int, int]], eta: int) -> None:
        self.plan = plan
        self.eta = eta
        self.asked = [0] * len(plan)
        self.members: list[list[Member]] = [[] for _ in plan]

    @property
    def halved(self) -> bool:
        return sum(self.asked[1:]) > 0

    def wants_config(self) -> bool:
        return not self.halved and self.asked[0] < self.plan[0][0]

    def promotion(self, short: bool) -> tuple[int, Member] | None:
        """The highest rung with a place for one that goes on, and who that is."""
        for rung in reversed(range(1, len(self.plan))):
            going_on = self._going_on(rung - 1, short)
            if self.asked[rung] < len(going_on):
                return rung, going_on[self.asked[rung]]
        return None

    def over(self) -> bool:
        ended = all(len(members) == asked for members, asked in zip(self.members, self.asked, strict=True))
        return ended and not self.wants_config() and self.promotion(short=False) is None

    def _going_on(self, rung: int, short: bool) -> list[Member]:
        """Who goes on from a rung, best first; nobody before all its trials have ended, and never a failed one."""
        base = self.asked[0] if short or self.halved else self.plan[0][0]
        expected = base if rung == 0 else len(self._going_on(rung - 1, short))
        if len(self.members[rung]) < max(1, expected):
            return []
        return best(self.members[rung], max(1, base // self.eta ** (rung + 1)))


class Hyperband(Strategy):
    """A rung's trials that diverged or failed have the worst score; where they are too many, fewer go on.

    The inner strategy is told each config once, with its result at the rung where it began (steps differ between brackets; with
    inner = tpe this is the idea of BOHB, though BOHB models the largest steps only). Of outcomes that were never asked for it is
    told those with the steps of some bracket's base; no rung takes them in, for their trials' parcels need not be here.
    """

    children = True
    example: ClassVar[Mapping[str, Any]] = {"min_steps": 1, "max_steps": 9, "rounds": 1}

    @dataclass(frozen=True)
    class Hyperparameters:
        """min_steps, max_steps: outer steps of the lowest and of the last rung. eta: one in eta goes on.
        rounds: how often all brackets are run; None: until the budget ends.
        inner: what chooses the configs, {"name": "tpe", ...hyper-parameters}."""

        min_steps: int
        max_steps: int
        eta: int = 3
        rounds: int | None = None
        inner: Mapping[str, Any] = field(default_factory=lambda: {"name": "random"})

        def __post_init__(self) -> None:
            said = problems(self.min_steps, self.max_steps, self.eta, self.inner)
            if self.rounds is not None and self.rounds < 1:
                said.append(f"`rounds >= 1` must hold, but got {self.rounds}; without it, rounds go on until the budget ends")
            if said:
                raise ValueError("; ".join(said))

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        h = hyperparameters
        self._eta = h.eta
        self._plans = table(h.min_steps, h.max_steps, h.eta)
        self._most = None if h.rounds is None else h.rounds * len(self._plans)
        self._inner = Inner.build(space, h.inner, seed)
        self._begun = 0
        self._open: list[Bracket] = []  # oldest first
        self._running: dict[Key, list[tuple[Bracket, int]]] = {}  # where each running trial belongs

    @property
    def drawn_from(self) -> int | float:
        return self._inner.drawn_from

    def ask(self) -> Proposal | None:
        proposal = self._promotion(short=self.closed)
        if proposal is None and not self.closed:
            proposal = self._config()
        if proposal is None and not self._running:  # nothing will come any more: finish what is there
            proposal = self._promotion(short=True)
        return proposal

    def tell(self, outcome: Outcome) -> None:
        key = Key.of(outcome.proposal)
        if key.parent is None and any(key.until == plan[0][1] for plan in self._plans):
            self._inner.tell(outcome)
        if key not in self._running:
            return
        places = self._running[key]
        bracket, rung = places.pop(0)
        if not places:
            del self._running[key]
        place(bracket.members[rung], Member.of(outcome))
        if bracket.over():
            self._open.remove(bracket)

    def state_dict(self) -> dict[str, Any] | None:
        inner = self._inner.state_dict()
        if inner is None:
            return None
        brackets = [
            {"plan": b.plan, "asked": b.asked, "members": [[m.to_json() for m in rung] for rung in b.members]} for b in self._open
        ]
        places = [(key, bracket, rung) for key, found in self._running.items() for bracket, rung in found]
        running = [[list(key), self._open.index(bracket), rung] for key, bracket, rung in places]
        return {"inner": inner, "begun": self._begun, "open": brackets, "running": running}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._inner.load_state_dict(state["inner"])
        self._begun, self._open, self._running = state["begun"], [], {}
        for body in state["open"]:
            bracket = Bracket([(n, steps) for n, steps in body["plan"]], self._eta)
            bracket.asked = list(body["asked"])
            bracket.members = [[Member.from_json(member) for member in rung] for rung in body["members"]]
            self._open.append(bracket)
        for key, bracket, rung in state["running"]:
            self._running.setdefault(Key(*key), []).append((self._open[bracket], rung))

    def _promotion(self, short: bool) -> Proposal | None:
        for bracket in self._open:
            if (found := bracket.promotion(short)) is not None:
                rung, member = found
                steps = bracket.plan[rung][1]
                return self._started(bracket, rung, Proposal(member.proposal.config, parent=member.trial, until=steps))
        return None

    def _config(self) -> Proposal | None:
        """A config for the oldest bracket that has a place, or for a new one."""
        bracket = next((b for b in self._open if b.wants_config()), None)
        if bracket is None and self._begun == self._most:
            return None
        new = bracket is None
        if bracket is None:
            bracket = Bracket(self._plans[self._begun % len(self._plans)], self._eta)
        proposal = self._inner.ask(bracket.plan[0][1], self.mutate)
        if proposal is None:
            return None
        if new:
            self._open.append(bracket)
            self._begun += 1
        return self._started(bracket, 0, proposal)

    def _started(self, bracket: Bracket, rung: int, proposal: Proposal) -> Proposal:
        bracket.asked[rung] += 1
        self._running.setdefault(Key.of(proposal), []).append((bracket, rung))
        return proposal
