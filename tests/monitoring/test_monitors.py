"""Monitors: what fires, what does not, how an alarm ends, and that batches do not matter."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput, canonical_json
from tidemill.monitoring import BurnState, Monitor, Sample, evaluate, initial_state

START = datetime(2026, 1, 1, tzinfo=UTC)


def stream(count, bad_share, *, seed=0, start=START, every_s=10.0, slow=False):
    rng = random.Random(seed)
    for i in range(count):
        bad = rng.random() < bad_share
        yield Sample(start + timedelta(seconds=i * every_s), slow or not bad, 30.0 if slow and bad else 0.2)


@pytest.mark.parametrize(("kind", "slow"), [("error_rate", False), ("latency", True)])
def test_an_outage_fires_within_a_dozen_requests(kind, slow):
    monitor = Monitor(name="m", kind=kind, max_share=0.05)
    state, alarm = evaluate(monitor, initial_state(monitor), stream(500, 0.01, slow=slow))
    assert alarm == []
    later = START + timedelta(hours=2)
    state, alarm = evaluate(monitor, state, stream(12, 1.0, start=later, slow=slow))
    assert len(alarm) == 1
    assert state.firing
    assert alarm[0].verdict.value == "alarm"
    assert alarm[0].verdict.evidence["statistic"] >= alarm[0].verdict.evidence["horizon_bins"] == 25_920
    canonical_json(alarm[0].verdict.as_json())


def test_latency_monitor_does_not_mind_errors_and_the_reverse():
    for kind, slow in (("latency", False), ("error_rate", True)):
        monitor = Monitor(name="m", kind=kind)
        assert evaluate(monitor, initial_state(monitor), stream(300, 1.0, slow=slow))[1] == []


def test_a_share_within_the_promise_does_not_fire_in_a_month():
    monitor = Monitor(name="m", max_share=0.05)
    for seed in range(3):
        state, alarm = evaluate(monitor, initial_state(monitor), stream(6000, 0.04, seed=seed, every_s=432))
        assert alarm == []
        assert state.events == 6000


def test_an_alarm_ends_after_a_long_outage_as_after_a_short_one():
    monitor = Monitor(name="m", max_share=0.05)
    needed = []
    for length in (20, 3000):
        state, alarm = evaluate(monitor, initial_state(monitor), stream(length, 1.0))
        assert alarm
        count = 0
        while state.firing:
            state, again = evaluate(monitor, state, [Sample(START + timedelta(days=2, seconds=count), True, 0.1)])
            assert again == []
            count += 1
        needed.append(count)
    assert max(needed) < 200
    assert max(needed) - min(needed) < 20
    state, alarm = evaluate(monitor, state, stream(20, 1.0, start=START + timedelta(days=3)))
    assert len(alarm) == 1
    assert state.alarms == 2


def test_silence_never_fires():
    monitor = Monitor(name="m", false_alarm_days=1)
    samples = [Sample(START + timedelta(days=30 * i), True, 0.1) for i in range(200)]
    assert evaluate(monitor, initial_state(monitor), samples)[1] == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 4000)), max_size=60), st.integers(0, 60))
def test_state_does_not_depend_on_batches_and_survives_storage(rows, cut):
    monitor = Monitor(name="m", max_share=0.2, false_alarm_days=1)
    samples = [Sample(START + timedelta(seconds=offset), ok, 0.1) for ok, offset in rows]
    whole, alarms = evaluate(monitor, initial_state(monitor), samples)
    half, first = evaluate(monitor, initial_state(monitor), samples[:cut])
    half = BurnState.from_json(half.as_json())
    joined, second = evaluate(monitor, half, samples[cut:])
    assert joined == whole
    assert first + second == alarms


def test_settings_are_read_back_and_bad_ones_refused():
    monitor = Monitor(name="slow", kind="latency", endpoint="helpdesk", max_share=0.1)
    assert Monitor.from_json(monitor.as_json()) == monitor
    for bad in (
        {"kind": "cost"},
        {"max_share": 0},
        {"latency_slo_s": 0},
        {"bin_s": 0},
        {"false_alarm_days": 0.0001},
        {"clear_horizon": 0},
        {"name": "No"},
        {"share": 1},
    ):
        with pytest.raises(InvalidInput):
            Monitor.from_json({"name": "m"} | bad)
