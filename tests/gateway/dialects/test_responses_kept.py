"""What the gateway keeps of responses: histories, conversations, retention, whose they are, how windows overflow."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.dialects.responses_server import ResponsesServer, answer, call, chunks
from tidemill.gateway.conversations import Retention
from tidemill.kernel import Overflow

Serve = Callable[..., ResponsesServer]
ClientOf = Callable[..., openai.OpenAI]


def echo(chat: dict[str, Any]) -> dict[str, Any]:
    last = chat["messages"][-1]["content"]
    return answer(f"You said {last if isinstance(last, str) else last[-1]['text']}.")


def said(chat: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in chat["messages"]]


def test_a_history_by_previous_response_id(serve: Serve, client_of: ClientOf) -> None:
    server = serve(echo)
    client = client_of(server)
    first = client.responses.create(model="desk", input="one", instructions="Be brief.")
    second = client.responses.create(model="desk", input="two", previous_response_id=first.id)
    third = client.responses.create(model="desk", input="three", previous_response_id=second.id, instructions="Shout.")
    branch = client.responses.create(model="desk", input="other", previous_response_id=first.id)
    history = [("user", "one"), ("assistant", "You said one."), ("user", "two"), ("assistant", "You said two.")]
    assert said(server.chats[2]) == [
        ("system", "Shout."),
        *history,
        ("user", "three"),
    ]  # instructions do not carry over
    assert said(server.chats[3]) == [*history[:2], ("user", "other")]
    assert third.previous_response_id == second.id
    assert branch.output_text == "You said other."


def test_a_streamed_response_is_kept_before_its_last_event(serve: Serve, client_of: ClientOf) -> None:
    server = serve(lambda chat: chunks({"content": "Hello"}) if chat.get("stream") else echo(chat))
    client = client_of(server)
    with client.responses.create(model="desk", input="one", stream=True) as stream:
        for event in stream:
            if event.type == "response.completed":
                # at this moment, before the stream's end has been read
                assert client.responses.retrieve(event.response.id).output_text == "Hello"
                after = client.responses.create(model="desk", input="two", previous_response_id=event.response.id)
    assert after.status == "completed"
    assert said(server.chats[1]) == [("user", "one"), ("assistant", "Hello"), ("user", "two")]


def test_calls_and_results_over_turns(serve: Serve, client_of: ClientOf) -> None:
    def model(chat: dict[str, Any]) -> dict[str, Any]:
        if chat["messages"][-1]["role"] == "tool":
            return answer("Sunny.")
        return answer({"role": "assistant", "content": None, "tool_calls": [call("c1", "weather", "{}")]}, "tool_calls")

    server = serve(model)
    client = client_of(server)
    first = client.responses.create(model="desk", input="Weather?")
    output: Any = [{"type": "function_call_output", "call_id": "c1", "output": "sun"}]
    second = client.responses.create(model="desk", input=output, previous_response_id=first.id)
    assert second.output_text == "Sunny."
    assert [message["role"] for message in server.chats[1]["messages"]] == ["user", "assistant", "tool"]


def test_items_are_found_by_reference(serve: Serve, client_of: ClientOf) -> None:
    server = serve(echo)
    client = client_of(server)
    first = client.responses.create(model="desk", input="one")
    reference: Any = [
        {"type": "item_reference", "id": client.responses.input_items.list(first.id).data[0].id},
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "two"},
    ]
    client.responses.create(model="desk", input=reference)
    assert said(server.chats[1]) == [("user", "one"), ("assistant", "You said one."), ("user", "two")]
    with pytest.raises(openai.NotFoundError, match="msg_none_0"):
        client.responses.create(model="desk", input=[{"type": "item_reference", "id": "msg_none_0"}])
    with pytest.raises(openai.NotFoundError):
        client_of(server, "other").responses.create(model="desk", input=reference)


def test_reading_and_deleting_a_response(serve: Serve, client_of: ClientOf) -> None:
    client = client_of(serve(echo))
    made = client.responses.create(model="desk", input="one", metadata={"a": "b"})
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id).data
    assert item.type == "message"
    assert item.content[0].text == "one"  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    for attempt in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            attempt(made.id)
    with pytest.raises(openai.NotFoundError, match=made.id) as lost:
        client.responses.create(model="desk", input="two", previous_response_id=made.id)
    assert lost.value.code == "previous_response_not_found"


def test_a_hole_in_the_history_is_refused_not_bridged(serve: Serve, client_of: ClientOf) -> None:
    client = client_of(serve(echo))
    first = client.responses.create(model="desk", input="one")
    second = client.responses.create(model="desk", input="two", previous_response_id=first.id)
    client.responses.delete(first.id)
    assert client.responses.retrieve(second.id).id == second.id
    with pytest.raises(openai.NotFoundError, match=first.id):
        client.responses.create(model="desk", input="three", previous_response_id=second.id)


def test_store_false_keeps_nothing(serve: Serve, client_of: ClientOf, tmp_path: Path) -> None:
    client = client_of(serve(echo))
    made = client.responses.create(model="desk", input="one", store=False)
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with sqlite3.connect(tmp_path / "conversations.db") as connection:
        assert connection.execute("SELECT count(*) FROM conversation_entries").fetchone() == (0,)
    connection.close()


def test_anothers_id_is_like_an_unknown_one(serve: Serve, client_of: ClientOf) -> None:
    server = serve(echo)
    mine, other = client_of(server), client_of(server, "other")
    made = mine.responses.create(model="desk", input="one")
    conversation = mine.conversations.create()
    for attempt, unknown in (
        (other.responses.retrieve, (made.id, "resp_none")),
        (other.responses.delete, (made.id, "resp_none")),
        (
            lambda name: other.responses.create(model="desk", input="x", previous_response_id=name),
            (made.id, "resp_none"),
        ),
        (other.conversations.retrieve, (conversation.id, "conv_none")),
        (other.conversations.delete, (conversation.id, "conv_none")),
        (
            lambda name: other.responses.create(model="desk", input="x", conversation=name),
            (conversation.id, "conv_none"),
        ),
    ):
        told = []
        for name in unknown:
            with pytest.raises(openai.NotFoundError) as caught:
                attempt(name)
            told.append(json.dumps(caught.value.body).replace(name, "ID"))
        assert told[0] == told[1]
    assert mine.responses.retrieve(made.id).id == made.id


def test_nothing_readable_lies_in_the_file(serve: Serve, client_of: ClientOf, tmp_path: Path) -> None:
    client = client_of(serve(lambda _: answer("a secret answer")))
    client.responses.create(model="desk", input="a secret question", metadata={"label": "secret metadata"})
    data = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"resp_" in data
    assert b"secret" not in data


def test_a_turn_too_large_to_keep(serve: Serve, client_of: ClientOf) -> None:
    client = client_of(serve(lambda _: answer("x" * 3000), retention=Retention(bytes_most=2000)))
    with pytest.raises(openai.BadRequestError, match="2000 bytes"):
        client.responses.create(model="desk", input="y" * 3000)
    made = client.responses.create(model="desk", input="short")  # the answer is what is too large
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_history_too_deep(serve: Serve, client_of: ClientOf) -> None:
    client = client_of(serve(echo, retention=Retention(depth_most=3)))
    previous = client.responses.create(model="desk", input="0").id
    for number in range(1, 4):
        previous = client.responses.create(model="desk", input=str(number), previous_response_id=previous).id
    with pytest.raises(openai.BadRequestError, match="more than 3 turns") as caught:
        client.responses.create(model="desk", input="4", previous_response_id=previous)
    assert caught.value.code == "conversation_too_deep"


def test_a_gateway_that_keeps_nothing(serve: Serve, client_of: ClientOf) -> None:
    client = client_of(serve(echo, store=False))
    assert client.responses.create(model="desk", input="one").to_dict()["store"] is False
    with pytest.raises(openai.BadRequestError, match="keeps no responses"):
        client.responses.create(model="desk", input="one", previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="keeps no responses"):
        client.responses.create(model="desk", input="one", store=True)
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        client.conversations.create()


def test_a_store_that_breaks_costs_no_answer(serve: Serve, client_of: ClientOf, tmp_path: Path) -> None:
    def model(chat: dict[str, Any]) -> Any:
        with sqlite3.connect(tmp_path / "conversations.db") as connection:  # while the model answers
            connection.execute("DROP TABLE IF EXISTS conversation_entries")
        connection.close()
        return chunks({"content": "Hello"}) if chat.get("stream") else answer("Hello")

    client = client_of(serve(model))
    whole = client.responses.create(model="desk", input="one")
    with client.responses.stream(model="desk", input="one") as stream:
        streamed = stream.get_final_response()
    for made in (whole, streamed):
        assert made.output_text == "Hello"
        assert made.status == "completed"
        assert made.to_dict()["store"] is False
    with pytest.raises(openai.APIStatusError) as caught:
        client.responses.retrieve(whole.id)
    assert caught.value.status_code == 503


# -- conversations ------------------------------------------------------------------------------------------------


def test_a_conversation_gathers_its_turns(serve: Serve, client_of: ClientOf) -> None:
    server = serve(echo)
    client = client_of(server)
    made = client.conversations.create(
        items=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "zero"}], metadata={"a": "b"}
    )
    assert made.metadata == {"a": "b"}
    first = client.responses.create(model="desk", input="one", conversation=made.id)
    client.responses.create(model="desk", input="two", conversation={"id": made.id})
    client.conversations.items.create(made.id, items=[{"role": "user", "content": "by hand"}])
    texts = [item.content[0].text for item in client.conversations.items.list(made.id, order="asc")]  # type: ignore[union-attr]
    assert texts == ["Be brief.", "zero", "one", "You said one.", "two", "You said two.", "by hand"]
    assert said(server.chats[1])[:4] == [
        ("system", "Be brief."),
        ("user", "zero"),
        ("user", "one"),
        ("assistant", "You said one."),
    ]
    assert first.conversation is not None
    assert first.conversation.id == made.id
    # in pages of two, newest first
    pages = client.conversations.items.list(made.id, limit=2)
    assert [item.content[0].text for item in pages] == texts[::-1]  # type: ignore[union-attr]
    assert pages.has_more is True


def test_conversations_are_changed_and_deleted(serve: Serve, client_of: ClientOf) -> None:
    server = serve(echo)
    client = client_of(server)
    made = client.conversations.create()
    first = client.responses.create(model="desk", input="one", conversation=made.id)
    assert client.conversations.update(made.id, metadata={"x": "y"}).metadata == {"x": "y"}
    assert client.conversations.retrieve(made.id).metadata == {"x": "y"}
    item = client.conversations.items.list(made.id, order="asc").data[0]
    assert client.conversations.items.retrieve(str(item.id), conversation_id=made.id) == item
    client.conversations.items.delete(str(item.id), conversation_id=made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(str(item.id), conversation_id=made.id)
    client.responses.create(model="desk", input="two", conversation=made.id)
    assert said(server.chats[1]) == [("assistant", "You said one."), ("user", "two")]
    client.responses.delete(first.id)  # the conversation keeps what was said
    client.responses.create(model="desk", input="three", conversation=made.id)
    assert said(server.chats[2])[0] == ("assistant", "You said one.")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert client.conversations.delete(made.id).deleted
    for attempt in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError):
            attempt(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="desk", input="four", conversation=made.id)


def test_bad_requests_for_pages(serve: Serve, client_of: ClientOf) -> None:
    client = client_of(serve(echo))
    made = client.conversations.create()
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.conversations.items.list(made.id, limit=1000)
    with pytest.raises(openai.BadRequestError, match="item type"):
        client.conversations.items.create(made.id, items=[{"type": "nonsense"}])  # type: ignore[typeddict-item]
    with pytest.raises(openai.BadRequestError, match="metadata"):
        client.conversations.create(metadata={"a": "x" * 600})
    with pytest.raises(openai.APIStatusError) as caught:
        client.put(f"/conversations/{made.id}", cast_to=object)
    assert caught.value.status_code == 405


# -- windows --------------------------------------------------------------------------------------------------------

LONG = "word " * 100  # about 130 tokens with its message


def talk(client: openai.OpenAI, turns: int, **more: Any) -> openai.types.responses.Response:
    response = client.responses.create(model="desk", input=f"0 {LONG}", **more)
    for number in range(1, turns):
        previous = response.id
        response = client.responses.create(
            model="desk", input=f"{number} {LONG}", previous_response_id=previous, **more
        )
    return response


def test_an_overflow_is_refused_with_a_sentence(serve: Serve, client_of: ClientOf) -> None:
    server = serve(lambda _: answer("ok"))
    server.context_tokens, server.overflow = 600, Overflow.REFUSE
    with pytest.raises(openai.BadRequestError, match="window takes 600") as caught:
        talk(client_of(server), 10, max_output_tokens=100)
    assert caught.value.code == "context_length_exceeded"
    assert len(server.chats) >= 3
    # the request's own word wins over the endpoint's
    talk(client_of(server), 10, max_output_tokens=100, truncation="auto")
    server.overflow = Overflow.TRUNCATE
    talk(client_of(server), 10, max_output_tokens=100)
    with pytest.raises(openai.BadRequestError):
        talk(client_of(server), 10, max_output_tokens=100, truncation="disabled")


def test_an_overflow_drops_the_oldest_turns(serve: Serve, client_of: ClientOf) -> None:
    server = serve(lambda _: answer("ok"))
    server.context_tokens, server.overflow = 600, Overflow.TRUNCATE
    talk(client_of(server), 8, max_output_tokens=100, instructions="Be brief.")
    last = said(server.chats[-1])
    assert last[0] == ("system", "Be brief.")
    assert last[1][1].startswith(("4 ", "5 "))
    assert last[-1][1].startswith("7 ")
    assert not any(content.startswith("0 ") for _, content in last)


def test_an_overflow_is_summed_up_once_and_for_all(serve: Serve, client_of: ClientOf) -> None:
    asked: list[dict[str, Any]] = []

    def model(chat: dict[str, Any]) -> dict[str, Any]:
        if "condense" in str(chat["messages"][0]["content"]):
            asked.append(chat)
            return answer(f"SUMMARY {len(asked)}")
        return answer("ok")

    server = serve(model)
    server.context_tokens, server.overflow = 800, Overflow.SUMMARISE
    client = client_of(server)
    response = talk(client, 5, max_output_tokens=100, instructions="Be brief.")
    pieces = len(asked)  # the model's window is too small for all that goes at once
    assert pieces >= 1
    assert "0 word" in asked[0]["messages"][1]["content"]
    last = said(server.chats[-1])
    assert last[0] == ("system", "Be brief.")
    assert last[1][0] == "user"
    assert f"SUMMARY {pieces}" in last[1][1]
    # the next turn fits with the summary that was kept
    client.responses.create(model="desk", input="next", previous_response_id=response.id, max_output_tokens=100)
    assert len(asked) == pieces
    assert f"SUMMARY {pieces}" in said(server.chats[-1])[0][1]
    # a later one sums up the summary too
    for number in range(6, 12):
        response = client.responses.create(
            model="desk", input=f"{number} {LONG}", previous_response_id=response.id, max_output_tokens=100
        )
    assert len(asked) > pieces
    assert f"SUMMARY {pieces}" in asked[pieces]["messages"][1]["content"]
    assert len(asked) < 11  # not one each turn


def test_a_long_row_of_tool_calls_is_summed_up(serve: Serve, client_of: ClientOf) -> None:
    asked: list[dict[str, Any]] = []

    def model(chat: dict[str, Any]) -> dict[str, Any]:
        if "condense" in str(chat["messages"][0]["content"]):
            asked.append(chat)
            return answer(f"SUMMARY {len(asked)}")
        _paired(chat["messages"])
        number = len(server.chats)
        return answer(
            {"role": "assistant", "content": None, "tool_calls": [call(f"c{number}", "f", "{}")]}, "tool_calls"
        )

    server = serve(model)
    server.context_tokens, server.overflow = 900, Overflow.SUMMARISE
    client = client_of(server)
    response = client.responses.create(model="desk", input="The task.", max_output_tokens=100)
    for _ in range(12):
        item = response.output[-1]
        assert item.type == "function_call"
        output: Any = [{"type": "function_call_output", "call_id": item.call_id, "output": LONG}]
        response = client.responses.create(
            model="desk", input=output, previous_response_id=response.id, max_output_tokens=100
        )
        assert "The task." in str(server.chats[-1]["messages"][0]["content"])  # the turn's own question stays
    assert 1 <= len(asked) <= 6


def _paired(messages: list[dict[str, Any]]) -> None:
    """Each result follows its call, each call has its result."""
    calls = [one["id"] for message in messages for one in message.get("tool_calls", [])]
    results = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert calls == results


def test_a_summary_of_a_deleted_item_goes_with_it(serve: Serve, client_of: ClientOf) -> None:
    def model(chat: dict[str, Any]) -> dict[str, Any]:
        return answer("SUMMARY" if "condense" in str(chat["messages"][0]["content"]) else "ok")

    server = serve(model)
    server.context_tokens, server.overflow = 800, Overflow.SUMMARISE
    client = client_of(server)
    made = client.conversations.create()
    for number in range(5):
        client.responses.create(model="desk", input=f"{number} {LONG}", conversation=made.id, max_output_tokens=100)
    assert "SUMMARY" in said(server.chats[-1])[0][1]
    item = next(iter(client.conversations.items.list(made.id, order="asc")))
    assert item.content[0].text.startswith("0 ")  # type: ignore[union-attr]
    client.conversations.items.delete(str(item.id), conversation_id=made.id)
    server.context_tokens = None
    client.responses.create(model="desk", input="next", conversation=made.id)
    texts = [str(content) for _, content in said(server.chats[-1])]
    assert not any("SUMMARY" in text or text.startswith("0 ") for text in texts)
    assert sum(text.startswith(("1 ", "2 ", "3 ", "4 ")) for text in texts) == 4
