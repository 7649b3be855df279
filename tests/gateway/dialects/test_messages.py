"""Clients of Anthropic's Messages API: translated both ways, and spoken to by Anthropic's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import anthropic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.dialects.answering import Answer, Asked, answering
from tidemill.gateway.answers import Refusal, error_body
from tidemill.gateway.dialects import client_dialect
from tidemill.gateway.dialects.messages import MessagesDialect
from tidemill.models.providers import Credentials, Place, dialect

UNHURRIED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine draws slowly; that says nothing about the code."""
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TIDES = {
    "name": "tide_table",
    "description": "High and low water of a harbour.",
    "input_schema": {"type": "object", "properties": {"harbour": {"type": "string"}}, "required": ["harbour"]},
}
ASKED: dict[str, Any] = {"model": "shop", "max_tokens": 100, "messages": [{"role": "user", "content": "When?"}]}


def translated(**more: Any) -> dict[str, Any]:
    return json.loads(MessagesDialect().request(json.dumps({**ASKED, **more}).encode()))


def messages(*given: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return translated(messages=list(given), **more)["messages"]


def refused(**more: Any) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        translated(**more)
    assert refusal.value.status == 400
    return refusal.value


# --- requests


def test_plain_request() -> None:
    asked = {
        "system": "Be brief.",
        "temperature": 0.1,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "ada"},
        "service_tier": "standard_only",
        "stream": True,
    }
    assert translated(**asked) == {
        "model": "shop",
        "max_completion_tokens": 100,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}],
        "temperature": 0.1,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["END"],
        "user": "ada",
        "service_tier": "default",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_field_that_is_not_known_is_passed_on() -> None:
    assert translated(field_of_the_future={"a": 1})["field_of_the_future"] == {"a": 1}


def test_tools_calls_and_results() -> None:
    found = translated(
        tools=[TIDES, {"type": "custom", "name": "ring", "input_schema": {"type": "object"}, "strict": True}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        messages=[
            {"role": "user", "content": "Brest and Vigo?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "a", "name": "tide_table", "input": {"harbour": "Brest"}},
                    {"type": "tool_use", "id": "b", "name": "ring", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "04:12"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no bell"}],
                    },
                    {"type": "text", "text": "Go on."},
                ],
            },
        ],
    )
    assert found["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "tide_table",
                "parameters": TIDES["input_schema"],
                "description": TIDES["description"],
            },
        },
        {"type": "function", "function": {"name": "ring", "parameters": {"type": "object"}, "strict": True}},
    ]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("required", False)
    assert found["messages"][1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "tide_table", "arguments": '{"harbour":"Brest"}'}},
                {"id": "b", "type": "function", "function": {"name": "ring", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "04:12"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no bell"},
        {"role": "user", "content": "Go on."},
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "ring"}, {"type": "function", "function": {"name": "ring"}}),
    ],
)
def test_tool_choice(choice: dict[str, Any], expected: Any) -> None:
    assert translated(tools=[TIDES], tool_choice=choice)["tool_choice"] == expected


def test_images_and_documents() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    url = {"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.jpg"}}
    pdf = {
        "type": "document",
        "title": "pilot.pdf",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
    }
    text = {
        "type": "document",
        "title": "Notes",
        "source": {"type": "text", "media_type": "text/plain", "data": "Ebb."},
    }
    assert messages({"role": "user", "content": [image, url, pdf, text]}) == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": "https://pictures.example/a.jpg"}},
                {
                    "type": "file",
                    "file": {"filename": "pilot.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
                },
                {"type": "text", "text": "Notes\nEbb."},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("asked", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 8000}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4000}, "max_tokens": 8000}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 7000}, "max_tokens": 8000}, "high"),
        ({"thinking": {"type": "adaptive"}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max"),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}}, "low"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "none"),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}}, "none"),
    ],
)
def test_thinking(asked: dict[str, Any], effort: str) -> None:
    assert translated(**asked)["reasoning_effort"] == effort
    assert "thinking" not in translated(**asked)


def test_structured_output() -> None:
    schema = {"type": "object", "properties": {"hour": {"type": "integer"}}}
    found = translated(output_config={"format": {"type": "json_schema", "schema": schema}})
    expected = {"name": "answer", "schema": schema, "strict": True}
    assert found["response_format"] == {"type": "json_schema", "json_schema": expected}


def test_marks_for_the_cache_find_their_place() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    found = translated(
        tools=[{**TIDES, **mark}],
        system="Be brief.",
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "a", "name": "tide_table", "input": {}, **mark}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "04:12"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "b", "name": "tide_table", "input": {}, **mark}],
            },
        ],
    )
    explicit = {"mode": "explicit"}
    assert "cache_control" not in json.dumps(found)
    system, user, _, tool, _ = found["messages"]
    assert system["content"] == [{"type": "text", "text": "Be brief.", "prompt_cache_breakpoint": explicit}]
    assert user["content"][0]["prompt_cache_breakpoint"] == {"mode": "explicit", "ttl": "30m"}
    assert tool["content"] == [{"type": "text", "text": "04:12", "prompt_cache_breakpoint": explicit}]
    assert found["prompt_cache_options"] == {"mode": "implicit"}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.web_search_20250305"),
        ({"tools": [{**TIDES, "defer_loading": True}]}, "tools.0.defer_loading"),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]},
            "messages.content.container_upload",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages.content.image.source.file",
        ),
        ({"thinking": {"type": "between_tools"}}, "thinking.between_tools"),
        ({"metadata": {"team": "a"}}, "metadata.team"),
        ({"output_config": {"task_budget": {"total": 3}}}, "output_config.task_budget"),
        ({"cache_control": {"type": "ephemeral", "ttl": "2h"}}, "cache_control.ttl"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "When?"}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages"),
    ],
)
def test_what_has_no_place_is_refused_by_name(asked: dict[str, Any], field: str) -> None:
    refusal = refused(**asked)
    assert refusal.param == field
    assert field.partition(".")[0] in refusal.message


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'"a"', b"\xff", b"null"])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        MessagesDialect().request(body)


# --- the whole way: client -> pivot -> Anthropic's own API


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
USER_BLOCK = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXT),
    st.just({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}),
    st.just({"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.jpg"}}),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": draw(st.lists(USER_BLOCK, min_size=1, max_size=3))}]
    for turn in range(draw(st.integers(0, 3))):
        inputs = draw(st.lists(st.dictionaries(TEXT, st.integers(0, 9) | TEXT, max_size=2), max_size=2))
        said = [{"type": "text", "text": draw(TEXT)}] if draw(st.booleans()) or not inputs else []
        thought = [{"type": "thinking", "thinking": draw(TEXT), "signature": "c2ln"}] if draw(st.booleans()) else []
        calls = [
            {"type": "tool_use", "id": f"call_{turn}_{number}", "name": "tide_table", "input": one}
            for number, one in enumerate(inputs)
        ]
        results = [
            {
                "type": "tool_result",
                "tool_use_id": call["id"],
                "content": draw(st.one_of(TEXT, st.lists(USER_BLOCK, min_size=1, max_size=2))),
            }
            for call in calls
        ]
        asked = draw(st.lists(USER_BLOCK, min_size=0 if results else 1, max_size=2))
        turns += [
            {"role": "assistant", "content": thought + said + calls},
            {"role": "user", "content": results + asked},
        ]
    return turns


def normal(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A text alone may be written as a string."""

    def blocks(content: Any) -> list[Any]:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    return [
        {
            "role": turn["role"],
            "content": [
                {**block, "content": blocks(block["content"])} if block["type"] == "tool_result" else block
                for block in blocks(turn["content"])
            ],
        }
        for turn in turns
    ]


@UNHURRIED
@given(turns=conversations(), system=st.one_of(st.none(), TEXT))
def test_a_round_trip_keeps_text_tools_results_images_and_thoughts(
    turns: list[dict[str, Any]], system: str | None
) -> None:
    asked = {**ASKED, "messages": turns, "tools": [TIDES]} | ({"system": system} if system else {})
    pivot = MessagesDialect().request(json.dumps(asked).encode())
    place = Place("/v1", "api.example", "claude-sonnet-4-6")
    sent = json.loads(dialect("anthropic").request("chat", pivot, place, Credentials("k"), now_s=0.0).body)
    assert normal(sent["messages"]) == normal(turns)
    assert sent["tools"] == [TIDES]
    assert sent["max_tokens"] == 100
    assert sent.get("system") == ([{"type": "text", "text": system}] if system else None)


# --- answers, errors and streams, read by Anthropic's own client


def pivot_answer(message: dict[str, Any], finish_reason: str = "stop", **more: Any) -> bytes:
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 8,
        "total_tokens": 38,
        "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    answer = {"id": "a1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps({**answer, **more}).encode()


def pivot_stream(*deltas: dict[str, Any], finish_reason: str | None = "stop", done: bool = True) -> bytes:
    head = {"id": "a1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    if finish_reason is not None:
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
        usage = {"prompt_tokens": 30, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 10}}
        chunks.append({**head, "choices": [], "usage": usage})
    raw = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return (raw + ("data: [DONE]\n\n" if done else "")).encode()


def answer(speaker: MessagesDialect, status: int, pivot: bytes, stream: bool) -> Answer:
    if status >= 400:
        return status, "application/json", [speaker.error(status, pivot)]
    if not stream:
        return 200, "application/json", [speaker.answer(pivot)]
    translator = speaker.stream()
    pieces = [translator.feed(pivot[start : start + 11]) for start in range(0, len(pivot), 11)]
    return 200, "text/event-stream", [*pieces, translator.finish()]


@contextmanager
def speaking(status: int, pivot: bytes) -> Iterator[tuple[anthropic.Anthropic, list[dict[str, Any]]]]:
    """A real client at a real server that translates with the dialect; what it asked for, in the pivot's form."""
    heard: list[dict[str, Any]] = []

    def say(asked: Asked) -> Answer:
        speaker = client_dialect(asked.path.encode())
        assert isinstance(speaker, MessagesDialect)
        try:
            heard.append(json.loads(speaker.request(asked.body)))
        except Refusal as refusal:
            return refusal.status, "application/json", [speaker.error(refusal.status, refusal.body())]
        return answer(speaker, status, pivot, heard[-1].get("stream", False))

    with (
        answering(say) as place,
        anthropic.Anthropic(base_url=place.url, api_key="k", max_retries=0, timeout=30) as client,
    ):
        yield client, heard


def ask(client: anthropic.Anthropic, **more: Any) -> anthropic.types.Message:
    return client.messages.create(**{**ASKED, **more})


def test_client_reads_an_answer() -> None:
    with speaking(200, pivot_answer({"content": "At noon."}, service_tier="default", tidemill={"passages": []})) as (
        client,
        heard,
    ):
        message = ask(client)
    assert heard[0]["messages"] == [{"role": "user", "content": "When?"}]
    assert (message.role, message.stop_reason, message.model, message.id) == ("assistant", "end_turn", "m", "a1")
    assert [block.text for block in message.content if block.type == "text"] == ["At noon."]
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (15, 10, 5)
    assert usage.output_tokens == 8
    assert usage.output_tokens_details is not None
    assert usage.output_tokens_details.thinking_tokens == 3
    assert usage.service_tier == "standard"
    assert message.model_extra == {"tidemill": {"passages": []}}


def test_client_reads_tool_calls_and_thoughts() -> None:
    said = {
        "content": None,
        "reasoning_content": "I need the table.",
        "reasoning_details": [
            {
                "type": "reasoning.text",
                "text": "I need the table.",
                "signature": "c2ln",
                "format": "anthropic-claude-v1",
            },
            {"type": "reasoning.encrypted", "data": "aGlk", "format": "google-gemini-v1"},
        ],
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "tide_table", "arguments": '{"harbour":"Brest"}'}}
        ],
    }
    with speaking(200, pivot_answer(said)) as (client, heard):
        message = ask(client, tools=[TIDES])
        ask(client, messages=[*ASKED["messages"], {"role": "assistant", "content": message.content}])
    assert message.stop_reason == "tool_use"  # although the server said 'stop'
    thinking, redacted, call = message.content
    assert thinking.type == "thinking"
    assert (thinking.thinking, thinking.signature) == ("I need the table.", "c2ln")
    assert redacted.type == "redacted_thinking"
    assert call.type == "tool_use"
    assert (call.id, call.name, call.input) == ("a", "tide_table", {"harbour": "Brest"})
    assert heard[1]["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": said["tool_calls"],
        "reasoning_details": [
            {"type": "reasoning.text", "text": "I need the table.", "signature": "c2ln"},
            {"format": "google-gemini-v1", "type": "reasoning.encrypted", "data": "aGlk"},
        ],
    }


def test_unsigned_thoughts_come_back_as_text() -> None:
    with speaking(200, pivot_answer({"content": "Noon.", "reasoning": "The sun."})) as (client, heard):
        message = ask(client)
        ask(client, messages=[*ASKED["messages"], {"role": "assistant", "content": message.content}])
    assert message.content[0].type == "thinking"
    assert heard[1]["messages"][1] == {"role": "assistant", "content": "Noon.", "reasoning_content": "The sun."}


def test_thoughts_are_hidden_when_the_client_asks_for_it() -> None:
    said = {
        "content": "Noon.",
        "reasoning_details": [{"type": "reasoning.text", "text": "The sun.", "signature": "c2ln"}],
    }
    with speaking(200, pivot_answer(said)) as (client, _):
        message = ask(client, thinking={"type": "adaptive", "display": "omitted"})
    assert message.content[0].type == "thinking"
    assert (message.content[0].thinking, message.content[0].signature) == ("", "c2ln")


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason"),
    [("length", "max_tokens"), ("stop", "end_turn"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
def test_stop_reasons(finish_reason: str, stop_reason: str) -> None:
    answer = json.loads(MessagesDialect().answer(pivot_answer({"content": "a"}, finish_reason)))
    assert answer["stop_reason"] == stop_reason
    assert answer["stop_sequence"] is None


def test_client_reads_a_refusal() -> None:
    with speaking(200, pivot_answer({"content": None, "refusal": "I must not."}, "content_filter")) as (client, _):
        message = ask(client)
    assert message.stop_reason == "refusal"
    assert message.stop_details is not None
    assert message.stop_details.explanation == "I must not."


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (413, anthropic.APIStatusError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (503, anthropic.InternalServerError),
    ],
)
def test_client_raises_its_own_error_classes(status: int, kind: type[anthropic.APIStatusError]) -> None:
    with (
        speaking(status, error_body(status, "The key is spent.", "insufficient_quota")) as (client, _),
        pytest.raises(kind) as raised,
    ):
        ask(client)
    assert raised.value.status_code == status
    body = raised.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert body["error"]["message"] == "The key is spent."
    assert body["error"]["details"] == {"error_code": "insufficient_quota"}


def test_client_hears_what_it_must_not_ask() -> None:
    with (
        speaking(200, pivot_answer({"content": "a"})) as (client, heard),
        pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.web_search_20250305"),
    ):
        ask(client, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert heard == []


def test_client_reads_a_stream() -> None:
    raw = pivot_stream({"role": "assistant", "content": ""}, {"content": "At "}, {"content": "noon – naïve."})
    with speaking(200, raw) as (client, heard), client.messages.stream(**ASKED) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert heard[0]["stream_options"] == {"include_usage": True}
    assert texts == ["At ", "noon – naïve."]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (20, 10)
    assert message.usage.output_tokens == 8


def call_piece(index: int, **function: str) -> dict[str, Any]:
    return {"index": index, "function": function}


def test_client_reads_a_stream_of_thoughts_and_calls() -> None:
    raw = pivot_stream(
        {"role": "assistant", "content": ""},
        {"reasoning_content": "I need "},
        {"reasoning_content": "it."},
        {"reasoning_details": [{"type": "reasoning.text", "text": "I need it.", "signature": "c2ln"}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "aGlk"}]},
        {"content": "I look."},
        {"tool_calls": [{"id": "a", "type": "function", **call_piece(0, name="tide_table", arguments="")}]},
        {"tool_calls": [call_piece(0, arguments='{"harbour": "Br')]},
        {"tool_calls": [{"id": "b", "type": "function", **call_piece(1, name="tide_table", arguments='{"harbour":')}]},
        {"tool_calls": [call_piece(0, arguments='est"}'), call_piece(1, arguments=' "Vigo"}')]},
        finish_reason="tool_calls",
    )
    with speaking(200, raw) as (client, _), client.messages.stream(**ASKED, tools=[TIDES]) as stream:
        message = stream.get_final_message()
    thinking, redacted, text, first, second = message.content
    assert thinking.type == "thinking"
    assert (thinking.thinking, thinking.signature) == ("I need it.", "c2ln")
    assert redacted.type == "redacted_thinking"
    assert redacted.data == "aGlk"
    assert text.type == "text"
    assert text.text == "I look."
    assert first.type == second.type == "tool_use"
    assert (first.id, first.input) == ("a", {"harbour": "Brest"})
    assert (second.id, second.input) == ("b", {"harbour": "Vigo"})
    assert message.stop_reason == "tool_use"


def test_client_reads_a_stream_that_refuses() -> None:
    raw = pivot_stream(
        {"role": "assistant", "content": ""},
        {"refusal": "I must "},
        {"refusal": "not."},
        finish_reason="content_filter",
    )
    with speaking(200, raw) as (client, _), client.messages.stream(**ASKED) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "refusal"
    assert message.stop_details is not None
    assert message.stop_details.explanation == "I must not."


def test_client_raises_on_an_error_inside_a_stream() -> None:
    raw = pivot_stream({"content": "At"}, finish_reason=None, done=False)
    raw += b"data: " + error_body(429, "The upstream is busy.", "busy") + b"\n\n" + pivot_stream({"content": "never"})
    events: list[Any] = []
    with (
        speaking(200, raw) as (client, _),
        client.messages.create(**ASKED, stream=True) as stream,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        events.extend(stream)
    assert [event.type for event in events] == ["message_start", "content_block_start", "content_block_delta"]
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["error"]["type"] == "rate_limit_error"


async def read_concurrently(url: str) -> str:
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0, timeout=30) as client,
        client.messages.stream(**ASKED) as stream,
    ):
        return await stream.get_final_text()


def test_asynchronous_client_reads_a_stream() -> None:
    def say(asked: Asked) -> Answer:
        speaker = MessagesDialect()
        speaker.request(asked.body)
        return answer(speaker, 200, pivot_stream({"content": "At "}, {"content": "noon."}), stream=True)

    with answering(say) as place:
        assert asyncio.run(read_concurrently(place.url)) == "At noon."


# --- streams, as bytes


def names(translated: bytes) -> list[str]:
    return [line.removeprefix("event: ") for line in translated.decode().split("\n") if line.startswith("event: ")]


def test_a_stream_that_ends_early_has_no_last_event() -> None:
    stream = MessagesDialect().stream()
    translated = stream.feed(pivot_stream({"content": "At"}, finish_reason=None, done=False)) + stream.finish()
    assert names(translated) == ["message_start", "content_block_start", "content_block_delta"]


def test_events_come_in_the_order_of_the_api() -> None:
    stream = MessagesDialect().stream()
    raw = pivot_stream(
        {"content": "a"},
        {"tool_calls": [{"id": "a", **call_piece(0, name="t", arguments="{}")}]},
        {"tool_calls": [{"id": "b", **call_piece(1, name="t", arguments="{}")}]},
        finish_reason="tool_calls",
    )
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert names(stream.feed(raw) + stream.finish()) == ["message_start", *block * 3, "message_delta", "message_stop"]


DELTA = st.one_of(
    st.builds(lambda text: {"content": text}, TEXT),
    st.builds(lambda text: {"reasoning_content": text}, TEXT),
    st.builds(lambda text: {"reasoning_details": [{"type": "reasoning.text", "text": text, "signature": "a"}]}, TEXT),
    st.builds(
        lambda number: {"tool_calls": [{"id": f"c{number}", **call_piece(number, name="t", arguments='{"a')}]},
        st.integers(0, 2),
    ),
)


def fed(raw: bytes, pieces: Iterable[bytes], translate: Callable[[], Any]) -> bytes:
    stream = translate()
    return b"".join([*(stream.feed(piece) for piece in pieces), stream.finish()])


@UNHURRIED
@given(deltas=st.lists(DELTA, max_size=6), data=st.data())
def test_any_split_gives_the_same_events_and_blocks_are_well_formed(
    deltas: list[dict[str, Any]], data: st.DataObject
) -> None:
    raw = pivot_stream(*deltas)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=20)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole = fed(raw, [raw], MessagesDialect().stream)
    assert fed(raw, pieces, MessagesDialect().stream) == whole
    begun: list[int] = []
    open_blocks: set[int] = set()
    for line in whole.decode().split("\n"):
        if not line.startswith("data: "):
            continue
        event = json.loads(line[6:])
        if event["type"] == "content_block_start":
            begun.append(event["index"])
            open_blocks.add(event["index"])
        elif event["type"] == "content_block_delta":
            assert event["index"] in open_blocks
        elif event["type"] == "content_block_stop":
            open_blocks.remove(event["index"])
    assert begun == list(range(len(begun)))
    assert open_blocks == set()


# --- the whole way of a stream: Anthropic's events -> pivot -> Anthropic's events


def accumulated(translated: bytes) -> dict[str, Any]:
    """What a client puts together from the events."""
    message: dict[str, Any] = {}
    arguments: dict[int, str] = {}
    for line in translated.decode().split("\n"):
        event = json.loads(line[6:]) if line.startswith("data: ") else {"type": ""}
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            message["content"].append(event["content_block"])
            arguments[event["index"]] = ""
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                arguments[event["index"]] += delta["partial_json"]
            else:
                key = delta["type"].removesuffix("_delta")
                block[key] += delta[key]
        elif event["type"] == "content_block_stop" and arguments[event["index"]]:
            message["content"][event["index"]]["input"] = json.loads(arguments[event["index"]])
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    return message


BLOCK = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXT),
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "c2ln"}, TEXT),
    st.builds(lambda text: {"type": "redacted_thinking", "data": text}, TEXT),
    st.builds(
        lambda value: {"type": "tool_use", "id": "toolu_1", "name": "ring", "input": value},
        st.dictionaries(TEXT, st.integers() | TEXT, max_size=2),
    ),
)


def anthropic_events(blocks: list[dict[str, Any]], stop_reason: str) -> bytes:
    usage = {"input_tokens": 7, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2, "output_tokens": 1}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**head, "usage": usage}}]
    for index, block in enumerate(blocks):
        deltas: list[dict[str, Any]] = []
        opened = dict(block)
        if block["type"] == "text":
            opened["text"] = ""
            deltas = [{"type": "text_delta", "text": piece} for piece in block["text"]]
        elif block["type"] == "thinking":
            opened |= {"thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in block["thinking"]]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif block["type"] == "tool_use":
            opened["input"] = {}
            deltas = [{"type": "input_json_delta", "partial_json": ""}]
            deltas += [{"type": "input_json_delta", "partial_json": piece} for piece in json.dumps(block["input"])]
        events.append({"type": "content_block_start", "index": index, "content_block": opened})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events.append({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 9}})
    events.append({"type": "message_stop"})
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


@UNHURRIED
@given(
    blocks=st.lists(BLOCK, max_size=4).filter(
        # Texts that follow one another are one text in the pivot.
        lambda blocks: not any(one["type"] == two["type"] == "text" for one, two in pairwise(blocks))
    ),
    stop_reason=st.sampled_from(["end_turn", "max_tokens", "tool_use"]),
)
def test_a_stream_is_the_same_after_both_translations(blocks: list[dict[str, Any]], stop_reason: str) -> None:
    request = json.dumps({"stream": True, "stream_options": {"include_usage": True}}).encode()
    theirs = dialect("anthropic").stream("chat", request, model="m")
    ours = MessagesDialect().stream()
    translated = b""
    for byte in anthropic_events(blocks, stop_reason):
        translated += ours.feed(theirs.feed(bytes([byte])))
    translated += ours.feed(theirs.finish()) + ours.finish()
    message = accumulated(translated)
    found = [{key: value for key, value in block.items() if key != "citations"} for block in message["content"]]
    assert found == blocks
    called = any(block["type"] == "tool_use" for block in blocks)
    assert message["stop_reason"] == ("tool_use" if called and stop_reason == "end_turn" else stop_reason)
    usage = {"input_tokens": 7, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2, "output_tokens": 9}
    assert message["usage"] == usage
