from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.loop.asking import (
    CompareQuestion,
    FollowQuestion,
    ListQuestion,
    SeriesQuestion,
    SessionsQuestion,
    conditions,
    fixed,
    parameters,
    parse_condition,
    parse_duration_s,
    parse_measure,
    parse_moment,
    read_cursor,
    series_query,
    session_query,
    span_query,
    times,
    write_cursor,
)
from tidemill.telemetry import Condition, Measure

NOW = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9
HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("duration_s > 2", Condition("duration_s", ">", 2)),
        ("duration_s>=500ms", Condition("duration_s", ">=", 0.5)),
        ("cost_usd <= 1e-3", Condition("cost_usd", "<=", 0.001)),
        ("status = error", Condition("status", "=", "error")),
        ("status==error", Condition("status", "=", "error")),
        ("status != 'ok'", Condition("status", "!=", "ok")),
        ("request_model in small, large", Condition("request_model", "in", ("small", "large"))),
        ("request_model in ('a, b', c)", Condition("request_model", "in", ("a, b", "c"))),
        ("http_status in 500,503", Condition("http_status", "in", (500, 503))),
        ("name contains  of the order", Condition("name", "contains", "of the order")),
        ("session_id = 42", Condition("session_id", "=", "42")),
        ("attributes.step = 42", Condition("attributes.step", "=", 42)),
        ('attributes.step = "42"', Condition("attributes.step", "=", "42")),
        ("attributes.http.route = /ask", Condition("attributes.http.route", "=", "/ask")),
        ("attributes.tool exists", Condition("attributes.tool", "exists", True)),
        ("user_key missing", Condition("user_key", "exists", False)),
        ("stream = true", Condition("stream", "=", True)),
        ("score.groundedness < .5", Condition("score.groundedness", "<", 0.5)),
        ("started_at_ns >= 2h", Condition("started_at_ns", ">=", NOW_NS - 2 * HOUR_NS)),
        ("name = a = b", Condition("name", "=", "a = b")),
    ],
)
def test_conditions(text: str, expected: Condition) -> None:
    assert parse_condition(text, now_ns=NOW_NS) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "cannot be read"),
        ("status", "cannot be read"),
        ("status error", "cannot be read"),
        ("= error", "cannot be read"),
        ("status =", "no value"),
        ("request_model in ()", "no value"),
        ("statuss = error", "did you mean 'status'"),
        ("attributes. = 1", "no field"),
        ("score. = 1", "no field"),
        ("score exists", "no field"),
        ("input_tokens > many", "is a number"),
        ("user_key exists now", "too much"),
        ("started_at_ns > whenever", "no moment"),
        ("duration_s > soon", "no duration"),
    ],
)
def test_a_condition_that_cannot_be_read_gets_a_sentence(text: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        parse_condition(text, now_ns=NOW_NS)


@given(st.text(max_size=60))
def test_no_text_breaks_a_reader(text: str) -> None:
    for read in (
        lambda: parse_condition(text, now_ns=NOW_NS),
        lambda: parse_condition(f"duration_s > {text}", now_ns=NOW_NS),
        lambda: parse_measure(text),
        lambda: parse_duration_s(text),
        lambda: parse_moment(text, now_ns=NOW_NS),
        lambda: read_cursor(text),
    ):
        with suppress(InvalidInput):
            read()


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOW),
        ("2h", datetime(2026, 11, 24, 8, 30, tzinfo=UTC)),
        ("1d12h", datetime(2026, 11, 22, 22, 30, tzinfo=UTC)),
        ("today", datetime(2026, 11, 24, tzinfo=UTC)),
        ("yesterday", datetime(2026, 11, 23, tzinfo=UTC)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:00", datetime(2026, 11, 1, 10, tzinfo=UTC)),
        ("2026-11-01T10:00:00+02:00", datetime(2026, 11, 1, 8, tzinfo=UTC)),
        ("1790000000", datetime.fromtimestamp(1790000000, UTC)),
        ("1790000000000", datetime.fromtimestamp(1790000000, UTC)),
        ("1790000000000000000", datetime.fromtimestamp(1790000000, UTC)),
    ],
)
def test_moments(text: str, at: datetime) -> None:
    assert parse_moment(text, now_ns=NOW_NS) == int(at.timestamp()) * 10**9


def test_durations() -> None:
    assert [parse_duration_s(one) for one in ("250ms", "90s", "1h30m", "1 d", "2w")] == [0.25, 90, 5400, 86400, 1209600]
    for text in ("", "5", "h", "5x", "-1h", "0s", "1h-"):
        with pytest.raises(InvalidInput, match="no duration"):
            parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("requests", Measure("requests")),
        ("error_share", Measure("error_share")),
        ("p95:duration_s", Measure("duration_s", "p95")),
        ("p95_duration_s", Measure("duration_s", "p95")),
        ("sum_cost_usd", Measure("cost_usd", "sum")),
        ("cost_usd", Measure("cost_usd", "sum")),
        ("duration_s", Measure("duration_s", "p95")),
    ],
)
def test_measures(text: str, expected: Measure) -> None:
    assert parse_measure(text) == expected


@pytest.mark.parametrize(
    "text", ["", "p95", "p94:duration_s", "p95:requests", "latency", "p95:duration", "mean:score.x"]
)
def test_a_measure_that_there_is_not(text: str) -> None:
    with pytest.raises(InvalidInput, match="no measure"):
        parse_measure(text)


@given(st.integers(-(2**62), 2**62), st.integers(0, 2**62))
def test_a_cursor_comes_back(started_ns: int, seq: int) -> None:
    assert read_cursor(write_cursor(started_ns, seq)) == (started_ns, seq)


def test_questions_become_queries() -> None:
    asked = ListQuestion(where=["status = error"], endpoint="desk", since="2h", text="refund", limit=7)
    query = span_query(asked, conditions(asked, now_ns=NOW_NS), now_ns=NOW_NS)
    assert query.where == (Condition("status", "=", "error"), Condition("endpoint", "=", "desk"))
    assert (query.since_ns, query.until_ns, query.text, query.limit) == (NOW_NS - 2 * HOUR_NS, None, "refund", 7)
    assert query.newest_first
    assert query.roots_only
    following = span_query(FollowQuestion(after_seq=3, spans=True), (), now_ns=NOW_NS)
    assert (following.after_seq, following.newest_first, following.roots_only) == (3, False, False)
    series = series_query(
        SeriesQuestion(measure=["requests", "requests"], by=["status"], every="1h"), (), now_ns=NOW_NS
    )
    assert (series.measures, series.group_by, series.every_s) == ((Measure("requests"),), ("status",), 3600)
    assert session_query(SessionsQuestion(limit=3), (), now_ns=NOW_NS).limit == 3


@given(st.integers(-(10**12), 4 * 10**12).map(lambda at_ms: at_ms * 10**6))
def test_a_question_with_fixed_times_means_the_same_later(now_ns: int) -> None:
    asked = fixed(FollowQuestion(since="2h", until="30m"), now_ns=now_ns)
    assert times(asked, now_ns=0) == (now_ns - 2 * HOUR_NS, now_ns - HOUR_NS // 2)
    assert fixed(FollowQuestion(), now_ns=now_ns) == FollowQuestion()


def test_questions_that_have_no_answer() -> None:
    with pytest.raises(InvalidInput, match="turn them round"):
        times(ListQuestion(since="1h", until="2h"), now_ns=NOW_NS)
    with pytest.raises(InvalidInput, match="cannot be limited by text"):
        series_query(SeriesQuestion(text="x"), (), now_ns=NOW_NS)
    with pytest.raises(InvalidInput, match="cannot be limited by text"):
        session_query(SessionsQuestion(text="x"), (), now_ns=NOW_NS)
    with pytest.raises(InvalidInput, match="too short"):
        series_query(SeriesQuestion(every="10ms"), (), now_ns=NOW_NS)
    with pytest.raises(InvalidInput, match="cannot be grouped"):
        series_query(SeriesQuestion(by=["score.feedback"]), (), now_ns=NOW_NS)


def test_a_question_travels_as_parameters() -> None:
    asked = CompareQuestion(first="a@1", second="a@2", where=["status = ok", "stream = true"], spans=True)
    sent = parameters(asked)
    assert sent == {"first": "a@1", "second": "a@2", "where": ["status = ok", "stream = true"], "spans": "true"}
    assert CompareQuestion.model_validate(sent) == asked
