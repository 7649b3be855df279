"""The answers that the gateway gives by itself: refusals, kept answers, blocks, and failures of all attempts."""

from __future__ import annotations

import logging
from math import ceil
from typing import TYPE_CHECKING, Final

from tidemill.gateway.answers import Refusal, error_body
from tidemill.gateway.delivery import Client, Passing
from tidemill.gateway.failures import Failed
from tidemill.gateway.payloads import hear_body, hear_stream
from tidemill.gateway.recording import Recording
from tidemill.telemetry.records import Content

if TYPE_CHECKING:
    from tidemill.gateway.cache import CachedAnswer
    from tidemill.gateway.dialects import ClientDialect
    from tidemill.gateway.guardrails import Blocked

_log = logging.getLogger(__name__)

EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"


class Replying(Recording):
    """A request that can be answered without an upstream."""

    __slots__ = ("_dialect", "_front", "_passing", "_untraced")

    _dialect: ClientDialect | None
    _front: Client
    _passing: Passing | None
    _untraced: bool

    def refused(self, refusal: Refusal) -> None:
        """Answer with an error without a record: no upstream was asked."""
        if self._over:
            return
        self._over = self._recorded = True
        self._close()
        self._gateway.metrics.in_flight -= 1
        if self.ticket is not None:
            self.ticket.cancel()
        self._gateway.refused(refusal.status)
        headers = self._gateway.origin_header(self.request)
        if refusal.retry_after_s is not None:
            headers += b"retry-after: %d\r\n" % max(1, ceil(refusal.retry_after_s))
        self._front.answer(refusal.status, self._told(refusal.status, refusal.body()), headers=headers)

    def kept_answer(self, found: CachedAnswer) -> None:
        """Give a kept answer again, and record that."""
        self._attributes.update(found.attributes())
        self._status = 200
        streamed = found.content_type.startswith(b"text/event-stream")
        heard = hear_stream(found.body) if streamed else hear_body(found.body)
        heard.usage = None

        def deliver(_written: bool) -> None:
            body = found.body
            if self._dialect is not None:
                if streamed:
                    translator = self._dialect.stream()
                    body = translator.feed(body) + translator.finish()
                else:
                    body = self._dialect.answer(body)
            self._answer(200, body, found.header(), found.content_type)

        self._record("ok", None, deliver, heard, from_cache=True)

    def blocked(self, blocked: Blocked) -> None:
        """A guardrail stopped the request or its answer."""
        if self._over or self._recorded:
            return
        self._give_up_attempts()
        from tidemill.gateway.guardrails import OnBlock, Stage

        is_input = blocked.stage in {Stage.BEFORE, Stage.PARALLEL}
        passing = self._passing if self._passing is not None and self._passing.begun else None
        refuses = blocked.on_block is OnBlock.REFUSAL and passing is None and self.operation.name == "chat"
        self._status = self._status if passing is not None else 200 if refuses else blocked.refusal().status

        def deliver(_written: bool) -> None:
            if passing is not None and not self._over:
                self._over = True
                passing.broken_off(blocked.refusal().body())
            elif refuses:
                self._deliver_refusing(blocked)
            else:
                self._answer(self._status, self._told(self._status, blocked.refusal().body()))

        content = Content(blocked.content if is_input else self.asked.input_text(), "" if is_input else blocked.content)
        self._record("error", "guardrail_blocked", deliver, content=content)

    def _deliver_refusing(self, blocked: Blocked) -> None:
        from tidemill.gateway.cache import stream_of

        body = blocked.answer(
            model=self.asked.model, answer_id=self.identity.trace_id, created_s=self._started_ns // 1_000_000_000
        )
        kind = b"application/json"
        if self.streamed:
            body, kind = stream_of(body) or b"", EVENT_STREAM
        if self._dialect is not None:
            translator = self._dialect.stream()
            body = translator.feed(body) + translator.finish() if self.streamed else self._dialect.answer(body)
        self._answer(200, body, b"", kind)

    def _answer(self, status: int, body: bytes, lines: bytes = b"", kind: bytes = b"application/json") -> None:
        """Write a whole answer, once."""
        if self._over:
            return
        self._over = True
        self._attempt = None
        self._front.answer(status, body, headers=lines + self._trace_headers(), content_type=kind)

    def _told(self, status: int, body: bytes) -> bytes:
        """An error in the client's dialect."""
        return body if self._dialect is None else self._dialect.error(status, body)

    def _give_up(self, failed: Failed) -> None:
        """Tell the client that there is no answer."""
        _log.warning("trace %s: %s: %s", self.identity.trace_id, failed.error_type, failed.detail)
        self._status = failed.status
        self._record("error", failed.error_type, lambda _: self._deliver_failure(failed), failed=failed)

    def _deliver_failure(self, failed: Failed) -> None:
        status, body = failed.status, failed.body
        if not body:
            text = f"The model behind '{self.asked.model}' gave no complete answer. Try again, or see the trace."
            code = "upstream_timeout" if status == 504 else "upstream_failed"
            body = error_body(status, text, code)
        self._answer(status, self._told(status, body), failed.passed)

    def _trace_headers(self) -> bytes:
        headers = b"x-tidemill-trace-id: %b\r\n%b" % (self.identity.trace_id.encode(), self.lane.answer_header)
        if self._untraced or self._dialect is not None or self.request.origin is not None:
            headers += b"x-tidemill-untraced: 1\r\n" if self._untraced else b""
            if self._dialect is not None:
                headers += f"request-id: {self.identity.trace_id}\r\n".encode()
            headers += self._gateway.origin_header(self.request)
        return headers
