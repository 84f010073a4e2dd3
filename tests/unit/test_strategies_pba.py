"""Population based augmentation: its explore and exploit, the schedule that a lineage is, and that it tracks what moves."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from metasearch.records import Outcome, Proposal, Status
from metasearch.space import Choice, Float, Int, Repeat, Space
from metasearch.strategies import build
from metasearch.strategies.pba import Pba, explored, founder, lineage, quarters
from metasearch.testing.strategies import outcome_of

LEVELS = Space({"probability": Int(0, 10), "magnitude": Int(0, 9)})
STEPS = Space({"place": Choice(("support", "query", "task")), "p": Int(0, 10), "m": Int(0, 9)})


def _pba(space: Space = STEPS, seed: int = 0, **given: Any) -> Pba:
    found = build("pba", space, {"steps": 5, "max_steps": 25, "population": 8, **given}, seed=seed)
    assert isinstance(found, Pba)
    return found


def _run(
    strategy: Pba, score: Callable[[Proposal, dict[int, float]], float], lanes: int = 1,
    status: Callable[[int], Status] = lambda number: "done",
) -> tuple[dict[int, Proposal], dict[int, float]]:
    """Runs it to its end, with a budget of one population; a score is a function of the proposal and the scores so far."""
    proposals: dict[int, Proposal] = {}
    scores: dict[int, float] = {}
    running: list[int] = []
    while True:
        strategy.closed = sum(one.parent is None for one in proposals.values()) >= strategy.hyperparameters.population
        proposal = strategy.ask() if len(running) < lanes else None
        if proposal is not None:
            number = len(proposals) + 1
            proposals[number] = proposal
            running.append(number)
        elif running:
            number = running.pop(0)
            how = status(number)
            scores[number] = score(proposals[number], scores) if how == "done" else math.nan
            strategy.tell(Outcome(number, proposals[number], scores[number] if how == "done" else None, {}, how))
        else:
            return proposals, scores


# explore ----------------------------------------------------------------------------------------------------------------------


def test_explored_numbers_are_distributed_as_published() -> None:
    """From 5 of 0..10: anew with .2, otherwise by 0, 1, 2, 3, up or down alike: .8/4 + .2/11 stay, .8/8 + .2/11 for each of the
    six next, .2/11 for the others. 20,000 draws, 4 standard errors each: false alarms 1 in 1,500."""
    rng = np.random.default_rng(0)
    n = 20_000
    found = Counter(int(explored(LEVELS, {"probability": 5, "magnitude": 5}, rng)["probability"]) for _ in range(n))
    for value in range(11):
        distance = abs(value - 5)
        expected = 0.2 / 11 + (0.2 if distance == 0 else 0.1 if distance <= 3 else 0.0)
        assert abs(found[value] / n - expected) < 4 * math.sqrt(expected * (1 - expected) / n), value


def test_explored_numbers_stop_at_the_ends() -> None:
    """From 0 of 0..9: downwards is 0, so .8 (1/4 + 3/8) + .2/10 stay."""
    rng = np.random.default_rng(1)
    n = 20_000
    stay = sum(explored(LEVELS, {"probability": 0, "magnitude": 0}, rng)["magnitude"] == 0 for _ in range(n)) / n
    assert abs(stay - (0.8 * 5 / 8 + 0.02)) < 4 * math.sqrt(0.25 / n)


def test_choices_and_counts_stay_and_floats_are_perturbed() -> None:
    space = Space({
        "op": Choice(("a", "b", "c")), "lr": Float(1e-4, 1.0, log=True), "layer": Repeat(Int(1, 3), Space({"n": Int(0, 9)})),
        "width": Int(8, 512, log=True),
    })
    config = {"op": "b", "lr": 0.01, "layer.count": 2, "layer.0.n": 4, "layer.1.n": 4, "width": 100}
    rng = np.random.default_rng(0)
    rates, widths = Counter[float](), Counter[int]()
    for _ in range(500):
        child = explored(space, config, rng)
        assert not space.problems(child)
        assert (child["op"], child["layer.count"]) == ("b", 2)
        rates[round(float(child["lr"]), 9)] += 1
        widths[int(child["width"])] += 1
    for found, around in ((rates, (0.008, 0.012)), (widths, (80, 120))):
        assert all(150 < found[value] < 260 for value in around), found  # .8 / 2 of 500: 200, 5 standard errors


def test_founders_augment_nothing() -> None:
    found = [founder(STEPS, np.random.default_rng(i)) for i in range(30)]
    assert {(config["p"], config["m"]) for config in found} == {(0, 0)}
    assert {config["place"] for config in found} == {"support", "query", "task"}


# exploit ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "count"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (16, 4)])
def test_quarters_are_those_of_ray(n: int, count: int) -> None:
    scores = [float((7 * i) % n) for i in range(n)]
    low, high = quarters(scores)
    assert len(low) == len(high) == count
    assert not set(low) & set(high)
    if count:
        assert max(scores[i] for i in low) <= min(scores[i] for i in set(range(n)) - set(low))
        assert min(scores[i] for i in high) >= max(scores[i] for i in set(range(n)) - set(high))


@pytest.mark.parametrize("synchronous", [False, True])
def test_the_lowest_quarter_goes_on_as_the_highest(synchronous: bool) -> None:
    """Of eight founders, numbers 1 and 2 are the worst and 7 and 8 the best."""
    strategy = _pba(seed=1, synchronous=synchronous)
    founders = [strategy.ask() for _ in range(8)]
    for number, proposal in enumerate(founders, 1):
        assert proposal is not None
        assert (proposal.parent, proposal.until) == (None, 5)
        strategy.tell(Outcome(number, proposal, float(number), {}, "done"))
    strategy.closed = True
    second = [strategy.ask() for _ in range(8)]
    parents = [one.parent for one in second if one is not None]
    assert set(parents[:2]) <= {7, 8}
    assert parents[2:] == [3, 4, 5, 6, 7, 8]
    for one, before in zip(second[2:], founders[2:], strict=True):
        assert one is not None
        assert before is not None
        assert (one.config, one.until) == (before.config, 10), "who is not exploited is not explored either"
    assert any(one is not None and (one.config["p"], one.config["m"]) != (0, 0) for one in second[:2])


def test_nobody_copies_a_failed_one_and_everybody_ends() -> None:
    proposals, scores = _run(_pba(), lambda p, s: float(p.config["p"]), lanes=3,
                              status=lambda n: "error" if n % 3 == 0 else "done")
    assert all(one.parent is None or not math.isnan(scores[one.parent]) for one in proposals.values())
    assert max(one.until or 0 for one in proposals.values()) == 25


def _generation(strategy: Pba, first: int, scores: list[float | None]) -> list[Proposal]:
    """Asks for as many trials as there are scores, numbers them from `first` on, and tells how they ended; None: by an error."""
    asked = [strategy.ask() for _ in scores]
    for number, (proposal, score) in enumerate(zip(asked, scores, strict=True), first):
        assert proposal is not None
        strategy.tell(Outcome(number, proposal, score, {}, "done" if score is not None else "error"))
    return [proposal for proposal in asked if proposal is not None]


def test_a_segment_that_failed_counts_as_the_lowest() -> None:
    """However good its member was before: it goes on as the best of the others."""
    strategy = _pba(population=4)
    _generation(strategy, 1, [1.0, 2.0, 3.0, 4.0])
    strategy.closed = True
    second = _generation(strategy, 5, [10.0, 2.0, 3.0, None])
    assert [one.parent for one in second] == [4, 2, 3, 4]
    third = strategy.ask()
    assert third is not None
    assert (third.parent, third.until) == (5, 15)


@pytest.mark.parametrize(("quantile", "copied"), [(0.25, 2), (0.5, 4)])
def test_as_many_are_replaced_as_was_said(quantile: float, copied: int) -> None:
    strategy = _pba(quantile=quantile, synchronous=True)
    _generation(strategy, 1, [float(n) for n in range(1, 9)])
    strategy.closed = True
    parents = [one.parent for one in _generation(strategy, 9, [0.0] * 8)]
    assert sum(parent != own for own, parent in enumerate(parents, 1)) == copied
    assert set(parents[:copied]) <= set(range(9 - copied, 9))


def test_numbers_are_drawn_anew_as_often_as_was_said() -> None:
    """Never: then a number moves by 3 at most; always: then it is any."""
    moved = {}
    for share in (0.0, 1.0):
        strategy = _pba(Space({"n": Int(0, 10_000)}), population=8, resample=share, quantile=0.5)
        _generation(strategy, 1, [float(n) for n in range(1, 9)])
        strategy.closed = True
        moved[share] = max(int(one.config["n"]) for one in _generation(strategy, 9, [0.0] * 8))
    assert moved[0.0] <= 3
    assert moved[1.0] > 1000


def test_a_synchronous_population_is_the_same_with_any_number_of_workers() -> None:
    one, many = (_run(_pba(synchronous=True), lambda p, s: float(p.config["p"]), lanes=n)[0] for n in (1, 8))
    assert one == many
    assert one != _run(_pba(synchronous=True, seed=1), lambda p, s: float(p.config["p"]))[0]


# schedules --------------------------------------------------------------------------------------------------------------------


def test_a_schedule_from_a_hand_written_lineage() -> None:
    """Trial 9 copied 6, which copied 2, a founder; 1, 3, 4 and 5 are nobody's."""
    a, b, c = ({"p": 0, "m": 0}, {"p": 3, "m": 1}, {"p": 5, "m": 2})
    proposals = {
        1: Proposal(c, until=3), 2: Proposal(a, until=3), 3: Proposal(c, parent=1, until=6), 4: Proposal(a, parent=2, until=6),
        6: Proposal(b, parent=2, until=6), 9: Proposal(c, parent=6, until=8),
    }
    assert [tuple(one) for one in lineage(proposals, 9)] == [(2, a, 3), (6, b, 3), (9, c, 2)]
    assert [tuple(one) for one in lineage(proposals, 4)] == [(2, a, 3), (4, a, 3)]
    with pytest.raises(ValueError, match="trial 7 goes back to trial 7, which is not there"):
        lineage(proposals, 7)
    with pytest.raises(ValueError, match="does not say until which step"):
        lineage({1: Proposal(a)}, 1)


def test_the_schedule_tracks_an_optimum_that_moves() -> None:
    """Weights gain in every segment 1 - |p - best| / 10, where the best p rises from 0 to 10 over twenty segments. The winner's
    schedule follows; the best that never moves gains 14.75, no schedule more than 20."""
    total = 20

    def gained(proposal: Proposal, scores: dict[int, float]) -> float:
        best = 10 * ((proposal.until or 0) / 5 - 1) / (total - 1)
        before = 0.0 if proposal.parent is None else scores[proposal.parent]
        return before + 1 - abs(float(proposal.config["p"]) - best) / 10

    for seed in range(4):
        proposals, scores = _run(_pba(max_steps=5 * total, seed=seed), gained)
        winner = max((n for n in scores if proposals[n].until == 5 * total), key=lambda n: scores[n])
        found = [int(one.config["p"]) for one in lineage(proposals, winner)]
        assert len(found) == total
        assert scores[winner] > 15.5
        assert np.corrcoef(found, range(total))[0, 1] > 0.6
        assert np.mean(found[-5:]) > np.mean(found[:5]) + 3


def test_without_exploring_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metasearch.strategies.pba.explored", lambda space, config, rng, resample: dict(config))
    proposals, _ = _run(_pba(max_steps=50), lambda p, s: float(p.config["p"]))
    assert {one.config["p"] for one in proposals.values()} == {0}


def test_outcomes_of_other_studies_do_not_enter() -> None:
    strategy = _pba()
    strategy.tell(outcome_of(STEPS, 99, Proposal({"place": "query", "p": 5, "m": 5}, until=5)))
    assert strategy.members == []


@pytest.mark.parametrize(("given", "said"), [
    ({"steps": 30}, "1 <= steps <= max_steps"), ({"quantile": 0.6}, "quantile"), ({"founders": "highest"}, "founders are"),
])
def test_bad_hyperparameters_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _pba(**given)
