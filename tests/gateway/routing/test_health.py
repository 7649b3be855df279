"""Latency averages and quantiles against the exact values of the same samples."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.routing import AttemptResult, BreakerState, HealthBook, TargetHealth
from tidemill.gateway.routing.health import DECAY_S, DecayedQuantile, PeakLatency
from tidemill.kernel import ReleaseRoute, Route, RoutingSnapshot, Target
from tidemill.kernel.routing_policy import Breaker, Choice, ChoicePolicy, Hedging, RoutePolicy

seconds = st.floats(0.001, 600, allow_nan=False)


def health() -> TargetHealth:
    return TargetHealth(Breaker(), Random(0))


def test_a_peak_counts_at_once_and_is_forgotten_slowly() -> None:
    peak = PeakLatency()
    assert peak.value_s(0.0) == 0
    peak.observe(0.5, 0.0)
    peak.observe(8.0, 1.0)
    assert peak.value_s(1.0) == 8.0
    assert peak.value_s(1.0 + DECAY_S) == pytest.approx(8 / math.e)
    for step in range(1, 600):
        peak.observe(0.5, 1.0 + step / 2)
    assert peak.value_s(300.5) == pytest.approx(0.5, rel=0.01)


@given(st.lists(st.tuples(seconds, st.floats(0, 20)), min_size=1, max_size=50))
def test_the_average_lies_between_the_last_and_the_largest(samples: list[tuple[float, float]]) -> None:
    peak, now_s = PeakLatency(), 50.0
    for latency_s, gap_s in samples:
        now_s += gap_s
        peak.observe(latency_s, now_s)
        assert peak.value_s(now_s) >= latency_s * (1 - 1e-9)
    assert 0 < peak.value_s(now_s) <= max(latency_s for latency_s, _ in samples) * (1 + 1e-9)
    assert peak.value_s(now_s + 1) < peak.value_s(now_s)


@given(st.lists(seconds, min_size=20, max_size=400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_quantile_is_within_five_percent_of_one_of_the_sample(values: list[float], share: float) -> None:
    quantile = DecayedQuantile(share)
    for value in values:
        quantile.observe(value, 0.0)
    quantile._added = 10**6  # the answer as of the last sample, not of one of the last 16
    found = quantile.value_s()
    assert found is not None
    # the sample's own value of that rank; where the rank falls between two values, either
    ordered = sorted(values, reverse=True)
    above = len(ordered) * (1 - share)
    exact = {ordered[min(len(ordered) - 1, math.floor(above + nudge))] for nudge in (-1e-9, 1e-9)}
    assert any(found == pytest.approx(value, rel=0.05) for value in exact)


def test_the_quantile_of_lognormal_times_is_near_the_true_one() -> None:
    rng = Random(4)
    quantile = DecayedQuantile(0.95)
    for number in range(20_000):
        quantile.observe(math.exp(rng.gauss(-1, 0.8)), number / 200)
    true = math.exp(-1 + 0.8 * 1.6449)
    assert quantile.value_s() == pytest.approx(true, rel=0.1)


def test_the_quantile_waits_for_samples_and_forgets_old_ones() -> None:
    quantile = DecayedQuantile(0.95, half_life_s=60)
    for _ in range(19):
        quantile.observe(1.0, 0.0)
    assert quantile.value_s() is None
    for _ in range(1000):
        quantile.observe(1.0, 0.0)
    assert quantile.value_s() == pytest.approx(1.0, rel=0.05)
    for number in range(400):
        quantile.observe(0.1, 600.0 + number)
    assert quantile.value_s() == pytest.approx(0.1, rel=0.05)


def test_streams_and_whole_answers_are_timed_apart() -> None:
    h = health()
    for _ in range(40):
        h.begin(0.0, streamed=True).first_token(0.2)
        h.begin(0.0, streamed=False).first_token(9.0)
    assert h.p95_first_token_s(streamed=True) == pytest.approx(0.2, rel=0.05)
    assert h.p95_first_token_s(streamed=False) == pytest.approx(9.0, rel=0.05)


def test_an_attempt_counts_once_whatever_is_called_twice() -> None:
    h = health()
    attempt = h.begin(1.0, streamed=True)
    assert h.in_flight == 1
    assert attempt.first_token(1.5) == 0.5
    attempt.first_token(3.0)
    assert h.load(1.5, streamed=True) == pytest.approx(0.5 * 2)
    attempt.end(AttemptResult.ANSWERED, 2.0)
    attempt.end(AttemptResult.FAILED, 2.0)
    assert h.in_flight == 0
    assert h.breaker.counted(2.0) == (1, 0)


def test_an_unmeasured_target_gets_one_call_until_it_has_answered() -> None:
    h = health()
    assert h.load(0.0, streamed=True) == 0
    attempt = h.begin(0.0, streamed=True)
    assert h.load(0.0, streamed=True) > 3600
    attempt.first_token(1.0)
    assert h.load(1.0, streamed=True) == 2.0


def test_failing_fast_does_not_look_like_being_fast() -> None:
    h = health()
    h.begin(0.0, streamed=True).first_token(1.0)
    for _ in range(3):
        h.begin(1.0, streamed=True).end(AttemptResult.FAILED, 1.001)
    assert h.load(1.001, streamed=True) > 7


def test_the_first_token_of_a_probe_opens_the_way_before_its_last() -> None:
    h = health()
    for _ in range(5):
        h.begin(0.0, streamed=True).end(AttemptResult.FAILED, 0.0)
    now_s = h.breaker.opens_at_s
    probe = h.begin(now_s, streamed=True)
    assert h.breaker.state is BreakerState.HALF_OPEN
    probe.first_token(now_s + 1)
    assert h.breaker.state is BreakerState.CLOSED
    probe.end(AttemptResult.ANSWERED, now_s + 60)
    assert h.breaker.state is BreakerState.CLOSED


def test_health_outlives_snapshots_and_is_shared_by_releases_of_an_endpoint() -> None:
    book = HealthBook(Random(0))
    target, other = Target("http://a", "m", name="a"), Target("http://b", "m")
    first = ReleaseRoute("r1", "release/x@1", (target, other))
    second = ReleaseRoute("r2", "release/x@2", (Target("http://a", "m", name="renamed", weight=3.0),))
    route = Route("desk", "t", (first, second))
    one, two = book.of_release(route, first)
    assert book.of_release(route, second) == (one,)
    assert book.of(Route("other", "t", (first,)), target) is not one
    stricter = Route("desk", "t", (second,), policy=RoutePolicy(breaker=Breaker(consecutive=1)))
    assert book.of_release(stricter, second) == (one,)
    one.begin(0.0, streamed=True).end(AttemptResult.FAILED, 0.0)
    assert one.breaker.state is BreakerState.OPEN
    book.forget_others(RoutingSnapshot("demo", 2, 0.0, 60.0, routes=(stricter,)))
    assert [kept for _, kept in book] == [one]
    assert book.of(route, other) is not two


def test_latency_is_measured_only_where_something_reads_it() -> None:
    release = ReleaseRoute("r1", "release/x@1", (Target("http://a"), Target("http://b")))
    by_latency = replace(release, choice=ChoicePolicy(kind=Choice.PEAK_EWMA))
    plain, chosen = Route("desk", "t", (release,)), Route("desk", "t", (by_latency,))
    hedged = Route("desk", "t", (release,), policy=RoutePolicy(hedging=Hedging(share=0.1)))
    book = HealthBook(Random(0))
    for route, timed in ((plain, False), (chosen, True), (plain, False), (hedged, True)):
        one = book.of(route, release.targets[0])
        assert one.timed is timed
        before_s = one.peaks[True].value_s(0.0)
        one.begin(0.0, streamed=True).first_token(before_s + 1.0)
        assert (one.peaks[True].value_s(0.0) > before_s) is timed
