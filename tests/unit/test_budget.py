"""Coverage: the published table, exact arithmetic, simulation, and numbers beyond any float."""
from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasearch.budget import Coverage


@pytest.mark.parametrize(("top", "confidence", "with_replacement", "without"), [
    (10, 0.90, 230, 205), (10, 0.95, 299, 258), (10, 0.99, 459, 368), (50, 0.90, 45, 44), (50, 0.95, 59, 57),
])
def test_the_published_table_for_a_thousand_configs(top: int, confidence: float, with_replacement: int, without: int) -> None:
    assert Coverage(1000, top, confidence, without_replacement=False).needed == with_replacement
    assert Coverage(1000, top, confidence).needed == without


def test_fifty_nine_draws_find_the_top_five_percent_of_a_continuous_space() -> None:
    coverage = Coverage(math.inf, "5%", 0.95)
    assert coverage.needed == 59
    assert coverage.reached(59) == pytest.approx(1 - 0.95**59, rel=1e-14)


EXACT = {0.5: Fraction(1, 2), 0.75: Fraction(3, 4), 0.9: Fraction(9, 10), 0.95: Fraction(19, 20), 0.99: Fraction(99, 100)}


@given(st.integers(1, 300), st.data(), st.sampled_from(sorted(EXACT)))
@settings(max_examples=300, deadline=None)
def test_trials_and_coverage_agree_with_exact_integers(total: int, data: st.DataObject, confidence: float) -> None:
    top = data.draw(st.integers(1, total))
    miss = 1 - EXACT[confidence]

    def distinct(x: int) -> Fraction:
        return Fraction(math.comb(total - top, x), math.comb(total, x))

    def repeated(x: int) -> Fraction:
        return Fraction(total - top, total) ** x

    for goal, exact in ((Coverage(total, top, confidence), distinct),
                        (Coverage(total, top, confidence, without_replacement=False), repeated)):
        assert exact(goal.needed) <= miss < exact(goal.needed - 1)
        for x in {0, 1, goal.needed // 2, goal.needed, min(total, goal.needed + 7)}:
            assert goal.reached(x) == pytest.approx(float(1 - exact(x)), rel=1e-12)


def test_a_tie_is_reached() -> None:
    # 9 of 10 configs hit the single best with probability exactly 0.9, though 1 - 0.9 is less than 0.1 in binary
    assert Coverage(10, 1, 0.9).needed == 9
    assert Coverage(10, 9, 0.9, without_replacement=False).needed == 1
    assert Coverage(10**18, 1, 0.9).needed == 9 * 10**17
    assert Coverage(10**60, 1, 0.9).needed == 9 * 10**59


@given(st.integers(2, 10**18), st.data(), st.sampled_from([0.01, 0.5, 0.9, 0.999, 1 - 1e-9]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_number_needed_is_the_first_that_suffices(total: int, data: st.DataObject, confidence: float, distinct: bool) -> None:
    top = data.draw(st.one_of(st.integers(1, min(total, 1000)), st.integers(1, total)))
    goal = Coverage(total, top, confidence, without_replacement=distinct)
    assert goal.is_reached(goal.needed)
    assert not goal.is_reached(goal.needed - 1)
    assert goal.reached(goal.needed) >= confidence - 1e-15
    assert goal.reached(goal.needed - 1) <= confidence + 1e-15


@given(st.integers(2, 10**18), st.data(), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_distinct_draws_are_never_worse_and_more_draws_never_cover_less(total: int, data: st.DataObject, x: int) -> None:
    top = data.draw(st.integers(1, total))
    distinct, repeated = Coverage(total, top, 0.9), Coverage(total, top, 0.9, without_replacement=False)
    assert distinct.needed <= repeated.needed
    assert distinct.reached(x) >= repeated.reached(x) - 1e-15
    assert distinct.reached(x) <= distinct.reached(x + 1)


def test_of_a_billion_billion_configs_one_config_is_still_counted() -> None:
    # a float cannot tell 1 - 1e-18 from 1: lgamma or log(1 - K/N) would say 0 or divide by it
    assert Coverage(10**18, 10, 0.9).reached(1) == pytest.approx(1e-17, rel=1e-12)
    assert Coverage(10**18, 1, 0.9).reached(10**17) == pytest.approx(0.1, rel=1e-12)
    assert Coverage(10**18, 10**9, 0.9).needed == 2302585090
    assert Coverage(10**18, 10**9, 0.9, without_replacement=False).needed == 2302585092
    assert Coverage(10**18, 10**18 - 5, 0.9).needed == 1


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize(("total", "top", "x"), [(1000, 10, 205), (200, 3, 60), (60, 20, 4)])
def test_simulated_searches_hit_as_often_as_promised(total: int, top: int, x: int, distinct: bool) -> None:
    """20,000 searches; the hit rate lies within 3 binomial standard errors. With a fresh seed each of the six comparisons would
    fail in 0.27 % of all runs by chance; the seed is fixed."""
    rng = np.random.default_rng([total, top, x, distinct])
    draws = 20_000
    if distinct:  # the number of top configs in a sample without replacement, counted by shuffling
        hits = sum(bool((rng.choice(total, size=x, replace=False) < top).any()) for _ in range(draws))
    else:
        hits = int((rng.integers(total, size=(draws, x)) < top).any(axis=1).sum())
    expected = Coverage(total, top, 0.9, without_replacement=distinct).reached(x)
    error = math.sqrt(expected * (1 - expected) / draws)
    assert abs(hits / draws - expected) <= 3 * error
    other = Coverage(total, top, 0.9, without_replacement=not distinct).reached(x)
    if abs(other - expected) > 6 * error:  # then the other law must be told apart
        assert abs(hits / draws - other) > 3 * error


def test_a_share_of_a_finite_space_is_whole_configs_rounded_down() -> None:
    assert Coverage(250, "1%", 0.9).hits == 2
    assert Coverage(250, "1%", 0.9).needed == Coverage(250, 2, 0.9).needed
    assert Coverage(1000, "0.1%", 0.9).hits == 1
    assert Coverage(3**80, "1%", 0.9).needed == 230


def test_a_space_beyond_all_bounds_is_answered_at_once_as_an_infinite_one() -> None:
    huge = Coverage(3**20_000, "1%", 0.9)
    assert (huge.needed, huge.hits, huge.distinct) == (230, None, False)
    with pytest.raises(ValueError, match="more than 10\\^300 configs"):
        Coverage(3**20_000, 10, 0.9)


def test_looking_at_everything_covers_everything() -> None:
    assert Coverage(50, 1, 0.9).reached(50) == 1.0
    assert Coverage(50, 1, 0.9).reached(10_000) == 1.0
    assert Coverage(50, 1, 0.9).reached(0) == 0.0
    assert Coverage(50, 50, 0.9, without_replacement=False).reached(1) == 1.0
    assert Coverage(1, 1, 0.9).needed == 1
    assert Coverage(50, 50, 0.99, without_replacement=False).needed == 1


@pytest.mark.parametrize(("total", "top", "confidence", "said"), [
    (0, 1, 0.9, "at least 1"), (-3, 1, 0.9, "at least 1"), (2.5, 1, 0.9, "at least 1"), (True, 1, 0.9, "at least 1"),
    (math.nan, 1, 0.9, "at least 1"), (-math.inf, "1%", 0.9, "at least 1"), ("10", 1, 0.9, "at least 1"),
    (10, 0, 0.9, "1 <= top <= total"), (10, 11, 0.9, "1 <= top <= total"), (10, -1, 0.9, "1 <= top <= total"),
    (10, 2.5, 0.9, "or a share"), (10, True, 0.9, "or a share"), (10, "ten", 0.9, "or a share"), (10, "-1%", 0.9, "or a share"),
    (10, "1e-9%", 0.9, "or a share"), (10, "nan%", 0.9, "or a share"), (10, None, 0.9, "or a share"),
    (10, "0%", 0.9, "between 0% and 100%"), (10, "100%", 0.9, "between 0% and 100%"), (10, "5%", 0.9, "less than one"),
    (math.inf, 10, 0.9, "infinite. Write a share"),
    (10, 1, 0.0, "0 < confidence < 1"), (10, 1, 1.0, "0 < confidence < 1"), (10, 1, 90, "0 < confidence < 1"),
    (10, 1, math.nan, "0 < confidence < 1"), (10, 1, "0.9", "0 < confidence < 1"), (10, 1, True, "0 < confidence < 1"),
])
def test_a_goal_that_cannot_be_says_why(total: int, top: int, confidence: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Coverage(total, top, confidence)


@pytest.mark.parametrize("trials", [-1, 2.0, True, "3"])
def test_a_number_of_trials_is_a_whole_one(trials: int) -> None:
    with pytest.raises(ValueError, match="number of trials"):
        Coverage(10, 1, 0.9).reached(trials)


def test_a_confidence_may_be_numpys() -> None:
    assert Coverage(1000, 10, np.float64(0.9)).needed == Coverage(1000, 10, 0.9).needed
