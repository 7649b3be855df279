"""The straight way of plain calls ends like the general one, whatever the upstream does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.gateway.conftest import ONCE, RELEASE_2, RunningGateway, snapshot_of, target
from tests.gateway.wire import Wire, ask, post
from tidemill.gateway.straight import Straight
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import ApiKey, Prices, Route, key_digest
from tidemill.telemetry.records import Span

Start = Callable[..., RunningGateway]
PRICES = Prices(input_usd_per_mtok=2.0, output_usd_per_mtok=6.0)
FAULTS = (
    Fault.RATE_LIMIT, Fault.SERVER_ERROR, Fault.BAD_REQUEST, Fault.NOT_JSON, Fault.ERROR_BODY, Fault.WRONG_LENGTH,
    Fault.SLOW_HEADER, Fault.HUGE_HEADER, Fault.DROP_IDLE, None,
)  # fmt: skip


def route(upstream: ScriptedUpstream, endpoint: str = "desk", **more: Any) -> Route:
    return Route(endpoint, "default", (target(upstream.url, prices=PRICES),), policy=ONCE, **more)


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> list[Straight]:
    """The calls that went the straight way."""
    gone: list[Straight] = []
    pursue = Straight._pursue

    def watched(call: Straight) -> None:
        pursue(call)
        if call._connection is not None:
            gone.append(call)

    monkeypatch.setattr(Straight, "_pursue", watched)
    return gone


def told(span: Span) -> tuple[Any, ...]:
    return (
        span.status, span.error_type, span.http_status, span.input_tokens, span.output_tokens, span.cost_usd,
        span.attributes, span.finish_reasons, span.response_model, span.release, span.provider, span.references,
    )  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("usage", [True, False])
def test_an_answer_is_the_same_on_both_ways(
    start: Start, upstream: ScriptedUpstream, straight: list[Straight], fault: Fault | None, usage: bool
) -> None:
    upstream.usage = usage
    general, warm = start(route(upstream)), start(route(upstream))
    with Wire(general.port) as wire:
        upstream.faults.extend([fault] if fault is not None else [])
        wire.send(ask())
        expected = wire.answer()
    assert not straight
    with Wire(warm.port) as wire:
        for _ in range(2):
            wire.send(ask())
            assert wire.answer()[0] == 200
        before = len(straight)
        upstream.faults.extend([fault] if fault is not None else [])
        wire.send(ask())
        assert wire.answer() == expected
        assert len(straight) == before + 1
        wire.send(ask())
        assert wire.answer()[0] == 200
    (theirs,) = general.records().requests()
    ours = sorted(warm.records().requests(), key=lambda span: span.started_at_ns)
    assert told(ours[2]) == told(theirs)
    assert [span.status for span in ours].count("ok") == (4 if theirs.status == "ok" else 3)


def test_a_connection_that_had_closed_is_replaced(
    start: Start, upstream: ScriptedUpstream, straight: list[Straight]
) -> None:
    gateway = start(route(upstream))
    with Wire(gateway.port) as wire:
        wire.send(ask())
        assert wire.answer()[0] == 200
        upstream.faults.append(Fault.RESET)
        wire.send(ask())
        assert wire.answer()[0] == 200
    assert straight
    assert len(gateway.records().requests()) == 2


def test_a_client_that_leaves_stops_the_upstream(
    start: Start, upstream: ScriptedUpstream, straight: list[Straight]
) -> None:
    gateway = start(route(upstream))
    with Wire(gateway.port) as wire:
        wire.send(ask())
        assert wire.answer()[0] == 200
        upstream.faults.append(Fault.STALL)
        wire.send(ask())
        gateway.wait(lambda: len(upstream.seen) == 2)
    gateway.wait(lambda: upstream.seen[1].cancelled)
    assert len(straight) == 1
    _, left = sorted(gateway.records().requests(), key=lambda span: span.started_at_ns)
    assert (left.status, left.error_type) == ("cancelled", "client_disconnected")
    assert left.input_tokens  # the upstream may charge for it


def test_the_same_head_may_ask_for_another_model(start: Start, upstream: ScriptedUpstream) -> None:
    with ScriptedUpstream(words=("Other",)) as other:
        routes = (route(upstream), Route("disk", "default", (target(other.url, RELEASE_2),), policy=ONCE))
        gateway = start(*routes)
        with Wire(gateway.port) as wire:
            for model, words in (("desk", b"Hello"), ("desk", b"Hello"), ("disk", b"Other"), ("desk", b"Hello")):
                wire.send(post({"model": model, "messages": []}))
                status, body = wire.answer()
                assert status == 200
                assert words in body
            wire.send(post({"model": "dusk", "messages": []}))
            assert wire.answer()[0] == 404
            wire.send(post({"model": "desk", "messages": []}).replace(b"{", b"[", 1))
            assert wire.answer()[0] == 400
    assert [seen.body["model"] for seen in upstream.seen] == ["desk"] * 3


def test_a_key_ends_at_its_end_on_connections_that_know_it(
    start: Start, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start()
    ends_at = time.time() + 300
    key = ApiKey(key_digest("tm_soon"), "soon", "default", expires_at=ends_at)
    gateway.route(replace(snapshot_of(route(upstream)), keys=(key,)))
    body = {"model": "desk", "messages": []}
    with Wire(gateway.port) as wire:
        for _ in range(2):
            wire.send(post(body, key="tm_soon"))
            assert wire.answer()[0] == 200
        monkeypatch.setattr("tidemill.gateway.app.time_ns", lambda: int(ends_at * 1e9))
        wire.send(post(body, key="tm_soon"))
        assert wire.answer()[0] == 401
