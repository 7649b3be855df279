"""The gateway as an ASGI application under a real server, alone and mounted below a path."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.gateway.conftest import KEY, read_records, snapshot_of, target, write_snapshot
from tests.gateway.wire import Wire, ask
from tidemill.gateway import Limits, WorkerOptions, bind
from tidemill.gateway.asgi import AsgiGateway
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import Route

PATIENCE_S = 30


class Served:
    """An ASGI application under uvicorn, in a thread of its own."""

    def __init__(self, app: Any) -> None:
        listener = bind("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=lambda: self._server.run(sockets=[listener]))
        self._thread.start()
        until(lambda: self._server.started)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def app(tmp_path: Path, upstream: ScriptedUpstream) -> AsgiGateway:
    write_snapshot(
        tmp_path / "routing.json",
        snapshot_of(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))),
    )
    return AsgiGateway(
        WorkerOptions(
            project="demo",
            tenant="default",
            snapshot_path=tmp_path / "routing.json",
            segments_folder=tmp_path / "segments",
            state_folder=tmp_path / "gateway",
            limits=Limits(body_bytes=1_000_000),
        )
    )


@pytest.fixture
def served(app: AsgiGateway) -> Iterator[Served]:
    server = Served(app)
    yield server
    server.close()


def test_the_official_client(app: AsgiGateway, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    server = Served(app)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0) as client:
        answer = client.chat.completions.with_raw_response.create(model="desk", messages=[])
        assert answer.parse().choices[0].message.content == "Hello from the script."
        assert len(answer.headers["x-tidemill-trace-id"]) == 32
        chunks = client.chat.completions.create(model="desk", messages=[], stream=True)
        said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert "".join(word for word in said if word) == "Hello from the script."
        assert [model.id for model in client.models.list()] == ["desk"]
        with pytest.raises(openai.NotFoundError, match="no model 'other'"):
            client.chat.completions.create(model="other", messages=[])
        upstream.faults.append(Fault.CUT)
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="desk", messages=[], stream=True))
    server.close()
    spans = read_records(tmp_path / "segments").spans
    assert [span.status for span in spans] == ["ok", "ok", "truncated"]


def test_refusals(served: Served) -> None:
    with Wire(served.port) as wire:
        wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
        assert wire.answer()[0] == 413
    with Wire(served.port) as wire:
        wire.send(ask().replace(b"Host:", b"Authorization: Bearer x\r\nHost:", 1))
        status, body = wire.answer()
        assert (status, json.loads(body)["error"]["code"]) == (400, "duplicate_header")


def test_a_client_that_leaves_stops_the_upstream(served: Served, upstream: ScriptedUpstream) -> None:
    upstream.faults.append(Fault.STALL_STREAM)
    with Wire(served.port) as wire:
        wire.send(ask(stream=True))
        while b"Hello" not in wire.buffer:
            assert wire.fill()
    until(lambda: upstream.seen[0].cancelled)


def test_slow_readers_hold_the_upstream_back(app: AsgiGateway, upstream: ScriptedUpstream) -> None:
    upstream.words = tuple("x" * 60_000 for _ in range(400))
    server = Served(app)
    with Wire(server.port) as wire:
        wire.send(ask(stream=True))
        until(lambda: app.worker is not None and any(front.slow for front in app.worker.fronts))
        status, body = wire.answer()
    server.close()
    assert status == 200
    assert body.count(b"x" * 60_000) == 400
    assert body.endswith(b"data: [DONE]\n\n")


def test_mounted_below_a_path(app: AsgiGateway) -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with app.running():
            yield

    server = Served(Starlette(routes=[Mount("/llm", app=app)], lifespan=lifespan))
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/llm/v1", api_key=KEY, max_retries=0) as client:
        answer = client.chat.completions.create(model="desk", messages=[])
        assert answer.choices[0].message.content == "Hello from the script."
        assert client.models.retrieve("desk").id == "desk"
    server.close()
