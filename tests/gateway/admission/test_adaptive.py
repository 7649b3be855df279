"""Adaptive concurrency in a simulated upstream: it finds the knee, keeps the throughput, and recovers."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.admission.adaptive import LEAST, AdaptiveLimit

SERVICE_S = 0.2


class Run:
    """A closed loop of clients at an upstream that serves some calls at once and queues the rest.

    Args:
        capacity: calls served at once, as of a time.
        clients: as many calls are always wanted.
        first: the limit to begin with; ``None`` for no limit at all.
    """

    def __init__(self, capacity: Callable[[float], int], clients: int, seconds: float, first: float | None) -> None:
        rng, now_s = Random(1), 0.0
        limit = AdaptiveLimit(first or 1, 500)
        wanted, in_flight, serving = clients, 0, 0
        queue: list[float] = []
        ends: list[tuple[float, int, float]] = []
        self.limits: list[tuple[float, float]] = []
        self.waits: list[tuple[float, float]] = []
        number = 0
        while now_s < seconds:
            while wanted and (first is None or in_flight < int(limit.limit)):
                wanted, in_flight = wanted - 1, in_flight + 1
                queue.append(now_s)
            while queue and serving < capacity(now_s):
                serving, number = serving + 1, number + 1
                service_s = SERVICE_S * (0.5 + 0.5 * rng.expovariate(1.0))
                heapq.heappush(ends, (now_s + service_s, number, queue.pop(0)))
            now_s, _, came_s = heapq.heappop(ends)
            serving -= 1
            limit.observe(now_s - came_s, in_flight, now_s)
            in_flight, wanted = in_flight - 1, wanted + 1
            self.limits.append((now_s, limit.limit))
            self.waits.append((now_s, now_s - came_s))

    def limit(self, after_s: float, before_s: float) -> float:
        return mean(limit for at_s, limit in self.limits if after_s <= at_s < before_s)

    def wait_s(self, after_s: float, before_s: float) -> float:
        return median(wait_s for at_s, wait_s in self.waits if after_s <= at_s < before_s)

    def per_s(self, after_s: float, before_s: float) -> float:
        return sum(after_s <= at_s < before_s for at_s, _ in self.waits) / (before_s - after_s)


@pytest.mark.parametrize("capacity", [8, 32])
def test_it_settles_near_the_knee_without_losing_throughput(capacity: int) -> None:
    run = Run(lambda _: capacity, 200, 160, first=10)
    free = Run(lambda _: capacity, 200, 40, first=None)
    assert capacity <= run.limit(100, 160) <= 2.2 * capacity
    assert run.per_s(100, 160) >= 0.93 * free.per_s(10, 40)
    assert run.wait_s(100, 160) <= 2.2 * SERVICE_S
    assert free.wait_s(10, 40) >= 5 * SERVICE_S, "without it, calls queue up inside the upstream"


def test_it_gives_way_to_an_upstream_that_becomes_weaker_and_comes_back() -> None:
    run = Run(lambda now_s: 8 if 60 <= now_s < 120 else 32, 200, 220, first=32)
    before, during, after = run.limit(40, 60), run.limit(80, 120), run.limit(180, 220)
    assert during < 0.6 * before
    assert during < 24
    assert after > 0.7 * before
    assert after >= 30


def test_it_does_not_grow_while_it_is_not_used() -> None:
    limit = AdaptiveLimit(20, 500)
    for step in range(2000):
        limit.observe(0.2, 3, step / 20)
    assert limit.limit <= 20


def test_failures_cut_it_and_its_floor_holds() -> None:
    limit = AdaptiveLimit(100, 500)
    for step in range(40):
        limit.observe_failure(step / 10)
    assert limit.limit < 50
    for step in range(5000):
        limit.observe_failure(4 + step / 10)
    assert limit.limit == LEAST


def test_few_calls_still_count_after_a_while() -> None:
    limit = AdaptiveLimit(100, 500)
    for step in range(20):
        limit.observe_failure(20.0 * step)
    assert limit.limit < 100


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 1000), st.booleans(), st.floats(0, 5)), max_size=300))
def test_it_stays_between_its_ends_whatever_it_hears(events: list[tuple[float, int, bool, float]]) -> None:
    limit, now_s = AdaptiveLimit(50, 200), 0.0
    for first_token_s, in_flight, failed, gap_s in events:
        now_s += gap_s
        if failed:
            limit.observe_failure(now_s)
        else:
            limit.observe(first_token_s, in_flight, now_s)
        assert LEAST <= limit.limit <= 200
    limit.follow(10)
    assert limit.limit <= 10
