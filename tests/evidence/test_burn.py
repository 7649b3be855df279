"""The burn detector: its promise on the exact tree, its additivity, slow burns of small budgets, its silence."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.evidence import BurnDetector
from tidemill.kernel import InvalidInput, canonical_json


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.6])
@pytest.mark.parametrize("per_step", [1, 3])
def test_statistic_less_steps_has_mean_zero_at_the_null(rate, per_step):
    depth = 9
    expected = 0.0
    for path in itertools.product((0, 1), repeat=depth):
        weight, detector = 1.0, BurnDetector.start(rate, 1e9)
        for place, bad in enumerate(path):
            weight *= rate if bad else 1 - rate
            detector = detector.observe(good=1 - bad, bad=bad)
            if place % per_step == per_step - 1:
                detector = detector.close_step()
        expected += weight * detector.value
    assert expected == pytest.approx(depth / per_step, rel=1e-9)


def test_average_run_to_a_false_alarm_is_at_least_the_horizon():
    rng = random.Random(3)
    runs = []
    for _ in range(60):
        detector = BurnDetector.start(0.1, 50)
        while not detector.alarmed and detector.steps < 2000:
            bad = rng.random() < 0.1
            detector = detector.close_step().observe(good=not bad, bad=bad)
        runs.append(detector.steps)
    assert sum(runs) / len(runs) >= 50


def test_a_slow_burn_of_a_small_budget_is_found_and_an_outage_at_once():
    rng = random.Random(1)
    detector = BurnDetector.start(0.001, 25_920)
    while not detector.alarmed and detector.count < 100_000:
        bad = sum(rng.random() < 0.003 for _ in range(50))
        detector = detector.close_step().observe(good=50 - bad, bad=bad)
    assert detector.alarmed
    assert detector.count < 20_000
    assert BurnDetector.start(0.001, 25_920).observe(bad=4).alarmed


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_a_step_is_its_counts_whoever_counted_them(parts):
    whole = BurnDetector.start(0.05, 1000).observe(
        good=sum(good for good, _ in parts), bad=sum(bad for _, bad in parts)
    )
    one_by_one = merged = BurnDetector.start(0.05, 1000)
    for good, bad in parts:
        one_by_one = one_by_one.observe(good=good, bad=bad)
        merged = merged.absorb(BurnDetector.start(0.05, 1000).observe(good=good, bad=bad))
    assert whole == one_by_one == merged
    closed = whole.close_step()
    assert BurnDetector.from_json(closed.as_json()) == closed
    canonical_json(closed.as_json())


def test_silence_changes_nothing_and_an_endless_outage_does_not_overflow():
    detector = BurnDetector.start(0.1, 10)
    for _ in range(100):
        detector = detector.close_step()
    assert detector == BurnDetector.start(0.1, 10)
    for _ in range(100):
        detector = detector.observe(bad=10_000).close_step()
    assert 10 < detector.value < float("inf")


def test_nonsense_is_refused():
    for rate, horizon in ((0, 10), (1, 10), (0.1, 0.5)):
        with pytest.raises(InvalidInput):
            BurnDetector.start(rate, horizon)
    with pytest.raises(InvalidInput):
        BurnDetector.start(0.1, 10).observe(good=-1)
    with pytest.raises(InvalidInput):
        BurnDetector.start(0.1, 10).absorb(BurnDetector.start(0.2, 10))
