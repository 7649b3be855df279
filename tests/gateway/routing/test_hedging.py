"""Hedging: never too early, never over its budget, never where asking twice does more than asking once."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.routing import Hedger, TargetHealth, may_hedge
from tidemill.kernel.routing_policy import Breaker, Hedging


def measured(latency_s: float = 1.0, samples: int = 100) -> TargetHealth:
    health = TargetHealth(Breaker(), Random(0))
    for _ in range(samples):
        health.observe(latency_s, 0.0, streamed=True)
    return health


def test_it_waits_for_the_targets_own_p95() -> None:
    hedger = Hedger(Hedging(share=0.05))
    assert hedger.delay_s(measured(), streamed=True) == pytest.approx(1.0, rel=0.05)
    assert hedger.delay_s(measured(0.002), streamed=True) == 0.05, "never earlier than min_wait_s"
    assert hedger.delay_s(measured(), streamed=False) is None, "nothing is known of whole answers"
    assert hedger.delay_s(measured(samples=19), streamed=True) is None


def test_it_is_off_by_default() -> None:
    hedger = Hedger(Hedging())
    assert hedger.delay_s(measured(), streamed=True) is None
    assert not hedger.spend()


@given(st.floats(0.001, 1), st.lists(st.booleans(), max_size=500))
def test_hedges_stay_within_their_share(share: float, wants: list[bool]) -> None:
    hedger, health = Hedger(Hedging(share=share)), measured()
    hedges = 0
    for number, wanted in enumerate(wants, 1):
        if hedger.delay_s(health, streamed=True) is not None and wanted:
            hedges += hedger.spend()
        assert hedges <= 3 + share * number


def test_waits_that_began_together_do_not_overdraw_the_budget() -> None:
    hedger, health = Hedger(Hedging(share=0.5)), measured()
    waits = [hedger.delay_s(health, streamed=True) for _ in range(50)]
    assert all(wait is not None for wait in waits)
    assert sum(hedger.spend() for _ in waits) == 3


@pytest.mark.parametrize(
    ("operation", "tools", "stored", "expected"),
    [
        ("chat", b"", False, True),
        ("chat", b'[{"type":"function","function":{"name":"f"}}]', False, True),
        ("chat", b'[{"type":"function"},{"type":"web_search"}]', False, False),
        ("chat", b'[{"type":"mcp"}]', False, False),
        ("chat", b"not json", False, False),
        ("chat", b"", True, False),
        ("embeddings", b"", False, True),
        ("transcription", b"", False, False),
        ("responses", b"", False, False),
    ],
)
def test_only_what_has_no_effect_is_asked_twice(operation: str, tools: bytes, stored: bool, expected: bool) -> None:
    assert may_hedge(operation, tools, stored=stored) is expected
