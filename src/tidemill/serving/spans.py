"""The spans of one answer: ids from the caller's ``traceparent``, times, artifacts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tidemill.kernel import Clock, Scope, fresh_span_id, fresh_trace_id
from tidemill.telemetry import Content, Intent, Reference, SegmentWriter, Span, Status

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


class TraceContext(NamedTuple):
    """The trace a call belongs to, and the span that made it (``None``: this call begins the trace)."""

    trace_id: str
    parent_span_id: str | None


def read_traceparent(header: str | None) -> TraceContext:
    """Read a W3C ``traceparent`` header; a missing or malformed one begins a new trace, as the standard asks."""
    match = _TRACEPARENT.fullmatch(header.strip()) if header else None
    return TraceContext(match[1], match[2]) if match else TraceContext(fresh_trace_id(), None)


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """A span that has begun."""

    span_id: str
    parent_span_id: str | None
    name: str
    operation: str
    started_at_ns: int
    started_s: float


class SpanLog:
    """Collects the spans of one answer and writes each when it ends.

    Args:
        context: the trace.
        scope: whose spans these are.
        release: digest of the release that serves.
        clock: where the time comes from.
        writer: the segment log; ``None`` keeps the spans in memory only, as evaluation does.
    """

    def __init__(
        self, context: TraceContext, *, scope: Scope, release: str, clock: Clock, writer: SegmentWriter | None
    ) -> None:
        self.context = context
        self.spans: list[Span] = []
        self._scope = scope
        self._release = release
        self._clock = clock
        self._writer = writer

    def begin(self, name: str, operation: str, *, parent: OpenSpan | None = None, announce: bool = False) -> OpenSpan:
        """Begin a span under another one, or under the caller's.

        Args:
            name: what people read.
            operation: OpenTelemetry's GenAI operation name.
            parent: the span around it; ``None`` for the outermost of this answer.
            announce: write an intent, so that the span is known even if the process dies in it.
        """
        span = OpenSpan(
            span_id=fresh_span_id(),
            parent_span_id=parent.span_id if parent else self.context.parent_span_id,
            name=name,
            operation=operation,
            started_at_ns=int(self._clock.now().timestamp() * 1e9),
            started_s=self._clock.monotonic_s(),
        )
        if announce and self._writer is not None:
            self._writer.intent(
                Intent(
                    trace_id=self.context.trace_id,
                    span_id=span.span_id,
                    parent_span_id=span.parent_span_id,
                    started_at_ns=span.started_at_ns,
                    name=name,
                    operation=operation,
                    release=self._release,
                )
            )
        return span

    def end(
        self,
        span: OpenSpan,
        *,
        status: Status = "ok",
        references: Sequence[Reference] = (),
        content: Content | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Span:
        """End a span, keep it and write it.

        Args:
            span: what ``begin`` returned.
            status: how it ended.
            references: passages and artifacts it used.
            content: what was said in it.
            fields: further fields of ``Span``.
        """
        finished = Span(
            trace_id=self.context.trace_id,
            span_id=span.span_id,
            parent_span_id=span.parent_span_id,
            project=self._scope.project,
            tenant=self._scope.tenant,
            name=span.name,
            operation=span.operation,
            started_at_ns=span.started_at_ns,
            ended_at_ns=span.started_at_ns + int((self._clock.monotonic_s() - span.started_s) * 1e9),
            status=status,
            release=self._release,
            references=tuple(references),
            **(fields or {}),
        )
        self.spans.append(finished)
        if self._writer is not None:
            self._writer.finished(finished, content)
        return finished

    def elapsed_s(self, span: OpenSpan) -> float:
        """Seconds since a span began."""
        return self._clock.monotonic_s() - span.started_s
