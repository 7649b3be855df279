"""Deep JSON, and mistakes of the gateway's own: an answer or an error in the client's shape, never silence."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.gateway.conftest import KEY, ONCE, RELEASE_1, RunningGateway, target
from tests.gateway.wire import Wire, ask
from tidemill.gateway.backing_options import BackingOptions, ConversationOptions
from tidemill.gateway.exchange import Exchange
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import CacheMode, CachePolicy, ReleaseRoute, Route, RoutePolicy, Target

#: The reader's own limit lies between these; the stack that a later step finds is a little deeper than the reader's.
DEPTHS = (50, 300, *range(900, 1000, 4), 3000, 50_000)
Start = Callable[..., RunningGateway]
#: Where a client's text goes, by path.
FIELDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "@"}], "metadata": {"a": "@"}},
    "/v1/embeddings": {"input": "@"},
    "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": "@"}], "tools": ["@"]},
    "/v1/responses": {"input": [{"role": "user", "content": "@"}], "tools": ["@"]},
}


def nested(fields: dict[str, Any], depth: int) -> bytes:
    body = json.dumps({"model": "desk", **fields})
    return body.replace('"@"', "[" * depth + "]" * depth).encode()


def request(path: str, raw: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(raw)}"
    return head.encode() + b"\r\n\r\n" + raw


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("path", FIELDS)
def test_a_deep_request_is_answered(
    start: Start, upstream: ScriptedUpstream, tmp_path: Any, path: str, dialect: str
) -> None:
    targets = (Target(upstream.url, "m", dialect=dialect, name="t"),)
    policy = RoutePolicy(cache=CachePolicy(mode=CacheMode.EXACT), guardrails=("pii",))
    route = Route("desk", "default", (ReleaseRoute(RELEASE_1, "release/desk@1", targets),), policy=policy)
    kept = ConversationOptions(url=f"sqlite:///{tmp_path / 'conversations.db'}")
    gateway = start(route, backing=BackingOptions(conversations=kept))
    for name in FIELDS[path]:
        for depth in DEPTHS:
            fields = {key: (value if key == name else _plain(value)) for key, value in FIELDS[path].items()}
            with Wire(gateway.port) as wire:
                wire.send(request(path, nested(fields, depth)))
                status, body = wire.answer()
            assert status in {200, 400, 500, 502}, (name, depth, body)
            if status != 200:
                assert json.loads(body)["error"]["message"], (name, depth, body)
            assert status != 500 or b"scripted" in body, (name, depth, body)
    gateway.wait(lambda: not gateway.gateway.live and gateway.gateway.metrics.in_flight == 0)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value).replace('"@"', '"Hello."')) if value != ["@"] else []


class Answering:
    """A server that gives one answer to everything, whole or as a stream of one event."""

    def __init__(self) -> None:
        self.body = b""
        answering = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                kind, said = "application/json", answering.body
                if asked.get("stream"):
                    kind, said = "text/event-stream", b"data: %b\n\ndata: [DONE]\n\n" % answering.body
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args: object) -> None:  # type: ignore[override]
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_deep_answer_is_told(start: Start, path: str, stream: bool) -> None:
    choice = {"index": 0, "delta": {"content": "Hi"}, "message": {"role": "assistant", "content": "Hi"}}
    body = json.dumps({"id": "1", "choices": [{**choice, "finish_reason": "stop", "odd": "@"}], "odd": "@"})
    fields: dict[str, Any] = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello."}]}
    if path == "/v1/responses":
        fields = {"input": "Hello.", "store": False}
    asked = request(path, json.dumps({"model": "desk", "stream": stream, **fields}).encode())
    statuses = []
    with Answering() as server:
        gateway = start(Route("desk", "default", (target(server.url),), policy=ONCE))
        for depth in DEPTHS:
            server.body = body.replace('"@"', "[" * depth + "]" * depth).encode()
            with Wire(gateway.port) as wire:
                wire.send(asked)
                status, said = wire.answer()
            assert status in {200, 502}, (depth, said[:300])
            statuses.append(status)
        gateway.wait(lambda: not gateway.gateway.live and gateway.gateway.metrics.in_flight == 0)
        assert [span.http_status for span in gateway.records().requests()] == statuses
    assert {200, 502} == set(statuses)


class Broken(Exception):
    """A mistake of the gateway's own."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", ["_intended", "_pursue", "opened", "answered", "_conclude", "_end_stream", "events"])
def test_a_mistake_in_any_step_strands_nobody(
    gateway: RunningGateway, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, step: str, stream: bool
) -> None:
    """Each step of a call in turn raises what nobody expects; the client gets an error, a record says so."""

    def broken(*_: object) -> None:
        raise Broken

    monkeypatch.setattr(Exchange, step, broken)
    with Wire(gateway.port) as wire:
        wire.send(ask(stream=stream))
        status, body = wire.answer()
    used = {True: {"opened", "_end_stream", "events"}, False: {"answered", "_conclude"}}
    raised = step not in used[not stream]
    if raised:
        assert (status, b"internal_error" in body) == (500, True) or (stream and b"broke off" in body)
    gateway.wait(lambda: not gateway.gateway.live and gateway.gateway.metrics.in_flight == 0)
    monkeypatch.undo()
    with Wire(gateway.port) as wire:
        wire.send(ask(stream=stream))
        assert wire.answer()[0] == 200
    if raised:
        first, _ = sorted(gateway.records().requests(), key=lambda span: span.started_at_ns)
        assert first.error_type == "gateway_fault"


@pytest.mark.parametrize("step", ["_record", "_deliver_whole", "_span", "_bill"])
def test_a_client_whose_answer_cannot_be_recorded_or_delivered_is_cut_off(
    gateway: RunningGateway, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    upstream.usage = False  # the bill is worked out, not read off

    def broken(*_: object, **__: object) -> None:
        raise Broken

    monkeypatch.setattr(Exchange, step, broken)
    with Wire(gateway.port) as wire:
        wire.send(ask(user="no straight way") + ask())
        while wire.fill():
            pass
        assert wire.buffer == b""
    gateway.wait(lambda: not gateway.gateway.live)
    monkeypatch.undo()
    with Wire(gateway.port) as wire:
        wire.send(ask())
        assert wire.answer()[0] == 200
