"""The stream of ``/v1/responses``: typed events, in order, whatever way the bytes come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.gateway.dialects.responses_server import ResponsesServer, answer, call, chunks
from tidemill.gateway.dialects.responses import ResponsesDialect
from tidemill.ledger.conversations import ConversationScope

Serve = Callable[..., ResponsesServer]
ClientOf = Callable[..., openai.OpenAI]
SCOPE = ConversationScope("demo", "default", "desk")
ANY_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def words(*texts: str) -> list[dict[str, Any] | bytes]:
    return chunks({"role": "assistant", "content": ""}, *({"content": text} for text in texts))


def wire(chunks_: list[dict[str, Any] | bytes]) -> bytes:
    return b"".join(one if isinstance(one, bytes) else b"data: %b\n\n" % json.dumps(one).encode() for one in chunks_)


def translate(raw: bytes, *sizes: int, **request: Any) -> bytes:
    dialect = ResponsesDialect(None, SCOPE)
    dialect.request(json.dumps({"model": "desk", "input": "Hi", "stream": True, **request}).encode())
    stream = dialect.stream()
    out, place = [], 0
    for size in sizes:
        out.append(stream.feed(raw[place : place + size]))
        place += size
    return b"".join([*out, stream.feed(raw[place:]), stream.finish()])


def events(raw: bytes) -> list[dict[str, Any]]:
    """Read events, and hold each against the client's own types and the rules of the order."""
    found = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        ANY_EVENT.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    _check_order(found)
    return found


def _check_order(found: list[dict[str, Any]]) -> None:
    """What is added is done once, in between stand its own events, and the deltas are the text."""
    open_items: dict[str, dict[str, Any]] = {}
    deltas: dict[str, str] = {}
    assert [event["type"] for event in found[:2]] == ["response.created", "response.in_progress"]
    for event in found[2:]:
        kind = event["type"]
        if kind == "response.output_item.added":
            open_items[event["item"]["id"]] = event["item"]
        elif kind == "response.output_item.done":
            assert open_items.pop(event["item"]["id"])["type"] == event["item"]["type"]
        elif "item_id" in event:
            assert event["item_id"] in open_items
            if kind.endswith(".delta"):
                deltas[event["item_id"]] = deltas.get(event["item_id"], "") + event["delta"]
            elif kind.endswith(".done") and "part" not in event:
                text = next(event[name] for name in ("text", "refusal", "arguments", "input") if name in event)
                assert deltas.pop(event["item_id"], "") == text
    if found[-1]["type"] != "response.failed":
        assert open_items == {}
        assert deltas == {}


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


def test_the_events_of_a_text_in_order() -> None:
    found = events(translate(wire(words("Hel", "lo"))))
    assert kinds(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = found[-1]["response"]
    assert response["status"] == "completed"
    assert response["usage"]["total_tokens"] == 16
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert {event["response"]["id"] for event in found if "response" in event} == {response["id"]}


def test_a_stream_ends_with_what_the_whole_answer_would_have_been() -> None:
    message = {
        "role": "assistant",
        "reasoning_content": "Hmm",
        "content": "Hello",
        "tool_calls": [call("c1", "f", '{"a": 1}'), call("c2", "g", "{}")],
    }
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": "H"},
        {"reasoning_content": "mm"},
        {"content": "Hel"},
        {"content": "lo"},
        {"tool_calls": [call("c1", "f", "", 0)]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [call("c2", "g", "{}", 1)]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},  # back to the first call
    ]
    streamed = events(translate(wire(chunks(*deltas, finish_reason="tool_calls"))))[-1]["response"]
    dialect = ResponsesDialect(None, SCOPE)
    dialect.request(b'{"model": "desk", "input": "Hi"}')
    whole = json.loads(dialect.answer(json.dumps(answer(message, "tool_calls")).encode()))

    def bare(response: dict[str, Any]) -> dict[str, Any]:
        volatile = {"id", "created_at", "completed_at"}
        items = [{k: v for k, v in item.items() if k != "id"} for item in response["output"]]
        return {**{k: v for k, v in response.items() if k not in volatile}, "output": items}

    assert bare(streamed) == bare(whole)
    assert [item["id"].split("_")[2] for item in whole["output"]] == ["0", "1", "2", "3"]


def test_parallel_calls_that_take_turns() -> None:
    deltas = [{"tool_calls": [call(f"c{n}", "f", "", n)]} for n in range(3)]
    deltas += [{"tool_calls": [{"index": n, "function": {"arguments": text}}]} for text in '{"x"}' for n in (2, 0, 1)]
    found = events(translate(wire(chunks(*deltas, finish_reason="tool_calls"))))
    output = found[-1]["response"]["output"]
    assert [item["call_id"] for item in output] == ["c0", "c1", "c2"]
    assert {item["arguments"] for item in output} == {'{"x"}'}
    done = [event["output_index"] for event in found if event["type"] == "response.output_item.done"]
    assert done == [0, 1, 2]


def test_a_refusal_a_custom_tool_and_thoughts_with_a_signature() -> None:
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": "H", "reasoning_details": [{"type": "reasoning.text", "text": "H"}]},
        {"reasoning_content": "m", "reasoning_details": [{"type": "reasoning.text", "text": "m"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "", "signature": "c2ln"}]},
        {"refusal": "I can"},
        {"refusal": "not."},
        {"tool_calls": [{"index": 0, "id": "c", "type": "custom", "custom": {"name": "run", "input": "ls"}}]},
        {"tool_calls": [{"index": 0, "custom": {"input": " -l"}}]},
    ]
    raw = translate(wire(chunks(*deltas, finish_reason="tool_calls")), include=["reasoning.encrypted_content"])
    thought, message, tool = events(raw)[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert message["content"] == [{"type": "refusal", "refusal": "I cannot."}]
    assert (tool["type"], tool["name"], tool["input"], tool["call_id"]) == ("custom_tool_call", "run", "ls -l", "c")
    chat = {"model": "desk", "input": [thought, message]}
    sent = json.loads(ResponsesDialect(None, SCOPE).request(json.dumps(chat).encode()))
    details = [{"type": "reasoning.text", "text": "Hm", "signature": "c2ln"}]
    assert sent["messages"][0]["reasoning_details"] == details


def test_log_probabilities_come_with_the_deltas() -> None:
    tokens = [{"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    stream = words("Hi")
    assert isinstance(stream[1], dict)
    stream[1]["choices"][0]["logprobs"] = {"content": tokens, "refusal": None}
    found = events(translate(wire(stream)))
    (delta,) = [event for event in found if event["type"] == "response.output_text.delta"]
    wanted = [{**tokens[0], "bytes": []}]
    assert delta["logprobs"] == wanted
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == wanted


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    found = events(translate(wire(chunks({"role": "assistant"}))))
    (item,) = found[-1]["response"]["output"]
    assert item["content"][0]["text"] == ""


@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
def test_an_incomplete_stream_says_so(finish_reason: str) -> None:
    found = events(translate(wire(chunks({"content": "Once"}, finish_reason=finish_reason))))
    assert kinds(found)[-1] == "incomplete"
    assert found[-1]["response"]["output"][0]["status"] == "incomplete"
    assert found[-2]["item"]["status"] == "incomplete"


def test_an_error_in_the_stream_fails_the_response() -> None:
    raw = wire([*words("Hel")[:2], {"error": {"message": "overloaded", "type": "server_error", "code": "overloaded"}}])
    found = events(translate(raw + b"data: [DONE]\n\n"))
    assert kinds(found)[-2:] == ["error", "failed"]
    assert (found[-2]["code"], found[-2]["message"]) == ("overloaded", "overloaded")
    response = found[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "overloaded"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Hel"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        wire(words("Hel")[:2]),
        wire(words("Hel")[:2]) + b"data: [DONE]\n\n",
        wire(words("Hel")[:2]) + b'data: {"choices": [{"del\n\n' + wire(words("lo")),
        b"data: nonsense\n\n",
    ],
    ids=["empty", "cut", "done without a reason", "malformed", "malformed first"],
)
def test_a_stream_that_ends_too_early_never_completes(raw: bytes) -> None:
    found = events(translate(raw))
    assert kinds(found)[-2:] == ["error", "failed"]
    assert "completed" not in kinds(found)


def test_a_failure_before_the_first_event_is_whole_too() -> None:
    raw = wire([{"error": {"message": "no", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}])
    found = events(translate(raw))
    assert kinds(found) == ["created", "in_progress", "error", "failed"]
    assert found[-1]["response"]["error"]["code"] == "rate_limit_exceeded"


FULL = wire(
    chunks(
        {"role": "assistant", "reasoning_content": "über"},
        {"content": "Grüße, \u2028 and\r\nmore"},
        {"content": '"quoted" \\ {}'},
        {"tool_calls": [call("c", "f", '{"ä": "\\n"}', 0)]},
    )
)


@given(st.lists(st.integers(1, 60), max_size=60), st.booleans())
def test_any_split_of_the_bytes_gives_the_same_stream(sizes: list[int], crlf: bool) -> None:
    raw = FULL.replace(b"\n", b"\r\n") if crlf else FULL

    def bare(found: list[dict[str, Any]]) -> str:
        text = json.dumps(found)
        response = found[0]["response"]
        for one in (response["id"], response["id"].removeprefix("resp_")):
            text = text.replace(one, "ID")
        for event in found:
            if "response" in event:
                for name in ("created_at", "completed_at"):
                    text = text.replace(f'"{name}": {json.dumps(event["response"][name])}', f'"{name}": 0')
        return text

    assert bare(events(translate(raw, *sizes))) == bare(events(translate(FULL)))


@given(
    st.lists(
        st.one_of(
            st.text(max_size=5).map(lambda text: {"content": text}),
            st.text(max_size=5).map(lambda text: {"reasoning_content": text}),
            st.text(max_size=5).map(lambda text: {"refusal": text}),
            st.tuples(st.integers(0, 2), st.text(max_size=5)).map(
                lambda one: {
                    "tool_calls": [
                        {"index": one[0], "id": f"c{one[0]}", "function": {"name": "f", "arguments": one[1]}}
                    ]
                }
            ),
        ),
        max_size=12,
    ),
    st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
)
def test_whatever_a_model_says_the_order_holds_and_nothing_is_lost(
    deltas: list[dict[str, Any]], finish_reason: str
) -> None:
    found = events(translate(wire(chunks(*deltas, finish_reason=finish_reason))))
    output = found[-1]["response"]["output"]
    assert found[-1]["type"] in {"response.completed", "response.incomplete"}

    def said(field: str) -> str:
        return "".join(delta.get(field, "") for delta in deltas)

    parts = [part for item in output if item["type"] in {"message", "reasoning"} for part in item["content"]]
    for field, kind, name in (
        ("content", "output_text", "text"),
        ("refusal", "refusal", "refusal"),
        ("reasoning_content", "reasoning_text", "text"),
    ):
        assert "".join(part[name] for part in parts if part["type"] == kind) == said(field)
    calls = "".join(sorted("".join(item["arguments"] for item in output if item["type"] == "function_call")))
    asked = [call_["function"]["arguments"] for delta in deltas for call_ in delta.get("tool_calls", [])]
    assert calls == "".join(sorted("".join(asked)))


# -- with the official client -------------------------------------------------------------------------------------


def test_the_client_reads_the_stream(serve: Serve, client_of: ClientOf) -> None:
    server = serve(lambda _: words("Hel", "lo", " ", "you"), split=7)
    with client_of(server).responses.create(model="desk", input="Hi", stream=True) as stream:
        found = list(stream)
    assert "".join(event.delta for event in found if event.type == "response.output_text.delta") == "Hello you"
    last = found[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Hello you"
    assert server.chats[0]["stream_options"] == {"include_usage": True}


def test_the_clients_stream_helper_gathers_the_response(serve: Serve, client_of: ClientOf) -> None:
    deltas: list[dict[str, Any]] = [{"content": "So: "}, {"tool_calls": [call("c", "f", '{"a"', 0)]}]
    deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]})
    server = serve(lambda _: chunks(*deltas, finish_reason="tool_calls"), split=11)
    with client_of(server).responses.stream(model="desk", input="Hi") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots == ["So: "]
    assert final.output_text == "So: "
    assert final.output[1].type == "function_call"
    assert final.output[1].arguments == '{"a": 1}'


def test_the_async_client_reads_the_stream(serve: Serve) -> None:
    server = serve(lambda _: words("Hel", "lo"))

    async def ask() -> str:
        async with (
            openai.AsyncOpenAI(base_url=server.url, api_key="desk", max_retries=0) as client,
            client.responses.stream(model="desk", input="Hi") as stream,
        ):
            return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    assert asyncio.run(ask()) == "Hello"


def test_a_failed_stream_reaches_the_client_as_events(serve: Serve, client_of: ClientOf) -> None:
    server = serve(lambda _: words("Hel")[:2])
    with client_of(server).responses.create(model="desk", input="Hi", stream=True) as stream:
        found = list(stream)
    assert [event.type for event in found[-2:]] == ["error", "response.failed"]


def test_nothing_of_the_last_event_leaves_before_finish() -> None:
    """What must happen before the last byte can happen between ``feed`` and ``finish``."""
    dialect = ResponsesDialect(None, SCOPE)
    dialect.request(b'{"model": "desk", "input": "Hi", "stream": true}')
    stream = dialect.stream()
    assert b"response.completed" not in stream.feed(wire(words("Hi")))
    assert b"response.completed" in stream.finish()
