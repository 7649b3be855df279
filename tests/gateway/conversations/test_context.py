"""Which messages go when a window overflows: the rules, on messages of any kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.answers import Refusal
from tidemill.gateway.conversations import SummaryMemory, Window, fit_chat, window_of
from tidemill.gateway.conversations.context import (
    BYTES_PER_TOKEN,
    MEDIA_TOKENS,
    count_message,
    plan_cut,
    surely_fits,
    with_summary,
)
from tidemill.kernel import Overflow

Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


@st.composite
def histories(draw: st.DrawFn) -> list[Message]:
    """A chat as clients send it: turns of a question, rounds of tool calls with their results, an answer."""
    messages: list[Message] = [{"role": "system", "content": "s"}] if draw(st.booleans()) else []
    calls = 0
    for turn in range(draw(st.integers(1, 5))):
        messages.append(user(f"u{turn}"))
        for _ in range(draw(st.integers(0, 3))):
            ids = [f"c{calls + number}" for number in range(draw(st.integers(1, 3)))]
            calls += len(ids)
            messages.append({"role": "assistant", "content": None, "tool_calls": [{"id": one} for one in ids]})
            messages += [{"role": "tool", "tool_call_id": one, "content": "r"} for one in ids]
        if draw(st.booleans()):
            messages.append(assistant(f"a{turn}"))
        if draw(st.booleans()):
            messages.append({"role": "system", "content": f"s{turn}"})
    return messages


@given(histories(), st.data())
def test_the_rules_hold_for_any_chat(messages: list[Message], data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(1, 50), min_size=len(messages), max_size=len(messages)))
    budget = data.draw(st.integers(0, 400))
    cut = plan_cut(messages, tokens, budget)
    if cut is None:
        assert sum(tokens) > budget
        return
    kept, dropped = cut.kept(messages), cut.dropped(messages)
    size = {id(message): count for message, count in zip(messages, tokens, strict=True)}
    assert sum(size[id(message)] for message in kept) <= budget
    assert kept[-1] is messages[-1]
    assert not any(message["role"] == "system" for message in dropped)
    assert len(kept) + len(dropped) == len(messages)
    assert [message for message in messages if any(message is one for one in kept)] == kept  # in order
    calls = [call["id"] for message in kept for call in message.get("tool_calls", [])]
    assert calls == [message["tool_call_id"] for message in kept if message["role"] == "tool"]
    first = next(message for message in kept if message["role"] != "system")
    assert first["role"] == "user"
    assert kept[-1] is messages[-1]
    if sum(tokens) <= budget:
        assert dropped == []
    # the question of the last turn stays
    assert any(message is [one for one in messages if one["role"] == "user"][-1] for message in kept)


@given(histories(), st.integers(0, 60), st.integers(0, 60))
def test_a_larger_budget_never_drops_more(messages: list[Message], small: int, more: int) -> None:
    tokens = [3] * len(messages)
    cut, larger = plan_cut(messages, tokens, small), plan_cut(messages, tokens, small + more)
    if cut is not None:
        assert larger is not None
        assert len(larger.dropped(messages)) <= len(cut.dropped(messages))


def test_the_last_turns_oldest_steps_go_when_it_alone_is_too_long() -> None:
    messages: list[Message] = [user("old"), assistant("old"), user("task")]
    for number in range(4):
        messages.append({"role": "assistant", "content": None, "tool_calls": [{"id": f"c{number}"}]})
        messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": "r"})
    cut = plan_cut(messages, [10] * len(messages), 55)
    assert cut is not None
    kept = cut.kept(messages)
    assert kept[0] == user("task")
    assert [message.get("tool_call_id") for message in kept if message["role"] == "tool"] == ["c2", "c3"]


def test_a_question_that_is_too_long_by_itself_cannot_be_cut() -> None:
    assert plan_cut([user("old"), user("new")], [1, 100], 50) is None
    assert plan_cut([{"role": "system", "content": "s"}, user("new")], [60, 10], 50) is None
    assert plan_cut([], [], 0) is not None


def test_the_estimate_is_what_it_says() -> None:
    message = user("x" * 400)
    assert count_message(message) == -(-len(json.dumps(message, separators=(",", ":"))) // BYTES_PER_TOKEN)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    with_picture = {"role": "user", "content": [{"type": "text", "text": "x"}, picture]}
    assert MEDIA_TOKENS < count_message(with_picture) < MEDIA_TOKENS + 50
    assert count_message(message, len) == len(json.dumps(message, separators=(",", ":")))


def test_a_window_is_known_only_where_there_is_something_to_do() -> None:
    assert window_of(None, Overflow.TRUNCATE, {}) is None
    assert window_of(1000, Overflow.PASS, {}) is None
    window = window_of(1000, Overflow.TRUNCATE, {"max_tokens": 300})
    assert window is not None
    assert window.prompt_tokens == 700
    other = window_of(1000, Overflow.TRUNCATE, {})
    assert other is not None
    assert other.prompt_tokens == 750


@given(st.text(max_size=300), st.integers(0, 200))
def test_what_surely_fits_fits(text: str, context_tokens: int) -> None:
    window = Window(context_tokens, 0, Overflow.REFUSE)
    body = json.dumps({"model": "m", "messages": [user(text)]}).encode()
    if surely_fits(body, window):
        assert count_message(user(text)) <= window.prompt_tokens + 1


def test_a_summary_stands_before_the_first_question() -> None:
    system = {"role": "system", "content": "s"}
    assert [one["role"] for one in with_summary([system, user("u"), assistant("a")], "S")] == [
        "system",
        "user",
        "assistant",
    ]
    text = with_summary([system, user("u")], "S")[1]["content"]
    assert text.endswith("\n\nu")
    assert "S" in text
    parts = with_summary([{"role": "user", "content": [{"type": "text", "text": "u"}]}], "S")[0]["content"]
    assert [part["type"] for part in parts] == ["text", "text"]


# -- chat requests ------------------------------------------------------------------------------------------------


def body_of(messages: Sequence[Message], **more: Any) -> bytes:
    return json.dumps({"model": "desk", "messages": list(messages), "max_tokens": 50, **more}).encode()


def turns(count: int) -> list[Message]:
    found: list[Message] = []
    for number in range(count):
        found += [user(f"{number} " + "word " * 40), assistant(f"answer {number}")]
    return [*found, user("last")]


def run(body: bytes, overflow: Overflow, context_tokens: int = 400, **more: Any) -> bytes:
    window = window_of(context_tokens, overflow, json.loads(body))
    assert window is not None
    return asyncio.run(fit_chat(body, window, partition=more.pop("partition", b"p"), **more))


def test_a_chat_that_fits_keeps_its_bytes() -> None:
    body = b'{"model":  "desk", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}'
    for overflow in (Overflow.REFUSE, Overflow.TRUNCATE, Overflow.SUMMARISE):
        assert run(body, overflow) is body
    strange = body_of([user("x" * 4000)]).replace(b'[{"role"', b'7, "other": [{"role"')
    assert run(strange, Overflow.TRUNCATE) is strange  # the upstream says what is wrong with it


def test_a_chat_that_does_not_fit() -> None:
    body = body_of(turns(12), seed=7)
    with pytest.raises(Refusal, match="window takes 400") as refused:
        run(body, Overflow.REFUSE)
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
    cut = json.loads(run(body, Overflow.TRUNCATE))
    assert cut["seed"] == 7
    assert cut["messages"][-1] == user("last")
    assert cut["messages"] == turns(12)[-len(cut["messages"]) :]
    with pytest.raises(Refusal, match="window takes 400"):
        run(body_of([user("x" * 4000)]), Overflow.TRUNCATE)


def test_tools_count_too() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 4000}}]
    with pytest.raises(Refusal, match="window takes 400") as refused:
        run(body_of([user("Hi")], tools=tools), Overflow.TRUNCATE)
    assert refused.value.code == "context_length_exceeded"


class Summarising:
    """A model that condenses by counting."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, body: bytes) -> bytes:
        self.asked.append(json.loads(body))
        text = f"summary {len(self.asked)}"
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def test_a_summary_of_a_chat_is_found_again_the_next_turn() -> None:
    ask, memory = Summarising(), SummaryMemory()
    history = turns(12)
    first = json.loads(run(body_of(history), Overflow.SUMMARISE, ask=ask, memory=memory))
    pieces = len(ask.asked)
    assert pieces >= 1
    assert f"summary {pieces}" in first["messages"][0]["content"]
    again = json.loads(run(body_of(history), Overflow.SUMMARISE, ask=ask, memory=memory))
    following = json.loads(
        run(body_of([*history, assistant("fine"), user("more")]), Overflow.SUMMARISE, ask=ask, memory=memory)
    )
    assert len(ask.asked) == pieces
    assert again == first
    assert following["messages"] == [*first["messages"], assistant("fine"), user("more")]
    # nobody else is answered from it
    run(body_of(history), Overflow.SUMMARISE, ask=ask, memory=memory, partition=b"other")
    assert len(ask.asked) == 2 * pieces


def test_a_summary_is_asked_for_in_pieces_that_fit() -> None:
    ask = Summarising()
    run(body_of(turns(60)), Overflow.SUMMARISE, ask=ask)
    assert len(ask.asked) > 2
    for number, asked in enumerate(ask.asked):
        assert sum(count_message(message) for message in asked["messages"]) + asked["max_completion_tokens"] <= 400
        assert (f"summary {number}" in asked["messages"][1]["content"]) == (number > 0)


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": " "}}]}'])
def test_a_model_that_gives_no_summary(answer: bytes) -> None:
    async def ask(_body: bytes) -> bytes:
        return answer

    with pytest.raises(Refusal, match="no summary") as refused:
        run(body_of(turns(12)), Overflow.SUMMARISE, ask=ask)
    assert refused.value.status == 502


def test_the_memory_forgets_what_was_used_longest_ago() -> None:
    memory = SummaryMemory()
    for number in range(600):
        memory.keep(b"p", [user(str(number))], [], f"s{number}")
        memory.longest(b"p", [user("0"), user("x")])
    assert memory.longest(b"p", [user("0"), user("x")]) == (1, [], "s0")
    assert memory.longest(b"p", [user("1")]) == (0, [], None)
