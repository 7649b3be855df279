"""Protobuf and JSON say the same; nothing that a sender sends makes the reading raise anything but a user's error."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.telemetry.otlp.making import NOW_NS, as_json, logs, mapper, metrics, traces, wire_span
from tidemill.kernel import InvalidInput
from tidemill.telemetry.otlp import CapturePolicy, Decoder
from tidemill.telemetry.otlp.decoding import survey
from tidemill.telemetry.otlp.wire import read_groups
from tidemill.telemetry.receipts import Receipt, Received

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=6),
    st.sampled_from(["[1]", '{"role":"user","parts":[]}', "[{}]", '[{"role":"user"}]']),
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
NAMES = st.one_of(
    TEXT,
    st.sampled_from([
        "gen_ai.operation.name", "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions",
        "gen_ai.usage.input_tokens", "llm.input_messages.0.message.content", "llm.input_messages.1.message.role",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name", "retrieval.documents.0.document.id",
        "retrieval.documents.0.document.score", "gen_ai.retrieval.documents", "ai.response.toolCalls", "ai.prompt",
        "langfuse.observation.usage_details", "langfuse.observation.cost_details", "gen_ai.response.finish_reasons",
        "langfuse.observation.completion_start_time", "tidemill.references", "session.id", "user.id", "llm.cost.total",
        "http.response.status_code", "error.type", "openinference.span.kind", "gen_ai.prompt.0.content",
    ]),
)  # fmt: skip
ATTRIBUTES = st.dictionaries(NAMES, VALUES, max_size=6)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["gen_ai.user.message", "gen_ai.choice", "exception", "gen_ai.evaluation.result", "x", "db.query.result"]
        ),
        ATTRIBUTES,
    ),
    max_size=3,
)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    spans = [
        wire_span(
            number,
            draw(ATTRIBUTES),
            events=draw(EVENTS),
            name=draw(TEXT),
            trace_id=draw(st.sampled_from([number.to_bytes(16, "big"), b"", b"\0" * 16, b"abc"])),
            start_time_unix_nano=draw(st.sampled_from([NOW_NS, 0, 2**64 - 1, 5])),
        )
        for number in range(1, draw(st.integers(1, 4)))
    ]
    return traces(*spans, **{"host.name": draw(VALUES)})


@given(requests())
@settings(max_examples=60)
def test_protobuf_and_json_give_the_same_groups(request: Any) -> None:
    assert read_groups("traces", "protobuf", request.SerializeToString()) == read_groups(
        "traces", "json", as_json(request)
    )


@given(requests(), st.sampled_from(["masked", "hashed", "none"]))
@settings(max_examples=60)
def test_any_request_is_decoded_or_refused_and_every_record_is_accounted_for(request: Any, capture: Any) -> None:
    using = mapper(policy=CapturePolicy(default=capture, bytes_most=1024), mask=lambda text: text.replace("1", "<one>"))
    body = request.SerializeToString()
    found = survey("traces", "protobuf", body, NOW_NS)
    decoded = Decoder(using, bytes_most=1 << 20).decode(Received(Receipt("traces", "protobuf", "", NOW_NS, 1), body))
    assert len(decoded.spans) + len(decoded.rejected) == found.records
    assert len(decoded.spans) == found.accepted
    for span in decoded.spans:
        assert span.started_at_ns <= span.ended_at_ns
        assert all(isinstance(value, str | int | float | bool) for value in span.attributes.values())
    for content in decoded.contents.values():
        assert not content.detail or isinstance(json.loads(content.detail), dict)


@given(requests(), st.data())
@settings(max_examples=60)
def test_a_damaged_request_gives_what_is_whole_or_a_users_error(request: Any, data: st.DataObject) -> None:
    body = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for signal in ("traces", "logs", "metrics"):
        for encoding, given_body in (
            ("protobuf", bytes(body)),
            ("json", bytes(body)),
            ("json", as_json(request)[: len(body)]),
        ):
            receipt = Receipt(signal, encoding, "", NOW_NS, 1)
            Decoder(mapper(), bytes_most=1 << 20).decode(Received(receipt, given_body))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for signal in ("traces", "logs", "metrics"):
        for encoding in ("protobuf", "json"):
            with suppress(InvalidInput):
                read_groups(signal, encoding, body)  # type: ignore[arg-type]


def test_one_broken_span_costs_itself_and_no_neighbour() -> None:
    request = traces(wire_span(1, {"note": "?????"}), wire_span(2), wire_span(3))
    body = request.SerializeToString().replace(b"?????", b"\xff\xfe\xff\xfe\xff")  # no UTF-8
    found = survey("traces", "protobuf", body, NOW_NS)
    assert [span.trace_id[-1] for group in found.groups for span in group.spans] == ["2", "3"]
    assert found.refused == {"unreadable": 1}
    document = json.loads(as_json(request))
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["startTimeUnixNano"] = "soon"
    found = survey("traces", "json", json.dumps(document).encode(), NOW_NS)
    assert found.accepted == 2
    assert found.refused == {"unreadable": 1}
    assert found.groups[0].resource == {"service.name": "shop"}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"resourceSpans": null}'])
def test_an_empty_request_is_none_that_is_wrong(body: bytes) -> None:
    encoding = "json" if body else "protobuf"
    assert survey("traces", encoding, body, NOW_NS).records == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b'{"resourceSpans": 5}', b"\x0a\xff", b"[" * 100_000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="no OTLP export request for traces"):
        read_groups("traces", "json", body)


def test_snake_case_and_texts_for_numbers_are_understood_in_json() -> None:
    span = {
        "trace_id": "01" * 16,
        "spanId": "02" * 8,
        "name": "x",
        "start_time_unix_nano": str(NOW_NS),
        "endTimeUnixNano": NOW_NS,
    }
    span["attributes"] = [{"key": "n", "value": {"int_value": "7"}}, {"key": "f", "value": {"doubleValue": "NaN"}}]  # type: ignore[assignment]
    body = json.dumps({"resource_spans": [{"scope_spans": [{"spans": [span]}]}]}).encode()
    (group,) = read_groups("traces", "json", body)
    assert group.spans[0].attributes == {"n": 7, "f": "NaN"}


def test_too_many_attributes_are_left_out_and_counted() -> None:
    request = traces(wire_span(1, {f"a{number}": 1 for number in range(1500)}))
    for encoding, body in (("protobuf", request.SerializeToString()), ("json", as_json(request))):
        (group,) = read_groups("traces", encoding, body)  # type: ignore[arg-type]
        assert len(group.spans[0].attributes) == 1000
        assert group.spans[0].dropped == 500


def test_logs_and_metrics_are_the_same_in_both_encodings() -> None:
    one = logs(
        {"event": "gen_ai.choice", "body": {"index": 0, "message": {"content": "hi"}}, "attributes": {"a": [1, "b"]}}
    )
    assert read_groups("logs", "protobuf", one.SerializeToString()) == read_groups("logs", "json", as_json(one))
    two = metrics("gen_ai.client.token.usage", {"a": 1}, total=12.0, count=3, delta=True)
    assert read_groups("metrics", "protobuf", two.SerializeToString()) == read_groups("metrics", "json", as_json(two))
