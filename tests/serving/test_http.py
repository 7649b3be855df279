"""The HTTP face over real sockets: the official client, streaming, errors, health, cancellation."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import openai
import pytest
import uvicorn

from tests.serving.releases import ask, make_application
from tidemill.models import ModelClient
from tidemill.models.transport import UpstreamError
from tidemill.serving import Application
from tidemill.serving.http import Loading, create_app
from tidemill.serving.testing import ScriptedModel, ScriptedServer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Served:
    url: str
    model: ScriptedModel
    release: str


@contextmanager
def running(load: Callable[[], Application], release: str, client: ModelClient | None = None) -> Iterator[str]:
    """Serve on a free port in a thread; gives the base URL."""

    async def close() -> None:
        if client is not None:
            await client.close()

    async def opened() -> Application:
        return await asyncio.to_thread(load)

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(Loading(opened, release, close)), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def wait_until(ready: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def served(model: ScriptedModel, *, timeout_s: float = 5.0) -> Iterator[Served]:
    """A BM25 release in front of a scripted model server, both over HTTP."""
    with ScriptedServer(model) as upstream:
        client = ModelClient(upstream.url, timeout_s=timeout_s)
        application = make_application(client)
        release = application.release.digest
        with running(lambda: application, release, client) as url:
            wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200)
            yield Served(url, model, release)


def post(url: str, body: object, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{url}/v1/chat/completions", content=content, headers=headers)


def test_the_openai_client_is_answered() -> None:
    with (
        served(ScriptedModel(lambda _: "It raises AssertionError.")) as app,
        openai.OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0) as client,
    ):
        made = client.chat.completions.create(model="desk", messages=ask("what does assert raise"))
        assert made.choices[0].message.content == "It raises AssertionError."
        assert made.usage is not None
        assert made.usage.completion_tokens == 3
        assert made.model == "desk"
        extension = (made.model_extra or {})["tidemill"]
        assert extension["citations"] == ["python:topics/assert"]
        assert extension["release"] == app.release
        assert client.models.list().data[0].id == "tiny"


def test_the_openai_client_streams() -> None:
    with (
        served(ScriptedModel(lambda _: "It raises AssertionError.")) as app,
        openai.OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0) as client,
    ):
        chunks = list(
            client.chat.completions.create(
                model="desk",
                messages=ask("what does assert raise"),
                stream=True,
            )
        )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len([piece for piece in pieces if piece]) == 3
    assert "".join(pieces) == "It raises AssertionError."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert (chunks[-1].model_extra or {})["tidemill"]["passages"][0]["document_id"] == "doc_assert"


def test_the_trace_goes_through() -> None:
    with served(ScriptedModel()) as app:
        body = {"model": "desk", "messages": ask("assert")}
        response = post(app.url, body, traceparent=f"00-{TRACE}-{PARENT}-01")
        assert response.headers["x-tidemill-trace-id"] == TRACE
        assert response.headers["x-tidemill-release"] == app.release
        assert app.model.headers[0]["traceparent"].startswith(f"00-{TRACE}-")
        streamed = post(app.url, {**body, "stream": True})
        assert len(streamed.headers["x-tidemill-trace-id"]) == 32
        assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        ({}, "needs 'messages'"),
        ({"messages": []}, "needs 'messages'"),
        ({"messages": [{"role": "user", "content": ""}]}, "no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "stream": True}, "text parts"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(body: object, message: str) -> None:
    with served(ScriptedModel()) as app:
        response = post(app.url, body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "given"), [(500, 502), (503, 502), (404, 502), (400, 400), (429, 429)])
def test_a_failing_model_server_gives_an_openai_error(status: int, given: int, stream: bool) -> None:
    failure = UpstreamError(status, "odd", "something broke", retryable=False)
    with served(ScriptedModel(failures=[failure])) as app:
        response = post(app.url, {"messages": ask("assert"), "stream": stream})
    assert response.status_code == given
    error = {"message": "something broke", "type": "odd", "param": None, "code": given}
    assert response.json() == {"error": error}


def test_a_model_server_that_hangs_or_is_gone_is_an_error_too() -> None:
    with served(ScriptedModel(delay_s=2.0), timeout_s=0.2) as app:
        assert post(app.url, {"messages": ask("assert")}).status_code == 504
    client = ModelClient("http://127.0.0.1:9/v1", timeout_s=1.0)
    application = make_application(client)
    with running(lambda: application, "r", client) as url:
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200)
        assert post(url, {"messages": ask("assert")}).status_code == 502


def test_a_stream_cut_off_upstream_ends_with_an_error_and_no_closing_mark() -> None:
    with served(ScriptedModel(lambda _: "one two three", cut_after=2)) as app:
        text = post(app.url, {"messages": ask("assert"), "stream": True}).text
    assert '"content": "one"' in text
    assert '"type": "truncated"' in text
    assert "data: [DONE]" not in text


def test_a_client_that_goes_away_cancels_the_generation() -> None:
    model = ScriptedModel(lambda _: "word " * 200 + "end", delay_s=0.02)
    with served(model) as app:
        body = {"messages": ask("assert"), "stream": True}
        with httpx2.stream("POST", f"{app.url}/v1/chat/completions", json=body) as response:
            next(response.iter_bytes())
        wait_until(lambda: model.cancelled == 1)


def test_health_waits_for_the_release_and_tells_a_failure() -> None:
    gate = threading.Event()

    def load() -> Application:
        gate.wait(10)
        raise RuntimeError("the index is gone")

    with running(load, "sha256:abc") as url:
        response = httpx2.get(f"{url}/health")
        assert response.status_code == 503
        assert "being loaded" in response.json()["error"]["message"]
        assert post(url, {"messages": ask("x")}).status_code == 503
        gate.set()
        wait_until(lambda: "the index is gone" in httpx2.get(f"{url}/health").text)


def test_a_foreign_host_name_is_refused() -> None:
    with served(ScriptedModel()) as app:
        response = httpx2.get(f"{app.url}/v1/models", headers={"host": "evil.example:80"})
    assert response.status_code == 403
    assert "evil.example" in response.json()["error"]["message"]
