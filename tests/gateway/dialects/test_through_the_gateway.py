"""Official clients through a running gateway to a provider of another format: every part is real but the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.conftest import KEY, RELEASE_1, RunningGateway, target
from tests.gateway.dialects.answering import Answer, Answering, Asked, answering
from tests.gateway.dialects.test_messages import ASKED, TIDES, anthropic_events
from tidemill.kernel import Route
from tidemill.telemetry.records import Span

Start = Callable[..., RunningGateway]
CALL = {"type": "tool_use", "id": "toolu_1", "name": "tide_table", "input": {"harbour": "Brest"}}
SAID = [{"type": "thinking", "thinking": "I look.", "signature": "c2ln"}, {"type": "text", "text": "One moment."}, CALL]
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "content": SAID,
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 7, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2, "output_tokens": 9},
}  # fmt: skip


def provider(asked: Asked) -> Answer:
    """Anthropic's API, as far as these tests go."""
    assert asked.path == "/v1/messages"
    assert asked.headers["x-api-key"] == "key-of-the-target"
    assert asked.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in asked.headers
    request = json.loads(asked.body)
    if request["messages"][-1]["content"][0].get("text") == "overload":
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return 529, "application/json", [json.dumps(error).encode()]
    if request.get("stream"):
        raw = anthropic_events(SAID, "tool_use")
        if request["messages"][-1]["content"][0].get("text") == "cut":
            raw = raw[: len(raw) // 2]
        return 200, "text/event-stream", [raw[start : start + 50] for start in range(0, len(raw), 50)]
    return 200, "application/json", [json.dumps(MESSAGE).encode()]


@contextmanager
def routed(start: Start, folder: Path) -> Iterator[tuple[RunningGateway, Answering]]:
    secret = folder / "key"
    secret.write_text("key-of-the-target")
    with answering(provider) as place:
        route = target(f"{place.url}/v1", dialect="anthropic", model="claude-sonnet-4-6", api_key_ref=f"file:{secret}")
        yield start(Route(endpoint="shop", tenant="default", releases=(route,))), place


def said(asked: Asked) -> dict[str, Any]:
    return json.loads(asked.body)


def check_span(gateway: RunningGateway) -> Span:
    span = gateway.records().span()
    assert span.release == RELEASE_1
    assert (span.input_tokens, span.output_tokens) == (12, 9)
    return span


FUNCTION = {
    "type": "function",
    "function": {
        "name": "tide_table",
        "description": TIDES["description"],
        "parameters": TIDES["input_schema"],
    },
}


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_at_anthropic(start: Start, tmp_path: Path, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "shop", "messages": [{"role": "user", "content": "When?"}], "tools": [FUNCTION],
    }  # fmt: skip
    with routed(start, tmp_path) as (gateway, place):
        with openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=60) as client:
            if stream:
                with client.chat.completions.stream(**asked) as opened:
                    answer: Any = opened.get_final_completion()
            else:
                answer = client.chat.completions.create(**asked)
        (request,) = [said(one) for one in place.asked]
        check_span(gateway)
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("One moment.", "tool_calls")
    (call,) = message.tool_calls
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == (
        "toolu_1",
        "tide_table",
        CALL["input"],
    )
    assert answer.usage.prompt_tokens == 12
    assert request["model"] == "claude-sonnet-4-6"
    assert request["tools"] == [TIDES]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_client_at_anthropic(start: Start, tmp_path: Path, stream: bool) -> None:
    with routed(start, tmp_path) as (gateway, place):
        base_url = gateway.url.removesuffix("/v1")
        with anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0, timeout=60) as client:
            if stream:
                with client.messages.stream(**ASKED, tools=[TIDES]) as opened:
                    message: Any = opened.get_final_message()
            else:
                message = client.messages.create(**ASKED, tools=[TIDES])
        (request,) = [said(one) for one in place.asked]
        check_span(gateway)
    found = [block.to_dict() for block in message.content]
    for block in found:
        block.pop("citations", None)
    assert found == SAID
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (7, 3, 9)
    assert request["model"] == "claude-sonnet-4-6"
    assert (request["max_tokens"], request["tools"]) == (100, [TIDES])


def test_errors_reach_both_clients_as_their_own(start: Start, tmp_path: Path) -> None:
    overload = [{"role": "user", "content": "overload"}]
    with routed(start, tmp_path) as (gateway, _):
        base_url = gateway.url.removesuffix("/v1")
        with (
            openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=60) as ours,
            anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0, timeout=60) as theirs,
            anthropic.Anthropic(base_url=base_url, api_key="wrong", max_retries=0, timeout=60) as stranger,
        ):
            with pytest.raises(openai.InternalServerError):
                ours.chat.completions.create(model="shop", messages=overload)
            with pytest.raises(anthropic.InternalServerError) as overloaded:
                theirs.messages.create(**{**ASKED, "messages": overload})
            with pytest.raises(openai.BadRequestError, match="logit_bias") as unsupported:
                ours.chat.completions.create(model="shop", messages=overload, logit_bias={"5": 1})
            with pytest.raises(anthropic.AuthenticationError) as unknown:
                stranger.messages.create(**ASKED)
            with pytest.raises(anthropic.NotFoundError):
                theirs.messages.create(**{**ASKED, "model": "nowhere"})
    assert unsupported.value.param == "logit_bias"
    for raised in (overloaded, unknown):
        assert isinstance(raised.value.body, dict)
        assert raised.value.body["type"] == "error"


def test_a_stream_that_the_provider_cuts_has_no_good_end(start: Start, tmp_path: Path) -> None:
    cut = [{"role": "user", "content": "cut"}]
    chunks: list[Any] = []
    events: list[Any] = []
    with routed(start, tmp_path) as (gateway, _):
        base_url = gateway.url.removesuffix("/v1")
        with (
            openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=60) as ours,
            anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0, timeout=60) as theirs,
        ):
            with (
                ours.chat.completions.create(model="shop", messages=cut, stream=True) as chat,
                pytest.raises(openai.APIError),
            ):
                chunks.extend(chat)
            with (
                theirs.messages.create(**{**ASKED, "messages": cut}, stream=True) as stream,
                pytest.raises(anthropic.APIError),
            ):
                events.extend(stream)
        spans = gateway.records().requests()
    assert chunks
    assert [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason] == []
    assert [event.type for event in events][:2] == ["message_start", "content_block_start"]
    assert "message_stop" not in [event.type for event in events]
    assert [span.status for span in spans] == ["truncated"] * 2
