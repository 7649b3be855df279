"""``/v1/responses`` of a running worker: real sockets on both sides, a real store, the official client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.conftest import KEY, OTHER_KEY, RunningGateway, target
from tidemill.gateway.backing_options import BackingOptions, ConversationOptions
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import Overflow, Route, RoutePolicy

Start = Callable[..., RunningGateway]


@pytest.fixture
def backing(tmp_path: Path) -> BackingOptions:
    (tmp_path / "conversations.key").write_text("ab" * 32)
    kept = ConversationOptions(
        url=f"sqlite:///{tmp_path}/conversations.db", key_ref=f"file:{tmp_path}/conversations.key"
    )
    return BackingOptions(conversations=kept)


def client_of(gateway: RunningGateway, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url, api_key=key, max_retries=0)


def test_a_dialogue_over_turns_and_over_a_restart(
    start: Start, upstream: ScriptedUpstream, backing: BackingOptions
) -> None:
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    gateway = start(route, backing=backing)
    with client_of(gateway) as client:
        first = client.responses.create(model="desk", input="one", instructions="Be brief.")
        assert first.output_text == "Hello from the script."
        assert first.usage is not None
        assert first.usage.total_tokens == 16
        with client.responses.stream(model="desk", input="two", previous_response_id=first.id) as stream:
            events = [event.type for event in stream]
            second = stream.get_final_response()
        assert events[:2] == ["response.created", "response.in_progress"]
        assert events[-1] == "response.completed"
        assert second.output_text == "Hello from the script."
    records = gateway.records()
    assert [span.status for span in records.spans] == ["ok", "ok"]
    assert {span.input_tokens for span in records.spans} == {11}
    assert [span.attributes["tidemill.kept"] for span in records.spans] == [True, True]
    # another worker with the same store and key, as on another host
    other = start(route, backing=backing)
    with client_of(other) as client:
        assert client.responses.retrieve(second.id).output_text == second.output_text
        client.responses.create(model="desk", input="three", previous_response_id=second.id)
    said = [(message["role"], message["content"]) for message in upstream.seen[-1].body["messages"]]
    reply = ("assistant", "Hello from the script.")
    assert said == [("user", "one"), reply, ("user", "two"), reply, ("user", "three")]


def test_a_stream_by_the_async_client(start: Start, upstream: ScriptedUpstream, backing: BackingOptions) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)), backing=backing)

    async def ask() -> str:
        async with (
            openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client,
            client.responses.stream(model="desk", input="Hi") as stream,
        ):
            return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    assert asyncio.run(ask()) == "Hello from the script."


def test_kept_things_are_read_and_deleted_by_their_owner_alone(
    start: Start, upstream: ScriptedUpstream, backing: BackingOptions
) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)), backing=backing)
    with client_of(gateway) as client, client_of(gateway, OTHER_KEY) as other:
        made = client.responses.create(model="desk", input="one")
        assert client.responses.retrieve(made.id).output_text == made.output_text
        for attempt in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                attempt(made.id)
        assert len(client.responses.input_items.list(made.id).data) == 1
        client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)
        conversation = client.conversations.create(metadata={"a": "b"})
        client.responses.create(model="desk", input="two", conversation=conversation.id)
        assert len(client.conversations.items.list(conversation.id).data) == 2
        client.conversations.delete(conversation.id)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.ERROR_EVENT, Fault.NO_DONE, Fault.MALFORMED_CHUNK])
def test_a_broken_stream_is_no_response(
    start: Start, upstream: ScriptedUpstream, backing: BackingOptions, fault: Fault
) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)), backing=backing)
    upstream.always = fault
    with client_of(gateway) as client:
        with client.responses.create(model="desk", input="Hi", stream=True) as stream:
            events = list(stream)
        assert "response.completed" not in [event.type for event in events]
        assert events[-1].type == "response.failed"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(events[-1].response.id)


def test_an_overflow_at_the_gateway(start: Start, upstream: ScriptedUpstream, backing: BackingOptions) -> None:
    policy = RoutePolicy(overflow=Overflow.SUMMARISE)
    route = Route(
        endpoint="desk", tenant="default", releases=(target(upstream.url, context_tokens=600),), policy=policy
    )
    gateway = start(route, backing=backing)
    with client_of(gateway) as client:
        previous = client.responses.create(model="desk", input="0 " + "word " * 100, max_output_tokens=50).id
        for number in range(1, 6):
            text = f"{number} " + "word " * 100
            previous = client.responses.create(
                model="desk", input=text, previous_response_id=previous, max_output_tokens=50
            ).id
        with pytest.raises(openai.BadRequestError, match="window takes 600") as refused:
            client.responses.create(
                model="desk", input="word " * 1000, previous_response_id=previous, truncation="disabled"
            )
    assert refused.value.code == "context_length_exceeded"
    summaries = [seen for seen in upstream.seen if "condense" in str(seen.body["messages"][0]["content"])]
    assert summaries
    assert (
        "Summary of the conversation so far:\nHello from the script."
        in upstream.seen[-1].body["messages"][0]["content"]
    )


def test_what_the_gateway_cannot_serve_never_reaches_the_model(
    start: Start, upstream: ScriptedUpstream, backing: BackingOptions
) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)), backing=backing)
    with client_of(gateway) as client:
        with pytest.raises(openai.BadRequestError, match="the tool 'web_search'"):
            client.responses.create(model="desk", input="Hi", tools=[{"type": "web_search"}])
        with pytest.raises(openai.NotFoundError, match="resp_none"):
            client.responses.create(model="desk", input="Hi", previous_response_id="resp_none")
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="nothing", input="Hi")
    assert upstream.seen == []


def test_a_store_that_cannot_be_opened_keeps_nobody_from_what_needs_none(
    start: Start, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    place = tmp_path / "kept"
    place.write_text("a file where a folder should be")
    backing = BackingOptions(conversations=ConversationOptions(url=f"sqlite:///{place}/conversations.db"))
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)), backing=backing)
    with client_of(gateway) as client:
        whole = client.responses.create(model="desk", input="Hi", store=False)
        assert (whole.output_text, whole.to_dict()["store"]) == ("Hello from the script.", False)
        with client.responses.stream(model="desk", input="Hi", store=False) as stream:
            assert stream.get_final_response().output_text == "Hello from the script."
        asked = len(upstream.seen)
        reference: Any = [{"type": "item_reference", "id": "msg_1_0"}, {"role": "user", "content": "Hi"}]
        in_need: list[dict[str, Any]] = [
            {"input": "Hi"},
            {"input": "Hi", "store": True},
            {"input": "Hi", "store": False, "previous_response_id": "resp_1"},
            {"input": "Hi", "conversation": "conv_1"},
            {"input": reference, "store": False},
        ]
        for request in in_need:
            with pytest.raises(openai.InternalServerError, match="'store': false") as refused:
                client.responses.create(model="desk", **request)
            assert (refused.value.status_code, refused.value.code) == (503, "conversations_unavailable")
            assert refused.value.response.headers["retry-after"] == "10"
        with pytest.raises(openai.InternalServerError, match="cannot be reached"):
            client.responses.retrieve("resp_1")
        assert len(upstream.seen) == asked
        place.unlink()
        place.mkdir()
        gateway.gateway.conversations.open()  # as the worker's own sweep does, some seconds later
        kept = client.responses.create(model="desk", input="Hi")
        assert client.responses.retrieve(kept.id).output_text == "Hello from the script."
