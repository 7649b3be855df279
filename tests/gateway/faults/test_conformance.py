"""Fault conformance: every row of the table, by what the client sees, what the trace says, and what is left over."""

from __future__ import annotations

import json

import openai
import pytest

from tests.gateway.faults.certificates import self_signed
from tests.gateway.faults.rows import AFTER_CONTENT, BEFORE_CONTENT, OWN_MISTAKE, ROWS, Row
from tests.gateway.faults.suite import Outcome, done, run
from tidemill.gateway.testing import Fault

TEXT = "Hello from the script."


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("faults")
    return run(folder, self_signed(folder))


def names(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


@pytest.mark.parametrize("row", [*BEFORE_CONTENT, *OWN_MISTAKE], ids=lambda row: row.name)
def test_a_fault_before_content_has_a_status(outcome: Outcome, row: Row) -> None:
    seen = outcome.alone[row.name]
    assert seen.status == row.status
    error = json.loads(seen.body)["error"]
    assert {"message", "type", "code"} <= set(error)
    assert row.told in seen.body
    assert row.raises is not None
    assert type(seen.error) is row.raises
    assert seen.text == ""
    spans = outcome.spans(row, fallback=False)
    assert len(spans) == 2
    for span in spans:
        assert (span.status, span.error_type, span.http_status) == ("error", row.error, row.status)
        assert "tidemill.attempts" not in span.attributes


@pytest.mark.parametrize("row", BEFORE_CONTENT, ids=lambda row: row.name)
def test_a_fault_before_content_is_not_seen_when_another_target_is_well(outcome: Outcome, row: Row) -> None:
    seen = outcome.fallback[row.name]
    assert (seen.status, seen.error, seen.text) == (200, None, TEXT)
    assert done(seen.body) is row.stream
    assert seen.body.count(b"Hello") == 1
    spans = outcome.spans(row, fallback=True)
    assert len(spans) == 2
    for span in spans:
        assert (span.status, span.error_type) == ("ok", None)
        assert span.attributes["tidemill.target"] == "good"
        if row.fault is Fault.RATE_LIMIT and span is not min(spans, key=lambda one: one.started_at_ns):
            assert outcome.lost(span) == []  # the target had asked for rest, and gets it
            continue
        assert span.attributes["tidemill.attempts"] == 2
        (lost,) = outcome.lost(span)
        assert (lost.status, lost.error_type, lost.attributes["tidemill.target"]) == ("error", row.error, "bad")


@pytest.mark.parametrize("row", OWN_MISTAKE, ids=lambda row: row.name)
def test_a_mistake_of_the_request_is_told_at_once(outcome: Outcome, row: Row) -> None:
    assert outcome.fallback[row.name].status == 400
    for span in outcome.spans(row, fallback=True):
        assert span.attributes["tidemill.target"] == "bad"
        assert outcome.lost(span) == []


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("row", AFTER_CONTENT, ids=lambda row: row.name)
def test_a_fault_after_content_is_told_in_the_stream(outcome: Outcome, row: Row, fallback: bool) -> None:
    seen = (outcome.fallback if fallback else outcome.alone)[row.name]
    assert seen.status == 200
    assert not done(seen.body)
    assert b"Hello" in seen.body
    last = seen.body.rstrip().rpartition(b"\n\n")[2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"]
    assert row.told in last
    assert type(seen.error) is openai.APIError
    assert TEXT.startswith(seen.text)
    assert seen.text.startswith("Hello")
    for span in outcome.spans(row, fallback=fallback):
        assert (span.status, span.error_type, span.http_status) == ("truncated", row.error, 200)
        assert outcome.records.contents[span.span_id].output == seen.text
        assert outcome.lost(span) == []
        assert span.output_tokens is not None


@pytest.mark.parametrize("fault", [Fault.DROP_IDLE, Fault.SLOW_HEADER])
def test_what_is_no_fault_is_an_answer(outcome: Outcome, fault: Fault) -> None:
    for row in ROWS:
        if row.fault is fault:
            assert outcome.alone[row.name].status == 200
            assert [span.status for span in outcome.spans(row, fallback=False)] == ["ok", "ok"]


def test_nothing_is_left_over(outcome: Outcome) -> None:
    assert outcome.in_flight == 0
    assert outcome.connections == 0
    assert len(outcome.records.requests()) == 4 * len(ROWS)
    assert {span.span_id for span in outcome.records.requests()} == {one.span_id for one in outcome.records.intents}
