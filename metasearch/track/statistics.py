"""What may be said about scores: intervals, heavy tails, and which rows cannot be told from the first.

A score is one number an episode; all trials of a study are scored on the same episodes (one bank), so they are compared
in pairs, episode by episode: what makes an episode hard for all of them cancels. Overlapping intervals are no test.
An interval here covers the draw of the episodes; not the training seed, and not the choice of the best of n trials.

S. Holm. "A simple sequentially rejective multiple test procedure". Scandinavian Journal of Statistics 6 (1979), 65-70.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.96  # what MAML, Prototypical Networks and the papers after them multiply the standard error with


class Interval(NamedTuple):
    """A mean with its 95 % interval; low and high are NaN where there is none (fewer than two scores, or one not finite)."""

    mean: float
    low: float
    high: float
    n: int


class Tail(NamedTuple):
    """What a mean hides when a few episodes blow up."""

    median: float
    diverged: float  # fraction in [0, 1]


def mean_interval(scores: ArrayLike, *, ddof: int = 1) -> Interval:
    """mean ± 1.96 std / sqrt(n) over per-episode scores [n].

    ddof=1 is the unbiased variance; papers that call numpy.std use ddof=0, which is 0.1 % narrower at 600 episodes.
    A score that is not finite makes a mean that is not finite, without an interval: see `tail`.
    """
    x = np.asarray(scores, dtype=np.float64).ravel()
    if x.size == 0:
        raise ValueError("the mean of no scores is not defined: give at least one episode")
    with np.errstate(invalid="ignore"):
        mean = float(x.mean())
    if x.size <= max(ddof, 1) or not np.isfinite(x).all():
        return Interval(mean, math.nan, math.nan, x.size)
    half = Z95 * float(x.std(ddof=ddof)) / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half, x.size)


def accuracy_by_instance(correct: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Accuracy of the k-th time that a class is seen, k = 1, 2, ...: [most instances of any class].

    correct, labels: of sequences [n, T] (or one, [T]). Santoro et al. 2016 (https://arxiv.org/abs/1605.06065), table 1.
    """
    right, label = np.atleast_2d(np.asarray(correct, dtype=np.float64)), np.atleast_2d(np.asarray(labels))
    if right.shape != label.shape:
        raise ValueError(f"correct and labels must have one shape, but have {right.shape} and {label.shape}")
    same = label[:, :, None] == label[:, None, :]  # [n, T, T]
    instance = np.tril(same).sum(axis=2) - 1  # [n, T]: how often the class was seen before
    return np.array([right[instance == k].mean() for k in range(int(instance.max(initial=-1)) + 1)])


def tail(scores: ArrayLike, *, worse_than: float = -math.inf) -> Tail:
    """Median and fraction of diverged episodes: those not finite, or with a score (larger is better) below `worse_than`."""
    x = np.asarray(scores, dtype=np.float64).ravel()
    if x.size == 0:
        raise ValueError("the median of no scores is not defined: give at least one episode")
    lost = ~np.isfinite(x) | (x < worse_than)
    return Tail(float(np.median(np.where(np.isnan(x), -math.inf, x))), float(lost.mean()))


def paired_p(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of "a and b have the same mean" for scores [n] of two trials on the same n episodes.

    A paired t test; where a score is not finite there are no means, and a sign test of "neither wins more episodes".
    Raises ValueError if the two were not scored on equally many episodes.
    """
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if x.shape != y.shape:
        raise ValueError(f"a paired test needs the same episodes, but got {x.size} and {y.size} scores")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return _sign_p(np.nan_to_num(x, nan=-math.inf), np.nan_to_num(y, nan=-math.inf))
    d = x - y
    if d.size < 2 or not d.any():
        return 1.0
    spread = float(d.std(ddof=1))
    if spread <= 1e-12 * float(np.abs(d).max()):  # the same difference everywhere: what a sign-flip test would say
        return float(min(1.0, 2.0 ** (1 - d.size)))
    t = float(d.mean()) / (spread / math.sqrt(d.size))
    from scipy.special import stdtr  # here: the driver needs intervals only. scipy.stats would take half a second more

    return float(2.0 * stdtr(d.size - 1, -abs(t)))


def roc_auc(scores: ArrayLike, same: ArrayLike) -> float:
    """Area under the receiver operating characteristic: the chance that a same pair scores above a different one.

    scores [n], larger for pairs that are likelier the same; same [n], true or false. Exact: Mann and Whitney's U over the number
    of pairings, a tie counts one half (Hanley, McNeil. Radiology 143, 1982). NaN if a score is NaN.
    Raises ValueError if one of the two kinds is missing.
    """
    x, positive = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(same, dtype=bool).ravel()
    if x.shape != positive.shape:
        raise ValueError(f"every score needs its label, but got {x.size} scores and {positive.size} labels")
    yes, no = int(positive.sum()), int((~positive).sum())
    if min(yes, no) == 0:
        raise ValueError(f"an area under the curve needs both kinds of pairs, but got {yes} same and {no} different ones")
    if np.isnan(x).any():
        return math.nan
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    ranks = (below + (counts + 1) / 2)[place]  # from 1; tied scores share the mean of their ranks
    return (float(ranks[positive].sum()) - yes * (yes + 1) / 2) / (yes * no)


def _sign_p(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    wins, losses = int((x > y).sum()), int((x < y).sum())
    from scipy.special import bdtr

    return min(1.0, 2.0 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values [m], in the order given: rejecting those <= alpha keeps the chance of any false alarm <= alpha."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def told_from_first(first: ArrayLike, others: Sequence[ArrayLike], *, best_of: int | None = None) -> NDArray[np.float64]:
    """Adjusted p-values [len(others)] of "this row is as good as the first", by paired tests with Holm's correction.

    best_of: the first was picked as the best of so many rows because of these very scores (default: of all rows given; 2 if
    it was named beforehand). Picking the luckiest of n is a choice among n, so every p-value is multiplied by n / 2 before
    Holm (one side of two, for each of n possible firsts). Without it, 30 equally good trials raise a false alarm in a third
    of all studies instead of in at most 5 %.
    """
    if not others:
        return np.empty(0)
    n = len(others) + 1 if best_of is None else best_of
    selected = max(1.0, n / 2)
    return holm([min(1.0, selected * paired_p(first, other)) for other in others])
