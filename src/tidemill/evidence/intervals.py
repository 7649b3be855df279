"""Intervals for means of bounded values.

Betting intervals: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024): a
candidate mean is excluded once a bettor against it grows rich. Wilson's interval for plain shares: Wilson (1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.evidence.betting import LAMBDAS, log_mean_exp
from tidemill.kernel import InvalidInput

_HALVINGS: Final = 24  # 2**-24 of the range: finer than any report shows
_STAKE_CAP: Final = 0.9  # share of the wealth that one bet may lose


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence limits.

    Args:
        low, high: the limits.
        mean: the estimate.
        n: values (or clusters) it rests on; 0 gives the whole range and the middle of it as the mean.
    """

    low: float
    high: float
    mean: float
    n: int

    def as_json(self) -> dict[str, Any]:
        """The interval as a plain JSON object."""
        return {"low": self.low, "high": self.high, "mean": self.mean, "n": self.n}


def _unit_values(values: Sequence[float], low: float, high: float) -> list[float]:
    if not high > low:
        raise InvalidInput(f"a range from {low} to {high} is empty")
    for value in values:
        if not low <= value <= high:
            raise InvalidInput(f"value {value} is out of range: expected {low} to {high}")
    return [(value - low) / (high - low) for value in values]


def _lower_limit(values: list[float], rejects: Callable[[list[float], float], bool]) -> float:
    """The largest excluded mean, by bisection: evidence against ``mean <= m`` falls as m grows."""
    low, high = 0.0, 1.0
    if not rejects(values, 2.0**-_HALVINGS):
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(values, middle) else (low, middle)
    return low


def _interval(
    values: Sequence[float], low: float, high: float, rejects: Callable[[list[float], float], bool]
) -> Interval:
    unit = _unit_values(values, low, high)
    if not unit:
        return Interval(low, high, (low + high) / 2, 0)
    lower = _lower_limit(unit, rejects)
    upper = 1 - _lower_limit([1 - value for value in unit], rejects)
    mean = sum(values) / len(values)
    # Stakes that follow the data may exclude the sample mean itself; nobody could read such an interval.
    return Interval(min(mean, low + lower * (high - low)), max(mean, low + upper * (high - low)), mean, len(values))


def confidence_sequence(
    values: Sequence[float], alpha: float = 0.05, *, low: float = 0.0, high: float = 1.0
) -> Interval:
    """An interval for the mean that holds at every look at once, in the order the values came.

    Args:
        values: each in [low, high]; independent, or with a constant mean given the past.
        alpha: the chance that the interval misses the mean at any time at all.
        low: the smallest possible value.
        high: the largest possible value.

    Raises:
        InvalidInput: a value out of range.
    """
    bar = math.log(2 / alpha)

    def rejects(unit: list[float], null_mean: float) -> bool:
        # The wealth of the last look, not the greatest so far: a little wider, and it always holds the estimate.
        gains = [value / null_mean - 1 for value in unit]
        return log_mean_exp([sum(math.log1p(stake * gain) for gain in gains) for stake in LAMBDAS]) >= bar

    return _interval(values, low, high, rejects)


def betting_log_evidence(unit: Sequence[float], null_mean: float, alpha: float) -> float:
    """The log of the greatest wealth won against "mean <= null_mean", with stakes tuned to this sample size.

    Args:
        unit: values in [0, 1].
        null_mean: in [0, 1].
        alpha: the level the stakes are tuned to; the evidence holds for every level.

    Returns:
        The maximum over time of log wealth, at least 0; ``exp(-it)`` is a p-value by Ville's inequality.
    """
    if not null_mean:
        return math.inf if any(unit) else 0.0
    cap = _STAKE_CAP / null_mean
    budget = 2 * math.log(1 / alpha) / max(1, len(unit))
    log_wealth = best = 0.0
    mean, spread = 0.5, 0.25  # prior guesses count as one observation
    for seen, value in enumerate(unit, 1):
        stake = min(cap, math.sqrt(budget * seen / spread))
        log_wealth += math.log1p(stake * (value - null_mean))
        best = max(best, log_wealth)
        mean += (value - mean) / (seen + 1)
        spread += (value - mean) ** 2
    return best


def shuffled(values: Sequence[float]) -> list[float]:
    """The values in a fixed random order, so that a suite sorted from easy to hard wins no bet by its order."""
    import random  # here, for its import costs more than this package's

    order = list(values)
    random.Random(0).shuffle(order)  # noqa: S311 - a repeatable order is wanted, not a secret
    return order


def mean_interval(values: Sequence[float], alpha: float = 0.05, *, low: float = 0.0, high: float = 1.0) -> Interval:
    """An interval for the mean of a sample of fixed size, for reports.

    Wilson's for values that are all 0 or 1; else a betting interval, whose coverage holds for every n and every
    distribution on the range.

    Args:
        values: each in [low, high].
        alpha: the chance that the interval misses the mean.
        low: the smallest possible value.
        high: the largest possible value.

    Raises:
        InvalidInput: a value out of range.
    """
    if values and (low, high) == (0.0, 1.0) and all(value in (0, 1) for value in values):
        return wilson_interval(round(sum(values)), len(values), alpha)
    bar = math.log(2 / alpha)
    return _interval(shuffled(values), low, high, lambda unit, m: betting_log_evidence(unit, m, alpha / 2) >= bar)


def wilson_interval(successes: int, n: int, alpha: float = 0.05) -> Interval:
    """Wilson's score interval for a share.

    Raises:
        InvalidInput: not ``0 <= successes <= n``.
    """
    if not 0 <= successes <= n:
        raise InvalidInput(f"{successes} successes of {n} is not a share")
    if n == 0:
        return Interval(0.0, 1.0, 0.5, 0)
    from statistics import NormalDist  # its import costs more than this package's

    z = NormalDist().inv_cdf(1 - alpha / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half), share, n)
