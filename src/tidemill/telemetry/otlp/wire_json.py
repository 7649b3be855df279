"""OTLP in JSON: protobuf's JSON mapping with ids in hexadecimal. Field names in snake case are understood too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

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

_FIELDS: Final[dict[Signal, tuple[str, str, str]]] = {
    "traces": ("resourceSpans", "scopeSpans", "spans"),
    "logs": ("resourceLogs", "scopeLogs", "logRecords"),
    "metrics": ("resourceMetrics", "scopeMetrics", "metrics"),
}
_DELTA: Final = (1, "AGGREGATION_TEMPORALITY_DELTA")
_ERROR: Final = ("STATUS_CODE_ERROR", 2)
_DEEPEST: Final = 90
_UNSIGNED_MOST: Final = 2**64 - 1


def read_json(signal: Signal, body: bytes) -> list[Group]:
    """See ``read_groups``."""
    outer, middle, inner = _FIELDS[signal]
    try:
        request = msgspec.json.decode(body)
        resources = _objects(request, outer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise unreadable(signal, "json", error) from error
    groups: list[Group] = []
    for one in resources:
        resource, parts = _header(one, "resource", middle)
        for part in parts:
            group = Group(resource, {})
            groups.append(group)
            group.scope, records = _header(part, "scope", inner)
            for record in records:
                try:
                    _keep(group, signal, record)
                except (ValueError, TypeError, RecursionError, OverflowError) as error:
                    group.broken.append(f"a record cannot be read: {error}")
    return groups


def split_json(signal: Signal, body: bytes, keep: Callable[[Any], bool]) -> bytes:
    """See ``wire.split``."""
    outer, middle, _ = _FIELDS[signal]
    kept = [one for one in _objects(msgspec.json.decode(body), outer) if keep(_service(one, middle))]
    return msgspec.json.encode({outer: kept})


def _service(one: Any, middle: str) -> Any:
    return _header(one, "resource", middle)[0].get("service.name")


def _header(one: Any, name: str, inner: str) -> tuple[Attributes, list[Any]]:
    """The attributes of a resource or scope, and what it holds; nothing of what cannot be read."""
    try:
        about = _get(one, name) or {}
        found = _attributes(_get(about, "attributes"))
        for key in ("name", "version") if name == "scope" else ():
            if _get(about, key):
                found[key] = _text(_get(about, key))
        return found, _objects(one, inner)
    except (ValueError, TypeError, RecursionError):
        return {}, []


def _keep(group: Group, signal: Signal, record: Any) -> None:
    if not isinstance(record, dict):
        raise TypeError("it is no JSON object")
    if signal == "traces":
        group.spans.append(_span(record))
    elif signal == "logs":
        group.logs.append(_log(record))
    else:
        group.points.extend(_points(record))


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)


def _get(one: Any, name: str) -> Any:
    if not isinstance(one, dict):
        raise TypeError("it is no JSON object")
    value = one.get(name)
    return one.get(_snake(name)) if value is None else value


def _objects(one: Any, name: str) -> list[Any]:
    value = _get(one, name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise TypeError(f"{name} is no list")
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("a text is no text")
    return value


def _id(value: Any) -> str:
    return bytes.fromhex(_text(value)).hex()


def _unsigned(value: Any) -> int:
    number = int(value or 0)
    if not 0 <= number <= _UNSIGNED_MOST:
        raise ValueError("a number is out of range")
    return number


def _span(span: dict[str, Any]) -> RawSpan:
    attributes, events, links = (_objects(span, name) for name in ("attributes", "events", "links"))
    dropped = sum(_unsigned(_get(span, f"dropped{name}Count")) for name in ("Attributes", "Events", "Links"))
    for many in (attributes, events, links):
        dropped += max(0, len(many) - MOST_ATTRIBUTES)
    status = _get(span, "status") or {}
    code = _get(status, "code")
    kind = _get(span, "kind") or 0
    return RawSpan(
        _id(_get(span, "traceId")),
        _id(_get(span, "spanId")),
        _id(_get(span, "parentSpanId")),
        _text(_get(span, "name")),
        kind if isinstance(kind, int) else 0,
        _unsigned(_get(span, "startTimeUnixNano")),
        _unsigned(_get(span, "endTimeUnixNano")),
        _attributes(attributes),
        [
            RawEvent(
                _unsigned(_get(one, "timeUnixNano")), _text(_get(one, "name")), _attributes(_get(one, "attributes"))
            )
            for one in events[:MOST_ATTRIBUTES]
        ]
        or (),
        [
            RawLink(_id(_get(one, "traceId")), _id(_get(one, "spanId")), _attributes(_get(one, "attributes")))
            for one in links[:MOST_ATTRIBUTES]
        ]
        or (),
        2 if code in _ERROR else 1 if code in (1, "STATUS_CODE_OK") else 0,
        _text(_get(status, "message")),
        dropped,
    )


def _log(log: dict[str, Any]) -> RawLog:
    attributes = _objects(log, "attributes")
    severity = _get(log, "severityNumber") or 0
    return RawLog(
        _id(_get(log, "traceId")),
        _id(_get(log, "spanId")),
        _unsigned(_get(log, "timeUnixNano")) or _unsigned(_get(log, "observedTimeUnixNano")),
        severity if isinstance(severity, int) else 0,
        _text(_get(log, "eventName")),
        _value(_get(log, "body"), 0),
        _attributes(attributes),
        _unsigned(_get(log, "droppedAttributesCount")) + max(0, len(attributes) - MOST_ATTRIBUTES),
    )


def _points(metric: dict[str, Any]) -> Iterator[RawPoint]:
    for which in ("gauge", "sum", "histogram", "exponentialHistogram", "summary"):
        data = _get(metric, which)
        if data is None:
            continue
        delta = _get(data, "aggregationTemporality") in _DELTA
        for point in _objects(data, "dataPoints"):
            count = total = value = None
            if which in ("gauge", "sum"):
                given = _get(point, "asDouble")
                given = _get(point, "asInt") if given is None else given
                measured = _finite(given) if given is not None else None
                total, value = (measured, None) if which == "sum" else (None, measured)
            else:
                count, total = _unsigned(_get(point, "count")), _finite(_get(point, "sum") or 0)
            yield RawPoint(
                _text(_get(metric, "name")),
                _text(_get(metric, "unit")),
                _unsigned(_get(point, "timeUnixNano")),
                delta,
                _attributes(_get(point, "attributes")),
                count,
                total,
                value,
            )


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _attributes(pairs: Any, depth: int = 0) -> Attributes:
    if pairs is None:
        return {}
    if not isinstance(pairs, list):
        raise TypeError("attributes are no list")
    return {_text(_get(pair, "key")): _value(_get(pair, "value"), depth) for pair in pairs[:MOST_ATTRIBUTES]}


def _value(value: Any, depth: int) -> Any:
    """The plain value of an ``AnyValue``; protobuf too reads no deeper."""
    if depth > _DEEPEST:
        raise ValueError("values are nested too deep")
    if value is None:
        return None
    for name, read in _READERS.items():
        given = _get(value, name)
        if given is not None:
            return read(given, depth + 1)
    return None


def _flag(value: Any, _: int) -> bool:
    if not isinstance(value, bool):
        raise TypeError("a flag is no flag")
    return value


def _whole(value: Any, _: int) -> int:
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError("a number is out of range")
    return number


def _real(value: Any, _: int) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


_READERS: Final[dict[str, Callable[[Any, int], Any]]] = {
    "stringValue": lambda value, _: _text(value),
    "boolValue": _flag,
    "intValue": _whole,
    "doubleValue": _real,
    "arrayValue": lambda value, depth: [_value(one, depth) for one in _objects(value, "values")],
    "kvlistValue": lambda value, depth: _attributes(_get(value, "values"), depth),
    "bytesValue": lambda value, _: _text(value),
}
