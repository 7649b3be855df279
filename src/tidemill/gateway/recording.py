"""What is written about a request: its intent, its span, and the spans of attempts that came to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.gateway.payloads import Heard, hear_stream
from tidemill.gateway.usage import Usage, cost_usd, counted_usage, usage_of
from tidemill.telemetry.records import AttributeValue, Span, Status

if TYPE_CHECKING:
    from tidemill.gateway.attempts import Attempt
    from tidemill.gateway.failures import Failed
    from tidemill.gateway.operations import Operation
    from tidemill.gateway.payloads import Asked
    from tidemill.gateway.snapshots import Lane

_TAIL_BYTES: Final = 16 * 1024
ATTEMPT: Final = "attempt"
"""The operation of spans that stand for one attempt of a request, so that nobody counts them as requests."""


class Capture:
    """What an answer that is passed on says, kept for the record within bounds.

    Args:
        most_bytes: of the answer; of what is longer the end is kept too, where usage and finish reason stand.
    """

    __slots__ = ("_most_bytes", "_pieces", "_size", "_tail")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._tail = b""

    def add(self, data: bytes) -> None:
        """Keep a piece."""
        if self._size < self._most_bytes:
            self._pieces.append(data)
            self._size += len(data)
        else:
            self._tail = (self._tail + data)[-_TAIL_BYTES:]

    @property
    def cut(self) -> bool:
        """Whether something is missing."""
        return bool(self._tail)

    @property
    def raw(self) -> bytes:
        """What was kept, without the tail."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def hear_events(self) -> Heard:
        """Read the events of a stream."""
        if not self._tail:
            return hear_stream(self.raw)
        # The cut falls inside an event; the line reader steps over what it cannot read.
        heard = hear_stream(self.raw + b"\n\n" + self._tail)
        heard.broken = False
        return heard


def usage_heard(operation: Operation, asked: Asked, heard: Heard, *, images: int = 0) -> Usage | None:
    """The usage of a call that was answered, at least in part; ``None`` where it is not in tokens and none was told."""
    if heard.usage is not None and (heard.usage.prompt_tokens is not None or heard.usage.completion_tokens is not None):
        return usage_of(heard.usage, images=images)
    if not operation.counted:
        return None
    return counted_usage(asked.input_text(), heard.text, images=images)


def priced(usage: Usage | None, lane: Lane) -> float | None:
    """What a usage costs at a target's prices."""
    return None if usage is None else cost_usd(usage, lane.target.prices)


def attempt_span(
    parent: Span,
    attempt: Attempt,
    span_id: str,
    *,
    failed: Failed | None,
    usage: Usage | None,
    ended_ns: int,
) -> Span:
    """The span of an attempt beside the one that answered.

    Args:
        parent: ids and names of the request.
        attempt: it.
        span_id: of the new span.
        failed: why it came to nothing; ``None`` means that it was given up.
        usage: what it may have cost, counted here.
        ended_ns: when it ended.
    """
    lane = attempt.lane
    status: Status = "cancelled" if failed is None else "error"
    attributes: dict[str, AttributeValue] = {"tidemill.target": lane.name}
    if usage is not None:
        attributes.update(usage.attributes())
    return Span(
        trace_id=parent.trace_id,
        span_id=span_id,
        parent_span_id=parent.span_id,
        project=parent.project,
        tenant=parent.tenant,
        name=f"{parent.operation} {lane.name}",
        operation=ATTEMPT,
        started_at_ns=attempt.started_ns,
        ended_at_ns=ended_ns,
        status=status,
        error_type="hedge_lost" if failed is None else failed.error_type,
        http_status=attempt.status or None,
        endpoint=parent.endpoint,
        release=lane.release.release,
        provider=lane.provider,
        request_model=lane.target.model or parent.request_model,
        input_tokens=usage.input_tokens if usage is not None else None,
        output_tokens=usage.output_tokens if usage is not None else None,
        cost_usd=priced(usage, lane),
        stream=attempt.sse,
        attributes=attributes,
    )
