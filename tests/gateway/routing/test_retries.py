"""Retries: the budget, the backoff, what each status means, and the way of one request through its targets."""

from __future__ import annotations

from email.utils import formatdate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.routing import (
    FAILURE,
    Again,
    AttemptResult,
    Attempts,
    Chooser,
    Reading,
    RetryBudget,
    RetryParts,
    RoutingCall,
    TargetHealth,
    backoff_s,
    reading_of,
    retry_after_of,
)
from tidemill.kernel import Target
from tidemill.kernel.routing_policy import Breaker, ChoicePolicy, Retries

CALL = RoutingCall(streamed=True)


class Way:
    """One request among targets, every attempt of which fails as told."""

    def __init__(self, count: int, policy: Retries | None = None, *, deadline_s: float = 100.0) -> None:
        self.healths = [TargetHealth(Breaker(), Random(0)) for _ in range(count)]
        targets = [Target(f"http://{number}") for number in range(count)]
        policy = policy or Retries(max_attempts=10)
        self.parts = RetryParts(
            policy, Chooser(targets, self.healths, ChoicePolicy(), Random(1)), RetryBudget(0.2, 0.0), Random(2)
        )
        self.now_s = 0.0
        first = self.parts.chooser.choose(CALL, 0.0)
        assert first is not None
        self.places = [first]
        self.waits: list[float] = []
        self.attempts = Attempts(self.parts, CALL, deadline_s, first)

    def fails(self, reading: Reading = FAILURE, retry_after_s: float | None = None) -> bool:
        place = self.places[-1]
        attempt = self.healths[place].begin(self.now_s, streamed=True)
        attempt.end(reading.result, self.now_s, retry_after_s)
        step = self.attempts.after(place, reading, self.now_s)
        if step is None:
            return False
        self.places.append(step.target)
        self.waits.append(step.wait_s)
        self.now_s += step.wait_s
        return True


def test_other_targets_come_first_and_at_once_then_the_first_again_after_a_while() -> None:
    way = Way(3)
    assert all(way.fails() for _ in range(4))
    assert way.places[:3] == [0, 1, 2]
    assert way.waits[:2] == [0.0, 0.0]
    assert all(0 < wait_s <= 0.2 for wait_s in way.waits[2:])


def test_attempts_are_bounded() -> None:
    way = Way(2, Retries(max_attempts=3))
    assert way.fails()
    assert way.fails()
    assert not way.fails()
    assert way.attempts.made == 3
    assert not Way(3, Retries(max_attempts=1)).fails()


def test_fallbacks_are_free_and_repeats_are_not() -> None:
    way = Way(2, Retries(max_attempts=1000, budget_share=0.2))
    while way.parts.budget.withdraw(0.0):
        pass
    assert way.fails(), "the other target"
    assert not way.fails(), "nothing saved up for a repeat"
    for _ in range(5):
        way.parts.budget.deposit()
    assert way.parts.budget.withdraw(0.0)


def test_a_wrong_secret_is_asked_elsewhere_and_never_again() -> None:
    way = Way(2)
    assert way.fails(reading_of(401))
    assert way.places == [0, 1]
    assert way.fails()
    assert way.places == [0, 1, 1]
    assert not Way(1).fails(reading_of(404))


def test_what_the_client_did_wrong_is_not_repeated() -> None:
    assert not Way(3).fails(reading_of(400))


def test_a_short_retry_after_is_waited_for_and_a_long_one_is_the_clients() -> None:
    way = Way(1)
    assert way.fails(reading_of(429), 3.0)
    assert 3.0 <= way.waits[0] <= 3.1
    assert not Way(1).fails(reading_of(429), 6.0)
    other = Way(2)
    assert other.fails(reading_of(429), 600.0)
    assert other.places == [0, 1]


def test_no_attempt_begins_at_or_after_the_deadline() -> None:
    way = Way(1, deadline_s=2.9)
    assert not way.fails(reading_of(429), 3.0)
    late = Way(2, deadline_s=1.0)
    late.now_s = 1.0
    assert not late.fails()


@given(st.lists(st.sampled_from([200, 400, 401, 429, 500, 503]), max_size=20), st.floats(0.1, 5), st.integers(1, 4))
def test_a_request_never_outlives_its_deadline_and_count(statuses: list[int], deadline_s: float, count: int) -> None:
    way = Way(count, Retries(max_attempts=4), deadline_s=deadline_s)
    for status in statuses:
        if status == 200 or not way.fails(reading_of(status)):
            break
    assert len(way.places) <= 4
    assert way.now_s < deadline_s


def test_a_hedge_counts_as_an_attempt_and_takes_another_target() -> None:
    way = Way(2, Retries(max_attempts=2))
    assert way.attempts.another(0.0) == 1
    assert way.attempts.another(0.0) is None
    assert not way.fails()


@given(
    st.floats(0, 1),
    st.lists(st.one_of(st.just("request"), st.just("retry"), st.floats(0, 30)), max_size=300),
)
def test_the_budget_bounds_retries_over_any_stretch(share: float, events: list[str | float]) -> None:
    budget, now_s, requests, retries = RetryBudget(share, 0.0), 0.0, 0, 0
    for event in events:
        if event == "request":
            budget.deposit()
            requests += 1
        elif event == "retry":
            retries += budget.withdraw(now_s)
        else:
            now_s += float(event)
        assert retries <= 10 + share * requests + 0.5 * now_s + 1e-6
    if not share:
        assert retries == 0


def test_the_budget_lets_a_quiet_endpoint_retry_and_an_outage_only_a_share() -> None:
    budget = RetryBudget(0.2, 0.0)
    assert sum(budget.withdraw(1000.0 * number) for number in range(5)) == 5
    outage, retries = RetryBudget(0.2, 0.0), 0
    for number in range(10_000):
        outage.deposit()
        retries += outage.withdraw(number / 1000)
    assert 2000 <= retries <= 2000 + 10 + 5


@given(st.integers(0, 60), st.floats(0, 1), st.floats(0, 10), st.integers(0, 10**6))
def test_backoff_lies_between_nothing_and_the_doubled_base(repeats: int, base: float, most: float, seed: int) -> None:
    wait_s = backoff_s(Retries(base_s=base, max_s=most), repeats, Random(seed))
    assert 0 <= wait_s <= min(most, base * 2**repeats)


@pytest.mark.parametrize(
    ("status", "result", "again"),
    [
        (200, AttemptResult.ANSWERED, Again.NOWHERE),
        (400, AttemptResult.ANSWERED, Again.NOWHERE),
        (401, AttemptResult.FAILED, Again.ELSEWHERE),
        (404, AttemptResult.FAILED, Again.ELSEWHERE),
        (408, AttemptResult.FAILED, Again.ANYWHERE),
        (413, AttemptResult.ANSWERED, Again.NOWHERE),
        (422, AttemptResult.ANSWERED, Again.NOWHERE),
        (429, AttemptResult.THROTTLED, Again.ANYWHERE),
        (500, AttemptResult.FAILED, Again.ANYWHERE),
        (502, AttemptResult.FAILED, Again.ANYWHERE),
        (503, AttemptResult.THROTTLED, Again.ANYWHERE),
        (529, AttemptResult.THROTTLED, Again.ANYWHERE),
        (599, AttemptResult.FAILED, Again.ANYWHERE),
    ],
)
def test_what_a_status_means(status: int, result: AttemptResult, again: Again) -> None:
    assert reading_of(status) == Reading(result, again)


@pytest.mark.parametrize(
    ("seconds", "milliseconds", "expected"),
    [
        (b"7", None, 7.0),
        (b"7", b"1500", 1.5),
        (b"soon", None, None),
        (b"-3", None, None),
        (b"nan", None, None),
        (b"inf", None, None),
        (None, None, None),
        (b"2", b"x", 2.0),
        (formatdate(1_000_090, usegmt=True).encode(), None, 90.0),
        (formatdate(999_000, usegmt=True).encode(), None, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(
    seconds: bytes | None, milliseconds: bytes | None, expected: float | None
) -> None:
    assert retry_after_of(seconds, milliseconds, 1_000_000.0) == expected
