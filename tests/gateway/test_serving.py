"""The gateway as the official client sees it."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import openai
import pytest

from tests.gateway.conftest import KEY, OTHER_KEY, RELEASE_1, RunningGateway
from tests.gateway.wire import Wire, post
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.telemetry.records import Reference, Span
from tidemill.telemetry.store import ENTRY_ATTRIBUTE

ASK = [{"role": "user", "content": "What is a tide mill?"}]


def client_of(gateway: RunningGateway, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url, api_key=key, max_retries=0)


def test_whole_answer_is_passed_and_recorded(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.extension = {
        "passages": [{"passage_id": "psg_1", "source": "a", "rank": 1, "score": 0.5, "title": "A", "document_id": "d"}],
        "citations": ["a"],
    }
    with client_of(gateway) as client:
        answer = client.chat.completions.with_raw_response.create(model="desk", messages=ASK, user="ann")
    assert answer.parse().choices[0].message.content == "Hello from the script."
    assert answer.headers["x-tidemill-release"] == RELEASE_1
    trace_id = answer.headers["x-tidemill-trace-id"]
    sent = upstream.seen[0]
    assert sent.path == "/v1/chat/completions"
    assert "authorization" not in sent.headers
    records = gateway.records()
    span = records.span()
    assert sent.headers["traceparent"] == f"00-{trace_id}-{span.span_id}-01"
    assert sent.headers["x-tidemill-session"] == span.session_id
    assert sent.headers["x-tidemill-arm"] == "control"
    assert (span.trace_id, span.status, span.http_status, span.endpoint) == (trace_id, "ok", 200, "desk")
    assert (span.release, span.assigned_release, span.operation) == (RELEASE_1, RELEASE_1, "chat")
    assert (span.input_tokens, span.output_tokens, span.finish_reasons) == (11, 5, ("stop",))
    assert span.user_key is not None
    assert "ann" not in span.user_key
    assert [(r.kind, r.ref, r.role) for r in span.references] == [
        ("passage", "psg_1", "retrieved"),
        ("passage", "psg_1", "cited"),
        ("artifact", RELEASE_1, "release"),
    ]
    assert records.intents[0].span_id == span.span_id
    assert json.loads(records.contents[span.span_id].input) == ASK
    assert records.contents[span.span_id].output == "Hello from the script."


def test_every_field_of_the_record_is_in_its_place(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    parent = "b" * 16
    headers = {"traceparent": f"00-{'a' * 32}-{parent}-01"}
    with client_of(gateway) as client:
        client.chat.completions.create(model="desk", messages=ASK, user="ann", extra_headers=headers)
    records = gateway.records()
    span, asked = records.span(), records.intents[0]
    assert span == Span(
        trace_id="a" * 32,
        span_id=asked.span_id,
        parent_span_id=parent,
        project="demo",
        tenant="default",
        name="chat desk",
        operation="chat",
        started_at_ns=asked.started_at_ns,
        ended_at_ns=span.ended_at_ns,
        http_status=200,
        endpoint="desk",
        release=RELEASE_1,
        assigned_release=RELEASE_1,
        arm="control",
        session_id=upstream.seen[0].headers["x-tidemill-session"],
        user_key=asked.user_key,
        provider="openai_compatible",
        request_model="desk",
        response_model=upstream.model,
        input_tokens=11,
        output_tokens=5,
        cost_usd=span.cost_usd,
        finish_reasons=("stop",),
        attributes={ENTRY_ATTRIBUTE: True, "tidemill.usage_source": "provider"},
        references=(Reference("artifact", RELEASE_1, "release"),),
    )
    assert 0 < span.duration_s < 60
    assert span.cost_usd is not None
    assert len(asked.span_id) == 16
    assert asked.user_key is not None


def test_stream_is_passed_and_recorded(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    with client_of(gateway) as client:
        stream = client.chat.completions.create(model="desk", messages=ASK, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "Hello from the script."
    records = gateway.records()
    span = records.span()
    assert span.stream
    assert span.status == "ok"
    assert span.time_to_first_chunk_s is not None
    assert 0 < span.time_to_first_chunk_s <= span.duration_s
    assert (span.input_tokens, span.output_tokens) == (11, 5)
    assert records.contents[span.span_id].output == text


def test_async_client(gateway: RunningGateway) -> None:
    async def ask() -> tuple[str, str | None]:
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(model="desk", messages=ASK, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            whole = await client.chat.completions.create(model="desk", messages=ASK)
            return "".join(texts), whole.choices[0].message.content

    streamed, whole = asyncio.run(ask())
    assert streamed == whole


def test_other_operations(gateway: RunningGateway) -> None:
    with client_of(gateway) as client:
        assert client.completions.create(model="desk", prompt="Say").choices[0].text == "Hello from the script."
        found = client.embeddings.create(model="desk", input=["a"], encoding_format="float")
        assert found.data[0].embedding == [0.25, -0.5, 0.125]
    assert [span.operation for span in gateway.records().spans] == ["text_completion", "embeddings"]


def test_models_are_those_of_the_tenant(gateway: RunningGateway) -> None:
    with client_of(gateway) as client:
        assert [model.id for model in client.models.list()] == ["desk"]
        assert client.models.retrieve("desk").owned_by == "demo"
    with client_of(gateway, OTHER_KEY) as client:
        assert list(client.models.list()) == []
        with pytest.raises(openai.NotFoundError, match="none yet"):
            client.chat.completions.create(model="desk", messages=ASK)


def test_error_classes(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    with client_of(gateway, "wrong") as client, pytest.raises(openai.AuthenticationError, match="not known"):
        client.models.list()
    with client_of(gateway) as client:
        with pytest.raises(openai.NotFoundError, match="'desk'") as caught:
            client.chat.completions.create(model="dask", messages=ASK)
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="model"):
            client.chat.completions.create(model=3, messages=ASK)  # type: ignore[call-overload]
        upstream.faults.append(Fault.RATE_LIMIT)
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="desk", messages=ASK)
        assert limited.value.response.headers["retry-after"] == "7"
        upstream.faults.append(Fault.SERVER_ERROR)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="desk", messages=ASK)
    spans = gateway.records().spans
    assert [(span.status, span.http_status, span.error_type) for span in spans] == [
        ("error", 429, "rate_limit_exceeded"),
        ("error", 500, "overloaded"),
    ]


def test_feedback_is_written_before_it_is_acknowledged(gateway: RunningGateway) -> None:
    with client_of(gateway) as client:
        raw = client.chat.completions.with_raw_response.create(model="desk", messages=ASK)
        trace_id = raw.headers["x-tidemill-trace-id"]
        body = {"trace_id": trace_id, "value": 1, "comment": "good"}
        answer = client.post("/feedback", body=body, cast_to=dict[str, str])
    score = gateway.records().scores[0]
    assert score.score_id == answer["score_id"]
    assert (score.trace_id, score.name, score.value, score.source) == (trace_id, "feedback", 1.0, "user")
    assert score.comment == "good"


@pytest.mark.parametrize(
    "body", [{"trace_id": "x", "value": 1}, {"trace_id": "a" * 32}, {"trace_id": "a" * 32, "rating": 1}, []]
)
def test_bad_feedback_is_refused(gateway: RunningGateway, body: object) -> None:
    with client_of(gateway) as client, pytest.raises(openai.BadRequestError):
        client.post("/feedback", body=body, cast_to=object)


def test_trace_of_the_caller_is_joined(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    trace, parent = "ab" * 16, "cd" * 8
    with client_of(gateway) as client:
        client.chat.completions.create(
            model="desk", messages=ASK, extra_headers={"traceparent": f"00-{trace}-{parent}-01", "tracestate": "a=b"}
        )
        client.chat.completions.create(model="desk", messages=ASK, extra_headers={"traceparent": f"00-{'0' * 32}-x-01"})
    assert upstream.seen[0].headers["tracestate"] == "a=b"
    first, second = gateway.records().spans
    assert (first.trace_id, first.parent_span_id) == (trace, parent)
    assert first.attributes["tidemill.entry"] is True
    assert second.parent_span_id is None
    assert second.trace_id != "0" * 32


def test_health_and_metrics(gateway: RunningGateway) -> None:
    with client_of(gateway) as client:
        client.chat.completions.create(model="desk", messages=ASK)
    base = gateway.url.removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/health") as answer:
        assert json.load(answer)["epoch"] == 1
    with urllib.request.urlopen(f"{base}/metrics") as answer:
        text = answer.read().decode()
    assert 'endpoint="desk",arm="control",code="200",outcome="ok"} 1' in text
    assert 'le="+Inf"} 1' in text
    assert 'endpoint="desk"' in text.split("# TYPE tidemill_gateway_breaker_state gauge")[1]
    assert text.count('state="closed"} 1') == text.count('state="open"} 0') >= 1
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{base}/nothing")
    assert caught.value.code == 404
    caught.value.close()


def test_a_stream_is_whole_wherever_reads_cut_it() -> None:
    """[DONE] torn over two reads is still recorded first, and events leave whole."""
    from tidemill.gateway.payloads import hear_stream

    raw = b'data: {"choices":[{"delta":{"content":"a\\n\\ndata: b"}}]}\r\n\r\n: ping\n\n'
    raw += b"data: {}\n\ndata: [DONE]\n\n"
    heard = hear_stream(raw)
    assert (heard.text, heard.finished, heard.broken) == ("a\n\ndata: b", True, False)
    assert hear_stream(raw[:30]).broken
    assert not hear_stream(b"").finished


def test_odd_text_costs_nobody_the_answer(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    """Text that is no valid Unicode, in every place that is recorded."""
    odd = b'{"model":"desk","messages":[{"role":"user","content":"\\ud800"}],"user":"\\udfff","stream":false}'
    upstream.words = ("\ud800", "b")
    with Wire(gateway.port) as wire:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        wire.send(f"{head}x-tidemill-session: \xff\r\nContent-Length: {len(odd)}\r\n\r\n".encode("latin-1") + odd)
        assert wire.answer()[0] == 400
        wire.send(post({"model": "desk", "messages": []}))
        assert wire.answer()[0] == 200
    assert gateway.records().spans[-1].http_status == 200
