"""One request's life between client and upstream: intent, call, answer, finished record.

The order that the promises rest on: the intent is written before the upstream hears of the request, and the finished
record before the client gets the last byte. For a stream the last byte is what completes ``data: [DONE]``, for that is
where clients stop reading.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING, Final

from tidemill.gateway.answers import error_body, status_line
from tidemill.gateway.payloads import Asked, Heard, hear_body, hear_stream, rewritten
from tidemill.gateway.sessions import Session
from tidemill.gateway.snapshots import Junction, Lane
from tidemill.gateway.tracing import Continuation, Identity
from tidemill.gateway.upstream import AnswerHead, Failure, UpstreamConnection
from tidemill.kernel import ApiKey, Arm
from tidemill.telemetry.records import Content, Intent, Span, Status
from tidemill.telemetry.store import ENTRY_ATTRIBUTE

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.front import Front, Request

_log = logging.getLogger(__name__)

_DONE: Final = b"[DONE]"
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_EVENT_BYTES_MOST: Final = 1 << 20
_TAIL_BYTES: Final = 16 * 1024
_BODYLESS: Final = frozenset((204, 304))
_BROKEN_OFF: Final = frozenset(("lost", "connect"))


@dataclass(frozen=True, slots=True)
class Operation:
    """One of the endpoints' operations.

    Args:
        name: OpenTelemetry's GenAI operation name.
        path: of the upstream, after its base URL.
    """

    name: str
    path: str


class Exchange:
    """A request being answered by an upstream. A ``Call`` for the front, a ``Sink`` for the upstream.

    Args:
        gateway: the worker's parts.
        front: the client's connection.
        request, asked: the request, and what was read of its body.
        key: who asks.
        junction: where the endpoint leads.
        operation: what is asked.
    """

    # What most calls never change stays here: one of these objects is made per request.
    _connection: UpstreamConnection | None = None
    _connecting: asyncio.Task[None] | None = None
    _retried = False
    _failed_over = False
    _status = 0
    _head = b""  # of the client's answer, until it is sent
    _held = b""  # kept back: until the record is written, or until an event is whole
    _sse = False
    _chunked = False
    _ended = False  # the upstream has nothing more
    _recorded = False  # the finished record is on its way
    _delivered = False  # what waited for the record has left
    _over = False  # nothing more goes to the client
    _first_ns = 0
    _captured = 0
    _tail = b""

    def __init__(
        self,
        gateway: Gateway,
        front: Front,
        request: Request,
        *,
        asked: Asked,
        key: ApiKey,
        junction: Junction,
        operation: Operation,
    ) -> None:
        self._gateway = gateway
        self._front = front
        self._request = request
        self._asked = asked
        self._key = key
        self._junction = junction
        self._operation = operation
        self._started_ns = time_ns()
        self._identity: Identity = gateway.ids.identify(request.traceparent)
        self._session: Session = gateway.session_of(front, request, asked, key, junction, self._started_ns)
        self._user_key = gateway.user_key(asked.user)
        self._lane: Lane = junction.by_release.get(self._session.release, junction.control)
        self._attributes: dict[str, str | int | float | bool] = {}
        self._pieces: list[bytes] = []

    def start(self) -> None:
        """Write the intent, then call the upstream."""
        self._front.attend(self)
        self._gateway.metrics.in_flight += 1
        self._gateway.journal.add(self._key.tenant, self._intent(), self._intended)

    def _intended(self, written: bool) -> None:
        if self._over:
            return
        if written:
            self._send()
            return
        self._gateway.metrics.in_flight -= 1
        self._gateway.metrics.event("refused_untraceable")
        self._over = self._recorded = True
        text = "The gateway cannot record requests at present, so it makes none."
        self._front.answer(503, error_body(503, text, "not_recordable"))

    # -- towards the upstream ---------------------------------------------------------------------------------

    def _send(self) -> None:
        lane = self._lane
        connection = None if self._retried else self._gateway.pool.take_idle(lane.address)
        if connection is None:
            self._connecting = self._gateway.pool.connect(lane.address, self)
        else:
            self._connection = connection
            connection.start(self, self._message())

    def _message(self) -> bytes:
        lane, request, body = self._lane, self._request, self._request.body
        if lane.target.model is not None:
            body = rewritten(body, model=lane.target.model)
        head = call_head(
            lane,
            self._operation,
            identity=self._identity,
            session_id=self._session.session_id,
            rollout_header=self._junction.rollout_header,
            length=len(body),
            request=request,
        )
        return head + body

    def on_connected(self, connection: UpstreamConnection) -> None:
        """Send the request over a new connection."""
        self._connecting = None
        if self._over:
            self._gateway.pool.give_back(connection)
            return
        self._connection = connection
        connection.start(self, self._message())

    def on_failure(self, failure: Failure) -> None:
        """Try again where that is safe, else tell the client."""
        connection, self._connection, self._connecting = self._connection, None, None
        if self._over:
            return
        if self._recorded:  # the stream had reached its [DONE]; only the framing is missing
            self.on_done()
            return
        if failure.untouched and not self._status and failure.kind in _BROKEN_OFF:
            if connection is not None and not connection.fresh and not self._retried:
                # The upstream closed a kept-alive connection just as it was taken: nothing was answered on it.
                self._retried = True
                self._gateway.metrics.event("stale_retry")
                self._send()
                return
            if self._lane.release.arm is Arm.CANARY and not self._failed_over:
                self._fail_over(failure)
                return
        self._fail(failure)

    def _fail_over(self, failure: Failure) -> None:
        self._attributes["tidemill.failover_from"] = self._lane.release.release
        self._attributes["tidemill.failover_reason"] = f"upstream_{failure.kind}"
        self._failed_over, self._retried = True, False
        self._lane = self._junction.control
        self._gateway.metrics.event("failover")
        self._send()

    def _fail(self, failure: Failure) -> None:
        _log.warning("trace %s: %s upstream %s", self._identity.trace_id, failure.kind, failure.detail)
        error = f"upstream_{failure.kind}"
        if not self._status or self._head:
            self._status = 504 if failure.kind == "timeout" else 502
            self._head = b""
            self._record("error", error, self._deliver_failure)
        else:
            self._record("truncated", error, self._deliver_break)

    def _deliver_failure(self, _written: bool) -> None:
        if self._over:
            return
        self._over = True
        text = f"The model behind '{self._asked.model}' gave no complete answer. Try again, or see the trace."
        code = "upstream_timeout" if self._status == 504 else "upstream_failed"
        self._front.answer(self._status, error_body(self._status, text, code), headers=self._trace_headers())

    def _deliver_break(self, _written: bool) -> None:
        """End an answer that broke off after its beginning was sent, so that nobody takes it for a whole one."""
        if self._over:
            return
        self._over = True
        if self._sse and self._chunked:
            event = b"data: %b\n\n" % error_body(502, "The answer broke off upstream.", "upstream_broke_off")
            self._front.write(_chunk(event) + b"0\r\n\r\n")
            self._front.finished(stays=self._front.stays)
        else:
            self._front.cut()

    # -- from the upstream ------------------------------------------------------------------------------------

    def on_head(self, status: int, headers: AnswerHead) -> None:
        """Prepare the client's head; it leaves with the first piece of the body."""
        self._status = status
        self._sse = headers.content_type.startswith(b"text/event-stream")
        front = self._front
        framing: tuple[bytes, ...] = ()
        if headers.length is not None:
            framing = (b"\r\ncontent-length: ", headers.length)
        elif status not in _BODYLESS and self._request.modern:
            self._chunked = True
            framing = (b"\r\ntransfer-encoding: chunked",)
        self._head = b"".join(
            (
                status_line(status),
                b"content-type: ",
                headers.content_type,
                *framing,
                b"\r\n",
                headers.passed,
                self._trace_headers(),
                b"cache-control: no-cache\r\n" if self._sse else b"",
                b"\r\n" if front.stays else b"connection: close\r\n\r\n",
            )
        )
        if front.slow and self._connection is not None:
            self._connection.pause()

    def on_data(self, data: bytes) -> None:
        """Pass a piece on: at once if it belongs to a stream, else one piece late."""
        if not self._first_ns:
            self._first_ns = time_ns()
        self._capture(data)
        if self._sse:
            self._pass_events(data)
            return
        held, self._held = self._held, data
        if held:
            self._front.write(self._take_head() + (_chunk(held) if self._chunked else held))

    def on_done(self) -> None:
        """Record, then let the client have the end."""
        self._connection = None
        self._ended = True
        if self._over:
            return
        if not self._recorded:
            self._record_answer()
        elif self._delivered:
            self._deliver(True)

    def _deliver(self, _written: bool) -> None:
        """The record is in the segment: what was held back may leave."""
        self._delivered = True
        if self._over:
            return
        data = self._held
        if self._chunked:
            data = _chunk(data) + b"0\r\n\r\n" if self._ended else _chunk(data)
        data = self._head + data
        self._head = self._held = b""
        front = self._front
        if data:
            front.write(data)
        if self._ended:
            self._over = True
            front.finished(stays=front.stays)

    def _pass_events(self, data: bytes) -> None:
        """Pass on whole events at once, and hold the rest, so that an answer never breaks off inside an event."""
        if self._held:
            data, self._held = self._held + data, b""
        if self._recorded or _DONE in data[-24:]:
            self._held = data  # leaves when the record is written
            if not self._recorded:
                self._record_answer()
            return
        if not data.endswith(_EVENT_ENDS):
            end = max((data.rfind(mark) + len(mark) for mark in _EVENT_ENDS if mark in data), default=0)
            if len(data) - end <= _EVENT_BYTES_MOST:
                data, self._held = data[:end], data[end:]
        head = self._take_head()
        if data or head:
            self._front.write(head + (_chunk(data) if self._chunked else data))

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    def _trace_headers(self) -> bytes:
        headers = f"x-tidemill-trace-id: {self._identity.trace_id}\r\n".encode() + self._lane.answer_header
        return headers if self._request.origin is None else headers + self._gateway.origin_header(self._request)

    def _capture(self, data: bytes) -> None:
        if self._captured < self._gateway.limits.capture_bytes:
            self._pieces.append(data)
            self._captured += len(data)
        else:  # usage and finish reason stand at the end
            self._tail = (self._tail + data)[-_TAIL_BYTES:]

    # -- from the client --------------------------------------------------------------------------------------

    def client_left(self) -> None:
        """Stop the upstream: nobody reads the answer, and its tokens cost."""
        self._over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.stop()
        if self._connecting is not None:
            self._connecting.cancel()
        if not self._recorded:
            self._record("cancelled", "client_disconnected", _nothing)

    def client_slow(self) -> None:
        """Stop reading upstream until the client has caught up."""
        if self._connection is not None:
            self._connection.pause()

    def client_ready(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    # -- records ----------------------------------------------------------------------------------------------

    def _intent(self) -> Intent:
        identity, session, release = self._identity, self._session, self._lane.release
        return Intent(
            trace_id=identity.trace_id,
            span_id=identity.span_id,
            parent_span_id=identity.parent_span_id,
            started_at_ns=self._started_ns,
            name=f"{self._operation.name} {self._asked.model}",
            operation=self._operation.name,
            endpoint=self._junction.route.endpoint,
            release=release.release,
            assigned_release=session.release,
            arm=self._lane.arm,
            session_id=session.session_id,
            user_key=self._user_key,
            request_model=self._asked.model,
            stream=bool(self._asked.stream),
            rollout=self._junction.route.rollout if session.in_rollout else None,
        )

    def _record_answer(self) -> None:
        heard = self._hear()
        status: Status = "ok"
        error: str | None = None
        if self._status >= 400:
            status, error = "error", heard.error or f"http_{self._status}"
        elif heard.error is not None:
            status, error = "error", heard.error
        elif self._sse and not heard.finished:
            status, error = "truncated", "stream_without_end"
        elif heard.broken:
            status, error = "error", "malformed_answer"
        self._record(status, error, self._deliver, heard)

    def _hear(self) -> Heard:
        raw = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if self._tail:
            # The cut falls inside an event; the line reader steps over what it cannot read.
            heard = hear_stream(raw + b"\n\n" + self._tail) if self._sse else Heard(text=raw.decode("utf-8", "replace"))
            heard.broken = False
            self._attributes["tidemill.capture_cut"] = True
            return heard
        return hear_stream(raw) if self._sse else hear_body(raw)

    def _record(self, status: Status, error_type: str | None, then: Continuation, heard: Heard | None = None) -> None:
        """Write the finished record, count the request, and go on with ``then``."""
        self._recorded = True
        ended_ns = time_ns()
        if heard is None:
            heard = self._hear() if self._pieces else Heard()
        span = self._span(status, error_type, heard, ended_ns)
        gateway = self._gateway
        gateway.journal.add(span.tenant, (span, Content(self._asked.input_text(), heard.text)), then)
        gateway.metrics.in_flight -= 1
        arm = self._lane.arm
        duration_s = (ended_ns - self._started_ns) / 1e9
        gateway.metrics.request(self._junction.route.endpoint, arm, self._status, status, duration_s)
        if self._junction.shadow is not None and status == "ok":
            gateway.shadows.offer(self._junction, self._operation, self._request, span)

    def _span(self, status: Status, error_type: str | None, heard: Heard, ended_ns: int) -> Span:
        identity, session, release = self._identity, self._session, self._lane.release
        attributes = self._attributes
        if identity.parent_span_id is not None:
            attributes[ENTRY_ATTRIBUTE] = True
        return Span(  # by place: see Span
            identity.trace_id,
            identity.span_id,
            self._gateway.project,
            self._key.tenant,
            f"{self._operation.name} {self._asked.model}",
            self._operation.name,
            self._started_ns,
            ended_ns,
            identity.parent_span_id,
            status,
            error_type,
            self._status or None,  # http_status
            self._junction.route.endpoint,
            release.release,
            session.release,  # assigned_release
            self._lane.arm,  # arm
            session.session_id,
            self._user_key,
            "openai_compatible",  # provider
            self._asked.model,  # request_model
            heard.model,  # response_model
            heard.input_tokens,
            heard.output_tokens,
            cost_usd(self._lane, heard),
            (self._first_ns - self._started_ns) / 1e9 if self._sse and self._first_ns else None,
            heard.finish_reasons,
            self._sse,  # stream
            self._junction.route.rollout if session.in_rollout else None,
            attributes,
            (*heard.references, self._lane.reference),
        )


def _nothing(_written: bool) -> None:
    """What waits for the record of a call whose client has left."""


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def cost_usd(lane: Lane, heard: Heard) -> float | None:
    """Price of a call at the target's prices; ``None`` when the upstream told no usage."""
    if heard.input_tokens is None and heard.output_tokens is None:
        return None
    prices = lane.target.prices
    spent = (heard.input_tokens or 0) * prices.input_usd_per_mtok + (
        heard.output_tokens or 0
    ) * prices.output_usd_per_mtok
    return spent / 1e6


def call_head(
    lane: Lane,
    operation: Operation,
    *,
    identity: Identity,
    session_id: str,
    rollout_header: bytes,
    length: int,
    request: Request,
) -> bytes:
    """The head of an upstream call.

    The client's own Authorization never leaves; of its headers only content type, accept and trace state do.
    """
    ids = (
        f"traceparent: 00-{identity.trace_id}-{identity.span_id}-{identity.flags}\r\n"
        f"x-tidemill-session: {session_id}\r\ncontent-length: {length}\r\ncontent-type: "
    )
    return b"".join(
        (
            lane.call_lines[operation.path],
            rollout_header,
            ids.encode(),
            request.content_type or b"application/json",
            b"\r\naccept: " + request.accept if request.accept is not None else b"",
            b"\r\ntracestate: " + request.tracestate if request.tracestate is not None else b"",
            b"\r\n\r\n",
        )
    )
