"""How many random configs to try so that, with a stated probability, one of the best was looked at; and the way back.

Of N configs, K are called the top. The chance that x draws miss all of them is

    with replacement (and in a continuous space, K/N = the top share):   (1 - K/N)^x
    without replacement (hypergeometric):                                C(N-K, x) / C(N, x)

and a coverage of P needs the smallest x at which that is at most 1 - P. Bergstra, Bengio. "Random Search for Hyper-Parameter
Optimization." JMLR 13, 2012. https://jmlr.org/papers/v13/bergstra12a.html (the 59 draws that find the top 5 % with 95 %).

Chances are compared with 80 decimal digits and two more for each of N's (ln N! is about N ln N; neighbours differ by 1/N), and
with the confidence as it was typed (0.9 is nine tenths, not the nearest binary fraction): numbers are exact up to N = 1e300. A
chance within a share of 1e-40 / N of the goal counts as the goal.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

__all__ = ["Coverage", "share_of"]

DIGITS = 80
LARGEST = 10**300  # a space of more configs is treated as infinite: no two draws coincide, and logarithms would take seconds


@dataclass(frozen=True)
class Coverage:
    """The goal "one of the `top` configs of `total`, with probability `confidence`".

    total:      number of configs, or math.inf for a space with a continuous dimension.
    top:        how many configs count as found (an int, finite spaces only), or a share of the draws, such as "1%" or "0.5%".
                A share of a finite space is rounded down to whole configs.
    confidence: between 0 and 1, both excluded.
    without_replacement: whether draws of a finite space are distinct; in an infinite one they always are.

    Raises ValueError for values out of range, a count in an infinite space, a share of less than one config.

        Coverage(1000, 10, 0.9).needed  # 205
        Coverage(1000, 10, 0.9, without_replacement=False).needed  # 230
    """

    total: int | float
    top: int | str
    confidence: float
    without_replacement: bool = True

    def __post_init__(self) -> None:
        if self.total != math.inf and (isinstance(self.total, bool) or not isinstance(self.total, int) or self.total < 1):
            raise ValueError(f"`total` must be a number of configs, at least 1, or math.inf, but got {self.total!r}.")
        confidence = self.confidence
        if isinstance(confidence, bool) or not isinstance(confidence, float | int) or not 0 < confidence < 1:
            raise ValueError(f"`0 < confidence < 1` must hold, but got {confidence!r}. Nine in ten is 0.9.")
        share = share_of(self.top)
        if share is not None:
            if not 0 < share < 1:
                raise ValueError(f"a top share must lie between 0% and 100%, but got {self.top!r}.")
            if isinstance(self.total, int) and share * self.total < 1:
                raise ValueError(f"the top {self.top} of {self.total} configs is less than one. Use top = 1, or a larger share.")
        elif self.total > LARGEST:
            size = "infinite" if self.total == math.inf else "of more than 10^300 configs"
            raise ValueError(f"`top = {self.top}` counts configs, but this space is {size}. Write a share, such as top = '1%'.")
        elif not 1 <= int(self.top) <= self.total:
            raise ValueError(f"`1 <= top <= total` must hold, but got top = {self.top} and total = {self.total}.")

    @property
    def hits(self) -> int | None:
        """K, the number of configs that count as found; None in an infinite space."""
        if not isinstance(self.total, int) or self.total > LARGEST:
            return None
        share = share_of(self.top)
        return int(self.top) if share is None else int(share * self.total)

    @property
    def distinct(self) -> bool:
        """Whether the hypergeometric law holds."""
        return self.without_replacement and self.hits is not None

    @property
    def needed(self) -> int:
        """The smallest number of trials that reaches the goal."""
        with localcontext(prec=self._digits):
            tie = self._tie
            goal = (1 - Decimal(repr(float(self.confidence)))).ln()
            if self._log_miss(1) <= goal + tie:
                return 1
            if not self.distinct:
                return math.ceil(goal / self._log_miss(1) - tie)
            return self._distinct_needed(goal, tie)

    def _distinct_needed(self, goal: Decimal, tie: Decimal) -> int:
        """Newton on ln(miss), concave and falling in x: from the second step on it nears the root from above."""
        n, k = _known(self.total), _known(self.hits)
        centre = n - Decimal(k - 1) / 2
        x = min(max(int(centre * (1 - (goal / k).exp())), 1), n - k)  # by C(n-k, x)/C(n, x) ~ ((centre-x)/centre)^k
        while step := int((self._log_miss(x) - goal) / _ln(Fraction(n - x + 1, n - k - x + 1))):
            if x + step > n - k:
                if x == n - k:
                    break
                step = n - k - x
            x += step
        while self._log_miss(x) > goal + tie:
            x += 1
        while self._log_miss(x - 1) <= goal + tie:
            x -= 1
        return x

    def reached(self, trials: int) -> float:
        """The probability, in [0, 1], that so many finished trials looked at one of the top configs."""
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 0:
            raise ValueError(f"a number of trials is an int and not negative, but got {trials!r}.")
        with localcontext(prec=self._digits):
            return 0.0 - math.expm1(float(self._log_miss(trials)))  # not -0.0

    def is_reached(self, trials: int) -> bool:
        return trials >= self.needed

    @property
    def _length(self) -> int:
        """Decimal digits of N, or of the share's denominator."""
        share = share_of(self.top)
        largest = max(1 if self.hits is None else _known(self.total), 1 if share is None else share.denominator)
        return 1 + largest.bit_length() * 3 // 10

    @property
    def _digits(self) -> int:
        return DIGITS + 2 * self._length

    @property
    def _tie(self) -> Decimal:
        return Decimal(10) ** -(40 + self._length)

    def _log_miss(self, x: int) -> Decimal:
        """ln of the chance that x draws miss every top config; -inf where they cannot."""
        if x == 0:
            return Decimal(0)
        if not self.distinct:
            share = share_of(self.top) if self.hits is None else Fraction(self.hits, _known(self.total))
            assert share is not None
            rest = 1 - share
            return x * _ln(rest)
        n, k = _known(self.total), _known(self.hits)
        if x > n - k:
            return Decimal("-Infinity")
        # C(n-k, x) / C(n, x) = (n-k)! (n-x)! / ((n-k-x)! n!)
        digits = self._digits
        above = _ln_factorial(n - k, digits) + _ln_factorial(n - x, digits)
        return above - _ln_factorial(n - k - x, digits) - _ln_factorial(n, digits)


def share_of(top: int | str) -> Fraction | None:
    """A share such as "1%" as an exact fraction; None for a count."""
    if isinstance(top, int) and not isinstance(top, bool):
        return None
    if isinstance(top, str) and (typed := re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,30})?)\s*%\s*", top, re.ASCII)):
        return Fraction(typed[1]) / 100
    raise ValueError(f"`top` must be a number of configs, such as 10, or a share, such as '1%', but got {top!r}.")


def _known(value: int | float | None) -> int:
    assert isinstance(value, int)
    return value


def _ln(x: Fraction) -> Decimal:
    return (Decimal(x.numerator) / Decimal(x.denominator)).ln() if x else Decimal("-Infinity")


@lru_cache(maxsize=256)
def _ln_factorial(n: int, digits: int) -> Decimal:
    """ln n! in the current context of `digits` places: exact below 256, then Stirling with up to 25 terms (error < 1e-95)."""
    if n < 256:
        return Decimal(math.factorial(n)).ln()
    z = Decimal(n)
    series = Decimal(0)
    for m, b in enumerate(_bernoulli(), start=1):  # B_2m / (2m (2m-1) z^(2m-1))
        term = Decimal(b.numerator) / Decimal(b.denominator) / (2 * m * (2 * m - 1)) / z ** (2 * m - 1)
        series += term
        if term.adjusted() < -digits:
            break
    return z * z.ln() - z + (2 * _pi(digits) * z).ln() / 2 + series


@lru_cache(maxsize=1)
def _bernoulli() -> tuple[Fraction, ...]:
    """B_2, B_4, ..., B_50."""
    numbers = [Fraction(1)]
    for m in range(1, 51):
        numbers.append(-sum((math.comb(m + 1, k) * numbers[k] for k in range(m)), Fraction(0)) / (m + 1))
    return tuple(numbers[2::2])


@lru_cache(maxsize=8)
def _pi(digits: int) -> Decimal:
    """Machin: pi = 16 atan(1/5) - 4 atan(1/239)."""

    def atan(inverse: int) -> Decimal:
        total, power, k = Decimal(0), Decimal(1) / inverse, 0
        while power.adjusted() > -digits - 5:
            total += power / (2 * k + 1)
            power, k = -power / (inverse * inverse), k + 1
        return total

    return 16 * atan(5) - 4 * atan(239)
