"""What the dialects write, OpenAI's own client reads: whole answers, streams and errors of every exchange."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.models.providers.provider_servers import Reply, Server, event, serving
from tests.models.providers.test_exchanges import EXCHANGES, having, place_of, wire
from tidemill.models.providers import dialect

ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
}


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="k", max_retries=0, timeout=60)


def chats(key: str) -> list[str]:
    return [name for name in having(key) if EXCHANGES[name].get("operation", "chat") == "chat"]


def translated_stream(exchange: dict[str, Any]) -> bytes:
    body = json.dumps(exchange["pivot_request"]).encode()
    stream = dialect(exchange["dialect"]).stream("chat", body, model=place_of(exchange).model)
    frames = exchange.get("provider_frames")
    return stream.feed(b"".join(event(*one) for one in frames) if frames else wire(exchange)) + stream.finish()


def ask(asking: openai.OpenAI, **options: Any) -> Any:
    return asking.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], **options)


@pytest.mark.parametrize("name", chats("provider_answer"))
def test_answer(name: str) -> None:
    exchange = EXCHANGES[name]
    body = json.dumps(exchange["provider_answer"]).encode()
    translated = dialect(exchange["dialect"]).answer("chat", body, model=place_of(exchange).model)
    with serving(lambda *_: None, Reply([translated])) as server, client(server) as asking:
        completion = ask(asking)
    # Strictly: the client itself reads leniently.
    completion = type(completion).model_validate(json.loads(translated))
    for choice, expected in zip(completion.choices, json.loads(translated)["choices"], strict=True):
        assert choice.message.content == expected["message"]["content"]
        assert choice.finish_reason == expected["finish_reason"]
        assert len(choice.message.tool_calls or ()) == len(expected["message"].get("tool_calls", ()))
        for call in choice.message.tool_calls or ():
            json.loads(call.function.arguments)


@pytest.mark.parametrize("name", chats("pivot_stream"))
def test_stream(name: str) -> None:
    exchange = EXCHANGES[name]
    translated = translated_stream(exchange)
    with serving(lambda *_: None, Reply([translated], content_type="text/event-stream")) as server:
        if any("error" in one for one in exchange["pivot_stream"] if isinstance(one, dict)):
            with client(server) as asking, pytest.raises(openai.APIError):
                list(ask(asking, stream=True))
            return
        with client(server) as asking:
            chunks = list(ask(asking, stream=True))
    texts: dict[int, str] = {}
    arguments: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        for call in choice.delta.tool_calls or ():
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
        reasons.update({choice.index: choice.finish_reason} if choice.finish_reason else {})
    assert reasons.keys() == texts.keys()
    for number, text in arguments.items():
        assert isinstance(json.loads(text), dict), number


@pytest.mark.parametrize("name", having("provider_error"))
def test_error(name: str) -> None:
    expected = EXCHANGES[name]["pivot_error"]
    raised = ERRORS.get(expected["status"], openai.APIStatusError)
    reply = Reply([json.dumps(expected["body"]).encode()], expected["status"])
    with serving(lambda *_: None, reply) as server, client(server) as asking, pytest.raises(raised) as caught:
        ask(asking)
    assert caught.value.status_code == expected["status"]
    assert expected["body"]["error"]["message"] in str(caught.value)


@pytest.mark.parametrize("name", [name for name in having("provider_answer") if name not in chats("provider_answer")])
def test_embeddings(name: str) -> None:
    exchange = EXCHANGES[name]
    if exchange["operation"] != "embeddings":
        pytest.fail(f"write a test for the operation {exchange['operation']}")
    body = json.dumps(exchange["provider_answer"]).encode()
    translated = dialect(exchange["dialect"]).answer("embeddings", body, model=place_of(exchange).model)
    with serving(lambda *_: None, Reply([translated])) as server, client(server) as asking:
        found = asking.embeddings.create(model="m", input="x")
    assert [row.embedding for row in found.data] == [row["embedding"] for row in json.loads(translated)["data"]]
