"""The providers' and OpenAI's own libraries read what the dialects write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic.types
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from tests.gateway.dialects.answering import Answer, Asked, answering
from tests.models.providers.test_exchanges import EXCHANGES, credentials_of, having, place_of, spoken, wire
from tidemill.models.providers import dialect


def answers() -> list[str]:
    return [name for name in having("provider_answer") if EXCHANGES[name].get("operation", "chat") == "chat"]


def whole_streams() -> list[str]:
    return [name for name in having("provider_stream") if EXCHANGES[name]["pivot_stream"][-1] == "[DONE]"]


@contextmanager
def speaking(name: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client at a server that translates a recorded exchange."""
    exchange, speaker, operation = spoken(name)

    def say(asked: Asked) -> Answer:
        if "provider_error" in exchange:
            given = exchange["provider_error"]
            body = given["body"].encode() if isinstance(given["body"], str) else json.dumps(given["body"]).encode()
            status, translated = speaker.error(given["status"], body)
            return status, "application/json", [translated]
        if "provider_stream" not in exchange:
            body = json.dumps(exchange["provider_answer"]).encode()
            return 200, "application/json", [speaker.answer(operation, body, model="m")]
        translator = speaker.stream(operation, asked.body, model="m")
        raw = wire(exchange)
        pieces = [translator.feed(raw[start : start + 13]) for start in range(0, len(raw), 13)]
        return 200, "text/event-stream", [*pieces, translator.finish()]

    with (
        answering(say) as place,
        openai.OpenAI(base_url=place.url, api_key="k", max_retries=0, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize("name", answers())
def test_openais_client_reads_answers(name: str) -> None:
    expected = EXCHANGES[name]["pivot_answer"]
    with speaking(name) as client:
        answer = client.chat.completions.create(model="shop", messages=[{"role": "user", "content": "When?"}])
    ChatCompletion.model_validate(answer.model_dump())  # the client itself does not validate
    assert answer.choices[0].finish_reason == expected["choices"][0]["finish_reason"]
    assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == expected["usage"]["total_tokens"]


@pytest.mark.parametrize("name", whole_streams())
def test_openais_client_reads_streams(name: str) -> None:
    chunks = [chunk for chunk in EXCHANGES[name]["pivot_stream"] if chunk != "[DONE]"]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    text = "".join(delta.get("content") or "" for delta in deltas)
    with (
        speaking(name) as client,
        client.chat.completions.stream(
            model="shop",
            messages=[{"role": "user", "content": "When?"}],
            stream_options={"include_usage": True},
        ) as stream,
    ):
        events = list(stream)
        snapshot = stream.current_completion_snapshot
    for event in events:
        if event.type == "chunk":
            ChatCompletionChunk.model_validate(event.chunk.model_dump())
    message = snapshot.choices[0].message
    assert (message.content or "") == text
    for call in message.tool_calls or ():
        assert isinstance(json.loads(call.function.arguments or ""), dict)
    wanted = [call["id"] for delta in deltas for call in delta.get("tool_calls") or () if "id" in call]
    assert [call.id for call in message.tool_calls or ()] == wanted
    assert snapshot.usage is not None


@pytest.mark.parametrize(
    "name", [name for name in having("provider_stream") if "error" in EXCHANGES[name]["pivot_stream"][-1]]
)
def test_openais_client_raises_on_an_error_inside_a_stream(name: str) -> None:
    expected = EXCHANGES[name]["pivot_stream"][-1]["error"]
    with speaking(name) as client:
        stream = client.chat.completions.create(
            model="shop", messages=[{"role": "user", "content": "When?"}], stream=True
        )
        with pytest.raises(openai.APIError) as raised:
            list(stream)
    assert raised.value.message == expected["message"]
    assert raised.value.code == expected["code"]


@pytest.mark.parametrize("name", having("provider_error"))
def test_openais_client_raises_its_own_error_classes(name: str) -> None:
    classes: dict[int, type[openai.APIStatusError]] = {
        400: openai.BadRequestError,
        401: openai.AuthenticationError,
        403: openai.PermissionDeniedError,
        404: openai.NotFoundError,
        429: openai.RateLimitError,
    }
    expected = EXCHANGES[name]["pivot_error"]
    with speaking(name) as client, pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(model="shop", messages=[{"role": "user", "content": "When?"}])
    status = expected["status"]
    assert raised.value.status_code == status
    assert isinstance(
        raised.value, classes.get(status, openai.InternalServerError if status >= 500 else openai.APIStatusError)
    )
    assert raised.value.code == expected["body"]["error"]["code"]


# --- Anthropic's types


BLOCKS: TypeAdapter[Any] = TypeAdapter(anthropic.types.ContentBlockParam)
SHAPES: dict[str, TypeAdapter[Any]] = {
    "tool_choice": TypeAdapter(anthropic.types.ToolChoiceParam),
    "output_config": TypeAdapter(anthropic.types.OutputConfigParam),
    "thinking": TypeAdapter(anthropic.types.ThinkingConfigParam),
    "metadata": TypeAdapter(anthropic.types.MetadataParam),
    "cache_control": TypeAdapter(anthropic.types.CacheControlEphemeralParam),
}
TOOLS: TypeAdapter[Any] = TypeAdapter(anthropic.types.ToolParam)


@pytest.mark.parametrize(
    "name", [name for name in having("provider_request") if EXCHANGES[name]["dialect"] == "anthropic"]
)
def test_requests_have_the_shapes_of_anthropics_library(name: str) -> None:
    exchange = EXCHANGES[name]
    body = json.dumps(exchange["pivot_request"]).encode()
    sent = dialect("anthropic").request("chat", body, place_of(exchange), credentials_of(exchange), now_s=0.0)
    request = json.loads(sent.body)
    blocks = [block for turn in request["messages"] for block in turn["content"]] + request.get("system", [])
    inner = [one for block in blocks if isinstance(block.get("content"), list) for one in block["content"]]
    for block in (*blocks, *inner):
        BLOCKS.validate_python(block)
    for tool in request.get("tools", []):
        TOOLS.validate_python(tool)
    for key, shape in SHAPES.items():
        if key in request:
            shape.validate_python(request[key])
    speakers = [turn["role"] for turn in request["messages"]]
    assert speakers == [["user", "assistant"][number % 2] for number in range(len(speakers))]


def test_the_shapes_can_fail() -> None:
    for wrong in ({"type": "image", "source": {"type": "base64", "data": "AAAA"}}, {"type": "text"}, {"type": "robot"}):
        with pytest.raises(ValueError, match="validation error"):
            BLOCKS.validate_python(wrong)
