"""What a hostile or broken client may send, and what it gets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.gateway.conftest import KEY, RunningGateway, target
from tests.gateway.wire import Wire, ask
from tidemill.gateway import Limits
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import Route

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def one_answer(gateway: RunningGateway, data: bytes) -> tuple[int, str]:
    with Wire(gateway.port) as wire:
        wire.send(data)
        status, body = wire.answer()
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert wire.closed()
    return status, error["code"]


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"Content-Length: 3, 3\r\n\r\nabc", 400),
        (b"Content-Length: +3\r\n\r\nabc", 400),
        (b"Content-Length : 3\r\n\r\nabc", 400),
        (b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n", 400),
        (b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
        (b"X: a\nContent-Length: 0\r\n\r\n", 400),
        (b"X: a\0b\r\nContent-Length: 0\r\n\r\n", 400),
        (b"Host: evil\r\nContent-Length: 0\r\n\r\n", 400),
        (b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n", 417),
    ],
)
def test_smuggling_is_refused(gateway: RunningGateway, upstream: ScriptedUpstream, rest: bytes, status: int) -> None:
    assert one_answer(gateway, HEAD + rest)[0] == status
    assert upstream.seen == []


def test_limits(start: Callable[..., RunningGateway], upstream: ScriptedUpstream) -> None:
    limits = Limits(url_bytes=100, header_bytes=2000, header_count=10, body_bytes=1000)
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)), limits=limits)
    assert one_answer(gateway, b"GET /" + b"a" * 200 + b" HTTP/1.1\r\nHost: a\r\n\r\n") == (414, "uri_too_long")
    assert one_answer(gateway, HEAD + b"X: " + b"a" * 3000 + b"\r\n\r\n")[0] == 431
    assert one_answer(gateway, HEAD + b"X: " + b"a" * 3000)[0] == 431  # no end in sight
    assert one_answer(gateway, HEAD + b"X: y\r\n" * 20 + b"\r\n") == (431, "headers_too_large")
    assert one_answer(gateway, HEAD + b"Content-Length: 1001\r\n\r\n") == (413, "body_too_large")
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"100\r\n" + b"a" * 256 + b"\r\n"
    assert one_answer(gateway, chunked + (b"100\r\n" + b"a" * 256 + b"\r\n") * 4)[0] == 413
    trailers = b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + b"T: aaaaaaaaaa\r\n" * 200
    assert one_answer(gateway, HEAD + trailers)[0] == 413
    assert upstream.seen == []


def test_slow_clients_are_dropped(start: Callable[..., RunningGateway], upstream: ScriptedUpstream) -> None:
    limits = Limits(header_timeout_s=0.3, body_timeout_s=0.3, idle_timeout_s=0.3)
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)), limits=limits)
    with Wire(gateway.port) as silent, Wire(gateway.port) as slow, Wire(gateway.port) as idle:
        slow.send(HEAD)
        idle.send(ask())
        assert idle.answer()[0] == 200
        for _ in range(4):
            time.sleep(0.1)
            slow.send(b"X: y\r\n")
        assert slow.answer()[0] == 408
        assert silent.closed()
        assert idle.closed()
    assert one_answer(gateway, HEAD + b"Content-Length: 10\r\n\r\nabc")[0] == 408


def test_pipelined_requests_are_answered_in_order(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.delay_s = 0.02
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Wire(gateway.port) as wire:
        wire.send(ask() + health + ask(stream=True) + health * 500)
        time.sleep(0.01)
        wire.send(ask() + health)
        assert b"Hello" in wire.answer()[1]
        assert b"epoch" in wire.answer()[1]
        assert b"[DONE]" in wire.answer()[1]
        for _ in range(500):
            assert b"epoch" in wire.answer()[1]
        assert b"Hello" in wire.answer()[1]
        assert b"epoch" in wire.answer()[1]


def test_a_bad_request_behind_a_good_one(gateway: RunningGateway) -> None:
    with Wire(gateway.port) as wire:
        wire.send(ask() + b"BAD\r\n\r\n")
        assert wire.answer()[0] == 200
        assert wire.answer()[0] == 400
        assert wire.closed()


def test_bodies_in_chunks_and_on_demand(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    head = HEAD + f"Authorization: Bearer {KEY}\r\n".encode()
    body = b'{"model":"desk","messages":[]}'
    with Wire(gateway.port) as wire:
        wire.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in body))
        wire.send(b"0\r\nTrailer: x\r\n\r\n")
        assert wire.answer()[0] == 200
        wire.send(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        while b"100 Continue\r\n\r\n" not in wire.buffer:
            assert wire.fill()
        wire.buffer = b""
        wire.send(body)
        assert wire.answer()[0] == 200
    assert [seen.body for seen in upstream.seen] == [{"model": "desk", "messages": []}] * 2


def test_old_clients_get_unframed_answers(gateway: RunningGateway) -> None:
    body = b'{"model":"desk","messages":[],"stream":true}'
    with Wire(gateway.port) as wire:
        wire.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Length: %d"
            b"\r\n\r\n%b" % (KEY.encode(), len(body), body)
        )
        assert wire.closed()
        assert b"transfer-encoding" not in wire.buffer
        assert wire.buffer.endswith(b"data: [DONE]\n\n")


def test_browsers_and_foreign_names_are_kept_out(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream
) -> None:
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    gateway = start(route, allowed_origins=frozenset(("https://ok.example",)))

    def status(headers: str) -> int:
        with Wire(gateway.port) as wire:
            wire.send(f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n{headers}\r\n".encode())
            return wire.answer()[0]

    assert status("Host: 127.0.0.1:1\r\n") == 200
    assert status("Host: LOCALHOST\r\n") == 200
    assert status("Host: [::1]:80\r\n") == 200
    assert status("Host: evil.example\r\n") == 403
    assert status("Host: localhost\r\nOrigin: https://evil.example\r\n") == 403
    assert status("Host: localhost\r\nOrigin: https://ok.example\r\n") == 200


def test_an_offer_of_another_protocol_is_passed_over(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    """As some clients make it on every first request; the request itself is answered, and so is the next."""
    body = b'{"model":"desk","messages":[]}'
    head = HEAD + f"Authorization: Bearer {KEY}\r\nConnection: Upgrade, HTTP2-Settings\r\n".encode()
    with Wire(gateway.port) as wire:
        wire.send(
            head + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert wire.answer()[0] == 200
        wire.send(ask())
        assert wire.answer()[0] == 200
    assert upstream.seen[0].body == {"model": "desk", "messages": []}
