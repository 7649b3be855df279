"""Spans and scores on their way: a real exporter, real sockets, and the control plane's own API."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from opentelemetry import trace as otel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import tidemill as tm
from tests.server.desk import Desk, open_desk, write_desk
from tests.tm.conftest import Spans
from tidemill.kernel import InvalidInput, NotFound, Unavailable
from tidemill.server.api import create_app
from tidemill.server.process import local_token
from tidemill.server.supervisor import free_port, listening_socket
from tidemill.telemetry import ScoreQuery
from tidemill.tm import sending

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``configure`` remembers is the process's; each test begins without."""
    monkeypatch.setattr(sending, "_configured", sending._Configured())


@dataclass
class Collector:
    """Takes OTLP and scores over HTTP, and remembers them."""

    url: str
    requests: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    status: int = 200
    answer: bytes = b"{}"

    def spans(self) -> list[Any]:
        found = []
        for path, _, body in self.requests:
            assert path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(body)
            found += [(one, of.resource) for of in request.resource_spans for to in of.scope_spans for one in to.spans]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.requests.append((self.path, self.headers["Authorization"], body))
            self.send_response(taken.status)
            self.send_header("Content-Length", str(len(taken.answer)))
            self.end_headers()
            self.wfile.write(taken.answer)

        def log_message(self, *_: object) -> None:
            """Not in the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    taken = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield taken
    server.shutdown()
    thread.join(10)
    server.server_close()


def write_project(folder: Path, url: str, token: str | None = "t0ken") -> Path:
    folder.mkdir()
    port = int(url.rsplit(":", 1)[1])
    (folder / "tidemill.yaml").write_text(yaml.safe_dump({"project": "desk", "server": {"port": port}}))
    if token is not None:
        (folder / ".tidemill" / "run").mkdir(parents=True)
        (folder / ".tidemill" / "run" / "token").write_text(token)
    return folder


def test_spans_reach_the_project_s_control_plane_with_its_token(
    spans: Spans, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # must not see what goes to this machine itself
    below = write_project(tmp_path / "desk", collector.url) / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    assert tm.configure(provider=provider) is provider
    tracer = provider.get_tracer("third party")
    with tm.trace("answer", session="s1"), tracer.start_as_current_span("theirs"):
        pass
    assert tm.flush()
    ((span, resource),) = collector.spans()
    assert span.name == "theirs"
    assert {one.key: one.value.string_value for one in span.attributes} == {"session.id": "s1"}
    assert any(one.key == "service.name" and one.value.string_value == "shop" for one in resource.attributes)
    assert collector.requests[0][1] == "Bearer t0ken"
    provider.shutdown()


def test_the_installed_provider_is_joined_once(spans: Spans, collector: Collector, tmp_path: Path) -> None:
    installed = otel.get_tracer_provider()
    before = list(installed._active_span_processor._span_processors)  # type: ignore[attr-defined]
    try:
        assert tm.configure(endpoint=collector.url, token="x") is installed
        assert tm.configure(endpoint=f"{collector.url}/v1/traces") is installed
        with pytest.raises(InvalidInput, match="one place only"):
            tm.configure(endpoint="http://127.0.0.1:1")
        with tm.trace("answer") as request:
            trace_id = request.trace_id
        assert tm.flush()
        ((span, _),) = collector.spans()
        assert span.trace_id.hex() == trace_id
        assert collector.requests[0][1] == "Bearer x"
    finally:
        added = [one for one in installed._active_span_processor._span_processors if one not in before]  # type: ignore[attr-defined]
        installed._active_span_processor._span_processors = tuple(before)  # type: ignore[attr-defined]
        for one in added:
            one.shutdown()


def test_where_traces_cannot_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match=r"no tidemill\.yaml"):
        tm.configure(tmp_path)
    for address in ("ftp://host", "http://", "file:///x"):
        with pytest.raises(InvalidInput, match="no address"):
            tm.configure(endpoint=address)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match=r"tm\.configure"):
        tm.score(TRACE, "feedback", 1)


def test_a_gateway_takes_the_scores_of_users(spans: Spans, collector: Collector) -> None:
    collector.answer = b'{"score_id": "score_1", "trace_id": "x"}'
    provider = TracerProvider()
    tm.configure(endpoint="http://127.0.0.1:1", gateway=collector.url, api_key="key", provider=provider)
    assert tm.score(TRACE, "feedback", True, comment="right") == "score_1"
    ((path, token, body),) = collector.requests
    assert (path, token) == ("/v1/feedback", "Bearer key")
    assert body == f'{{"trace_id": "{TRACE}", "name": "feedback", "value": 1.0, "comment": "right"}}'.encode()
    with pytest.raises(InvalidInput, match="users alone"):
        tm.score(TRACE, "groundedness", 0.5, source="judge")
    provider.shutdown()


@pytest.mark.parametrize(
    ("status", "answer", "family"),
    [
        (400, b'{"error": {"message": "a bad score", "hint": null}}', InvalidInput),
        (404, b'{"error": {"message": "a bad score"}}', NotFound),
        (503, b'{"error": {"message": "a bad score"}}', Unavailable),
        (429, b'{"error": {"message": "a bad score"}}', Unavailable),
        (500, b"a bad score", Unavailable),
        (418, b"[]", InvalidInput),
    ],
)
def test_a_refused_score_says_why(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, answer: bytes, family: Any
) -> None:
    monkeypatch.chdir(write_project(tmp_path / "desk", collector.url, token=None))
    collector.status, collector.answer = status, answer
    with pytest.raises(family, match=f"a bad score|answered {status}"):
        tm.score(TRACE, "feedback", 1)
    assert collector.requests[0][1] is None


def test_scores_that_say_nothing_or_of_nothing(spans: Spans) -> None:
    with pytest.raises(InvalidInput, match="says nothing"):
        tm.score(TRACE, "feedback")
    sending._configured.scores = sending.Destination("http://127.0.0.1:1", lambda: None)
    with pytest.raises(InvalidInput, match="no trace id"):
        tm.score("what", "feedback", 1)
    with pytest.raises(InvalidInput, match="not recorded"):
        tm.score(otel.INVALID_SPAN, "feedback", 1)
    with pytest.raises(Unavailable, match="tidemill up"):
        tm.score(TRACE, "feedback", 1)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(write_desk(tmp_path / "desk")) as opened:
        yield opened


def test_scores_are_stored_by_the_control_plane(spans: Spans, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    token = local_token(desk.project.places)
    listener = listening_socket("127.0.0.1", port, "server")
    server = uvicorn.Server(uvicorn.Config(create_app(desk.control, token=token), log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        sending._configured.scores = sending.Destination(f"http://127.0.0.1:{port}", lambda: token)
        with tm.trace("answer") as request:
            tm.score(request, "feedback", 1, comment="write to mia@example.org")
            tm.score(request.otel, "tone", "friendly", source="judge", span=request.span_id)
            tm.score(request.otel.get_span_context(), "again", 0.5, score_id="mine")
            tm.score(request.trace_id.upper(), "again", 0.5, score_id="mine")
        with pytest.raises(InvalidInput, match="name"):
            tm.score(TRACE, "", 1)
        stored = desk.control.store.scores(ScoreQuery(trace_ids=(request.trace_id,)))
        feedback, tone, again = [one.score for one in stored]
        assert (feedback.value, feedback.source) == (1.0, "user")
        assert "mia" not in str(feedback.comment)
        assert (tone.label, tone.value, tone.source, tone.span_id) == ("friendly", None, "judge", request.span_id)
        assert again.score_id == "mine"
    finally:
        server.should_exit = True
        thread.join(10)
