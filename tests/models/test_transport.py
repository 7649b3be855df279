"""The client against a real socket: a small HTTP server that answers what each test tells it to."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.models import EventDecoder, ModelClient, UpstreamError

Answer = Callable[[BaseHTTPRequestHandler, dict[str, object]], None]


@contextmanager
def _server(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer(self, body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _say(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json") -> None:
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@asynccontextmanager
async def _client(answer: Answer) -> AsyncIterator[ModelClient]:
    with _server(answer) as url:
        async with ModelClient(url, api_key="k", timeout_s=5) as client:
            yield client


def _run(answer: Answer, use: Callable[[ModelClient], Awaitable[object]]) -> object:
    async def go() -> object:
        async with _client(answer) as client:
            return await use(client)

    return asyncio.run(go())


def test_chat_sends_the_request_and_returns_the_json() -> None:
    seen: list[object] = []

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, object]) -> None:
        seen.extend([handler.path, handler.headers["authorization"], handler.headers["traceparent"], body["stream"]])
        _say(handler, 200, json.dumps({"echo": body["messages"]}).encode())

    result = _run(answer, lambda client: client.chat({"messages": ["é"]}, {"traceparent": "00-1"}))
    assert result == {"echo": ["é"]}
    assert seen == ["/v1/chat/completions", "Bearer k", "00-1", False]


@pytest.mark.parametrize(
    ("status", "body", "kind", "retryable"),
    [
        (404, b'{"error": {"message": "no model", "type": "invalid_request_error"}}', "invalid_request_error", False),
        (429, b'{"error": {"message": "slow down", "type": "rate_limit"}}', "rate_limit", True),
        (503, b"<html>down</html>", "http_error", True),
        (400, b'{"error": "plain"}', "http_error", False),
        (200, b"nonsense", "malformed", True),
        (200, b"[1]", "malformed", True),
    ],
)
def test_error_answers(status: int, body: bytes, kind: str, retryable: bool) -> None:
    with pytest.raises(UpstreamError) as caught:
        _run(lambda handler, _: _say(handler, status, body), lambda client: client.chat({}))
    assert (caught.value.status, caught.value.type, caught.value.retryable) == (status, kind, retryable)


def test_no_server_is_an_upstream_error() -> None:
    async def go() -> None:
        async with ModelClient("http://127.0.0.1:9/v1") as client:
            await client.chat({})

    with pytest.raises(UpstreamError, match="127") as caught:
        asyncio.run(go())
    assert caught.value.type == "connection"
    assert caught.value.retryable


def _collect(events: bytes) -> list[dict[str, object]]:
    chunks: list[dict[str, object]] = []

    async def use(client: ModelClient) -> None:
        chunks.extend([chunk async for chunk in client.stream({})])

    _run(lambda handler, _: _say(handler, 200, events, "text/event-stream"), use)
    return chunks


def test_stream_yields_chunks_until_done() -> None:
    assert _collect(b': ping\n\ndata: {"a": "x\xe2\x80\xa8y"}\r\n\r\ndata: {"b": 2}\n\ndata: [DONE]\n\n') == [
        {"a": "x\u2028y"},
        {"b": 2},
    ]


def test_a_stream_without_its_end_is_truncated() -> None:
    with pytest.raises(UpstreamError) as caught:
        _collect(b'data: {"a": 1}\n\n')
    assert caught.value.type == "truncated"
    assert caught.value.retryable


def test_an_error_inside_a_stream() -> None:
    with pytest.raises(UpstreamError, match="too long") as caught:
        _collect(b'data: {"error": {"code": 400, "type": "context", "message": "too long"}}\n\n')
    assert (caught.value.status, caught.value.type) == (400, "context")


def test_a_connection_that_breaks_off_mid_stream() -> None:
    def answer(handler: BaseHTTPRequestHandler, _: object) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'data: {"a": 1}\n\n')

    async def use(client: ModelClient) -> None:
        async for _ in client.stream({}):
            pass

    with pytest.raises(UpstreamError) as caught:
        _run(answer, use)
    assert caught.value.type == "connection"


def _embeddings(handler: BaseHTTPRequestHandler, body: dict[str, object]) -> None:
    texts = body["input"]
    assert isinstance(texts, list)
    rows = [{"index": i, "embedding": [3.0 * len(text), 4.0 * len(text)]} for i, text in enumerate(texts)]
    rows[0]["embedding"] = base64.b64encode(np.array(rows[0]["embedding"], "<f4").tobytes()).decode()
    _say(handler, 200, json.dumps({"data": rows[::-1]}).encode())


def test_embeddings_come_in_order_and_of_length_one() -> None:
    vectors = _run(_embeddings, lambda client: client.embed(["a"] * 300, "m"))
    assert isinstance(vectors, np.ndarray)
    assert vectors.shape == (300, 2)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.tile(np.float32([0.6, 0.8]), (300, 1)), rtol=1e-6)


@pytest.mark.parametrize("body", [b'{"data": []}', b'{"data": [{"index": 0, "embedding": "!"}]}', b"{}"])
def test_embeddings_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        _run(lambda handler, _: _say(handler, 200, body), lambda client: client.embed(["a"], "m"))
    assert caught.value.type == "malformed"


@given(
    st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_events_do_not_depend_on_how_the_bytes_arrive(texts: list[str], end: str, data: st.DataObject) -> None:
    stream = "".join(f"data: {text}{end}{end}" for text in texts).encode() + b"\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    decoder = EventDecoder()
    events: list[str] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += decoder.feed(stream[start:stop])
    assert events == texts
