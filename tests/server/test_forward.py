"""Passing spans on: to a real collector in a process of its own, killed, busy, picky and away."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import uvicorn

from tests.server.desk import Desk, open_desk, write_desk
from tidemill.kernel import InvalidInput, Scope, UserError
from tidemill.kernel.settings_telemetry import ForwardSettings
from tidemill.server.api import create_app
from tidemill.server.forward import Forwarder, ForwardFailed
from tidemill.server.supervisor import free_port, listening_socket
from tidemill.telemetry import Batch, Content, Span, SpanStore, open_span_store

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


def span(number: int, **changes: object) -> Span:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    made = Span(
        trace_id=digest[:32],
        span_id=digest[32:48],
        project="p",
        tenant="t",
        name="chat",
        operation="chat",
        started_at_ns=1_700_000_000_000_000_000 + number,
        ended_at_ns=1_700_000_001_000_000_000 + number,
        endpoint="e",
        provider="openai",
        request_model="m",
        input_tokens=3,
        user_key="abc",
    )
    return msgspec.structs.replace(made, **changes)


@contextmanager
def collector(port: int, file: Path, mode: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.server.receiver", str(port), str(file), mode]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def received(file: Path) -> list[dict[str, object]]:
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""  # the last line may be under way
    return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SpanStore]:
    opened = open_span_store(tmp_path / "spans.duckdb", Scope("p", "t"))
    yield opened
    opened.close()


def forwarder(store: SpanStore, folder: Path, port: int, **settings: object) -> Forwarder:
    section = ForwardSettings(url=f"http://127.0.0.1:{port}", **settings)  # type: ignore[arg-type]
    return Forwarder("far", section, store, folder / "forward" / "far.json", identity="store")


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_is_stored_arrives_with_its_names_and_without_what_was_said(store: SpanStore, tmp_path: Path) -> None:
    port, file, secret = free_port(), tmp_path / "got.jsonl", tmp_path / "secret"
    secret.write_text("Bearer far away\n")
    one = span(1, status="error", error_type="upstream_timeout", cost_usd=0.25, attributes={"mine": True, "n": 2**63})
    store.commit(Batch([one], {(one.trace_id, one.span_id): Content("a question", "an answer")}), {})
    with collector(port, file):
        target = forwarder(store, tmp_path, port, headers={"Authorization": f"file:{secret}"})
        assert target.step() == 1
        assert target.step() == 0
        target.close()
    (row,) = received(file)
    assert (row["trace_id"], row["span_id"], row["status"]) == (one.trace_id, one.span_id, 2)
    assert (row["path"], row["authorization"]) == ("/v1/traces", "Bearer far away")
    assert row["resource"] == {"service.name": "tidemill", "tidemill.project": "p", "tidemill.tenant": "t"}
    attributes = row["attributes"]
    assert isinstance(attributes, dict)
    assert attributes["gen_ai.usage.input_tokens"] == 3
    assert attributes["tidemill.cost_usd"] == 0.25
    assert (attributes["user.hash"], attributes["mine"]) == ("abc", True)
    assert "a question" not in json.dumps(row)


def test_content_goes_along_if_asked_for(store: SpanStore, tmp_path: Path) -> None:
    port, file, one = free_port(), tmp_path / "got.jsonl", span(1, service="shop")
    store.commit(Batch([one], {(one.trace_id, one.span_id): Content("a question", "an answer")}), {})
    with collector(port, file):
        target = forwarder(store, tmp_path, port, content=True)
        assert target.step() == 1
        target.close()
    (row,) = received(file)
    assert row["attributes"]["input.value"] == "a question"  # type: ignore[index]
    assert row["resource"]["service.name"] == "shop"  # type: ignore[index]


def test_tidemill_itself_takes_what_is_passed_on_and_has_the_same_spans(store: SpanStore, tmp_path: Path) -> None:
    detail = {
        "attributes": {"retriever.k": 4, "nested": {"a": [1, "x"]}},
        "events": [{"name": "cache.miss", "at_ns": 1_700_000_000_000_000_005, "attributes": {"key": "k"}}],
        "links": [{"trace_id": "ab" * 16, "span_id": "cd" * 8}],
    }
    inner = span(2, trace_id=span(1).trace_id, parent_span_id=span(1).span_id, service="shop", output_tokens=7)
    said = {(inner.trace_id, inner.span_id): Content("a question", "an answer", json.dumps(detail))}
    now_ns = time.time_ns()
    spans = [
        msgspec.structs.replace(one, started_at_ns=now_ns - 10**9, ended_at_ns=now_ns)
        for one in (span(1, service="shop", status="error", error_type="timeout"), inner)
    ]
    store.commit(Batch(spans, said), {})
    with open_desk(write_desk(tmp_path / "far")) as desk, told_over_http(desk) as port:
        secret = tmp_path / "token"
        secret.write_text("Bearer let-me-in")
        target = forwarder(store, tmp_path, port, content=True, headers={"Authorization": f"file:{secret}"})
        assert target.step() == 2
        target.close()
        desk.control.drain()
        there = {one.span.span_id: one for one in desk.control.store.trace(spans[0].trace_id)}
    for one in spans:
        got = there[one.span_id].span
        same = ("name", "parent_span_id", "started_at_ns", "ended_at_ns", "service", "status", "operation", "endpoint")
        assert [getattr(got, name) for name in same] == [getattr(one, name) for name in same]
        assert (got.request_model, got.input_tokens, got.output_tokens) == ("m", 3, one.output_tokens)
    content = there[inner.span_id].content
    assert content is not None
    assert ("a question" in content.input, "an answer" in content.output) == (True, True)
    kept = json.loads(content.detail)
    assert kept["events"][0]["name"] == "cache.miss"
    assert kept["links"][0]["trace_id"] == "ab" * 16


@contextmanager
def told_over_http(desk: Desk) -> Iterator[int]:
    """A control plane's application on a real socket; its port."""
    listener = listening_socket("127.0.0.1", 0, "server")
    app = create_app(desk.control, token="let-me-in")
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    eventually(lambda: server.started)
    yield int(listener.getsockname()[1])
    server.should_exit = True
    thread.join(10)


def test_a_killed_collector_and_a_killed_sender_lose_nothing(store: SpanStore, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "got.jsonl"
    stop = threading.Event()
    target = forwarder(store, tmp_path, port)
    thread = threading.Thread(target=target.run, args=(stop,))
    wanted = set()
    numbers = iter(range(10**6))

    def more(count: int) -> None:
        spans = [span(next(numbers)) for _ in range(count)]
        wanted.update(one.span_id for one in spans)
        store.commit(Batch(spans), {})

    def arrived() -> set[object]:
        return {row["span_id"] for row in received(file)}

    more(1500)
    thread.start()
    eventually(lambda: target.failures > 0)  # nobody is there yet
    with collector(port, file) as process:
        eventually(lambda: len(arrived()) >= 500)
        process.send_signal(signal.SIGKILL)
        process.wait()
    more(700)
    with collector(port, file):
        eventually(lambda: arrived() == wanted)
        more(100)
        stop.set()
        thread.join(PATIENCE_S)
        again = forwarder(store, tmp_path, port)  # as after a crash: only the file is left
        assert again.progress.seq <= target.progress.seq
        while again.step():
            pass
        again.close()
    assert arrived() == wanted
    assert again.progress.rejected == 0


def test_a_busy_collector_is_asked_again(store: SpanStore, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "got.jsonl"
    store.commit(Batch([span(number) for number in range(10)]), {})
    with collector(port, file, "busy"):
        target = forwarder(store, tmp_path, port)
        for _ in range(3):
            with pytest.raises(ForwardFailed, match="503"):
                target.step()
        assert target.progress.seq == 0
        assert target.step() == 10
        target.close()
    assert len(received(file)) == 10


def test_a_span_that_is_refused_is_counted_and_does_not_hold_up_the_others(store: SpanStore, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "got.jsonl"
    store.commit(Batch([span(number, name="poison" if number == 70 else "chat") for number in range(100)]), {})
    with collector(port, file, "picky"):
        target = forwarder(store, tmp_path, port)
        while target.step():
            pass
        target.close()
    assert len(received(file)) == 99
    assert (target.progress.sent, target.progress.rejected) == (99, 1)


def test_a_place_that_refuses_everything_drops_nothing(store: SpanStore, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "got.jsonl"
    store.commit(Batch([span(number, name="poison") for number in range(8)]), {})
    with collector(port, file, "picky"):
        target = forwarder(store, tmp_path, port)
        with pytest.raises(ForwardFailed, match="refuses everything"):
            target.step()
        target.close()
    assert (target.progress.seq, target.progress.rejected) == (0, 0)


def test_progress_of_another_store_is_not_taken_for_this_ones(store: SpanStore, tmp_path: Path) -> None:
    file = tmp_path / "forward" / "far.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"format": 1, "store": "another", "seq": 5, "sent": 5, "rejected": 0}))
    assert forwarder(store, tmp_path, 9).progress.seq == 0
    file.write_text("{")
    assert forwarder(store, tmp_path, 9).progress.seq == 0


def test_settings_that_cannot_work_are_refused_at_once(store: SpanStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"telemetry\.forward\.far"):
        Forwarder("far", ForwardSettings(url="collector:4318"), store, tmp_path / "x", identity="s")
    with pytest.raises(UserError, match="written in place"):
        forwarder(store, tmp_path, 9, headers={"x": "a secret itself"})
