"""Whatever a client of the Messages API or a target sends: it is translated, or what is wrong is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.dialects.test_messages import ASKED, PNG, TIDES, call_piece, pivot_answer, pivot_stream
from tests.models.providers.test_robustness import ODD, damaged
from tidemill.gateway.answers import Refusal
from tidemill.gateway.dialects.messages import MessagesDialect
from tidemill.kernel import InvalidInput

MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
REQUEST: dict[str, Any] = {
    **ASKED,
    **MARK,
    "system": [{"type": "text", "text": "Be brief.", **MARK}],
    "tools": [{**TIDES, **MARK, "strict": True}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 50, "display": "summarized"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "metadata": {"user_id": "ada"},
    "service_tier": "auto",
    "stop_sequences": ["END"],
    "stream": True,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {
                    "type": "document",
                    "title": "b",
                    "citations": {"enabled": False},
                    "source": {"type": "text", "data": "c"},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "d", "signature": "e"},
                {"type": "redacted_thinking", "data": "f"},
                {"type": "tool_use", "id": "g", "name": "tide_table", "input": {"h": 1}, **MARK},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "g",
                    "is_error": True,
                    "content": [{"type": "text", "text": "i", **MARK}],
                }
            ],
        },
        {"role": "system", "content": "j"},
    ],
}
SAID: dict[str, Any] = {
    "content": "a",
    "reasoning_content": "b",
    "reasoning_details": [
        {"type": "reasoning.text", "text": "b", "signature": "c", "format": "d"},
        {"type": "reasoning.encrypted", "data": "e"},
    ],
    "refusal": None,
    "tool_calls": [{"id": "f", "type": "function", "function": {"name": "g", "arguments": '{"h": 1}'}}],
}
DELTAS: list[dict[str, Any]] = [
    {"role": "assistant", "content": ""},
    {"reasoning_content": "a"},
    {"reasoning_details": [{"index": 0, **SAID["reasoning_details"][0]}, {"index": 1, **SAID["reasoning_details"][1]}]},
    {"content": "b"},
    {"tool_calls": [{"id": "c", "type": "function", **call_piece(0, name="d", arguments='{"e"')}]},
    {"tool_calls": [call_piece(0, arguments=": 1}")]},
    {"refusal": "f"},
]


def failures(whole: Any, use: Callable[[Any], Any], wrong: type[Exception]) -> list[str]:
    found = []
    for place, odd, value in damaged(whole):
        try:
            use(value)
        except wrong as error:
            if not str(error):
                found.append(f"{place}: {odd!r}: no message")
        except Exception as error:
            found.append(f"{place}: {odd!r}: {type(error).__name__}: {error}")
    return found


def test_the_undamaged_are_translated() -> None:
    speaker = MessagesDialect()
    assert json.loads(speaker.request(json.dumps(REQUEST).encode()))["model"] == "shop"
    assert json.loads(speaker.answer(pivot_answer(SAID)))["role"] == "assistant"
    assert speaker.stream().feed(pivot_stream(*DELTAS)).endswith(b'data: {"type":"message_stop"}\n\n')


def test_a_damaged_request_is_translated_or_refused() -> None:
    def use(request: Any) -> None:
        json.loads(MessagesDialect().request(json.dumps(request).encode()))

    assert failures(REQUEST, use, Refusal) == []


def test_a_damaged_answer_is_read_or_refused() -> None:
    def use(answer: Any) -> None:
        json.loads(MessagesDialect().answer(json.dumps(answer).encode()))

    whole = json.loads(pivot_answer(SAID, "length", service_tier="default", tidemill={}))
    assert failures(whole, use, InvalidInput) == []


def test_a_damaged_stream_is_read_or_refused() -> None:
    chunks = [json.loads(line[6:]) for line in pivot_stream(*DELTAS, done=False).decode().split("\n") if line]

    def use(stream: list[Any]) -> None:
        raw = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in stream) + "data: [DONE]\n\n"
        MessagesDialect().stream().feed(raw.encode())

    assert failures(chunks, use, InvalidInput) == []


@pytest.mark.parametrize("status", [400, 401, 404, 418, 429, 500, 502, 503, 504, 529])
def test_any_error_becomes_anthropics(status: int) -> None:
    whole = {"error": {"message": "a", "type": "b", "code": "c"}}
    bodies = [b"", b"\xff", b"<html>", *(json.dumps(one).encode() for one in ODD)]
    bodies += [json.dumps(value).encode() for _, _, value in damaged(whole)]
    for body in bodies:
        found = json.loads(MessagesDialect().error(status, body))
        assert found["type"] == "error"
        assert isinstance(found["error"]["message"], str)
        assert found["error"]["message"]
        assert found["error"]["type"].endswith(("_error", "_large"))
