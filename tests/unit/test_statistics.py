"""Intervals, tails and tests say what they claim, at the error rates that they claim."""
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from metasearch.track.statistics import accuracy_by_instance, holm, mean_interval, paired_p, roc_auc, tail, told_from_first


def few_shot(rng: np.random.Generator, mean: float, hard: np.ndarray, noise: float = 0.06) -> np.ndarray:
    """Accuracies of one trial on shared episodes, in steps of 1/75 as with 5 ways and 15 queries."""
    return np.round(75 * np.clip(mean + hard + rng.normal(0, noise, hard.size), 0, 1)) / 75


def test_the_interval_is_1_96_standard_errors_wide_to_each_side() -> None:
    scores = np.random.default_rng(0).random(600)
    found = mean_interval(scores)
    assert found.mean == pytest.approx(scores.mean())
    assert found.high - found.mean == pytest.approx(1.96 * scores.std(ddof=1) / math.sqrt(600))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.n == 600
    assert mean_interval(scores, ddof=0).high < found.high


def test_the_interval_covers_the_mean_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(1)
    draws = rng.beta(6, 3, (2_000, 600))  # accuracies: bounded and skewed
    covered = sum(low <= 6 / 9 <= high for _, low, high, _ in map(mean_interval, draws))
    assert 0.93 < covered / 2_000 < 0.97  # a right procedure fails this with probability < 1e-4


def test_one_score_and_scores_that_are_not_finite_have_no_interval() -> None:
    assert math.isnan(mean_interval([0.5]).low)
    found = mean_interval([0.5, 0.6, -math.inf])
    assert found.mean == -math.inf
    assert math.isnan(found.low)
    assert math.isnan(mean_interval([0.5, math.nan]).mean)
    with pytest.raises(ValueError, match="no scores"):
        mean_interval([])


def test_the_tail_tells_what_the_mean_hides() -> None:
    scores = [-0.1] * 97 + [-1e30, -math.inf, math.nan]
    assert tail(scores).median == pytest.approx(-0.1)
    assert tail(scores).diverged == pytest.approx(0.02)
    assert tail(scores, worse_than=-100).diverged == pytest.approx(0.03)


def test_holm_gives_the_adjusted_values_of_its_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]).size == 0


def test_holm_raises_any_false_alarm_in_at_most_5_of_100_families_and_the_bare_p_values_in_far_more() -> None:
    rng = np.random.default_rng(2)
    p_values = rng.random((4_000, 20))
    corrected = np.mean([(holm(p) <= 0.05).any() for p in p_values])
    assert 0.035 < corrected < 0.06
    assert np.mean((p_values <= 0.05).any(axis=1)) > 0.5


def test_holm_finds_more_than_bonferroni() -> None:
    p = np.array([0.001, 0.02, 0.03])
    assert (holm(p) <= 0.05).sum() > (p * p.size <= 0.05).sum()


def test_the_paired_test_keeps_its_level_on_accuracies() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(1_000):
        hard = rng.normal(0, 0.1, 200)
        alarms += paired_p(few_shot(rng, 0.6, hard), few_shot(rng, 0.6, hard)) <= 0.05
    assert 0.03 < alarms / 1_000 < 0.075


def test_the_paired_test_finds_a_difference_of_one_point_that_overlapping_intervals_would_call_a_tie() -> None:
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 0.12, 600)
    a, b = few_shot(rng, 0.61, hard, 0.03), few_shot(rng, 0.60, hard, 0.03)
    assert mean_interval(a).low < mean_interval(b).high  # they overlap
    assert stats.ttest_ind(a, b).pvalue > 0.05  # and so does a test that forgets the episodes
    assert paired_p(a, b) < 0.001


def test_the_paired_test_is_the_t_test_of_the_differences() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=50), rng.normal(0.3, 1, size=50)
    assert paired_p(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_equal_scores_cannot_be_told_apart_and_a_constant_gap_can() -> None:
    scores = np.linspace(0, 1, 50)
    assert paired_p(scores, scores) == 1.0
    assert paired_p(scores, scores + 0.25) < 1e-9
    assert paired_p([0.5], [0.9]) == 1.0  # one episode says nothing


def test_where_episodes_diverged_the_sign_test_decides() -> None:
    a = np.full(40, -1.0)
    b = np.full(40, -2.0)
    b[0] = -math.inf
    assert paired_p(a, b) < 1e-9
    assert paired_p(a, np.where(np.arange(40) % 2, -0.5, -math.inf)) > 0.5


def test_scores_on_other_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="same episodes"):
        paired_p([1, 2, 3], [1, 2])


def test_picking_the_luckiest_of_thirty_raises_no_more_than_5_false_alarms_in_100_studies() -> None:
    """30 trials of equal worth; the first is the one with the highest mean. Holm alone is fooled by that choice."""
    rng = np.random.default_rng(6)
    studies, fooled, alarms = 300, 0, 0
    for _ in range(studies):
        hard = rng.normal(0, 0.1, 200)
        rows = 0.6 + hard + rng.normal(0, 0.06, (30, 200))
        first, *others = rows[np.argsort(-rows.mean(1))]
        alarms += bool((told_from_first(first, others) <= 0.05).any())
        fooled += bool((holm([paired_p(first, other) for other in others]) <= 0.05).any())
    assert alarms / studies <= 0.085  # true rate <= 5 %: fails with probability < 0.5 %
    assert fooled / studies > 0.15


def test_trials_that_are_worse_are_told_from_the_first_and_the_equal_ones_are_not() -> None:
    rng = np.random.default_rng(7)
    hard = rng.normal(0, 0.1, 400)
    first = few_shot(rng, 0.70, hard)
    others = [few_shot(rng, mean, hard) for mean in (0.70, 0.70, 0.66, 0.60)]
    told = told_from_first(first, others) <= 0.05
    assert told.tolist() == [False, False, True, True]
    assert told_from_first(first, []).size == 0


def test_the_sign_test_is_the_exact_binomial_test() -> None:
    a = np.zeros(30)
    b = np.where(np.arange(30) < 8, 1.0, -1.0)
    b[-1] = -math.inf
    assert paired_p(a, b) == pytest.approx(stats.binomtest(22, 30).pvalue)


@pytest.mark.parametrize("values", [3, 10, 10**6])
def test_the_area_under_the_curve_is_the_share_of_pairings_won_with_ties_as_halves(values: int) -> None:
    """Counted one by one; with 3 values nearly everything is a tie."""
    rng = np.random.default_rng(values)
    for n in (2, 5, 60):
        scores = rng.integers(values, size=n).astype(float)
        same = rng.permutation(np.arange(n) % 3 == 0)
        won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[same] for b in scores[~same]]
        assert roc_auc(scores, same) == pytest.approx(sum(won) / len(won), abs=1e-12)


def test_the_area_under_the_curve_has_its_landmarks() -> None:
    same = np.array([True, True, False, False])
    assert roc_auc([2, 3, 0, 1], same) == 1.0
    assert roc_auc([0, 1, 2, 3], same) == 0.0
    assert roc_auc([7, 7, 7, 7], same) == 0.5
    assert roc_auc([math.inf, 1, 0, -math.inf], same) == 1.0
    assert math.isnan(roc_auc([math.nan, 1, 0, 0], same))
    x, rising = np.random.default_rng(0).normal(size=50), np.arange(50) % 2 == 0
    assert roc_auc(np.exp(x), rising) == roc_auc(x, rising), "only the order counts"
    assert roc_auc(-x, rising) == pytest.approx(1 - roc_auc(x, rising), abs=1e-12)


def test_an_area_under_the_curve_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="3 same and 0 different"):
        roc_auc([1, 2, 3], [True, True, True])
    with pytest.raises(ValueError, match="2 scores and 1 labels"):
        roc_auc([1, 2], [True])


def test_accuracy_by_instance_counts_the_times_that_a_class_was_seen() -> None:
    labels = [[0, 1, 0, 0, 1], [1, 1, 0, 1, 0]]
    correct = [[1, 0, 1, 1, 0], [0, 1, 1, 1, 0]]
    # first: 0 1 of the one, 1 0 of the other sequence: (1 + 0 + 0 + 1) / 4; second: (1 + 0 + 1 + 0) / 4; third: (1 + 1) / 2
    assert accuracy_by_instance(correct, labels).tolist() == [0.5, 0.5, 1.0]
    assert accuracy_by_instance(correct[0], labels[0]).tolist() == [0.5, 0.5, 1.0]
    assert accuracy_by_instance([], []).tolist() == []
    with pytest.raises(ValueError, match="one shape"):
        accuracy_by_instance([[1]], [1, 2])
