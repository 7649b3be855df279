"""Copies of answered requests for a release that answers nobody yet.

A copy is offered after the client's answer is recorded, waits in a bounded queue and never delays anyone: what does not
fit is dropped and counted. Its span joins the trace of the request it copies.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING

from tidemill.gateway.attempts import Attempt
from tidemill.gateway.calls import message
from tidemill.gateway.failures import Failed
from tidemill.gateway.operations import COUNT_TOKENS, Operation
from tidemill.gateway.payloads import Heard, read_request, rewritten
from tidemill.gateway.recording import Capture, priced, usage_heard
from tidemill.gateway.snapshots import Junction, Lane
from tidemill.gateway.tracing import Identity
from tidemill.kernel import Arm
from tidemill.telemetry.records import AttributeValue, Content, Intent, Span, Status

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.front import Request


_log = logging.getLogger(__name__)


class ShadowQueue:
    """Sends copies, a few at a time.

    Args:
        gateway: the worker's parts.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._waiting: deque[_Copy] = deque()
        self._in_flight: set[_Copy] = set()
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether no copy waits or runs."""
        return not self._waiting and not self._in_flight

    def offer(self, junction: Junction, operation: Operation, request: Request, body: bytes, original: Span) -> None:
        """Queue a copy of an answered request, or drop and count it."""
        lane = junction.shadow
        if lane is None or operation is COUNT_TOKENS:  # a count says nothing that could be compared
            return
        if self._closed or len(self._waiting) >= self.gateway.limits.shadow_queue:
            self.gateway.metrics.event("shadow_dropped")
            return
        self._waiting.append(_Copy(self, lane, junction, operation, request, body, original))
        # After the present callback, which still has the client's last byte to write.
        asyncio.get_running_loop().call_soon(self._pump)

    def close(self) -> None:
        """Drop what waits and give up what runs."""
        self._closed = True
        for _ in self._waiting:
            self.gateway.metrics.event("shadow_dropped")
        self._waiting.clear()
        for copy in tuple(self._in_flight):
            copy.give_up()

    def _pump(self) -> None:
        while self._waiting and len(self._in_flight) < self.gateway.limits.shadow_concurrency:
            copy = self._waiting.popleft()
            self._in_flight.add(copy)
            copy.start()

    def ended(self, copy: _Copy) -> None:
        """A copy is through."""
        self._in_flight.discard(copy)
        if not self._closed:
            self._pump()


class _Copy:
    """One copy under way: a caller of one attempt, with intent and finished record of its own."""

    def __init__(
        self,
        queue: ShadowQueue,
        lane: Lane,
        junction: Junction,
        operation: Operation,
        request: Request,
        body: bytes,
        original: Span,
    ) -> None:
        self.operation = operation
        self.streamed = False
        self._queue = queue
        self._gateway = queue.gateway
        self._lane = lane
        self._junction = junction
        self._request = request
        self._original = original
        self._asked = read_request(body)
        # A whole answer is asked for even if the original was a stream.
        self._body = rewritten(body, drop_stream=True) if not operation.form else body
        self._identity = Identity(original.trace_id, self._gateway.ids.span_id(), original.span_id, "01")
        self._attempt: Attempt | None = None
        self._capture: Capture | None = None
        self._started_ns = 0
        self._over = False

    def start(self) -> None:
        """Write the intent and call the shadow target."""
        original, release = self._original, self._lane.release
        self._started_ns = time_ns()
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
        self._gateway.journal.add(original.tenant, intent, self._intended, self)

    def _intended(self, written: bool) -> None:
        gateway = self._gateway
        if self._over:
            return
        if not written:
            gateway.metrics.event("shadow_dropped")
            self._over = True
            self._queue.ended(self)
            return
        most = gateway.limits.capture_bytes
        self._attempt = Attempt(self, self._lane, gateway.pool, self._junction.waits, most)
        self._attempt.start()

    def give_up(self) -> None:
        """End without an answer (the worker stops)."""
        if self._attempt is not None:
            self._attempt.give_up()
        self._record("cancelled", "worker_stopped")

    # -- caller of the attempt --------------------------------------------------------------------------------

    def message(self, lane: Lane) -> tuple[bytes, bytes]:
        """The copy, as the shadow target wants it."""
        left_ms = int(self._junction.total_s * 1000)
        lines = f"x-tidemill-session: {self._original.session_id or ''}\r\nx-tidemill-deadline-ms: {left_ms}"
        rollout_header = self._junction.rollout_header
        return message(lane, self.operation, self._request, self._identity, self._body, lines, rollout_header)

    def pivot_body(self) -> bytes:
        """The copy in the pivot's format."""
        return self._body

    def opened(self, attempt: Attempt) -> None:  # noqa: ARG002 - the caller's interface
        """It answers with a stream, or at great length: keep what fits."""
        self._capture = Capture(self._gateway.limits.capture_bytes)

    def events(self, attempt: Attempt, data: bytes) -> None:
        """Keep the events."""
        self.piece(attempt, data)

    def piece(self, attempt: Attempt, data: bytes) -> None:  # noqa: ARG002 - the caller's interface
        """Keep the bytes."""
        if self._capture is not None:
            self._capture.add(data)

    def ended(self, attempt: Attempt) -> None:
        """Record the answer."""
        assert self._capture is not None
        self._record("ok", None, self._capture.hear_events() if attempt.sse else Heard(finished=True))

    def answered(self, attempt: Attempt, body: bytes, heard: Heard) -> None:  # noqa: ARG002 - the caller's interface
        """Record the answer."""
        self._record("ok", None, heard)

    def failed(self, attempt: Attempt, failed: Failed) -> None:  # noqa: ARG002 - the caller's interface
        """Record the failure; nobody else needs to know, and a copy is not worth a retry."""
        self._record("error", failed.error_type)

    def faulted(self, error: Exception) -> None:  # noqa: ARG002 - the caller's interface
        """Give the copy up: nobody waits for it but the queue."""
        if self._over:
            return
        try:
            self._record("error", "gateway_fault")
        except Exception:  # noqa: BLE001 - the next copy must have its turn
            _log.exception("a copy could not be recorded")
            self._queue.ended(self)

    def _record(self, status: Status, error_type: str | None, heard: Heard | None = None) -> None:
        if self._over:
            return
        self._over = True
        usage = usage_heard(self.operation, self._asked, heard) if heard is not None else None
        heard = heard or Heard()
        original, lane = self._original, self._lane
        http_status = self._attempt.status if self._attempt is not None else 0
        attributes: dict[str, AttributeValue] = {"shadow_of": original.span_id}
        if usage is not None:
            attributes.update(usage.attributes())
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
            http_status=http_status or None,
            endpoint=original.endpoint,
            release=lane.release.release,
            assigned_release=lane.release.release,
            arm=Arm.SHADOW.value,
            session_id=original.session_id,
            user_key=original.user_key,
            provider=lane.provider,
            request_model=original.request_model,
            response_model=heard.model,
            input_tokens=usage.input_tokens if usage is not None else None,
            output_tokens=usage.output_tokens if usage is not None else None,
            cost_usd=priced(usage, lane),
            finish_reasons=heard.finish_reasons,
            rollout=original.rollout,
            attributes=attributes,
            references=(*heard.references, lane.reference),
        )
        content = Content(self._asked.input_text(), heard.text)
        self._gateway.journal.add(span.tenant, (span, content), lambda _: None)
        duration_s = (span.ended_at_ns - span.started_at_ns) / 1e9
        self._gateway.metrics.request(original.endpoint or "", Arm.SHADOW.value, http_status, status, duration_s)
        self._queue.ended(self)
