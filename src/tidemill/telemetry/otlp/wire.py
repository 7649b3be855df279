"""What OTLP's bytes say, as plain values: protobuf and JSON give the same, so nothing behind here knows which it was.

A message that is broken somewhere gives what is whole of it, so that one broken span costs itself and no neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from tidemill.kernel import InvalidInput

Signal = Literal["traces", "logs", "metrics"]
Encoding = Literal["protobuf", "json"]
Attributes = dict[str, Any]
"""Names to texts, numbers, flags, ``None``, lists and dicts of these; bytes as base64, numbers JSON lacks as text."""

MOST_ATTRIBUTES: Final = 1000
"""Of one record; what comes behind is counted and left out. So are events and links."""


class RawEvent(NamedTuple):
    """An event of a span; ``at_ns`` in nanoseconds since 1970."""

    at_ns: int
    name: str
    attributes: Attributes


class RawLink(NamedTuple):
    """A link of a span; ids in hexadecimal."""

    trace_id: str
    span_id: str
    attributes: Attributes


class RawSpan(NamedTuple):
    """A span as it came.

    Args:
        trace_id, span_id, parent_span_id: lower-case hexadecimal, of any length; empty where there is none.
        kind: OTLP's number.
        started_at_ns, ended_at_ns: nanoseconds since 1970; up to 2^64.
        status: OTLP's number; 2 is an error.
        dropped: attributes, events and links left out, here or by the sender.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    started_at_ns: int
    ended_at_ns: int
    attributes: Attributes
    events: Sequence[RawEvent] = ()
    links: Sequence[RawLink] = ()
    status: int = 0
    message: str = ""
    dropped: int = 0


class RawLog(NamedTuple):
    """A log record as it came; ids and times as in ``RawSpan``."""

    trace_id: str
    span_id: str
    at_ns: int
    severity: int
    event: str
    body: Any
    attributes: Attributes
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class RawPoint:
    """A data point of a metric.

    Args:
        delta: whether it counts since the point before, not since the start.
        count, total: of a histogram; of a sum ``total`` alone, of a gauge ``value`` alone.
    """

    metric: str
    unit: str
    at_ns: int
    delta: bool
    attributes: Attributes
    count: int | None = None
    total: float | None = None
    value: float | None = None


@dataclass(slots=True)
class Group:
    """What one program (resource) and one library (scope) sent.

    Args:
        resource, scope: attributes; of the scope its ``name`` and ``version`` too.
        broken: of records that could not be read, why; one text each.
    """

    resource: Attributes
    scope: Attributes
    spans: list[RawSpan] = field(default_factory=list)
    logs: list[RawLog] = field(default_factory=list)
    points: list[RawPoint] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def read_groups(signal: Signal, encoding: Encoding, body: bytes, *, bare: bool = False) -> list[Group]:
    """Read the body of an export request.

    Args:
        signal: which of OTLP's requests it is.
        encoding: how it is written.
        body: unpacked.
        bare: whether ids and times of spans are enough, for a quarter of the price.

    Returns:
        One group for each resource and scope, in order; a broken record stands in its group's ``broken``.

    Raises:
        InvalidInput: nothing of it can be read.
    """
    if encoding == "protobuf":
        from tidemill.telemetry.otlp.wire_protobuf import read_protobuf

        return read_protobuf(signal, body, bare=bare)
    from tidemill.telemetry.otlp.wire_json import read_json

    return read_json(signal, body)


def split(signal: Signal, encoding: Encoding, body: bytes, keep: Callable[[Any], bool]) -> bytes:
    """A request that ``read_groups`` has read, with only those resources whose ``service.name`` is to be kept."""
    if encoding == "protobuf":
        from tidemill.telemetry.otlp.wire_protobuf import split_protobuf

        return split_protobuf(signal, body, keep)
    from tidemill.telemetry.otlp.wire_json import split_json

    return split_json(signal, body, keep)


def unreadable(signal: Signal, encoding: Encoding, why: object) -> InvalidInput:
    """The error for a body of which nothing can be read."""
    return InvalidInput(
        f"The body is no OTLP export request for {signal} in {encoding}: {why}.",
        hint="Send ExportTraceServiceRequest, ExportLogsServiceRequest or ExportMetricsServiceRequest, with the "
        "content type application/x-protobuf or application/json.",
    )
