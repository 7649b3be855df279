"""What one worker knows of a target: calls in flight, how fast it is, and whether it fails.

Streamed and whole answers are timed apart: the first token of a stream says nothing about how long a whole answer
takes to be written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Final

from tidemill.gateway.routing.breaker import AttemptResult, BreakerState, CircuitBreaker
from tidemill.kernel import ReleaseRoute, Route, RoutingSnapshot, Target
from tidemill.kernel.routing_policy import Breaker, Choice

_exp, _log = math.exp, math.log
_ANSWERED, _FAILED, _CLOSED = AttemptResult.ANSWERED, AttemptResult.FAILED, BreakerState.CLOSED

DECAY_S: Final = 30.0
"""Time constant in which a peak of latency is forgotten."""

_UNMEASURED_S: Final = 1e6  # a target without any sample gets one call, and no second before the first has answered
_FAILED_MOST_S: Final = 60.0

_FINEST_S: Final = 0.001
_RATIO: Final = 1.1
_BUCKETS: Final = 142  # up to _FINEST_S * 1.1**141 = 685 s
_BUCKETS_PER_E: Final = 1 / math.log(_RATIO)
_FIRST: Final = 1 - math.log(_FINEST_S) * _BUCKETS_PER_E
_HALF_LIFE_S: Final = 60.0
_LEAST_WEIGHT: Final = 20.0
_STALE_SAMPLES: Final = 16


class PeakLatency:
    """A moving average that rises to a peak at once and forgets it slowly: Finagle's Peak EWMA.

    Source: twitter/finagle, ``com.twitter.finagle.loadbalancer.PeakEwma``. Like there, the average decays towards
    zero while nothing is measured, so that a target that was slow is tried again; ``decay_s`` is 30 s rather than 10,
    for answers of language models take seconds.
    """

    __slots__ = ("_at_s", "_decay_s", "_value_s")

    def __init__(self, decay_s: float = DECAY_S) -> None:
        self._decay_s = decay_s
        self._value_s = 0.0
        self._at_s = 0.0

    def observe(self, latency_s: float, now_s: float) -> None:
        """Count a measurement."""
        kept = _exp((self._at_s - now_s) / self._decay_s) if now_s > self._at_s else 1.0
        before_s = self._value_s
        self._value_s = latency_s if latency_s >= before_s * kept else before_s * kept + latency_s * (1 - kept)
        self._at_s = now_s

    def value_s(self, now_s: float) -> float:
        """The average as of now; 0 before any measurement."""
        if now_s <= self._at_s:
            return self._value_s
        return self._value_s * _exp((self._at_s - now_s) / self._decay_s)


class DecayedQuantile:
    """A quantile of the last minutes: a histogram with buckets of equal ratio whose counts halve every minute.

    The bucket scheme is DDSketch's (Masson, Rim and Lee, 2019): with ratio 1.1 between bounds the answer is within
    4.8 % of the true quantile of the weighted sample, from 1 ms to 685 s. A sample counts between half and all of
    ``2 ** -(age / half_life_s)``, for the halving happens in steps.

    Args:
        share: the quantile, in (0, 1).
        half_life_s: age at which a sample counts half.
    """

    __slots__ = ("_added", "_counts", "_half_life_s", "_halve_at_s", "_kept_s", "_share", "_weight")

    def __init__(self, share: float = 0.95, half_life_s: float = _HALF_LIFE_S) -> None:
        self._share = share
        self._half_life_s = half_life_s
        self._counts = [0.0] * _BUCKETS
        self._weight = 0.0
        self._halve_at_s = -math.inf
        self._added = _STALE_SAMPLES
        self._kept_s: float | None = None

    def observe(self, value_s: float, now_s: float) -> None:
        """Count a measurement."""
        if now_s >= self._halve_at_s:
            self._halve(now_s)
        place = int(_log(value_s) * _BUCKETS_PER_E + _FIRST) if value_s > _FINEST_S else 0
        self._counts[place if place < _BUCKETS else _BUCKETS - 1] += 1.0
        self._weight += 1.0
        self._added += 1

    def value_s(self) -> float | None:
        """The quantile; ``None`` until 20 samples (decayed) have come. Computed anew every 16 samples."""
        if self._added < _STALE_SAMPLES:
            return self._kept_s
        if self._weight < _LEAST_WEIGHT:
            return None
        self._added = 0
        above = self._weight * (1 - self._share)
        place = _BUCKETS - 1
        for place in range(_BUCKETS - 1, -1, -1):
            above -= self._counts[place]
            if above < 0:
                break
        # the value whose greatest relative error to both bounds of the bucket is least
        self._kept_s = _FINEST_S * _RATIO**place * 2 / (1 + _RATIO) if place else _FINEST_S
        return self._kept_s

    def _halve(self, now_s: float) -> None:
        if self._halve_at_s != -math.inf:
            factor = 0.5 ** (1 + (now_s - self._halve_at_s) // self._half_life_s)
            self._counts = [count * factor for count in self._counts]
            self._weight *= factor
            self._added = _STALE_SAMPLES
        self._halve_at_s = now_s + self._half_life_s


class TargetHealth:
    """What one worker knows of one target.

    Args:
        breaker: the policy of its breaker.
        rng: for the breaker's jitter.

    Attributes:
        in_flight: attempts under way.
        breaker: its circuit breaker.
        timed: whether latency is measured: only where a policy reads it, for it is half of what an attempt costs.
        peaks, paces: latency average and p95 of the first token, of whole answers and of streams.
    """

    __slots__ = ("breaker", "in_flight", "paces", "peaks", "timed")

    def __init__(self, breaker: Breaker, rng: Random) -> None:
        self.breaker = CircuitBreaker(breaker, rng)
        self.in_flight = 0
        self.timed = True
        self.peaks = (PeakLatency(), PeakLatency())
        self.paces = (DecayedQuantile(), DecayedQuantile())

    def load(self, now_s: float, *, streamed: bool) -> float:
        """Peak latency times calls in flight, the new one included: what a choice makes small."""
        peak_s = self.peaks[streamed].value_s(now_s)
        if peak_s:
            return peak_s * (self.in_flight + 1)
        return _UNMEASURED_S + self.in_flight if self.in_flight else 0.0

    def p95_first_token_s(self, *, streamed: bool) -> float | None:
        """The 95th percentile of the time to the first token; ``None`` while too few were measured."""
        return self.paces[streamed].value_s()

    def begin(self, now_s: float, *, streamed: bool) -> Attempt:
        """An attempt starts. Its ``end`` must be called, whatever happens."""
        self.in_flight += 1
        return Attempt(self, now_s, self.breaker.enter(now_s), streamed)

    def observe(self, latency_s: float, now_s: float, *, streamed: bool) -> None:
        """Count a measured time to the first token."""
        self.peaks[streamed].observe(latency_s, now_s)
        self.paces[streamed].observe(latency_s, now_s)

    def observe_failure(self, elapsed_s: float, now_s: float, *, streamed: bool) -> None:
        """Count a failure as twice the present average, so that failing fast does not look like being fast."""
        peak = self.peaks[streamed]
        peak.observe(min(_FAILED_MOST_S, max(elapsed_s, 2 * peak.value_s(now_s))), now_s)


class Attempt:
    """One call to a target, for its health. Made by ``TargetHealth.begin``."""

    __slots__ = ("_entered", "_over", "_started_s", "_streamed", "health", "heard")

    def __init__(self, health: TargetHealth, started_s: float, entered: int, streamed: bool) -> None:
        self.health = health
        self.heard = False
        self._started_s = started_s
        self._entered = entered
        self._streamed = streamed
        self._over = False

    def first_token(self, now_s: float) -> float:
        """The first token of a good answer came (of a whole answer: its first byte). Proves a target under probe.

        Returns:
            Seconds since the attempt began.
        """
        elapsed_s = now_s - self._started_s
        if self.heard or self._over:
            return elapsed_s
        self.heard = True
        health = self.health
        if health.timed:
            health.observe(elapsed_s, now_s, streamed=self._streamed)
        breaker = health.breaker
        if breaker.state is not _CLOSED:
            breaker.exit(self._entered, _ANSWERED, now_s)
        return elapsed_s

    def end(self, result: AttemptResult, now_s: float, retry_after_s: float | None = None) -> None:
        """The attempt is over; a second call changes nothing.

        Args:
            result: how it ended.
            now_s: the time.
            retry_after_s: what the target asked for, if it did.
        """
        if self._over:
            return
        self._over = True
        health = self.health
        health.in_flight -= 1
        health.breaker.exit(self._entered, result, now_s, retry_after_s)
        if result is _FAILED and health.timed:
            health.observe_failure(now_s - self._started_s, now_s, streamed=self._streamed)


Place = tuple[str, str, str, str | None, str | None]
"""What a target's health is kept under: tenant, endpoint, URL, model, reference of the upstream's key."""


def place_of(route: Route, target: Target) -> Place:
    """Where the health of a target is kept. Releases of an endpoint that share an upstream share its health."""
    return route.tenant, route.endpoint, target.url, target.model, target.api_key_ref


def reads_latency(route: Route) -> bool:
    """Whether anything of a route asks how fast its targets are: a choice by latency, or hedging."""
    return route.policy.hedging.share > 0 or any(
        release.choice.kind is Choice.PEAK_EWMA for release in route.releases if len(release.targets) > 1
    )


class HealthBook:
    """The health of all targets of a worker; it outlives the snapshots.

    Args:
        rng: for the breakers' jitter.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._kept: dict[Place, TargetHealth] = {}

    def of(self, route: Route, target: Target) -> TargetHealth:
        """The health of a target of a route, under the route's policy as it is now."""
        place = place_of(route, target)
        health = self._kept.get(place)
        if health is None:
            health = self._kept[place] = TargetHealth(route.policy.breaker, self._rng)
        else:
            health.breaker.follow(route.policy.breaker)
        health.timed = reads_latency(route)
        return health

    def of_release(self, route: Route, release: ReleaseRoute) -> tuple[TargetHealth, ...]:
        """The health of a release's targets, in their order."""
        return tuple(self.of(route, target) for target in release.targets)

    def forget_others(self, snapshot: RoutingSnapshot) -> None:
        """Forget the targets that a snapshot no longer has, to be called after taking it over."""
        named = {
            place_of(route, target)
            for route in snapshot.routes
            for release in (*route.releases, *((route.shadow,) if route.shadow is not None else ()))
            for target in release.targets
        }
        self._kept = {place: health for place, health in self._kept.items() if place in named}

    def __iter__(self) -> Iterator[tuple[Place, TargetHealth]]:
        return iter(self._kept.items())
