"""Upstreams that fail in every way, and clients that leave."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import openai
import pytest

from tests.gateway.conftest import KEY, ONCE, RunningGateway, target
from tests.gateway.wire import Wire, ask
from tidemill.gateway import Limits
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import Route
from tidemill.kernel.routing_policy import Timeouts

FAST = replace(ONCE, timeouts=Timeouts(connect_s=20.0, first_token_s=1.5, between_chunks_s=1.5, total_s=60.0))


@pytest.fixture
def quick(start: Callable[..., RunningGateway], upstream: ScriptedUpstream) -> RunningGateway:
    return start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),), policy=FAST))


@pytest.mark.parametrize("stream", [False, True])
def test_an_endpoint_may_wait_longer_than_a_worker_does_for_calls_of_its_own(
    start: Callable[..., RunningGateway], stream: bool
) -> None:
    with ScriptedUpstream(delay_s=0.3, chunk_pause_s=0.15) as upstream:
        route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),), policy=ONCE)
        short = Limits(connect_timeout_s=0.001, first_byte_timeout_s=0.05, chunk_timeout_s=0.05)
        gateway = start(route, limits=short)
        with Wire(gateway.port) as wire:
            wire.send(ask(stream=stream))
            status, body = wire.answer()
        assert (status, b"script" in body, b'"error"' in body) == (200, True, False)
        (junction,) = gateway.gateway.snapshots.table.junctions.values()
        assert junction.waits == (5.0, 300.0, 120.0)


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        (Fault.RESET, 502, "upstream_lost"),
        (Fault.STALL, 504, "upstream_timeout"),
        (Fault.HUGE_HEADER, 502, "upstream_malformed"),
        (Fault.RATE_LIMIT, 429, "rate_limit_exceeded"),
        (Fault.SERVER_ERROR, 500, "overloaded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_before_the_answer_have_a_status(
    quick: RunningGateway, upstream: ScriptedUpstream, fault: Fault, status: int, error: str, stream: bool
) -> None:
    upstream.faults.append(fault)
    with Wire(quick.port) as wire:
        wire.send(ask(stream=stream))
        found, body = wire.answer()
        assert found == status
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        wire.send(ask())  # the connection goes on
        assert wire.answer()[0] == 200
    failed, fine = quick.records().spans
    assert (failed.status, failed.error_type, failed.http_status) == ("error", error, status)
    assert fine.status == "ok"


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.STALL_STREAM, Fault.BAD_FRAMING])
def test_streams_that_break_end_with_an_error_event(
    quick: RunningGateway, upstream: ScriptedUpstream, fault: Fault
) -> None:
    upstream.faults.append(fault)
    with (
        openai.OpenAI(base_url=quick.url, api_key=KEY, max_retries=0) as client,
        pytest.raises(openai.APIError, match="broke off"),
    ):
        list(client.chat.completions.create(model="desk", messages=[], stream=True))
    records = quick.records()
    span = records.span()
    assert span.status == "truncated"
    assert span.error_type in {"upstream_lost", "upstream_timeout", "upstream_malformed"}
    assert records.contents[span.span_id].output == "Hello from"


def test_a_slow_head_is_no_failure(quick: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.faults.append(Fault.SLOW_HEADER)
    with Wire(quick.port) as wire:
        wire.send(ask())
        assert wire.answer() == (200, b"{}")


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        (Fault.ERROR_EVENT, "overloaded", b'"code": "overloaded"'),
        (Fault.MALFORMED_CHUNK, "upstream_malformed", b"broke off"),
        (Fault.NO_DONE, "stream_without_end", b"broke off"),
    ],
)
def test_bad_events_end_the_stream(
    quick: RunningGateway, upstream: ScriptedUpstream, fault: Fault, error: str, told: bytes
) -> None:
    upstream.faults.append(fault)
    with Wire(quick.port) as wire:
        wire.send(ask(stream=True))
        status, body = wire.answer()
    assert status == 200
    assert b"Hello" in body
    assert told in body.rstrip().rpartition(b"\n\n")[2]
    assert b"[DONE]" not in body
    span = quick.records().span()
    assert (span.status, span.error_type) == ("truncated", error)


def test_an_answer_shorter_than_announced_is_cut(quick: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.faults.append(Fault.WRONG_LENGTH)
    with Wire(quick.port) as wire:
        wire.send(ask())
        status, body = wire.answer()  # nothing had been sent, so the failure has a status
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")


def test_a_stale_connection_is_tried_anew(quick: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.always = Fault.DROP_IDLE
    with Wire(quick.port) as wire:
        for _ in range(20):
            wire.send(ask())
            assert wire.answer()[0] == 200
    assert len({seen.connection for seen in upstream.seen}) == 20


def test_connections_are_kept_and_age_out(start: Callable[..., RunningGateway], upstream: ScriptedUpstream) -> None:
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    gateway = start(route, limits=Limits(upstream_idle_s=0.2))
    with Wire(gateway.port) as wire:
        for _ in range(5):
            wire.send(ask())
            wire.answer()
        assert {seen.connection for seen in upstream.seen} == {1}
        gateway.wait(lambda: not gateway.gateway.pool.connections)
        wire.send(ask())
        assert wire.answer()[0] == 200


def test_a_client_that_leaves_stops_the_upstream(quick: RunningGateway, upstream: ScriptedUpstream) -> None:
    upstream.faults.append(Fault.STALL_STREAM)
    with Wire(quick.port) as wire:
        wire.send(ask(stream=True))
        while b"Hello" not in wire.buffer:
            assert wire.fill()
    quick.wait(lambda: upstream.seen[0].cancelled)
    span = quick.records().span()
    assert (span.status, span.error_type) == ("cancelled", "client_disconnected")


def test_slow_readers_hold_the_upstream_back(start: Callable[..., RunningGateway]) -> None:
    with ScriptedUpstream(words=tuple("x" * 60_000 for _ in range(400))) as upstream:
        route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
        gateway = start(route, limits=Limits(capture_bytes=100_000))
        with Wire(gateway.port) as wire:
            wire.send(ask(stream=True))
            gateway.wait(lambda: any(front.slow for front in gateway.worker.fronts))
            time.sleep(0.2)
            (front,) = gateway.worker.fronts
            assert front.transport.get_write_buffer_size() < 1_000_000
            status, body = wire.answer()
        assert status == 200
        assert body.count(b"x" * 60_000) == 400
        assert body.endswith(b"data: [DONE]\n\n")
    records = gateway.records()
    span = records.span()
    assert span.status == "ok"
    assert span.attributes["tidemill.capture_cut"] is True
    assert (span.input_tokens, span.finish_reasons) == (11, ("stop",))
    assert len(records.contents[span.span_id].output) < 200_000
