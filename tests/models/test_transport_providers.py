"""The client over real sockets against servers that speak the providers' formats and check what they get."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.models.providers.provider_servers import (
    AWS,
    KEY,
    REGION,
    Reply,
    Server,
    bedrock_stream,
    check_anthropic,
    check_azure,
    check_bedrock,
    check_gemini,
    event,
    serving,
    sse,
)
from tidemill.kernel import InvalidInput, NotFound
from tidemill.models import ModelClient, UpstreamError
from tidemill.models.providers import Credentials, UnsupportedField, UnsupportedOperation

GEMINI: dict[str, Any] = {"dialect": "gemini", "api_key": KEY}
BEDROCK: dict[str, Any] = {
    "dialect": "bedrock",
    "credentials": Credentials(extra=AWS),
    "options": {"region": REGION},
}
CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hello."}]


def ask(server: Server, options: Mapping[str, Any], use: Callable[[ModelClient], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with ModelClient(server.url, timeout_s=30, **options) as client:
            return await use(client)

    return asyncio.run(go())


async def collect(client: ModelClient, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [chunk async for chunk in client.stream(request)]


def said(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def answer(body: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply([json.dumps(body).encode()], status)


CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello!"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12},
    "metrics": {"latencyMs": 1},
}
CONVERSE_STREAM: tuple[tuple[str, dict[str, Any]], ...] = (
    ("messageStart", {"role": "assistant"}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hel"}}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "lo!"}}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("messageStop", {"stopReason": "end_turn"}),
    (
        "metadata",
        {"usage": {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12}, "metrics": {"latencyMs": 1}},
    ),
)
GENERATED = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello!"}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3, "totalTokenCount": 12},
    "modelVersion": "gemini-3.8-flash",
    "responseId": "r-1",
}


@pytest.mark.parametrize(
    ("check", "options", "model", "reply", "base_path"),
    [
        (check_gemini, GEMINI, "gemini-3.8-flash", GENERATED, "/v1beta"),
        (check_bedrock, BEDROCK, CLAUDE, CONVERSED, ""),
        (check_bedrock, {"dialect": "bedrock", "api_key": KEY}, CLAUDE, CONVERSED, "/"),
        (
            check_anthropic,
            {"dialect": "anthropic", "api_key": KEY},
            "claude-sonnet-4-5",
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet-4-5",
                "content": [{"type": "text", "text": "Hello!"}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 9, "output_tokens": 3},
            },
            "/v1",
        ),
        (
            check_azure,
            {"dialect": "azure", "api_key": KEY, "options": {"api_version": "2024-10-21", "deployment": "chat-1"}},
            "gpt-5",
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "gpt-5",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
            },
            "",
        ),
    ],
    ids=["gemini", "bedrock", "bedrock by key", "anthropic", "azure"],
)
def test_one_request_for_every_provider(
    check: Any, options: dict[str, Any], model: str, reply: dict[str, Any], base_path: str
) -> None:
    request = {"model": model, "messages": HELLO, "max_tokens": 20, "temperature": 0.5}
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with serving(check, answer(reply), answer(reply), base_path=base_path) as server:

        async def use(client: ModelClient) -> list[dict[str, Any]]:
            return list(await asyncio.gather(client.chat(request, trace), client.chat(request)))

        found = ask(server, options, use)
    assert server.refused == []
    for one in found:
        assert one["object"] == "chat.completion"
        assert one["choices"][0]["message"]["content"] == "Hello!"
        assert one["choices"][0]["finish_reason"] == "stop"
        assert {name: one["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
        }
    traces = [{name.lower(): value for name, value in seen.headers.items()}.get("traceparent") for seen in server.seen]
    assert sorted(map(str, traces)) == sorted([trace["traceparent"], "None"])


@pytest.mark.parametrize(
    ("check", "options", "model", "reply", "base_path"),
    [
        (
            check_gemini,
            GEMINI,
            "gemini-3.8-flash",
            sse(
                {"candidates": [{"content": {"parts": [{"text": "Hel"}]}, "index": 0}], "responseId": "r-1"},
                {**GENERATED, "candidates": [{"content": {"parts": [{"text": "lo!"}]}, "finishReason": "STOP"}]},
            ),
            "/v1beta",
        ),
        (check_bedrock, BEDROCK, CLAUDE, bedrock_stream(*CONVERSE_STREAM), ""),
    ],
    ids=["gemini", "bedrock"],
)
def test_one_stream_for_every_provider(
    check: Any, options: dict[str, Any], model: str, reply: Reply, base_path: str
) -> None:
    request = {"model": model, "messages": HELLO, "stream_options": {"include_usage": True}}
    with serving(check, reply, base_path=base_path) as server:
        chunks = ask(server, options, lambda client: collect(client, request))
    assert server.refused == []
    assert said(chunks) == "Hello!"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["usage"]["total_tokens"] == 12
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_embeddings_of_gemini() -> None:
    replies = [answer({"embeddings": [{"values": [3.0, 4.0]}, {"values": [0.0, 2.0]}]})]
    with serving(check_gemini, *replies, base_path="/v1beta") as server:
        vectors = ask(server, GEMINI, lambda client: client.embed(["sea", "sky"], "gemini-embedding-001"))
    assert server.refused == []
    np.testing.assert_allclose(vectors, np.float32([[0.6, 0.8], [0.0, 1.0]]), rtol=1e-6)
    assert [one["content"]["parts"][0]["text"] for one in server.seen[0].body["requests"]] == ["sea", "sky"]


@pytest.mark.parametrize(
    ("check", "options", "status"),
    [
        (check_bedrock, {**BEDROCK, "credentials": Credentials(extra={**AWS, "aws_secret_access_key": "wrong"})}, 403),
        (check_bedrock, {"dialect": "bedrock", "api_key": "wrong"}, 403),
        (check_gemini, {**GEMINI, "api_key": "wrong"}, 401),
        (check_anthropic, {"dialect": "anthropic", "api_key": "wrong"}, 401),
    ],
)
def test_wrong_credentials(check: Any, options: dict[str, Any], status: int) -> None:
    paths = {check_gemini: "/v1beta", check_anthropic: "/v1", check_bedrock: ""}
    with serving(check, base_path=paths[check]) as server, pytest.raises(UpstreamError) as caught:
        ask(server, options, lambda client: client.chat({"model": "m", "messages": HELLO}))
    assert (caught.value.status, caught.value.retryable) == (status, False)
    assert len(server.refused) == 1


@pytest.mark.parametrize(
    ("exception", "status", "retryable"),
    [("throttlingException", 429, True), ("validationException", 400, False), ("internalServerException", 502, True)],
)
def test_an_exception_inside_a_stream(exception: str, status: int, retryable: bool) -> None:
    pieces = [event(*CONVERSE_STREAM[0]), event(*CONVERSE_STREAM[1]), event(exception, {"message": "No."}, "exception")]
    reply = Reply(pieces, content_type="application/vnd.amazon.eventstream")
    chunks: list[dict[str, Any]] = []

    async def use(client: ModelClient) -> None:
        async for chunk in client.stream({"model": CLAUDE, "messages": HELLO}):
            chunks.append(chunk)  # noqa: PERF401 - what came before the error is looked at

    with serving(check_bedrock, reply) as server, pytest.raises(UpstreamError, match="No") as caught:
        ask(server, BEDROCK, use)
    assert said(chunks) == "Hel"
    assert (caught.value.status, caught.value.retryable) == (status, retryable)


def test_a_damaged_stream_is_malformed() -> None:
    whole = bytearray(b"".join(event(*one) for one in CONVERSE_STREAM))
    whole[whole.index(b"lo!")] ^= 1
    reply = Reply([bytes(whole)], content_type="application/vnd.amazon.eventstream")
    with serving(check_bedrock, reply) as server, pytest.raises(UpstreamError, match="damaged") as caught:
        ask(server, BEDROCK, lambda client: collect(client, {"model": CLAUDE, "messages": HELLO}))
    assert (caught.value.type, caught.value.retryable) == ("malformed", True)


@pytest.mark.parametrize(("broken_off", "kind"), [(False, "truncated"), (True, "connection")])
def test_a_stream_without_its_end(broken_off: bool, kind: str) -> None:
    reply = bedrock_stream(*CONVERSE_STREAM[:3], broken_off=broken_off)
    with serving(check_bedrock, reply) as server, pytest.raises(UpstreamError) as caught:
        ask(server, BEDROCK, lambda client: collect(client, {"model": CLAUDE, "messages": HELLO}))
    assert (caught.value.type, caught.value.retryable) == (kind, True)


@pytest.mark.parametrize(
    "reply", [answer({}), answer({"candidates": [{"finishReason": "OTHER"}]}), Reply([b"<html>"])], ids=str
)
def test_an_answer_that_is_none(reply: Reply) -> None:
    with serving(check_gemini, reply, base_path="/v1beta") as server, pytest.raises(UpstreamError) as caught:
        ask(server, GEMINI, lambda client: client.chat({"model": "gemini-3.8-flash", "messages": HELLO}))
    assert (caught.value.type, caught.value.retryable) == ("malformed", True)


def test_an_error_status_of_a_stream() -> None:
    reply = answer({"message": "Too many requests"}, 429)
    with serving(check_bedrock, reply) as server, pytest.raises(UpstreamError, match="Too many") as caught:
        ask(server, BEDROCK, lambda client: collect(client, {"model": CLAUDE, "messages": HELLO}))
    assert (caught.value.status, caught.value.type, caught.value.retryable) == (429, "rate_limit_error", True)


def test_what_the_provider_cannot_serve_is_not_sent() -> None:
    request = {"model": CLAUDE, "messages": HELLO, "seed": 1}
    with serving(check_bedrock) as server:
        with pytest.raises(UnsupportedField) as refused:
            ask(server, BEDROCK, lambda client: client.chat(request))
        with pytest.raises(UnsupportedOperation):
            ask(server, BEDROCK, lambda client: client.embed(["a"], "m"))
        with pytest.raises(UnsupportedOperation):
            ask(server, BEDROCK, lambda client: client.models())
    assert refused.value.field == "seed"
    assert (server.seen, server.refused) == ([], [])


def test_unknown_dialects_are_refused_at_once() -> None:
    with pytest.raises(NotFound, match="telepathy"):
        ModelClient("http://127.0.0.1:9", dialect="telepathy")


def test_a_request_that_is_no_request() -> None:
    with serving(check_gemini, base_path="/v1beta") as server, pytest.raises(InvalidInput, match="messages"):
        ask(server, GEMINI, lambda client: client.chat({"model": "m", "messages": "Hello"}))
