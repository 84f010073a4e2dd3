"""ASHA: asynchronous successive halving by promotion.

Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar. "A System for Massively Parallel Hyperparameter Tuning."
MLSys 2020. https://arxiv.org/abs/1810.05934 (algorithm 2; eta = 4 in its experiments)

Whenever somebody asks: from the highest rung down, promote a config that is among the best floor(|rung| / eta) of its rung and
was not promoted yet; if there is none, start a new config at the base. Nobody ever waits for a rung to fill. A promotion goes
on from the parcel of the trial in the lower rung (`parent`) to the steps of the next (`until`). (Ray's scheduler of this name
stops running trials instead: there the first in a rung always goes on.)
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from metasearch.records import Outcome, Proposal
from metasearch.space import Space, digest
from metasearch.strategies import Strategy
from metasearch.strategies._halving import Inner, Key, Member, best, levels, place, problems


@dataclass
class Rung:
    """steps: where its trials end; members best first; promoted: their trials that went on."""

    steps: int
    members: list[Member] = field(default_factory=list)
    promoted: set[int] = field(default_factory=set)

    def promotable(self, eta: int) -> Member | None:
        candidates = best(self.members, len(self.members) // eta)
        return next((m for m in candidates if m.trial not in self.promoted), None)


class Asha(Strategy):
    """Trials that diverged or failed are members with the worst score: they count in |rung| and are never promoted.

    The inner strategy is told each config once, with its result at the base rung. Of outcomes that were never asked for it is
    told those with the base rung's steps; no rung takes them in, for their trials' parcels need not be here to go on from.
    """

    children = True
    example: ClassVar[Mapping[str, Any]] = {"min_steps": 1, "max_steps": 16}

    @dataclass(frozen=True)
    class Hyperparameters:
        """min_steps, max_steps: outer steps of the lowest and of the last rung (rungs are max_steps / eta^k, rounded).
        eta: one in eta goes on. inner: what chooses the configs, {"name": "tpe", ...hyper-parameters}."""

        min_steps: int
        max_steps: int
        eta: int = 4
        inner: Mapping[str, Any] = field(default_factory=lambda: {"name": "random"})

        def __post_init__(self) -> None:
            if said := problems(self.min_steps, self.max_steps, self.eta, self.inner):
                raise ValueError("; ".join(said))

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        h = hyperparameters
        self._eta = h.eta
        self._rungs = [Rung(steps) for steps in levels(h.min_steps, h.max_steps, h.eta)]
        self._inner = Inner.build(space, h.inner, seed)
        self._running: list[Key] = []

    @property
    def drawn_from(self) -> int | float:
        return self._inner.drawn_from

    def ask(self) -> Proposal | None:
        proposal = self._promotion()
        if proposal is None and not self.closed:
            proposal = self._inner.ask(self._rungs[0].steps, self.mutate)
        if proposal is not None:
            self._running.append(Key.of(proposal))
        return proposal

    def _promotion(self) -> Proposal | None:
        for rung, above in reversed(list(zip(self._rungs, self._rungs[1:], strict=False))):
            member = rung.promotable(self._eta)
            if member is not None:
                rung.promoted.add(member.trial)
                return Proposal(member.proposal.config, parent=member.trial, until=above.steps)
        return None

    def tell(self, outcome: Outcome) -> None:
        base, key = self._rungs[0], Key.of(outcome.proposal)
        if outcome.proposal.until == base.steps and outcome.proposal.parent is None:
            self._inner.tell(outcome)
        if key not in self._running:
            return
        self._running.remove(key)
        rung = next(r for r in self._rungs if r.steps == outcome.proposal.until)
        there = {digest(m.proposal.config) for m in rung.members} if outcome.status == "reused" else set()
        if key.config not in there:  # a repeated config is in the rung already, and with the trial that has its weights
            place(rung.members, Member.of(outcome))

    def state_dict(self) -> dict[str, Any] | None:
        inner = self._inner.state_dict()
        if inner is None:
            return None
        rungs = [{"members": [m.to_json() for m in rung.members], "promoted": sorted(rung.promoted)} for rung in self._rungs]
        return {"inner": inner, "running": [list(key) for key in self._running], "rungs": rungs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._inner.load_state_dict(state["inner"])
        self._running = [Key(*key) for key in state["running"]]
        for rung, body in zip(self._rungs, state["rungs"], strict=True):
            rung.members = [Member.from_json(member) for member in body["members"]]
            rung.promoted = set(body["promoted"])
