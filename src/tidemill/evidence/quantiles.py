"""Intervals for quantiles: what share of values lies at or below a point is a Bernoulli question.

``1{X <= x}`` has mean F(x). A point x lies below the q-quantile exactly if F(x) < q, so each x that is refuted as a
quantile is refuted by a test of a share, for every distribution, continuous or not. The limits are order statistics.
Fixed n: Clopper and Pearson's binomial tails (Conover, "Practical nonparametric statistics", 3.2). Every look at once:
the idea of Howard and Ramdas, "Sequential estimation of quantiles" (2022), with a finite mixture of likelihood ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from tidemill.evidence.betting import log_mean_exp
from tidemill.evidence.binomial import masses
from tidemill.evidence.intervals import Interval
from tidemill.kernel import InvalidInput

LOG_ODDS_SHIFTS: Final = tuple(2.0**power for power in range(2, -7, -1))
"""The alternatives of the mixture, as shifts of the log odds: fixed before any data, equal weights."""


def quantile_interval(
    values: Sequence[float], q: float, alpha: float = 0.05, *, low: float = -math.inf, high: float = math.inf
) -> Interval:
    """A confidence interval for the q-quantile of a sample of fixed size.

    From the r-th to the s-th smallest value: r the largest with ``P(Bin(n, q) < r) <= alpha/2``, s the smallest with
    ``P(Bin(n, q) >= s) <= alpha/2``. The chance to miss is at most ``alpha`` at every n, for independent values of any
    one distribution.

    Args:
        values: the sample, in any order.
        q: which quantile, in (0, 1).
        alpha: the chance that the interval misses it.
        low: the smallest possible value; the limit where too few values lie below.
        high: the largest possible value, likewise.

    Returns:
        The interval; its mean is the sample quantile, the smallest value with a share of at least ``q`` at or below.

    Raises:
        InvalidInput: ``q`` or ``alpha`` is not in (0, 1), or a value is out of range.
    """
    ordered = _checked(values, q, alpha, low, high)
    n = len(ordered)
    below, lower = 0.0, 0
    for k, mass in enumerate(masses(n, q)):
        if below > alpha / 2:  # below is P(X < k)
            break
        lower = k
        below += mass
    tail, upper = 0.0, n + 1
    for k, mass in enumerate(masses(n, 1 - q)):  # P(X = n - k), summed from the far end for its precision
        tail += mass
        if tail > alpha / 2:
            break
        upper = n - k
    return _between(ordered, lower, upper, q, low, high)


def quantile_sequence(
    values: Sequence[float], q: float, alpha: float = 0.05, *, low: float = -math.inf, high: float = math.inf
) -> Interval:
    """An interval for the q-quantile that holds at every look at once.

    Of n values k lie at or below x. Against "F(x) >= q" the wealth is the mean over shifts h of the likelihood ratios
    ``(p/q)**k * ((1-p)/(1-q))**(n-k)``, p having the log odds of q less h; each is a supermartingale while F(x) >= q.
    x is below the interval if that reaches ``2/alpha``, and likewise above it. The state is the counts alone.

    Args:
        values: those seen so far; independent and of one distribution, or each with the q-quantile given the past.
        q: which quantile, in (0, 1).
        alpha: the chance that the interval misses it at any time at all.
        low: the smallest possible value; the limit where too few values lie below.
        high: the largest possible value, likewise.

    Raises:
        InvalidInput: ``q`` or ``alpha`` is not in (0, 1), or a value is out of range.
    """
    ordered = _checked(values, q, alpha, low, high)
    n, bar = len(ordered), math.log(2 / alpha)
    # the wealth falls with every value at or below x: the first count that is not refuted names the limit
    few = _first(n, lambda k: _log_evidence(k, n, q) < bar)
    many = _first(n, lambda k: _log_evidence(k, n, 1 - q) < bar)
    return _between(ordered, few, n + 1 - many, q, low, high)


def _log_evidence(k: int, n: int, q: float) -> float:
    """Log wealth against "a share of at least q", having seen k of n."""
    odds = math.log(q) - math.log1p(-q)
    logs = []
    for shift in LOG_ODDS_SHIFTS:
        p = 1 / (1 + math.exp(shift - odds))
        logs.append(k * math.log(p / q) + (n - k) * math.log((1 - p) / (1 - q)))
    return log_mean_exp(logs)


def _first(n: int, holds: Callable[[int], bool]) -> int:
    """The smallest k in 0..n for which a condition holds that holds from there on."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _checked(values: Sequence[float], q: float, alpha: float, low: float, high: float) -> list[float]:
    if not 0 < q < 1:
        raise InvalidInput(f"quantile {q} is out of range: it lies between 0 and 1")
    if not 0 < alpha < 1:
        raise InvalidInput(f"chance to miss {alpha} is out of range: it lies between 0 and 1")
    for value in values:
        if not low <= value <= high:
            raise InvalidInput(f"value {value} is out of range: expected {low} to {high}")
    return sorted(values)


def _between(ordered: list[float], lower: int, upper: int, q: float, low: float, high: float) -> Interval:
    n = len(ordered)
    if not n:
        middle = (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else 0.0
        return Interval(low, high, middle, 0)
    middle = ordered[max(0, math.ceil(q * n - 1e-9) - 1)]
    return Interval(ordered[lower - 1] if lower else low, ordered[upper - 1] if upper <= n else high, middle, n)
