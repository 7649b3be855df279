"""OTLP in protobuf. A whole message is parsed at once; a broken one is taken apart by hand, down to its records."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from tidemill.telemetry.otlp.wire import (
    MOST_ATTRIBUTES,
    Attributes,
    Group,
    RawEvent,
    RawLink,
    RawLog,
    RawPoint,
    RawSpan,
    Signal,
    unreadable,
)

_REQUESTS: Final[dict[Signal, tuple[Any, Any]]] = {
    "traces": (ExportTraceServiceRequest, WireSpan),
    "logs": (ExportLogsServiceRequest, LogRecord),
    "metrics": (ExportMetricsServiceRequest, Metric),
}
_RESOURCES: Final[dict[Signal, str]] = {"traces": "spans", "logs": "logs", "metrics": "metrics"}
_LENGTH_DELIMITED: Final = 2
_DELTA: Final = 1


def read_protobuf(signal: Signal, body: bytes, *, bare: bool = False) -> list[Group]:
    """See ``read_groups``."""
    request_type = _REQUESTS[signal][0]
    try:
        request = request_type.FromString(body)
    except DecodeError as error:
        groups = _salvaged(signal, body)
        if not any(group.spans or group.logs or group.points for group in groups):
            raise unreadable(signal, "protobuf", error) from error
        return groups
    if signal == "traces":
        read = _bare_span if bare else _span
        return [
            Group(_attributes(one.resource.attributes), _scope(part.scope), spans=[read(span) for span in part.spans])
            for one in request.resource_spans
            for part in one.scope_spans
        ]
    if signal == "logs":
        return [
            Group(
                _attributes(one.resource.attributes), _scope(part.scope), logs=[_log(log) for log in part.log_records]
            )
            for one in request.resource_logs
            for part in one.scope_logs
        ]
    return [
        Group(
            _attributes(one.resource.attributes),
            _scope(part.scope),
            points=[point for metric in part.metrics for point in _points(metric)],
        )
        for one in request.resource_metrics
        for part in one.scope_metrics
    ]


def split_protobuf(signal: Signal, body: bytes, keep: Callable[[Any], bool]) -> bytes:
    """See ``wire.split``."""
    request = _REQUESTS[signal][0].FromString(body)
    resources = getattr(request, f"resource_{_RESOURCES[signal]}")
    kept = [one for one in resources if keep(_attributes(one.resource.attributes).get("service.name"))]
    left = _REQUESTS[signal][0]()
    getattr(left, f"resource_{_RESOURCES[signal]}").extend(kept)
    return bytes(left.SerializeToString())


def _salvaged(signal: Signal, body: bytes) -> list[Group]:
    """What is whole of a broken request."""
    record_type = _REQUESTS[signal][1]
    groups: list[Group] = []
    for _, one in _fields(body, {1}):
        resource: Attributes = {}
        for number, part in _fields(one, {1, 2}):
            if number == 1:
                found = _parsed(Resource, part)
                resource = _attributes(found.attributes) if found is not None else {}
                continue
            group = Group(resource, {})
            groups.append(group)
            for place, record in _fields(part, {1, 2}):
                if place == 1:
                    scope = _parsed(InstrumentationScope, record)
                    group.scope = _scope(scope) if scope is not None else {}
                    continue
                found = _parsed(record_type, record)
                if found is None:
                    group.broken.append(f"{len(record)} bytes are no {record_type.DESCRIPTOR.name}")
                else:
                    _keep(group, signal, found)
    return groups


def _keep(group: Group, signal: Signal, record: Any) -> None:
    if signal == "traces":
        group.spans.append(_span(record))
    elif signal == "logs":
        group.logs.append(_log(record))
    else:
        group.points.extend(_points(record))


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def _fields(data: bytes, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message, as far as its framing is whole."""
    at, size = 0, len(data)
    while at < size:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
            if at < 0 or at + length > size:
                return
            if tag >> 3 in wanted:
                yield tag >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return
        if at < 0:
            return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and the place behind it; the place is -1 where there is no whole one."""
    value = shift = 0
    while 0 <= at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, -1


def _span(span: Any) -> RawSpan:
    attributes = span.attributes
    dropped = span.dropped_attributes_count + span.dropped_events_count + span.dropped_links_count
    events, links = span.events, span.links
    for many in (attributes, events, links):
        dropped += max(0, len(many) - MOST_ATTRIBUTES)
    status = span.status
    return RawSpan(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _attributes(attributes),
        [RawEvent(one.time_unix_nano, one.name, _attributes(one.attributes)) for one in events[:MOST_ATTRIBUTES]]
        if events
        else (),
        [RawLink(one.trace_id.hex(), one.span_id.hex(), _attributes(one.attributes)) for one in links[:MOST_ATTRIBUTES]]
        if links
        else (),
        status.code,
        status.message,
        dropped,
    )


def _bare_span(span: Any) -> RawSpan:
    return RawSpan(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        "",
        0,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {},
    )


def _log(log: Any) -> RawLog:
    return RawLog(
        log.trace_id.hex(),
        log.span_id.hex(),
        log.time_unix_nano or log.observed_time_unix_nano,
        log.severity_number,
        log.event_name,
        _value(log.body),
        _attributes(log.attributes),
        log.dropped_attributes_count + max(0, len(log.attributes) - MOST_ATTRIBUTES),
    )


def _points(metric: Any) -> Iterator[RawPoint]:
    which = metric.WhichOneof("data")
    if which is None:
        return
    data = getattr(metric, which)
    delta = getattr(data, "aggregation_temporality", 0) == _DELTA
    for point in data.data_points:
        count = total = value = None
        if which in ("histogram", "exponential_histogram", "summary"):
            count, total = point.count, _finite(point.sum)
        else:
            number = point.WhichOneof("value")
            measured = _finite(float(getattr(point, number))) if number is not None else None
            total, value = (measured, None) if which == "sum" else (None, measured)
        yield RawPoint(
            metric.name, metric.unit, point.time_unix_nano, delta, _attributes(point.attributes), count, total, value
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _scope(scope: Any) -> Attributes:
    found = _attributes(scope.attributes)
    if scope.name:
        found["name"] = scope.name
    if scope.version:
        found["version"] = scope.version
    return found


def _attributes(pairs: Any) -> Attributes:
    if len(pairs) > MOST_ATTRIBUTES:
        pairs = pairs[:MOST_ATTRIBUTES]
    # Most values are texts; asking which of seven a value is costs as much as all the rest.
    return {pair.key: pair.value.string_value or _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    return _READERS[which](getattr(value, which)) if which in _READERS else None


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else ("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")


def _list(value: Any) -> list[Any]:
    return [one.string_value or _value(one) for one in value.values]


def _plain(value: Any) -> Any:
    return value


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "string_value": _plain,
    "bool_value": _plain,
    "int_value": _plain,
    "double_value": _number,
    "bytes_value": _encoded,
    "array_value": _list,
    "kvlist_value": lambda value: _attributes(value.values),
}
