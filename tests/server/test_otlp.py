"""OTLP over real HTTP against the control plane's application, and against its process, killed again and again."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.server.desk import Desk, write_desk
from tests.telemetry.otlp.making import as_json, logs, metrics, traces, wire_span
from tidemill.kernel import Scope
from tidemill.ledger import KeyTerms
from tidemill.safety import issue_key
from tidemill.server.api import create_app
from tidemill.server.supervisor import free_port
from tidemill.telemetry import Drainer, SpanQuery, open_span_store

ROOT = Path(__file__).parents[2]
PROTOBUF = "application/x-protobuf"


@contextmanager
def serving(desk: Desk) -> Iterator[int]:
    """The application on a real socket; its port."""
    port = free_port()
    config = uvicorn.Config(create_app(desk.control, token="let-me-in"), port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(10)


def now_span(number: int, **changes: Any) -> Any:
    now = time.time_ns()
    return wire_span(number, **({"start_time_unix_nano": now - 10**9, "end_time_unix_nano": now} | changes))


def post(
    port: int, body: bytes, path: str = "/v1/traces", *, content_type: str = PROTOBUF, token: str = "let-me-in",
    method: str = "POST", **headers: str,
) -> tuple[int, bytes, http.client.HTTPResponse]:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            method, path, body, {"Content-Type": content_type, "Authorization": f"Bearer {token}", **named}
        )
        answer = connection.getresponse()
        return answer.status, answer.read(), answer
    finally:
        connection.close()


def test_exports_are_answered_as_the_protocol_says_and_stored(desk: Desk) -> None:
    request = traces(now_span(1, attributes={"input.value": "hi"}), now_span(2, end_time_unix_nano=5))
    with serving(desk) as port:
        status, body, answer = post(port, request.SerializeToString())
        assert (status, answer.getheader("content-type")) == (200, PROTOBUF)
        partial = ExportTraceServiceResponse.FromString(body).partial_success
        assert partial.rejected_spans == 1
        assert "negative_duration" in partial.error_message
        packed = gzip.compress(as_json(traces(now_span(3))))
        status, body, answer = post(
            port, packed, content_type="application/json; charset=utf-8", Content_Encoding="gzip"
        )
        assert (status, json.loads(body), answer.getheader("content-type")) == (200, {}, "application/json")
        status, body, _ = post(port, as_json(traces(now_span(4, trace_id=b"x"))), content_type="application/json")
        assert json.loads(body)["partialSuccess"]["rejectedSpans"] == "1"
        assert post(port, logs({"event": "gen_ai.choice"}).SerializeToString(), "/v1/logs")[0] == 200
        assert post(port, metrics("gen_ai.x", total=1, count=1).SerializeToString(), "/v1/metrics")[0] == 200
        assert post(port, b"")[0:2] == (200, b"")
    desk.control.drain()
    (stored,) = desk.control.store.trace(f"{1:032x}")
    assert stored.content is not None
    assert stored.content.input == "hi"
    assert desk.control.receiving.points.series()[0].metric == "gen_ai.x"


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"token": "wrong"}, 401),
        ({"token": "tm-" + "x" * 32}, 401),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"method": "GET"}, 405),
        ({"content_type": "text/plain"}, 415),
        ({"Content_Encoding": "br"}, 415),
        ({"Content_Encoding": "gzip"}, 400),
        ({"content_type": "application/json"}, 400),
        ({"body": b"\xff\xff"}, 400),
        ({"body": b"x", "Content_Length": str(1 << 40)}, 413),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_reason(desk: Desk, how: dict[str, Any], status: int) -> None:
    body = how.pop("body", traces(now_span(1)).SerializeToString())
    with serving(desk) as port:
        got, text, answer = post(port, body, **how)
        assert got == status
        assert text
        assert answer.getheader("retry-after") is None
        assert post(port, traces(now_span(1)).SerializeToString())[0] == 200


def test_a_key_for_telemetry_lets_its_holder_send_and_other_keys_do_not(desk: Desk) -> None:
    ledger = desk.project.ledger
    sender = issue_key(ledger, "sender", KeyTerms(operations=("telemetry",)))
    chatter = issue_key(ledger, "chatter", KeyTerms(operations=("chat",)))
    general = issue_key(ledger, "general")
    body = traces(now_span(1)).SerializeToString()
    with serving(desk) as port:
        assert post(port, body, token=sender)[0] == 200
        assert post(port, body, token=chatter)[0] == 401
        assert post(port, body, token=general)[0] == 401


def test_a_disk_that_takes_no_more_is_503_with_a_time_to_come_again(desk: Desk) -> None:
    folder = desk.project.places.segments / "otlp"
    folder.write_text("not a folder")
    body = traces(now_span(1)).SerializeToString()
    with serving(desk) as port:
        status, text, answer = post(port, body)
        assert (status, answer.getheader("retry-after")) == (503, "5")
        assert b"cannot be written" in text
        folder.unlink()
        assert post(port, body)[0] == 200


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_nothing_acknowledged_is_lost_or_doubled_when_the_server_is_killed(tmp_path: Path, kills: int) -> None:
    """Real HTTP to the real process, killed at random moments and begun again; compared at the end."""
    folder = write_desk(tmp_path / "desk")
    draw, acknowledged, sent = random.Random(), [], 0
    for _ in range(kills):
        server = subprocess.Popen([sys.executable, "-m", "tidemill.server", "--project", str(folder)], cwd=ROOT)
        try:
            port, token = _ready(folder, server)
            until = time.monotonic() + draw.uniform(0.1, 1.5)
            killer = threading.Timer(until - time.monotonic(), server.send_signal, (signal.SIGKILL,))
            killer.start()
            while server.poll() is None:
                numbers = range(sent + 1, sent + 21)
                sent += 20
                body = traces(*(now_span(number, attributes={"input.value": str(number)}) for number in numbers))
                try:
                    if post(port, body.SerializeToString(), token=token)[0] == 200:
                        acknowledged += numbers
                except (OSError, http.client.HTTPException):
                    break
            killer.join()
        finally:
            server.kill()
            server.wait()
    state = folder / ".tidemill"
    begun = time.monotonic()
    store = open_span_store(state / "telemetry.duckdb", Scope("desk"))
    assert time.monotonic() - begun < 5
    drain_all(state, store)
    found = [int(one.span.trace_id, 16) for one in store.spans(SpanQuery(limit=10_000_000))]
    store.close()
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    assert acknowledged
    assert not list((state / "segments" / "otlp").glob("*.seg"))


def drain_all(state: Path, store: Any) -> None:
    from tests.telemetry.otlp.making import mapper
    from tidemill.telemetry.otlp import Decoder

    using = mapper()
    using._project = "desk"
    drainer = Drainer(state / "segments", store, mask=str, decoder=Decoder(using, bytes_most=1 << 26))
    while drainer.drain_once().more:
        pass


def _ready(folder: Path, server: subprocess.Popen[bytes]) -> tuple[int, str]:
    import yaml

    port = yaml.safe_load((folder / "tidemill.yaml").read_text())["server"]["port"]
    token = folder / ".tidemill" / "run" / "token"
    while True:
        assert server.poll() is None
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return port, token.read_text()
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
