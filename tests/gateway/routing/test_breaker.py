"""The breaker: what it may never do, over every order of events, and what it does in the common cases."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from tidemill.gateway.routing import AttemptResult, BreakerState, CircuitBreaker
from tidemill.gateway.routing.breaker import TRANSITIONS, BreakerEvent
from tidemill.kernel.routing_policy import Breaker

OK, FAILED = AttemptResult.ANSWERED, AttemptResult.FAILED
THROTTLED, ABANDONED = AttemptResult.THROTTLED, AttemptResult.ABANDONED
POLICY = Breaker(window_s=30, min_requests=10, error_share=0.5, consecutive=5, open_s=5, open_max_s=60)


def breaker(policy: Breaker = POLICY, seed: int = 0) -> CircuitBreaker:
    return CircuitBreaker(policy, Random(seed))


def call(b: CircuitBreaker, result: AttemptResult, now_s: float, retry_after_s: float | None = None) -> None:
    b.exit(b.enter(now_s), result, now_s, retry_after_s)


def opened(now_s: float = 100.0, policy: Breaker = POLICY) -> CircuitBreaker:
    b = breaker(policy)
    for _ in range(policy.consecutive):
        call(b, FAILED, now_s)
    assert b.state is BreakerState.OPEN
    return b


@dataclass(eq=False)
class Flying:
    entered: int
    probe: bool


class AnyOrder(RuleBasedStateMachine):
    """Attempts begin and end in any order, at any time, with any result."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.breaker = breaker()
        self.flying: list[Flying] = []
        self.failures_since_closed = 0

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(target=attempts)
    def begins(self) -> Flying:
        was, ready = self.breaker.state, self.breaker.ready(self.now_s)
        entered = self.breaker.enter(self.now_s)
        probe = was is not BreakerState.HALF_OPEN and self.breaker.state is BreakerState.HALF_OPEN
        if ready:
            assert (was is BreakerState.CLOSED) or probe
        if was is BreakerState.OPEN and self.now_s < self.breaker.opens_at_s:
            assert not probe, "a probe before its time"
        flying = Flying(entered, probe)
        self.flying.append(flying)
        return flying

    @rule(
        flying=consumes(attempts),
        result=st.sampled_from(AttemptResult),
        retry_after_s=st.none() | st.floats(0, 1000),
    )
    def ends(self, flying: Flying, result: AttemptResult, retry_after_s: float | None) -> None:
        was = self.breaker.state
        self.flying.remove(flying)
        told = retry_after_s is not None
        self.breaker.exit(flying.entered, result, self.now_s, retry_after_s)
        failure = result is FAILED or (result is THROTTLED and not told)
        if was is BreakerState.CLOSED:
            self.failures_since_closed += failure
            if self.breaker.state is BreakerState.OPEN:
                assert failure, "nothing but a failure opens it"
                least = min(POLICY.consecutive, POLICY.min_requests * POLICY.error_share)
                assert self.failures_since_closed >= least, "opened without enough evidence"
        if self.breaker.state is not BreakerState.CLOSED or was is not BreakerState.CLOSED:
            self.failures_since_closed = 0

    @invariant()
    def one_probe_at_most(self) -> None:
        probing = [flying for flying in self.flying if flying.probe and flying.entered == self.breaker._generation]
        assert len(probing) == (self.breaker.state is BreakerState.HALF_OPEN)

    @invariant()
    def never_shut_for_longer_than_stated(self) -> None:
        assert self.breaker.opens_at_s <= self.now_s + POLICY.open_max_s
        assert self.breaker.rests_until_s <= self.now_s + POLICY.open_max_s

    @precondition(lambda self: self.breaker.state is not BreakerState.HALF_OPEN)
    @rule()
    def recovers(self) -> None:
        """Whatever happened: after the longest open time, one good answer closes it."""
        self.now_s += POLICY.open_max_s
        assert self.breaker.ready(self.now_s)
        call(self.breaker, OK, self.now_s)
        assert self.breaker.state is BreakerState.CLOSED
        self.failures_since_closed = 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_every_state_is_left_and_reached() -> None:
    assert {state for state, _ in TRANSITIONS} == set(BreakerState) == set(TRANSITIONS.values())
    assert {event for _, event in TRANSITIONS} == set(BreakerEvent)


def test_half_of_ten_failing_trips_it_and_fewer_than_ten_do_not() -> None:
    b = breaker()
    for number in range(9):
        call(b, FAILED if number % 2 else OK, 100.0)
    assert b.counted(100.0) == (9, 4)
    call(b, OK, 100.0)
    assert b.state is BreakerState.CLOSED  # 4 of 10
    call(b, FAILED, 100.0)
    assert b.state is BreakerState.CLOSED  # 5 of 11
    call(b, FAILED, 100.0)
    assert b.state is BreakerState.OPEN  # 6 of 12


def test_failures_in_a_row_trip_it_however_long_they_take() -> None:
    b = breaker()
    for number in range(5):
        assert b.state is BreakerState.CLOSED
        call(b, FAILED, 100.0 + 1000 * number)
    assert b.state is BreakerState.OPEN


def test_what_left_the_window_does_not_count() -> None:
    b = breaker(Breaker(consecutive=1000))
    for number in range(9):
        call(b, FAILED, 100.0 + number / 10)
    assert b.counted(131.0) == (0, 0)
    for _ in range(9):
        call(b, FAILED, 131.0)
    assert b.state is BreakerState.CLOSED
    call(b, FAILED, 131.0)
    assert b.state is BreakerState.OPEN


def test_opens_for_longer_each_time_and_starts_over_after_a_quiet_window() -> None:
    b = opened(100.0)
    spans = []
    now_s = 100.0
    for _ in range(8):
        spans.append(b.opens_at_s - now_s)
        now_s = b.opens_at_s
        call(b, FAILED, now_s)  # the probe
    longest = [min(60.0, 5.0 * 2**number) for number in range(8)]
    assert all(most / 2 <= span <= most for span, most in zip(spans, longest, strict=True))
    now_s = b.opens_at_s
    call(b, OK, now_s)
    for _ in range(5):
        call(b, FAILED, now_s + 1)
    assert b.opens_at_s - now_s - 1 >= 30, "it had not been well for a whole window"
    now_s = b.opens_at_s
    call(b, OK, now_s)
    for _ in range(5):
        call(b, FAILED, now_s + 31)
    assert b.opens_at_s - now_s - 31 <= 5


def test_jitter_spreads_the_probes_of_workers() -> None:
    times = set()
    for seed in range(20):
        b = breaker(seed=seed)
        for _ in range(5):
            call(b, FAILED, 0.0)
        times.add(b.opens_at_s)
    assert len(times) == 20
    assert all(2.5 <= time <= 5 for time in times)


def test_late_failures_of_calls_from_before_the_trip_do_not_trip_it_again() -> None:
    b = breaker()
    old = [b.enter(100.0) for _ in range(50)]
    for entered in old[:5]:
        b.exit(entered, FAILED, 101.0)
    assert b.state is BreakerState.OPEN
    call(b, OK, b.opens_at_s)
    assert b.state is BreakerState.CLOSED
    for entered in old[5:]:
        b.exit(entered, FAILED, 160.0)
    assert b.state is BreakerState.CLOSED


def test_only_one_call_is_let_in_while_half_open() -> None:
    b = opened(100.0)
    now_s = b.opens_at_s
    assert b.ready(now_s)
    probe = b.enter(now_s)
    assert not b.ready(now_s)
    forced = b.enter(now_s)
    b.exit(forced, FAILED, now_s)
    assert b.state is BreakerState.HALF_OPEN, "a call that had nowhere else to go is no probe"
    b.exit(probe, OK, now_s)
    assert b.ready(now_s)


def test_an_abandoned_probe_makes_room_for_another() -> None:
    b = opened(100.0)
    now_s = b.opens_at_s
    b.exit(b.enter(now_s), ABANDONED, now_s)
    assert b.state is BreakerState.OPEN
    assert b.ready(now_s)


def test_a_call_to_an_open_target_that_succeeds_closes_it() -> None:
    b = opened(100.0)
    call(b, OK, 101.0)
    assert b.state is BreakerState.CLOSED


@pytest.mark.parametrize(("asked_s", "until_s"), [(3.0, 103.0), (1000.0, 160.0)])
def test_retry_after_is_honoured_without_opening(asked_s: float, until_s: float) -> None:
    b = breaker()
    for _ in range(20):
        call(b, THROTTLED, 100.0, asked_s)
    assert b.state is BreakerState.CLOSED
    assert not b.ready(until_s - 0.01)
    assert b.ready(until_s)
    assert b.ready_at_s() == until_s


def test_throttling_without_a_time_is_a_failure() -> None:
    b = breaker()
    for _ in range(5):
        call(b, THROTTLED, 100.0)
    assert b.state is BreakerState.OPEN
