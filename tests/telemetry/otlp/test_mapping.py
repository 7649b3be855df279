"""Every generation and vendor's names onto one span; content by policy; costs by our price table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.telemetry.otlp.making import KEYS, NOW_NS, decoded, logs, mapper, traces, wire_span
from tidemill.checks import may_hold_findings
from tidemill.kernel import Prices
from tidemill.safety import mask_pii
from tidemill.telemetry import Content, Reference, Span
from tidemill.telemetry.aliases import alias_table
from tidemill.telemetry.late import combined
from tidemill.telemetry.otlp import CapturePolicy, SpanMapper

ASKED = '[{"role":"user","content":"Why?"}]'
CALL: Mapping[str, Mapping[str, Any]] = {
    "gen_ai, newest": {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "gen_ai.conversation.id": "s1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"Why?"}]}]',
        "gen_ai.output.messages": [
            {"role": "assistant", "parts": [{"type": "text", "content": "Because."}], "finish_reason": "stop"}
        ],
    },
    "gen_ai, oldest": {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.usage.prompt_tokens": 10,
        "gen_ai.usage.completion_tokens": 20,
        "gen_ai.usage.cache_read_input_tokens": 4,
        "gen_ai.usage.reasoning_tokens": 5,
        "session.id": "s1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.server.time_to_first_token": 0.25,
        "gen_ai.prompt": ASKED,
        "gen_ai.completion": "Because.",
    },
    "OpenInference": {
        "openinference.span.kind": "LLM",
        "llm.provider": "openai",
        "llm.model_name": "gpt-4o-mini",
        "llm.token_count.prompt": 10,
        "llm.token_count.completion": 20,
        "llm.token_count.prompt_details.cache_read": 4,
        "llm.token_count.completion_details.reasoning": 5,
        "session.id": "s1",
        "llm.finish_reason": "stop",
        "gen_ai.response.time_to_first_chunk": 0.25,
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "Why?",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "Because.",
        "input.value": '{"messages": [], "model": "gpt-4o-mini"}',
        "output.value": "{}",
    },
    "Traceloop": {
        "llm.request.type": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini",
        "llm.usage.prompt_tokens": 10,
        "llm.usage.completion_tokens": 20,
        "gen_ai.usage.cache_read_input_tokens": 4,
        "llm.usage.reasoning_tokens": 5,
        "traceloop.association.properties.session_id": "s1",
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "Why?",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "Because.",
        "gen_ai.completion.0.finish_reason": "stop",
    },
    "Langfuse": {
        "langfuse.observation.type": "generation",
        "gen_ai.system": "openai",
        "langfuse.observation.model.name": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini",
        "langfuse.observation.usage_details": '{"input":10,"output":20,"input_cached_tokens":4}',
        "gen_ai.usage.reasoning_tokens": 5,
        "langfuse.session.id": "s1",
        "gen_ai.response.finish_reason": "stop",
        "langfuse.observation.completion_start_time": json.dumps(
            datetime.fromtimestamp(NOW_NS / 1e9 + 0.25, UTC).isoformat()
        ),
        "langfuse.observation.input": ASKED,
        "langfuse.observation.output": "Because.",
    },
    "Vercel": {
        "ai.operationId": "ai.streamText.doStream",
        "ai.model.provider": "openai",
        "ai.model.id": "gpt-4o-mini",
        "ai.response.model": "gpt-4o-mini",
        "ai.usage.inputTokens": 10,
        "ai.usage.outputTokens": 20,
        "ai.usage.cachedInputTokens": 4,
        "ai.usage.reasoningTokens": 5,
        "ai.telemetry.metadata.sessionId": "s1",
        "ai.response.finishReason": "stop",
        "ai.response.msToFirstChunk": 250.0,
        "ai.prompt.messages": '[{"role":"user","content":[{"type":"text","text":"Why?"}]}]',
        "ai.response.text": "Because.",
    },
}


def one(
    attributes: Mapping[str, Any], *, using: SpanMapper | None = None, **changes: Any
) -> tuple[Span, Content | None]:
    found = decoded(traces(wire_span(1, attributes, **changes)), using=using)
    (span,) = found.spans
    return span, found.contents.get((span.trace_id, span.span_id))


@pytest.mark.parametrize("sender", CALL)
def test_every_convention_gives_the_same_span_and_content(sender: str) -> None:
    span, content = one(CALL[sender])
    assert (span.operation, span.provider, span.request_model, span.response_model) == (
        "chat", "openai", "gpt-4o-mini", "gpt-4o-mini",
    )  # fmt: skip
    assert (span.input_tokens, span.output_tokens) == (10, 20)
    assert (span.cached_input_tokens, span.reasoning_output_tokens) == (4, 5)
    assert (span.session_id, span.service) == ("s1", "shop")
    assert span.finish_reasons == ("stop",)
    assert span.time_to_first_chunk_s == pytest.approx(0.25)
    assert content is not None
    assert (content.input, content.output) == (ASKED, "Because.")


def test_messages_as_span_events_are_content() -> None:
    found = decoded(traces(wire_span(1, {"gen_ai.operation.name": "chat"}, events=[
        ("gen_ai.system.message", {"content": "Be brief."}),
        ("gen_ai.user.message", {"content": "Why?"}),
        ("gen_ai.choice", {"finish_reason": "stop", "message": '{"content": "Because.", "role": "assistant"}'}),
    ])))  # fmt: skip
    (content,) = found.contents.values()
    assert json.loads(content.input) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    assert content.output == "Because."
    assert found.spans[0].finish_reasons == ("stop",)


def test_messages_as_log_records_join_their_span_whenever_they_come() -> None:
    found = decoded(
        logs(
            {"event": "gen_ai.user.message", "body": {"content": "Why?"}},
            {
                "attributes": {"event.name": "gen_ai.choice"},
                "body": {"index": 0, "finish_reason": "stop", "message": {"content": "Because."}},
            },
            {"severity": 9, "body": "cache is cold"},
        ),
        signal="logs",
    )
    ((key, late),) = found.late
    assert key == (f"{1:032x}", f"{1:016x}")
    assert (late.input, late.output) == (ASKED, "Because.")
    assert json.loads(late.detail)["events"][0]["attributes"] == {"body": "cache is cold", "severity": 9}
    assert not found.spans
    own = Content("", "", '{"attributes":{"a":1}}')
    whole = combined([own, late])
    assert (whole.input, whole.output) == (ASKED, "Because.")
    assert set(json.loads(whole.detail)) == {"attributes", "events"}
    assert combined([late, late]).input == ASKED


def test_details_of_a_request_outside_a_trace_become_a_trace_and_other_records_are_refused() -> None:
    event = {
        "number": 0,
        "event": "gen_ai.client.inference.operation.details",
        "attributes": {**CALL["gen_ai, newest"], "gen_ai.operation.name": "chat"},
    }
    found = decoded(logs(event, {"number": 0, "body": "started"}), signal="logs")
    (span,) = found.spans
    assert (span.operation, span.input_tokens) == ("chat", 10)
    assert found.contents[span.trace_id, span.span_id].output == "Because."
    assert [one.reason for one in found.rejected] == ["no_span_context"]
    again = decoded(logs(event), signal="logs")
    assert again.spans[0].span_id == span.span_id


def test_an_evaluation_is_a_score_once() -> None:
    event = {
        "event": "gen_ai.evaluation.result",
        "attributes": {
            "gen_ai.evaluation.name": "groundedness",
            "gen_ai.evaluation.score.value": 0.75,
            "gen_ai.evaluation.score.label": "good",
            "gen_ai.evaluation.explanation": "mail me: a.b@example.com",
        },
    }
    using = mapper(mask=mask_pii, suspect=may_hold_findings)
    first = decoded(logs(event), signal="logs", using=using)
    (score,) = first.scores
    assert (score.name, score.value, score.label, score.source) == ("groundedness", 0.75, "good", "scorer")
    assert score.comment == "mail me: <email>"
    assert decoded(logs(event), signal="logs").scores[0].score_id == score.score_id
    on_span = decoded(traces(wire_span(1, {}, events=[("gen_ai.evaluation.result", event["attributes"])])))
    assert on_span.scores[0].value == 0.75


CALLED = {"type": "tool_call", "id": "c1", "name": "find", "arguments": {"q": "x"}}


def test_tool_calls_and_their_answers_keep_their_form() -> None:
    _, content = one(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.system_instructions": [{"type": "text", "content": "Be brief."}],
            "gen_ai.input.messages": json.dumps([
                {"role": "assistant", "parts": [CALLED]},
                {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "found"}]},
            ]),
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c2",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "find",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"q":"y"}',
        }
    )  # fmt: skip
    assert content is not None
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":"x"}'}}
    assert json.loads(content.input) == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
    ]
    (answer,) = json.loads(content.output)
    assert answer["tool_calls"][0]["function"]["arguments"] == '{"q":"y"}'


def test_retrieved_documents_are_references() -> None:
    span, content = one(
        {
            "openinference.span.kind": "RETRIEVER",
            "input.value": "how to assert",
            "retrieval.documents.0.document.id": "psg_1",
            "retrieval.documents.0.document.score": 0.5,
            "retrieval.documents.0.document.content": "Write assert.",
            "retrieval.documents.1.document.content": "Or raise.",
        }
    )
    assert span.operation == "retrieval"
    assert span.references[0] == Reference("passage", "psg_1", "retrieved", 1, 0.5)
    assert span.references[1].ref.startswith("blake2b:")
    assert content is not None
    assert content.input == "how to assert"
    assert json.loads(content.output)[0]["content"] == "Write assert."
    span, _ = one({"gen_ai.operation.name": "retrieval", "gen_ai.retrieval.documents": '[{"id":"psg_2","score":1}]'})
    assert span.references == (Reference("passage", "psg_2", "retrieved", 1, 1.0),)
    span, _ = one({"tidemill.references": '[{"kind":"artifact","ref":"sha256:1","role":"model"}, 5, {"kind":"x"}]'})
    assert span.references == (Reference("artifact", "sha256:1", "model"),)


def test_what_no_row_names_is_kept_as_it_came() -> None:
    span, content = one(
        {
            "my.flag": True,
            "my.note": "short",
            "my.text": "long " * 100,
            "my.list": [1, 2],
            "my.map": {"a": 1},
            "my.none": None,
        },
        events=[("surprise", {"a": "b"})],
    )
    assert span.operation == "span"
    assert span.attributes == {"my.flag": True, "my.note": "short"}
    assert content is not None
    detail = json.loads(content.detail)
    assert detail["attributes"] == {"my.text": "long " * 100, "my.list": [1, 2], "my.map": {"a": 1}}
    assert detail["events"] == [{"name": "surprise", "at_ns": NOW_NS, "attributes": {"a": "b"}}]
    assert detail["scope"] == {"name": "tests"}


def test_a_second_value_of_a_field_that_differs_is_kept_too() -> None:
    span, _ = one({"gen_ai.usage.input_tokens": 10, "llm.token_count.prompt": 11, "llm.usage.prompt_tokens": 10})
    assert span.input_tokens == 10
    assert span.attributes == {"llm.token_count.prompt": 11}


def prices(provider: str | None, model: str, at_ns: int) -> Prices | None:
    if model != "gpt-4o-mini":
        return None
    return Prices(
        input_usd_per_mtok=1.0 if at_ns < NOW_NS + 86_400 * 10**9 else 3.0,
        output_usd_per_mtok=2.0,
        cached_input_usd_per_mtok=0.5,
    )


def test_our_price_of_the_day_wins_over_the_senders_and_the_senders_over_none() -> None:
    call = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.response.model": "gpt-4o-mini-2024", "gen_ai.usage.input_tokens": 1000,
            "gen_ai.usage.output_tokens": 500, "gen_ai.usage.cache_read.input_tokens": 400}  # fmt: skip
    using = mapper(price_of=prices)
    span, _ = one(call, using=using)
    assert span.cost_usd == pytest.approx((600 * 1.0 + 400 * 0.5 + 500 * 2.0) / 1e6)
    later = NOW_NS + 2 * 86_400 * 10**9
    raw = wire_span(1, call, start_time_unix_nano=later, end_time_unix_nano=later)
    from tidemill.telemetry.otlp.decoding import Decoder, survey

    found = Decoder(using, bytes_most=1 << 20).decode_survey(
        survey("traces", "protobuf", traces(raw).SerializeToString(), later), later
    )
    assert found.spans[0].cost_usd == pytest.approx((600 * 3.0 + 400 * 0.5 + 500 * 2.0) / 1e6)
    span, _ = one({**call, "llm.cost.total": 9.0}, using=using)
    assert span.cost_usd == pytest.approx(0.0018)
    assert span.attributes["tidemill.sent_cost_usd"] == 9.0
    unknown = {**call, "gen_ai.request.model": "other", "gen_ai.response.model": "other"}
    assert one(unknown, using=using)[0].cost_usd is None
    assert one({**unknown, "llm.cost.total": 9.0}, using=using)[0].cost_usd == 9.0


def test_tokens_that_an_agent_adds_up_are_an_attribute_and_cost_nothing_again() -> None:
    span, _ = one(
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.usage.input_tokens": 1000,
        },
        using=mapper(price_of=prices),
    )
    assert (span.input_tokens, span.cost_usd) == (None, None)
    assert span.attributes == {"gen_ai.usage.input_tokens": 1000}


@pytest.mark.parametrize("count", [-1, 10**15, "many", True, 1.5e300])
def test_counts_that_cannot_be_are_left_out_and_counted(count: Any) -> None:
    found = decoded(traces(wire_span(1, {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": count})))
    assert found.spans[0].input_tokens is None
    assert found.counts["implausible_counts"]


def test_people_appear_by_a_keyed_hash_and_never_in_clear() -> None:
    people = {"user.id": "ada@example.com", "enduser.id": "ada", "session.id": "ada@example.com"}
    found = decoded(traces(wire_span(1, people)), using=mapper(mask=mask_pii, suspect=may_hold_findings))
    (span,) = found.spans
    assert span.user_key is not None
    assert span.user_key == decoded(traces(wire_span(2, {"user.id": "ada@example.com"}))).spans[0].user_key
    assert span.session_id is not None
    assert "ada" not in str((span, found.contents)).lower()
    assert KEYS.user != KEYS.content


def test_texts_are_masked_wherever_they_stand() -> None:
    secret = "ada@example.com"
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps([{"role": "user", "content": f"I am {secret}"}]),
        "gen_ai.output.messages": '[{"role":"assistant","content":"ad\\u0061\\u0040example.com"}]',
        "note": secret, "deep": {"a": [secret]}, "long": f"{secret} " * 50, "password": "Xy12ab!z",
        "number": 4111111111111111,
    }  # fmt: skip
    using = mapper(mask=mask_pii, suspect=may_hold_findings)
    found = decoded(
        traces(wire_span(1, attributes, name=f"chat {secret}", events=[("e", {"x": secret})]), host=secret), using=using
    )
    text = str((found.spans, found.contents))
    assert "ada" not in text
    assert "Xy12ab" not in text
    assert "4111111111111111" not in text
    assert text.count("<email>") >= 7


def test_hashed_keeps_hashes_and_none_keeps_nothing_of_content() -> None:
    attributes = {**CALL["gen_ai, newest"], "gen_ai.request.temperature": 0.5, "my.note": "Ada lives here",
                  "my.number": 5, "gen_ai.agent.name": "desk"}  # fmt: skip
    policy = CapturePolicy(default="masked", of={"shop": "none", "quiet": "hashed"})
    none = decoded(traces(wire_span(1, attributes, events=[("e", {"x": "Ada"})])), using=mapper(policy=policy))
    assert not none.contents
    assert "Ada" not in str(none)
    assert none.spans[0].attributes == {"gen_ai.request.temperature": 0.5, "my.number": 5, "gen_ai.agent.name": "desk"}
    hashed = decoded(traces(wire_span(1, attributes), service="quiet"), using=mapper(policy=policy))
    (content,) = hashed.contents.values()
    assert content.input.startswith("blake2b:")
    assert content.detail == ""
    masked = decoded(traces(wire_span(1, attributes), service="other"), using=mapper(policy=policy))
    assert masked.contents
    assert masked.spans[0].attributes["my.note"] == "Ada lives here"


def test_long_texts_are_cut_with_a_mark_that_says_so() -> None:
    using = mapper(policy=CapturePolicy(bytes_most=2000))
    _, content = one({"input.value": "x" * 5_000_000, "output.value": "ä" * 3000, "blob": "y" * 5_000_000}, using=using)
    assert content is not None
    assert content.input.startswith("x" * 2000 + "…[cut: 2000 of ")
    assert content.output == "ä" * 1000 + "…[cut: 2000 of 6000 bytes]"
    assert "…[cut: 2000 of 5000000 bytes]" in content.detail
    assert len(content.detail) < 3000


def test_the_table_names_nothing_twice_and_has_a_version() -> None:
    table = alias_table()
    assert table.version == 1
    assert not table.named & set(table.attributes)
    assert set(table.calls) >= {"chat", "embeddings"}
