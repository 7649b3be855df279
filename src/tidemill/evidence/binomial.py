"""Binomial probabilities of any share, by summing the smaller tail; no library."""

from __future__ import annotations

import math
from collections.abc import Iterator


def log_mass(n: int, k: int, share: float) -> float:
    """The logarithm of P(X = k) for X ~ Binomial(n, share); ``share`` strictly between 0 and 1."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(share) + (n - k) * math.log1p(-share)


def masses(n: int, share: float) -> Iterator[float]:
    """P(X = 0), P(X = 1), ... P(X = n) for X ~ Binomial(n, share), ``share`` from 0 to 1."""
    if share in (0, 1):
        yield from (float(k == n * share) for k in range(n + 1))
        return
    yield from (math.exp(log_mass(n, k, share)) for k in range(n + 1))
