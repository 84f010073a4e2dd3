"""Population based augmentation: the worst go on as changed copies of the best, and what the winner went through is a schedule.

Ho, Liang, Stoica, Abbeel, Chen. "Population Based Augmentation: Efficient Learning of Augmentation Policy Schedules." ICML 2019.
https://arxiv.org/abs/1905.05393 (algorithm 2, and the authors' code for Ray)
Jaderberg et al. "Population Based Training of Neural Networks." 2017. https://arxiv.org/abs/1711.09846

Every `steps` outer steps a member is a trial that has ended. It goes on from its own weights in its own config (`parent`,
`until`), unless its score is in the lowest quarter: then from the weights of a random one of the highest quarter, in a config
explored around that one's. `lineage` reads from the trials what a weight vector went through: a schedule of configs, for
augmentation that of a policy (metasearch/policies.py), and it is the schedule that is used from then on, for a training from
the beginning of any length. Scores of segments that end at different steps do not compare, so a study ranks those that trained
longest.

Explored are numbers. A whole number is drawn anew with probability .2, otherwise it moves by 0, 1, 2 or 3, up or down alike, and
stays in its range. Floats and logarithmic whole numbers are drawn anew as often, otherwise times 1.2 or .8, as in population
based training; founders draw them at random. What a Choice says, and how many items a Repeat has, a lineage keeps from its
founder.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Choice, Int, Leaf, Space
from metasearch.strategies import Strategy
from metasearch.strategies._draws import rng_of
from metasearch.strategies._halving import Key

__all__ = ["Member", "Pba", "Segment", "explored", "founder", "lineage", "quarters"]

MOST_MOVED = 3  # of a whole number that is not drawn anew
FACTORS = (0.8, 1.2)


# -- explore and exploit -------------------------------------------------------------------------------------------------------


def explored(space: Space, config: Config, rng: np.random.Generator, resample: float = 0.2) -> Config:
    """A config of changed numbers; every Choice and every Repeat's count stay."""
    found = dict(config)
    for path, leaf in space.active(config):
        if isinstance(leaf, Choice) or path.endswith(".count"):
            continue
        if rng.random() < resample:
            found[path] = leaf.low + int(rng.integers(leaf.size)) if isinstance(leaf, Int) else leaf.decode(rng.random())
            continue
        value = config[path]
        if _steps(path, leaf):
            amount = int(rng.integers(MOST_MOVED + 1))
            moved = float(value) + (amount if rng.random() < 0.5 else -amount)
        else:
            moved = float(value) * FACTORS[int(rng.integers(2))]
        found[path] = min(max(round(moved), leaf.low), leaf.high) if isinstance(leaf, Int) else (
            min(max(float(moved), leaf.low), leaf.high))
    return found


def founder(space: Space, rng: np.random.Generator) -> Config:
    """Every number that moves in steps at its lowest (as published: no augmentation at all), all else at random."""
    drawn: Config = {}
    for path, leaf in space.active(drawn):
        drawn[path] = leaf.low if isinstance(leaf, Int) and _steps(path, leaf) else leaf.decode(rng.random())
    return drawn


def _steps(path: str, leaf: Leaf) -> bool:
    """Whole numbers that are not logarithmic, nor the number of a Repeat's items."""
    return isinstance(leaf, Int) and not leaf.log and not path.endswith(".count")


def quarters(scores: Sequence[float], quantile: float = 0.25) -> tuple[list[int], list[int]]:
    """(the places of the lowest scores, those of the highest), ceil(n * quantile) each, but never more than half: as in Ray."""
    count = min(math.ceil(len(scores) * quantile), len(scores) // 2)
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    return order[:count], order[len(order) - count:]


# -- what the winner went through ----------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """A stretch of a lineage: the trial that trained it, in which config, for how many outer steps."""

    trial: int
    config: Config
    steps: int


def lineage(proposals: Mapping[int, Proposal], trial: int) -> list[Segment]:
    """What the weights at the end of a trial went through, oldest first. Raises ValueError if a trial is missing."""
    found: list[Segment] = []
    at: int | None = trial
    while at is not None:
        if at not in proposals:
            raise ValueError(f"trial {trial} goes back to trial {at}, which is not there")
        one = proposals[at]
        before = 0 if one.parent is None or one.parent not in proposals else proposals[one.parent].until or 0
        if one.until is None or one.until <= before:
            raise ValueError(f"trial {at} does not say until which step it trains (until={one.until}, its parent until "
                             f"{before}): only trials of a strategy such as pba make a schedule")
        found.append(Segment(at, dict(one.config), one.until - before))
        at = one.parent
    return found[::-1]


# -- the strategy --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """trial: the last of it that ended well, from whose weights it goes on; steps: to which that one trained; score: of its last
    trial, -inf if that one failed."""

    trial: int
    config: Config
    steps: int
    score: float


class Pba(Strategy):
    """Asynchronous as published: nobody waits, a member is compared with the last scores of the others, and who has trained
    least goes first. With `synchronous` everybody waits until all have ended their segment, and the number of workers changes
    nothing.

    Founders are the budget's roots; everything after them costs none. A founder that fails is replaced, a segment that fails
    counts as the lowest score and is tried again from the last good weights, its own or those of a better one. Outcomes that
    were never asked for do not enter: their weights need not be here.
    """

    children = True
    repeats = True  # equal founders begin with different weights, and who is not exploited trains on in its own config
    example: ClassVar[Mapping[str, Any]] = {"steps": 5, "max_steps": 20, "population": 4}

    @dataclass(frozen=True)
    class Hyperparameters:
        """steps: outer steps between two exploits (published: 3 epochs); max_steps: of a whole training (200 epochs), which
        should be the recipe's. population: published: 16. quantile: share that is replaced, and share that is copied.
        resample: probability that a number is drawn anew. founders: "lowest" (published: no augmentation) or "random".
        synchronous: see above."""

        steps: int
        max_steps: int
        population: int = 16
        quantile: float = 0.25
        resample: float = 0.2
        founders: str = "lowest"
        synchronous: bool = False

        def __post_init__(self) -> None:
            if not 1 <= self.steps <= self.max_steps or self.population < 2:
                raise ValueError(f"`1 <= steps <= max_steps` and `population >= 2` must hold, but got {self}")
            if not 0 < self.quantile <= 0.5 or not 0 <= self.resample <= 1:
                raise ValueError(f"`0 < quantile <= 0.5` and `0 <= resample <= 1` must hold, but got {self}")
            if self.founders not in ("lowest", "random"):
                raise ValueError(f"founders are 'lowest' or 'random', but got {self.founders!r}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self.members: list[Member] = []
        self._running: list[tuple[Key, int | None]] = []  # and the member's number, None for a founder
        self._planned: list[tuple[int, Proposal]] = []  # of a synchronous population, what is still to be asked
        self._asked = 0
        self._segments = 0  # asked for after the founders'

    # -- ask ---------------------------------------------------------------------------------------------------------------

    def ask(self) -> Proposal | None:
        h = self.hyperparameters
        founding = sum(number is None for _, number in self._running)
        if not self.closed and len(self.members) + founding < h.population:
            rng = rng_of(self.seed, self._asked)
            config = founder(self.space, rng) if h.founders == "lowest" else self.space.sample(rng)
            return self._ask(None, Proposal(config, until=h.steps, drawn=h.founders == "random"))
        if self._segments >= 2 * h.population * math.ceil(h.max_steps / h.steps):  # failures without end
            return None
        if h.synchronous:
            if not self._planned and not self._running:
                self.members.sort(key=lambda member: member.trial)
                self._planned = [(number, self._next(number)) for number in self._unfinished()]
            if not self._planned:
                return None
            number, proposal = self._planned.pop(0)
        else:
            busy = {number for _, number in self._running}
            idle = [number for number in self._unfinished() if number not in busy]
            if not idle:
                return None
            number = min(idle, key=lambda i: self.members[i].steps)
            proposal = self._next(number)
        self._segments += 1
        return self._ask(number, proposal)

    def _ask(self, number: int | None, proposal: Proposal) -> Proposal:
        self._asked += 1
        self._running.append((Key.of(proposal), number))
        return proposal

    def _unfinished(self) -> list[int]:
        return [i for i, member in enumerate(self.members) if member.steps < self.hyperparameters.max_steps]

    def _next(self, number: int) -> Proposal:
        """The next segment of a member: its own, or that of a better one's copy."""
        h, rng = self.hyperparameters, rng_of(self.seed, self._asked, number)
        low, high = quarters([member.score for member in self.members], h.quantile)
        able = [i for i in high if self.members[i].score > -math.inf and self.members[i].steps < h.max_steps]
        source = self.members[number]
        config = dict(source.config)
        if number in low and able:
            source = self.members[able[int(rng.integers(len(able)))]]
            config = explored(self.space, source.config, rng, h.resample)
        return Proposal(config, parent=source.trial, until=min(source.steps + h.steps, h.max_steps))

    # -- tell --------------------------------------------------------------------------------------------------------------

    def tell(self, outcome: Outcome) -> None:
        key = Key.of(outcome.proposal)
        place = next((i for i, (running, _) in enumerate(self._running) if running == key), None)
        if place is None:
            return
        _, number = self._running.pop(place)
        score = outcome.score
        if outcome.status in ("done", "reused") and score is not None and math.isfinite(score):
            steps = outcome.proposal.until or outcome.step
            member = Member(outcome.trial, dict(outcome.proposal.config), steps, float(score))
            if number is None:
                self.members.append(member)
            else:
                self.members[number] = member
        elif number is not None:
            self.members[number] = replace(self.members[number], score=-math.inf)

    # -- snapshots ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "members": [[m.trial, m.config, m.steps, m.score if m.score > -math.inf else None] for m in self.members],
            "running": [[list(key), number] for key, number in self._running],
            "planned": [[number, proposal.to_json()] for number, proposal in self._planned],
            "asked": self._asked, "segments": self._segments,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.members = [Member(t, dict(c), steps, -math.inf if s is None else s) for t, c, steps, s in state["members"]]
        self._running = [(Key(*key), number) for key, number in state["running"]]
        self._planned = [(number, Proposal.from_json(body)) for number, body in state["planned"]]
        self._asked, self._segments = state["asked"], state["segments"]
