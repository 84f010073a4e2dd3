"""ASHA and Hyperband against successive halving, whose answer is known: the loss of config q after r steps is q + 1/r."""
from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from metasearch.records import Config, Outcome, Proposal, Status
from metasearch.space import Choice, Int, Space
from metasearch.strategies import Strategy, build
from metasearch.strategies._halving import levels
from metasearch.strategies.hyperband import table
from metasearch.testing import strategies as contract

R81 = [
    [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
    [(34, 3), (11, 9), (3, 27), (1, 81)],
    [(15, 9), (5, 27), (1, 81)],
    [(8, 27), (2, 81)],
    [(5, 81)],
]


def q_of(proposal: Proposal) -> int:
    return int(proposal.config["q"])


def outcome(trial: int, proposal: Proposal, score: float | None = None, status: Status = "done") -> Outcome:
    assert proposal.until is not None
    value = -(q_of(proposal) + 1 / proposal.until) if score is None else score
    return Outcome(trial, proposal.stamped(trial), value if status == "done" else None, {}, status, proposal.until)


@dataclass
class Told:
    trial: int
    proposal: Proposal
    steps: int  # that this trial really ran: a promotion goes on from its parent


@dataclass
class Run:
    told: list[Told] = field(default_factory=list)

    def promoted(self) -> list[tuple[int, int]]:
        """(q, until) of every promotion."""
        return [(q_of(t.proposal), t.proposal.until or 0) for t in self.told if t.proposal.parent is not None]

    def rungs(self) -> Counter[int]:
        return Counter(t.proposal.until or 0 for t in self.told)


def drive(
    strategy: Strategy, *, lanes: int = 1, seed: int = 0, status: Any = None, most: int = 10**6, run: Run | None = None
) -> Run:
    """Runs, or goes on with `run`, until the strategy has nothing more or so many trials were asked in all."""
    run, running, order = Run() if run is None else run, list[tuple[int, Proposal]](), random.Random(seed)
    while True:
        ids = len(run.told)
        proposal = strategy.ask() if len(running) < lanes and ids < most else None
        if proposal is not None:
            assert proposal.until is not None
            before = 0 if proposal.parent is None else run.told[proposal.parent - 1].proposal.until
            run.told.append(Told(ids + 1, proposal, proposal.until - (before or 0)))
            running.append((ids + 1, proposal))
        elif running:
            trial, ended = running.pop(order.randrange(len(running)))
            strategy.tell(outcome(trial, ended, status="done" if status is None else status(ended)))
        else:
            return run


def asha(size: int, *, eta: int = 3, max_steps: int = 27, seed: int = 0, inner: str = "random") -> Strategy:
    hyper = {"min_steps": 1, "max_steps": max_steps, "eta": eta, "inner": {"name": inner}}
    return build("asha", Space({"q": Int(0, size - 1)}), hyper, seed=seed)


def halving(size: int, eta: int, rungs: int) -> set[tuple[int, int]]:
    """The promotions of synchronous successive halving: (q, until)."""
    return {(q, eta**k) for k in range(1, rungs) for q in range(size // eta**k)}


# -- steps of rungs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ((1, 81, 3), [1, 3, 9, 27, 81]),
        ((1, 256, 4), [1, 4, 16, 64, 256]),
        ((100, 5000, 4), [312, 1250, 5000]),
        ((1, 80, 3), [3, 9, 27, 80]),
        ((7, 7, 4), [7]),
        ((5, 19, 4), [19]),
        ((1, 3, 2), [2, 3]),
    ],
)
def test_the_last_rung_has_exactly_all_steps(given: tuple[int, int, int], steps: list[int]) -> None:
    assert levels(*given) == steps


def test_rungs_rise_by_eta_for_any_steps() -> None:
    for low in (1, 2, 5, 60):
        for high in (*range(low, low + 40), 10**6):
            for eta in (2, 3, 4):
                steps = levels(low, high, eta)
                assert steps[-1] == high
                assert steps[0] >= low
                assert high / eta ** len(steps) < low  # there is no room for one more below
                assert all(abs(b / eta - a) <= 1 for a, b in itertools.pairwise(steps))
                assert sorted(set(steps)) == steps


# -- ASHA --------------------------------------------------------------------------------------------------------------------


def test_asha_promotes_and_never_restarts() -> None:
    """A promotion goes on from the trial of the rung below; all steps together are the steps of the highest rung reached."""
    run = drive(asha(81))
    promotions = [t for t in run.told if t.proposal.parent is not None]
    by_id = {t.trial: t for t in run.told}
    assert len(promotions) > 30
    for promotion in promotions:
        assert promotion.proposal.parent is not None
        below = by_id[promotion.proposal.parent]
        assert promotion.proposal.config == below.proposal.config
        assert promotion.proposal.until == 3 * (below.proposal.until or 0)
        assert promotion.steps == 2 * (below.proposal.until or 0)  # a restart would run all 3 times as many
    roots = [t for t in run.told if t.proposal.parent is None]
    assert len(roots) == len({q_of(t.proposal) for t in roots}) == 81
    assert {t.proposal.until for t in roots} == {1}


@pytest.mark.parametrize("lanes", [1, 2, 8, 50])
@pytest.mark.parametrize("seed", range(3))
def test_each_member_is_promoted_at_most_once(lanes: int, seed: int) -> None:
    run = drive(asha(200, seed=seed), lanes=lanes, seed=seed)
    assert len(run.promoted()) == len(set(run.promoted()))
    parents = [t.proposal.parent for t in run.told if t.proposal.parent is not None]
    assert len(parents) == len(set(parents))


def test_asha_with_one_worker_and_configs_from_best_to_worst_is_successive_halving() -> None:
    strategy = asha(81)
    strategy._inner.strategy = _Ordered(strategy.space, hyperparameters=None, seed=0)  # type: ignore[attr-defined]
    run = drive(strategy)
    assert set(run.promoted()) == halving(81, 3, 4)


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_asha_promotes_all_that_successive_halving_does_and_finds_the_best(lanes: int, seed: int) -> None:
    """In any order of arrival: early mistakes are promoted in addition, never instead."""
    run = drive(asha(81, seed=seed), lanes=lanes, seed=seed)
    assert set(run.promoted()) >= halving(81, 3, 4)
    assert (0, 27) in run.promoted()


@pytest.mark.parametrize("seed", range(3))
def test_a_promotion_was_among_the_best_of_its_rung_when_it_was_made(seed: int) -> None:
    strategy, ended = asha(100, eta=4, max_steps=64, seed=seed), dict[int, list[tuple[int, int]]]()
    trial = 0
    while (proposal := strategy.ask()) is not None:
        trial += 1
        if proposal.parent is not None:
            below = levels(1, 64, 4)[levels(1, 64, 4).index(proposal.until or 0) - 1]
            rung = sorted(ended[below])
            assert (q_of(proposal), proposal.parent) in rung[:len(rung) // 4]
        ended.setdefault(proposal.until or 0, []).append((q_of(proposal), trial))
        strategy.tell(outcome(trial, proposal))


def test_nobody_waits_and_the_highest_rung_goes_first() -> None:
    strategy, ids = asha(1000, eta=2, max_steps=4), itertools.count(1)

    def ask(number: int) -> list[Proposal]:
        return [p for p in (strategy.ask() for _ in range(number)) if p is not None]

    def tell(proposals: list[Proposal]) -> None:
        for proposal in proposals:
            strategy.tell(outcome(next(ids), proposal))

    tell(ask(4))
    ahead = ask(2)
    assert [p.until for p in ahead] == [2, 2]
    fresh = ask(2)
    assert [p.parent for p in fresh] == [None, None]  # nobody waits for the two
    tell(fresh)
    tell(ahead)
    assert [p.until for p in ask(2)] == [4, 2]  # both rungs have somebody to promote by now


class _Ordered(Strategy):
    def ask(self) -> Proposal | None:
        self.next = getattr(self, "next", -1) + 1
        return Proposal({"q": self.next}) if self.next < self.space.size else None

    def tell(self, outcome: Outcome) -> None:
        pass


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_the_inner_strategy_mutates_as_the_spaces_file_says(name: str) -> None:
    """Of 27 configs these mutations know two: without them evolution would reach others."""
    space = Space({f"b{i}": Choice((0, 1, 2)) for i in range(3)})

    def mutations(config: Config, rng: np.random.Generator) -> tuple[Config, dict[str, str]]:
        return {"b0": 2, "b1": 2, "b2": int(rng.integers(2))}, {}

    inner = {"name": "regularized-evolution", "population": 3, "sample": 2, "avoid_repeats": False}
    strategy = build(name, space, {"min_steps": 1, "max_steps": 4, "inner": inner}, seed=0)
    strategy.mutate = mutations  # as the driver does
    asked = []
    for trial in range(1, 30):
        proposal = strategy.ask()
        assert proposal is not None
        if proposal.parent is None:
            asked.append(proposal.config)
        strategy.tell(Outcome(trial, proposal, 1.0, {}, "done"))
    assert len(asked) > 8
    assert all((config["b0"], config["b1"]) == (2, 2) for config in asked[3:])


@pytest.mark.parametrize("status", ["diverged", "error", "oom", "infeasible", "nan"])
def test_what_failed_is_worst_and_never_promoted(status: str) -> None:
    """The best quarter fails: nobody of it goes on, and it counts in |rung|, so the others are promoted as often as ever."""
    strategy = asha(80, eta=4, max_steps=16)
    promoted, trial = list[int](), 0
    while (proposal := strategy.ask()) is not None:
        trial += 1
        if proposal.parent is not None:
            promoted.append(q_of(proposal))
        if q_of(proposal) >= 20:
            strategy.tell(outcome(trial, proposal))
        elif status == "nan":
            strategy.tell(outcome(trial, proposal, score=math.nan))
        else:
            strategy.tell(outcome(trial, proposal, status=status))  # type: ignore[arg-type]
    assert promoted
    assert min(promoted) == 20
    assert len([q for q in promoted if promoted.count(q) >= 1]) >= 20  # floor(80 / 4) in the first rung alone


def test_a_rung_of_failures_promotes_nobody() -> None:
    run = drive(asha(27), status=lambda proposal: "diverged")
    assert len(run.told) == 27
    assert run.promoted() == []


def test_a_failed_promotion_is_not_tried_again() -> None:
    run = drive(asha(27), status=lambda proposal: "error" if proposal.until == 3 else "done")
    assert run.rungs()[3] == len({q for q, until in run.promoted() if until == 3}) >= 9
    assert run.rungs()[9] == 0


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_the_inner_strategy_is_told_each_config_once_at_the_base(name: str) -> None:
    strategy = build(name, Space({"q": Int(0, 10**6)}), {"min_steps": 1, "max_steps": 9, "eta": 3}, seed=0)
    inner = _Listening(strategy.space)
    strategy._inner.strategy = inner  # type: ignore[attr-defined]
    run = drive(strategy, lanes=4, most=60)
    roots = [t for t in run.told if t.proposal.parent is None]
    assert len(run.promoted()) > 5
    assert sorted(inner.told) == sorted((q_of(t.proposal), -(q_of(t.proposal) + 1 / (t.proposal.until or 0))) for t in roots)
    assert inner.proposals == inner.asked  # told with its own proposal, as if it had been run without a wrapper


class _Listening(Strategy):
    def __init__(self, space: Space) -> None:
        super().__init__(space, hyperparameters=None, seed=0)
        self._random = build("random", space, {}, seed=0)
        self.told: list[tuple[int, float | None]] = []
        self.asked: set[str] = set()
        self.proposals: set[str] = set()

    def ask(self) -> Proposal | None:
        proposal = self._random.ask()
        self.asked.add(repr(proposal))
        return proposal

    def tell(self, outcome: Outcome) -> None:
        self.told.append((q_of(outcome.proposal), outcome.score))
        self.proposals.add(repr(outcome.proposal))


def test_tpe_inside_asha_learns() -> None:
    """Random: the median root's q is 500; ten of ten seeds below 250 would have probability (1/4)^10 or less."""
    for seed in range(3):
        strategy = asha(1000, eta=4, max_steps=16, inner="tpe", seed=seed)
        roots = [q_of(t.proposal) for t in drive(strategy, most=80).told if t.proposal.parent is None]
        assert sorted(roots[-20:])[10] < 250


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_a_result_that_was_never_asked_for_is_never_promoted(name: str) -> None:
    strategy = build(name, Space({"q": Int(100, 10**6)}), {"min_steps": 1, "max_steps": 9, "eta": 3}, seed=0)
    for trial in range(1000, 1050):
        strategy.tell(outcome(trial, Proposal({"q": 100 + trial % 7}, until=1)))
    assert all(t.proposal.parent is None or t.proposal.parent < 1000 for t in drive(strategy, most=80).told)


def test_a_reused_result_does_not_stand_in_a_rung_twice() -> None:
    """The driver answers a repeated config from the first trial, which has the weights and is the one to be promoted."""
    strategy = asha(1000, eta=2, max_steps=2)
    strategy._inner.strategy = _Same(strategy.space, hyperparameters=None, seed=0)  # type: ignore[attr-defined]
    for trial, status in ((1, "done"), (2, "reused"), (3, "reused")):
        proposal = strategy.ask()
        assert proposal is not None
        assert proposal.parent is None  # |rung| stays 1, of which half is nobody
        strategy.tell(replace(outcome(trial, proposal), status=status))  # type: ignore[arg-type]


class _Same(Strategy):
    def ask(self) -> Proposal | None:
        return Proposal({"q": 5})

    def tell(self, outcome: Outcome) -> None:
        pass


def test_closed_asha_promotes_what_it_can_and_ends() -> None:
    strategy = asha(10**6, eta=3, max_steps=9)
    run = drive(strategy, most=40, lanes=3)
    strategy.closed = True
    drive(strategy, lanes=3, run=run)
    assert all(t.proposal.parent is not None for t in run.told[40:])
    assert strategy.ask() is None
    strategy.closed = False
    fresh = strategy.ask()
    assert fresh is not None
    assert fresh.parent is None


# -- Hyperband ---------------------------------------------------------------------------------------------------------------


def hyperband(**more: Any) -> Strategy:
    hyper = {"min_steps": 1, "max_steps": 81, "rounds": 1, **more}
    return build("hyperband", Space({"q": Int(0, 10**6)}), hyper, seed=0)


def test_brackets_are_those_of_the_paper() -> None:
    assert table(1, 81, 3) == R81
    assert table(10, 810, 3) == [[(n, 10 * r) for n, r in bracket] for bracket in R81]


def test_the_brackets_hold_about_equal_work() -> None:
    """n * r of each rung is that of the paper's budget, (s_max + 1) * R in a bracket, up to rounding up of n."""
    for eta, power in ((2, 6), (3, 4), (4, 3)):
        for bracket in table(1, eta**power, eta):
            full = sum(n * r for n, r in bracket)
            ideal = (power + 1) * eta**power
            assert 0.6 * ideal <= full <= 1.6 * ideal


@pytest.mark.parametrize("lanes", [1, 4, 30, 200])
def test_one_round_runs_exactly_the_table_whatever_the_number_of_lanes(lanes: int) -> None:
    run = drive(hyperband(), lanes=lanes, seed=lanes)
    wanted = Counter[int]()
    roots = Counter[int]()
    for bracket in R81:
        roots[bracket[0][1]] += bracket[0][0]
        for n, r in bracket:
            wanted[r] += n
    assert run.rungs() == wanted
    assert Counter(t.proposal.until for t in run.told if t.proposal.parent is None) == roots
    assert sum(t.steps for t in run.told) == sum(n * r for b in R81 for n, r in b) - sum(
        n * r for b in R81 for (n, _), (_, r) in zip(b[1:], b, strict=False)
    )  # what goes on does not run its earlier steps again


def test_brackets_overlap_only_when_a_lane_would_wait() -> None:
    one = [t.proposal.until for t in drive(hyperband()).told]
    assert one[:121] == [1] * 81 + [3] * 27 + [9] * 9 + [27] * 3 + [81]
    assert one[121] == 3  # the second bracket
    strategy = hyperband()
    asked = [strategy.ask() for _ in range(82)]
    assert [p and p.until for p in asked[80:]] == [1, 3]  # the first bracket's base is full, and has not ended


def test_each_rung_keeps_its_best() -> None:
    run = drive(hyperband(), lanes=7)
    first = [t for t in run.told if t.proposal.parent is None and t.proposal.until == 1]
    best = sorted(q_of(t.proposal) for t in first)
    promoted = {t.proposal.parent for t in run.told}
    assert sorted(q_of(t.proposal) for t in first if t.trial in promoted) == best[:27]


def test_rounds_go_on_until_the_budget_ends() -> None:
    per_round = sum(n for bracket in R81 for n, _ in bracket)
    assert len(drive(hyperband(rounds=2)).told) == 2 * per_round
    assert len(drive(hyperband(rounds=None), most=3 * per_round).told) == 3 * per_round


def test_a_rung_with_too_many_failures_sends_fewer_on() -> None:
    run = drive(hyperband(), lanes=3, status=lambda p: "diverged" if p.until == 1 and q_of(p) % 20 else "done")
    first = [t for t in run.told if t.proposal.parent is None and t.proposal.until == 1]
    fine = [t for t in first if q_of(t.proposal) % 20 == 0]
    assert 0 < len(fine) < 27
    promoted = {t.proposal.parent for t in run.told}
    assert {t.trial for t in first} & promoted == {t.trial for t in fine}


def test_closed_hyperband_halves_what_it_has_and_ends_with_one_trained_in_full() -> None:
    for roots in (1, 2, 5, 40, 81, 100):
        strategy = hyperband()
        asked = [strategy.ask() for _ in range(roots)]
        strategy.closed = True
        for trial, proposal in enumerate(asked, 1):
            assert proposal is not None
            if roots <= 81:
                assert strategy.ask() is None  # not before all of them have ended
            strategy.tell(outcome(trial, proposal))
        ids, rest, running = roots, list[Proposal](), list[tuple[int, Proposal]]()
        while (proposal := strategy.ask()) is not None or running:
            if proposal is not None:
                ids += 1
                rest.append(proposal)
                running.append((ids, proposal))
            else:
                strategy.tell(outcome(*running.pop()))
        assert all(p.parent is not None for p in rest)
        assert any(p.until == 81 for p in rest)


def test_hyperband_ends_when_the_space_does() -> None:
    strategy = build("hyperband", Space({"q": Int(0, 19)}), {"min_steps": 1, "max_steps": 9, "eta": 3}, seed=0)
    run = drive(strategy, lanes=4)
    roots = [q_of(t.proposal) for t in run.told if t.proposal.parent is None]
    assert sorted(roots) == list(range(20))
    assert strategy.ask() is None
    assert max(run.rungs()) == 9


# -- with a strategy inside that learns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asha", "hyperband"])
@pytest.mark.parametrize("law", [contract.replay_is_equal, contract.snapshot_is_replay, contract.none_changes_nothing])
def test_the_contract_holds_with_tpe_inside(name: str, law: Callable[[contract.Case], None]) -> None:
    """On spaces that end, with conditions, with numbers and with repeats: "finite" and "conditional" have nothing more."""
    hyper = {"min_steps": 1, "max_steps": 9, "eta": 3, "inner": {"name": "tpe", "startup": 3}}
    cases = [case for case in contract.cases(name, hyper, asks=16) if case.space_name not in ("finite", "conditional")]
    assert len(cases) == 4
    for case in cases:
        assert case.build().state_dict() is not None
        law(case)
