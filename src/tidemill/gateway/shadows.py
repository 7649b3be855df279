"""Copies of answered requests for a release that answers nobody yet.

A copy is offered after the client's answer is recorded, waits in a bounded queue and never delays anyone: what does not
fit is dropped and counted. Its span joins the trace of the request it copies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING

from tidemill.gateway.exchange import Operation, call_head, cost_usd
from tidemill.gateway.payloads import Heard, hear_body, hear_stream, read_request, rewritten
from tidemill.gateway.snapshots import Junction, Lane
from tidemill.gateway.tracing import Identity
from tidemill.gateway.upstream import AnswerHead, Failure, UpstreamConnection
from tidemill.kernel import Arm
from tidemill.telemetry.records import Content, Intent, Span, Status

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.front import Request


class ShadowQueue:
    """Sends copies, a few at a time.

    Args:
        gateway: the worker's parts.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waiting: deque[_Copy] = deque()
        self._in_flight: set[_Copy] = set()
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether no copy waits or runs."""
        return not self._waiting and not self._in_flight

    def offer(self, junction: Junction, operation: Operation, request: Request, original: Span) -> None:
        """Queue a copy of an answered request, or drop and count it."""
        lane = junction.shadow
        if lane is None:
            return
        if self._closed or len(self._waiting) >= self._gateway.limits.shadow_queue:
            self._gateway.metrics.event("shadow_dropped")
            return
        self._waiting.append(_Copy(self, lane, operation, request, original, junction.rollout_header))
        # After the present callback, which still has the client's last byte to write.
        asyncio.get_running_loop().call_soon(self._pump)

    def close(self) -> None:
        """Drop what waits and give up what runs."""
        self._closed = True
        for _ in self._waiting:
            self._gateway.metrics.event("shadow_dropped")
        self._waiting.clear()
        for copy in tuple(self._in_flight):
            copy.give_up()

    def _pump(self) -> None:
        while self._waiting and len(self._in_flight) < self._gateway.limits.shadow_concurrency:
            copy = self._waiting.popleft()
            self._in_flight.add(copy)
            copy.start(self._gateway)

    def ended(self, copy: _Copy) -> None:
        """A copy is through."""
        self._in_flight.discard(copy)
        if not self._closed:
            self._pump()


class _Copy:
    """One copy under way: a sink for the upstream, with intent and finished record of its own."""

    def __init__(
        self,
        queue: ShadowQueue,
        lane: Lane,
        operation: Operation,
        request: Request,
        original: Span,
        rollout_header: bytes,
    ) -> None:
        self._queue = queue
        self._lane = lane
        self._operation = operation
        self._request = request
        self._original = original
        self._rollout_header = rollout_header
        self._gateway: Gateway
        self._identity: Identity
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._started_ns = 0
        self._status = 0
        self._sse = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._input = ""
        self._over = False

    def start(self, gateway: Gateway) -> None:
        """Write the intent and call the shadow target."""
        self._gateway = gateway
        original, release = self._original, self._lane.release
        self._identity = Identity(original.trace_id, gateway.ids.span_id(), original.span_id, "01")
        self._started_ns = time_ns()
        self._input = read_request(self._request.body).input_text()
        intent = Intent(
            trace_id=original.trace_id,
            span_id=self._identity.span_id,
            parent_span_id=original.span_id,
            started_at_ns=self._started_ns,
            name=original.name,
            operation=original.operation,
            endpoint=original.endpoint,
            release=release.release,
            assigned_release=release.release,
            arm=Arm.SHADOW.value,
            session_id=original.session_id,
            user_key=original.user_key,
            request_model=original.request_model,
            rollout=original.rollout,
        )
        gateway.journal.add(original.tenant, intent, self._intended)

    def _intended(self, written: bool) -> None:
        gateway = self._gateway
        if self._over:
            return
        if not written:
            gateway.metrics.event("shadow_dropped")
            self._over = True
            self._queue.ended(self)
            return
        # A new connection each time would be dear, but a stale one is not worth a retry for a copy.
        connection = gateway.pool.take_idle(self._lane.address)
        if connection is None:
            self._connecting = gateway.pool.connect(self._lane.address, self)
        else:
            self.on_connected(connection)

    def give_up(self) -> None:
        """End without an answer (the worker stops)."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.stop()
        self._record("cancelled", "worker_stopped")

    def on_connected(self, connection: UpstreamConnection) -> None:
        """Send the copy, asking for a whole answer even if the original was a stream."""
        self._connecting = None
        self._connection = connection
        body = rewritten(self._request.body, model=self._lane.target.model, drop_stream=True)
        head = call_head(
            self._lane,
            self._operation,
            identity=self._identity,
            session_id=self._original.session_id or "",
            rollout_header=self._rollout_header,
            length=len(body),
            request=self._request,
        )
        connection.start(self, head + body)

    def on_head(self, status: int, headers: AnswerHead) -> None:
        """Keep the status."""
        self._status = status
        self._sse = headers.content_type.startswith(b"text/event-stream")

    def on_data(self, data: bytes) -> None:
        """Keep the answer, within the limit."""
        self._size += len(data)
        if self._size <= self._gateway.limits.capture_bytes:
            self._pieces.append(data)

    def on_done(self) -> None:
        """Record the answer."""
        raw = b"".join(self._pieces)
        heard = hear_stream(raw) if self._sse else hear_body(raw)
        if self._status >= 400:
            self._record("error", heard.error or f"http_{self._status}", heard)
        elif heard.error or heard.broken:
            self._record("error", heard.error or "malformed_answer", heard)
        else:
            self._record("ok", None, heard)

    def on_failure(self, failure: Failure) -> None:
        """Record the failure; nobody else needs to know."""
        self._connecting = None
        self._record("error", f"upstream_{failure.kind}")

    def _record(self, status: Status, error_type: str | None, heard: Heard | None = None) -> None:
        if self._over:
            return
        self._over = True
        heard = heard or Heard()
        original, release = self._original, self._lane.release
        span = Span(
            trace_id=original.trace_id,
            span_id=self._identity.span_id,
            parent_span_id=original.span_id,
            project=original.project,
            tenant=original.tenant,
            name=original.name,
            operation=original.operation,
            started_at_ns=self._started_ns,
            ended_at_ns=time_ns(),
            status=status,
            error_type=error_type,
            http_status=self._status or None,
            endpoint=original.endpoint,
            release=release.release,
            assigned_release=release.release,
            arm=Arm.SHADOW.value,
            session_id=original.session_id,
            user_key=original.user_key,
            provider=original.provider,
            request_model=original.request_model,
            response_model=heard.model,
            input_tokens=heard.input_tokens,
            output_tokens=heard.output_tokens,
            cost_usd=cost_usd(self._lane, heard),
            finish_reasons=heard.finish_reasons,
            rollout=original.rollout,
            attributes={"shadow_of": original.span_id},
            references=(*heard.references, self._lane.reference),
        )
        self._gateway.journal.add(span.tenant, (span, Content(self._input, heard.text)), lambda _: None)
        duration_s = (span.ended_at_ns - span.started_at_ns) / 1e9
        self._gateway.metrics.request(original.endpoint or "", Arm.SHADOW.value, self._status, status, duration_s)
        self._queue.ended(self)
