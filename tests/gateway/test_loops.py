"""Without uvloop: asyncio's own loop keeps the promises. ``TIDEMILL_TEST_LOOP=asyncio`` runs the other tests on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.gateway.conftest import KEY, ONCE, RunningGateway, snapshot_of, target
from tests.gateway.wire import Wire, ask
from tidemill.gateway import Limits
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import Route

TEXT = "Hello from the script."


@pytest.fixture
def plain(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[RunningGateway]:
    """A worker under asyncio's loop."""
    gateway = RunningGateway(tmp_path, Limits(), loop=asyncio.new_event_loop())
    try:
        gateway.route(snapshot_of(Route("desk", "default", (target(upstream.url),), policy=ONCE)))
        yield gateway
    finally:
        gateway.close()


def test_official_clients_are_served(plain: RunningGateway) -> None:
    with openai.OpenAI(base_url=plain.url, api_key=KEY, max_retries=0, timeout=60) as client:
        assert client.chat.completions.create(model="desk", messages=[]).choices[0].message.content == TEXT
        events = client.chat.completions.create(model="desk", messages=[], stream=True)
        assert "".join(event.choices[0].delta.content or "" for event in events) == TEXT
        assert client.embeddings.create(model="desk", input="a").data[0].embedding
    assert [span.status for span in plain.records().requests()] == ["ok"] * 3


@pytest.mark.parametrize(
    ("fault", "stream", "status"),
    [
        (Fault.RESET, False, 502),
        (Fault.WRONG_LENGTH, False, 502),
        (Fault.RATE_LIMIT, False, 429),
        (Fault.ERROR_OPENING, True, 503),
        (Fault.CUT, True, 200),
    ],
)
def test_faults_are_told(
    plain: RunningGateway, upstream: ScriptedUpstream, fault: Fault, stream: bool, status: int
) -> None:
    upstream.faults.append(fault)
    with Wire(plain.port) as wire:
        wire.send(ask(stream=stream))
        found, body = wire.answer()
        assert found == status
        assert b'"error"' in body
        wire.send(ask())
        assert wire.answer()[0] == 200


def test_a_client_that_leaves_stops_the_upstream(plain: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.faults.append(Fault.STALL_STREAM)
    with Wire(plain.port) as wire:
        wire.send(ask(stream=True))
        while b"Hello" not in wire.buffer:
            assert wire.fill()
    plain.wait(lambda: upstream.seen[0].cancelled)
    assert plain.records().span().status == "cancelled"


def test_slow_readers_are_waited_for(plain: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.words = tuple("x" * 60_000 for _ in range(100))
    with Wire(plain.port) as wire:
        wire.send(ask(stream=True))
        plain.wait(lambda: any(front.slow for front in plain.worker.fronts))
        status, body = wire.answer()
    assert (status, body.count(b"x" * 60_000)) == (200, 100)
    assert body.endswith(b"data: [DONE]\n\n")


def test_pipelined_requests_are_answered_in_order(plain: RunningGateway) -> None:
    with Wire(plain.port) as wire:
        wire.send(b"".join(ask(stream=number % 2 == 1) for number in range(20)))
        for number in range(20):
            status, body = wire.answer()
            assert (status, b"[DONE]" in body) == (200, number % 2 == 1)


def test_a_prompt_of_ten_megabytes_passes(plain: RunningGateway, upstream: ScriptedUpstream) -> None:
    check_large(plain, upstream)


def test_a_prompt_of_ten_megabytes_passes_under_uvloop_too(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    check_large(gateway, upstream)


def check_large(gateway: RunningGateway, upstream: ScriptedUpstream) -> None:
    """10 MB arrive as they were sent; above the bound there is an error in OpenAI's shape, that the client can read."""
    text = "A tide mill. " * 800_000
    messages = [{"role": "user", "content": text}]
    assert len(text) > 10_000_000
    with Wire(gateway.port) as wire:
        wire.socket.settimeout(60)
        wire.send(ask(messages=messages))
        status, body = wire.answer()
        assert status == 200, body[:500]
        assert upstream.seen[0].body["messages"] == messages
        wire.send(ask(messages=messages, stream=True))
        status, body = wire.answer()
        assert (status, body.endswith(b"data: [DONE]\n\n")) == (200, True)
    with Wire(gateway.port) as wire:
        wire.socket.settimeout(60)
        wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % (33 << 20))
        status, body = wire.answer()
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (413, "body_too_large")
    assert set(error) == {"message", "type", "param", "code"}
    assert len(upstream.seen) == 2
