"""The rate detector: its promise on the exact tree, its additivity, its silence."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.evidence import RateDetector
from tidemill.kernel import InvalidInput


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("per_step", [1, 3])
def test_statistic_less_steps_has_mean_zero_at_the_null(rate, per_step):
    depth = 9
    expected = 0.0
    for path in itertools.product((0, 1), repeat=depth):
        weight, detector = 1.0, RateDetector.start(rate, 1e9)
        for place, x in enumerate(path):
            weight *= rate if x else 1 - rate
            detector = detector.observe(x)
            if place % per_step == per_step - 1:
                detector = detector.close_step()
        expected += weight * detector.value
    assert expected == pytest.approx(depth / per_step, rel=1e-9)


def test_average_run_to_a_false_alarm_is_at_least_the_horizon():
    rng = random.Random(3)
    runs = []
    for _ in range(60):
        detector = RateDetector.start(0.1, 50)
        while not detector.alarmed and detector.steps < 2000:
            detector = detector.close_step().observe(float(rng.random() < 0.1))
        runs.append(detector.steps)
    assert sum(runs) / len(runs) >= 50


def test_an_outage_is_found_within_few_requests_and_does_not_overflow():
    detector = RateDetector.start(0.01, 25_920)
    for n in range(1, 4000):
        detector = detector.observe(1)
        if n == 5:
            assert detector.alarmed
        if n % 100 == 0:
            detector = detector.close_step()
    assert detector.value < float("inf")
    assert RateDetector.from_json(detector.as_json()) == detector


def test_silence_changes_nothing():
    detector = RateDetector.start(0.1, 10)
    for _ in range(1000):
        detector = detector.close_step()
    assert detector.value == 0
    assert not detector.alarmed
    assert detector.steps == 0


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=20), st.lists(st.floats(0, 1), max_size=20))
def test_open_steps_of_replicas_add_up(first, second):
    def fold(values):
        detector = RateDetector.start(0.2, 100)
        for x in values:
            detector = detector.observe(x)
        return detector

    merged, whole = fold(first).absorb(fold(second)), fold(first + second)
    assert merged.open_log_wealth == pytest.approx(whole.open_log_wealth, abs=1e-9)
    assert (merged.open_count, merged.count) == (whole.open_count, whole.count)


def test_bad_arguments_are_refused():
    for rate, horizon in ((0, 10), (1, 10), (0.1, 0.5)):
        with pytest.raises(InvalidInput):
            RateDetector.start(rate, horizon)
    with pytest.raises(InvalidInput):
        RateDetector.start(0.1, 10).observe(2)
    with pytest.raises(InvalidInput):
        RateDetector.start(0.1, 10).absorb(RateDetector.start(0.2, 10))
