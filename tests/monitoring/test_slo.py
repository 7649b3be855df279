"""Objectives: what makes an event good, budgets and burns, and that how events were divided does not matter."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.monitoring import BURN_WINDOWS, EventCounts, Slo, SloState, advance, budget_report, good_request, report
from tidemill.monitoring.slo import good_score
from tidemill.telemetry import Score, Span

SECOND = 1_000_000_000
SPAN = Span(
    trace_id="0" * 31 + "1",
    span_id="0" * 15 + "1",
    project="p",
    tenant="t",
    name="chat",
    operation="chat",
    started_at_ns=0,
    ended_at_ns=4 * SECOND,
    endpoint="e",
    time_to_first_chunk_s=1.0,
    output_tokens=31,
    cost_usd=0.02,
)


def slo(indicator, threshold=None, **more):
    return Slo(name="x", indicator=indicator, threshold=threshold, **more)


def of(**changes):
    return msgspec.structs.replace(SPAN, **changes)


@pytest.mark.parametrize(
    ("objective", "span", "good"),
    [
        (slo("availability"), SPAN, True),
        (slo("availability"), of(status="error", http_status=502), False),
        (slo("availability"), of(status="interrupted"), False),
        (slo("availability"), of(status="error", http_status=404), True),
        (slo("availability"), of(status="error", http_status=429), False),
        (slo("availability"), of(status="cancelled"), None),
        (slo("availability", endpoint="other"), SPAN, None),
        (slo("availability", endpoint="e"), SPAN, True),
        (slo("error_rate"), of(status="error", http_status=404), False),
        (slo("error_rate"), of(status="truncated"), False),
        (slo("first_token_time", 1.0), SPAN, True),
        (slo("first_token_time", 0.9), SPAN, False),
        (slo("first_token_time", 0.9), of(time_to_first_chunk_s=None), None),
        (slo("first_token_time", 0.9), of(status="error"), None),
        (slo("between_token_time", 0.1), SPAN, True),
        (slo("between_token_time", 0.09), SPAN, False),
        (slo("between_token_time", 0.09), of(output_tokens=1), None),
        (slo("total_time", 4), SPAN, True),
        (slo("total_time", 3.9), SPAN, False),
        (slo("cost", 0.02), SPAN, True),
        (slo("cost", 0.01), SPAN, False),
        (slo("cost", 0.01), of(cost_usd=None), None),
        (slo("refusal_rate"), SPAN, True),
        (slo("refusal_rate"), of(finish_reasons=("content_filter",)), False),
        (slo("refusal_rate"), of(attributes={"tidemill.guardrail.pii": "blocked"}), False),
        (slo("refusal_rate"), of(attributes={"tidemill.guardrail.pii": "passed"}), True),
        (slo("refusal_rate"), of(status="error"), None),
    ],
)
def test_what_makes_a_request_good(objective, span, good):
    assert good_request(objective, span) is good


def test_what_makes_a_score_good():
    score = Score(
        score_id="1", trace_id="t", name="groundedness", source="judge", at_ns=0, project="p", tenant="t", value=0.7
    )
    assert good_score(slo("groundedness", 0.7), score)
    assert good_score(slo("groundedness", 0.71), score) is False
    assert good_score(slo("groundedness", 0.7), msgspec.structs.replace(score, value=None)) is None
    assert good_score(slo("groundedness", 0.7), msgspec.structs.replace(score, name="feedback")) is None


def test_objectives_that_make_no_sense_are_refused():
    for wrong in (
        {"objective": 1.0},
        {"objective": 0.0},
        {"indicator": "speed"},
        {"indicator": "total_time"},
        {"threshold": 3.0},
        {"window_days": 0.5},
        {"false_alarm_days": 0.001},
        {"name": "Not So"},
        {"colour": "red"},
    ):
        with pytest.raises(InvalidInput):
            Slo.from_json({"name": "x", "indicator": "availability", **wrong})
    kept = slo("cost", 0.5, endpoint="e")
    assert Slo.from_json(json.loads(json.dumps(kept.as_json()))) == kept


def test_a_large_budget_still_has_a_page():
    for objective in (0.5, 0.8, 0.9, 0.999):
        rules = slo("availability", objective=objective).rules
        assert rules["ticket"].max_share < rules["page"].max_share < 1


def test_a_budget_is_spent_by_bad_events_and_comes_back_as_they_age():
    day = 86_400.0
    counts = EventCounts()
    counts.add([(100 * day + second, second < 20) for second in range(1000)])
    now_s = 100 * day + 1000
    found = budget_report(counts, objective=0.99, window_s=28 * day, now_s=now_s)
    assert (found.good, found.bad, found.allowed_bad) == (980, 20, pytest.approx(10))
    assert found.left == pytest.approx(-1)
    assert found.burn["1d"] == pytest.approx(2)
    assert set(found.burn) == set(BURN_WINDOWS)
    assert found.spent_in_s == 0
    later = budget_report(counts, objective=0.99, window_s=28 * day, now_s=now_s + 29 * day)
    assert (later.left, later.spent_in_s) == (None, None)
    slow = budget_report(counts, objective=0.975, window_s=28 * day, now_s=now_s)
    assert slow.left == pytest.approx(0.2)
    assert slow.spent_in_s is None  # it burns more slowly than it renews
    counts.forget(now_s + 29 * day, 28 * day)
    assert counts == EventCounts()


@given(
    st.lists(st.tuples(st.integers(0, 3 * 86_400), st.booleans()), max_size=80),
    st.integers(0, 80),
)
def test_state_does_not_depend_on_how_events_were_divided_and_survives_storage(rows, cut):
    objective = slo("availability", objective=0.8, false_alarm_days=1)
    events = [(float(second), bad) for second, bad in rows]
    whole = SloState.start(objective)
    turns = advance(objective, whole, events)
    state = SloState.start(objective)
    first = advance(objective, state, events[:cut])
    state = SloState.from_json(json.loads(json.dumps(state.as_json())))
    second = advance(objective, state, events[cut:])
    assert state == whole
    assert sorted(first + second, key=str) == sorted(turns, key=str)
    found = report(objective, state, 3 * 86_400.0)
    assert found.bad + found.good == len(events)
    assert state.bad == sum(bad for _, bad in events)


def test_both_alarms_begin_in_an_outage_and_only_the_ticket_in_a_slow_burn():
    objective = slo("availability", objective=0.99)
    state = SloState.start(objective)
    calm = [(float(second), second % 2000 == 0) for second in range(0, 40_000, 10)]
    assert advance(objective, state, calm) == []
    outage = [(50_000.0 + second, True) for second in range(10)]
    assert {turn.severity for turn in advance(objective, state, outage)} == {"ticket", "page"}
    state = SloState.start(objective)
    slow = [(float(second), second % 300 == 0) for second in range(0, 400_000, 10)]  # 3.3 %
    assert {turn.severity for turn in advance(objective, state, slow)} == {"ticket"}
