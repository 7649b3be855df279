"""One kept answer in both forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tidemill.gateway.cache import stream_of, whole_of
from tidemill.gateway.cache.replay import DONE

texts = st.text(min_size=1, max_size=20)
calls = st.builds(
    lambda call_id, name, arguments: {"id": call_id, "type": "function",
                                      "function": {"name": name, "arguments": arguments}},
    texts, texts, texts,
)  # fmt: skip
messages = st.builds(
    lambda content, tools, reasoning: {
        "role": "assistant",
        "content": content,
        **({"tool_calls": tools} if tools else {}),
        **({"reasoning_content": reasoning} if reasoning else {}),
    },
    texts | st.just(""), st.lists(calls, max_size=2), texts | st.none(),
)  # fmt: skip
choices = st.lists(st.tuples(messages, st.sampled_from(["stop", "length", "tool_calls"])), min_size=1, max_size=3)
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def whole(*said: tuple[dict[str, Any], str], **more: Any) -> dict[str, Any]:
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        **more,
        "choices": [
            {"index": index, "message": message, "finish_reason": reason}
            for index, (message, reason) in enumerate(said)
        ],
        "usage": USAGE,
    }


def events(stream: bytes) -> list[dict[str, Any]]:
    assert stream.endswith(DONE)
    return [json.loads(line[6:]) for line in stream.split(b"\n\n")[:-2]]


def chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    event = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}
    return b"data: %b\n\n" % json.dumps(event).encode()


@given(choices)
def test_a_whole_answer_comes_back_from_its_stream(said: list[tuple[dict[str, Any], str]]) -> None:
    answer = whole(*said, system_fingerprint="fp", tidemill={"citations": ["a"]})
    stream = stream_of(json.dumps(answer).encode(), include_usage=True)
    assert stream is not None
    back = whole_of(stream)
    assert back is not None
    assert json.loads(back) == answer


@given(choices)
def test_the_official_client_reads_both_forms(said: list[tuple[dict[str, Any], str]]) -> None:
    stream = stream_of(json.dumps(whole(*said)).encode())
    assert stream is not None
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events(stream)]
    back = ChatCompletion.model_validate_json(whole_of(stream) or b"", strict=True)
    for index, (message, reason) in enumerate(said):
        parts = [choice for one in chunks for choice in one.choices if choice.index == index]
        assert "".join(part.delta.content or "" for part in parts) == message["content"]
        assert parts[-1].finish_reason == reason
        assert back.choices[index].message.content == message["content"]


@given(st.lists(texts, min_size=1, max_size=8), st.lists(texts, min_size=1, max_size=4))
def test_a_streamed_answer_is_the_sum_of_its_parts(words: list[str], arguments: list[str]) -> None:
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": ""}}
    stream = b"".join(
        [
            chunk({"role": "assistant", "content": ""}),
            *[chunk({"role": "assistant", "content": word}) for word in words],
            chunk({"tool_calls": [call]}),
            *[chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in arguments],
            chunk({}, "tool_calls"),
            DONE,
        ]
    )
    answer = json.loads(whole_of(stream) or b"")
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "".join(words),
        "tool_calls": [
            {"id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": "".join(arguments)}}
        ],
    }
    assert choice["finish_reason"] == "tool_calls"


def test_log_probabilities_grow_with_the_text() -> None:
    def piece(word: str) -> bytes:
        choice = {"index": 0, "delta": {"content": word}, "logprobs": {"content": [{"token": word}]},
                  "finish_reason": None}  # fmt: skip
        return b"data: %b\n\n" % json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()

    answer = json.loads(whole_of(piece("a") + piece("b") + chunk({}, "stop") + DONE) or b"")
    assert answer["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_usage_is_an_event_only_for_those_who_asked() -> None:
    answer = json.dumps(whole(({"role": "assistant", "content": "hi"}, "stop"))).encode()
    asked, silent = stream_of(answer, include_usage=True), stream_of(answer)
    assert asked is not None
    assert silent is not None
    assert events(asked)[-1]["usage"] == USAGE
    assert events(asked)[-1]["choices"] == []
    assert all(event["choices"] for event in events(silent))


def test_text_completions_have_both_forms() -> None:
    answer = {"id": "t", "object": "text_completion", "model": "m",
              "choices": [{"text": "abc", "index": 0, "logprobs": None, "finish_reason": "stop"}]}  # fmt: skip
    stream = stream_of(json.dumps(answer).encode())
    assert stream is not None
    assert json.loads(whole_of(stream) or b"") == answer


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        DONE,
        chunk({"content": "a"}) + DONE,  # never finished
        chunk({"content": "a"}, "stop"),  # no [DONE]
        b'data: {"error": {"message": "x"}}\n\n' + chunk({}, "stop") + DONE,
        b"data: {broken\n\n" + chunk({}, "stop") + DONE,
    ],
)
def test_a_stream_that_is_not_whole_is_no_answer(stream: bytes) -> None:
    assert whole_of(stream) is None


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"choices": []}', b'{"error": {}}'])
def test_what_is_no_answer_is_not_replayed(answer: bytes) -> None:
    assert stream_of(answer) is None
