"""Snapshots, sticky sessions, failover and shadows."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gateway.conftest import (
    ONCE,
    RELEASE_1,
    RELEASE_2,
    RELEASE_3,
    RunningGateway,
    canary_route,
    snapshot_of,
    target,
    write_snapshot,
)
from tests.gateway.wire import Wire, ask
from tidemill.gateway.sessions import SessionTable
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import Arm, InvalidInput, Route

DAY_NS = 86_400 * 10**9


def one(gateway: RunningGateway, data: bytes) -> tuple[int, bytes]:
    with Wire(gateway.port) as wire:
        wire.send(data)
        return wire.answer()


def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_snapshots_older_broken_or_foreign_are_refused(
    gateway: RunningGateway, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="tidemill.gateway.snapshots")
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    gateway.route(snapshot_of(route, epoch=5))
    good = snapshot_of(route, epoch=6)
    bad = [
        snapshot_of(epoch=4).encode(),
        good.encode().replace(b'"epoch": 6', b'"epoch": 7'),
        dataclasses.replace(good, project="other").encode(),
        snapshot_of(Route(endpoint="desk", tenant="default", releases=()), epoch=6).encode(),
        snapshot_of(Route(endpoint="desk", tenant="default", releases=(target("ftp://x"),)), epoch=6).encode(),
        b"{",
    ]
    for number, data in enumerate(bad, 1):
        gateway.snapshot_path.with_suffix(".tmp").write_bytes(data)
        gateway.snapshot_path.with_suffix(".tmp").replace(gateway.snapshot_path)
        gateway.wait(lambda number=number: gateway.gateway.snapshots.refusals == number)  # type: ignore[misc]
        assert gateway.epoch == 5
    gateway.snapshot_path.unlink()
    time.sleep(0.15)
    assert one(gateway, ask())[0] == 200
    gateway.route(good)


def test_without_a_living_snapshot_it_says_why(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream
) -> None:
    gateway = start()
    status, body = one(gateway, ask())
    assert (status, json.loads(body)["error"]["code"]) == (503, "no_snapshot")
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    gateway.route(snapshot_of(route, issued_at=time.time() - 100, lifetime_s=50))
    status, body = one(gateway, ask())
    assert (status, json.loads(body)["error"]["code"]) == (503, "snapshot_expired")
    assert "control plane" in json.loads(body)["error"]["message"]
    gateway.route(snapshot_of(route, epoch=2))
    assert one(gateway, ask())[0] == 200


def test_a_session_keeps_its_release_when_weights_change(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream
) -> None:
    with ScriptedUpstream() as second:
        gateway = start(canary_route(upstream, second.url, control_weight=1.0, canary_weight=0.0))
        one(gateway, ask(headers="x-tidemill-session: a\r\n"))
        gateway.route(snapshot_of(canary_route(upstream, second.url, control_weight=0.0, canary_weight=1.0), epoch=2))
        one(gateway, ask(headers="x-tidemill-session: a\r\n"))
        one(gateway, ask(user="b"))
        one(gateway, ask())
    old, kept, new, by_key = gateway.records().spans
    assert old.session_id == kept.session_id
    assert [span.release for span in (old, kept, new, by_key)] == [RELEASE_1, RELEASE_1, RELEASE_2, RELEASE_2]
    assert [span.arm for span in (old, kept, new, by_key)] == ["control", "control", "canary", "canary"]
    assert len({span.session_id for span in (old, new, by_key)}) == 3
    assert {span.rollout for span in (old, kept, new, by_key)} == {"rol_1"}


def test_sessions_end_by_idleness_or_when_their_release_leaves(tmp_path: Path) -> None:
    releases = (target("http://a", weight=0.5), target("http://a", RELEASE_2, weight=0.5))
    route = Route(endpoint="e", tenant="t", releases=releases, salt="x", session_idle_s=60.0)
    live = {RELEASE_1, RELEASE_2}
    one_worker, other_worker = SessionTable(tmp_path / "s.tbl"), SessionTable(tmp_path / "s.tbl")
    first = one_worker.resolve(route, "ann", DAY_NS, live)
    assert other_worker.resolve(route, "ann", DAY_NS + 59 * 10**9, live) == first
    assert one_worker.resolve(route, "ann", DAY_NS + 118 * 10**9, live) == first  # kept open by the other
    later = one_worker.resolve(route, "ann", DAY_NS + 179 * 10**9, live)
    assert later.session_id != first.session_id
    assert later.opening == 1
    assert other_worker.resolve(route, "ann", DAY_NS + 180 * 10**9, live) == later
    gone = one_worker.resolve(route, "ann", DAY_NS + 181 * 10**9, live - {later.release})
    assert gone.opening == 2
    resalted = dataclasses.replace(route, salt="y")
    kept = one_worker.resolve(resalted, "bob", DAY_NS, live)
    assert kept.in_rollout
    assert not one_worker.resolve(route, "bob", DAY_NS, live).in_rollout
    assert (
        one_worker.resolve(dataclasses.replace(route, tenant="u"), "ann", DAY_NS, live).session_id != first.session_id
    )
    one_worker.close()
    other_worker.close()


def test_session_memory_is_bounded_and_foreign_files_refused(tmp_path: Path) -> None:
    table = SessionTable(None, slots=64)
    route = Route(endpoint="e", tenant="t", releases=(target("http://a"),))
    for number in range(1000):
        table.resolve(route, str(number), DAY_NS + number * 10**9, {RELEASE_1})
    last = table.resolve(route, "999", DAY_NS + 999 * 10**9, {RELEASE_1})
    assert last.opening == 0
    table.close()
    (tmp_path / "s.tbl").write_bytes(b"something else")
    with pytest.raises(InvalidInput, match="not a session table"):
        SessionTable(tmp_path / "s.tbl")


def test_reweighting_is_what_the_kernel_says(tmp_path: Path) -> None:
    """About half of the sessions of a half-weighted canary go to it; alike in processes that share nothing."""
    releases = (target("http://a", weight=0.5), target("http://a", RELEASE_2, weight=0.5))
    route = Route(endpoint="e", tenant="t", releases=releases, salt="x")
    here, there = SessionTable(None), SessionTable(None)
    chosen = [here.resolve(route, f"u:{n}", DAY_NS, {RELEASE_1, RELEASE_2}).release for n in range(400)]
    assert chosen == [there.resolve(route, f"u:{n}", 2 * DAY_NS, {RELEASE_1, RELEASE_2}).release for n in range(400)]
    assert 150 < chosen.count(RELEASE_2) < 250
    here.close()
    there.close()


@pytest.mark.parametrize("how", ["refused", "reset"])
def test_a_dead_canary_fails_over_once(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream, how: str
) -> None:
    with ScriptedUpstream(always=Fault.RESET) as canary:
        gateway = start(canary_route(upstream, dead_url() if how == "refused" else canary.url))
        assert one(gateway, ask())[0] == 200
        assert one(gateway, ask(stream=True))[1].endswith(b"data: [DONE]\n\n")
    records = gateway.records()
    for span in records.requests():
        assert (span.status, span.release, span.arm) == ("ok", RELEASE_1, "control")
        assert span.assigned_release == RELEASE_2
        assert span.attributes["tidemill.failover_from"] == RELEASE_2
    assert [intent.release for intent in records.intents] == [RELEASE_2, RELEASE_2]
    assert len({span.session_id for span in records.requests()}) == 1
    children = {span.parent_span_id: span for span in records.attempts()}
    for span in records.requests():
        assert children[span.span_id].release == RELEASE_2
        assert children[span.span_id].status == "error"


def test_a_dead_control_is_an_error(start: Callable[..., RunningGateway]) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(dead_url()),)))
    status, body = one(gateway, ask())
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")
    span = gateway.records().span()
    assert (span.status, span.error_type, span.http_status) == ("error", "upstream_connect", 502)


def test_model_names_are_rewritten_and_nothing_else(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream
) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url, model="smollm"),)))
    assert one(gateway, ask(temperature=0.1, unknown={"a": [1, 2.50]}))[0] == 200
    assert upstream.seen[0].body == {
        "model": "smollm", "messages": [], "stream": False, "temperature": 0.1, "unknown": {"a": [1, 2.50]}
    }  # fmt: skip


def test_upstream_keys_are_resolved_and_sent(tmp_path: Path, start: Callable[..., RunningGateway]) -> None:
    (tmp_path / "secret").write_text("sk-upstream\n")
    with ScriptedUpstream() as upstream:
        reference = f"file:{tmp_path / 'secret'}"
        gateway = start(
            Route(endpoint="desk", tenant="default", releases=(target(upstream.url, api_key_ref=reference),))
        )
        assert one(gateway, ask())[0] == 200
        assert upstream.seen[0].headers["authorization"] == "Bearer sk-upstream"


def test_answers_are_copied_to_the_shadow(start: Callable[..., RunningGateway], upstream: ScriptedUpstream) -> None:
    with ScriptedUpstream(words=("other",), delay_s=0.05) as second:
        shadow = dataclasses.replace(target(second.url, RELEASE_3, model="m3"), arm=Arm.SHADOW)
        releases = (target(upstream.url),)
        gateway = start(Route(endpoint="desk", tenant="default", releases=releases, shadow=shadow, policy=ONCE))
        assert b"from" in one(gateway, ask(stream=True, stream_options={"include_usage": True}))[1]
        upstream.faults.append(Fault.SERVER_ERROR)
        assert one(gateway, ask())[0] == 500  # not answered, so not copied
        gateway.wait(lambda: gateway.gateway.shadows.idle)
        assert [seen.body for seen in second.seen] == [{"model": "m3", "messages": [], "stream": False}]
    records = gateway.records()
    original, _, copy = sorted(records.spans, key=lambda span: span.started_at_ns)[0], *records.spans[1:]
    assert copy.arm == "shadow"
    assert copy.trace_id == original.trace_id
    assert copy.attributes["shadow_of"] == original.span_id == copy.parent_span_id
    assert (copy.release, copy.status, copy.stream) == (RELEASE_3, "ok", False)
    assert records.contents[copy.span_id].output == "other"


def test_shadow_copies_are_dropped_rather_than_piled_up(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream
) -> None:
    from tidemill.gateway import Limits

    with ScriptedUpstream(always=Fault.STALL) as second:
        shadow = dataclasses.replace(target(second.url, RELEASE_3), arm=Arm.SHADOW)
        gateway = start(
            Route(endpoint="desk", tenant="default", releases=(target(upstream.url),), shadow=shadow),
            limits=Limits(shadow_queue=2, shadow_concurrency=1),
        )
        with Wire(gateway.port) as wire:
            for _ in range(6):
                wire.send(ask())
                assert wire.answer()[0] == 200
        assert gateway.gateway.metrics.count("shadow_dropped") >= 2
        gateway.close()


def test_a_tenant_writes_to_segments_of_its_own(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream
) -> None:
    from tests.gateway.conftest import OTHER_KEY
    from tests.gateway.wire import post

    gateway = start(
        Route(endpoint="desk", tenant="acme", releases=(target(upstream.url),)),
        Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)),
    )
    one(gateway, ask())
    one(gateway, post({"model": "desk", "messages": []}, key=OTHER_KEY))
    assert {span.tenant for span in gateway.records().spans} == {"default", "acme"}
    assert len(list(gateway.segments.iterdir())) == 2


def test_snapshot_file_helper_replaces_whole(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "r.json", snapshot_of())
    assert not (tmp_path / "r.tmp").exists()


def test_what_a_new_snapshot_brings_is_known_at_once(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidemill.gateway.worker._POLL_S", 3600.0)  # only the request itself can look
    gateway = start()
    write_snapshot(gateway.snapshot_path, dataclasses.replace(snapshot_of(epoch=1), keys=()))
    assert one(gateway, ask())[0] == 401
    write_snapshot(gateway.snapshot_path, snapshot_of(epoch=2))
    assert one(gateway, ask())[0] == 404
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    write_snapshot(gateway.snapshot_path, snapshot_of(route, epoch=3))
    assert one(gateway, ask())[0] == 200
