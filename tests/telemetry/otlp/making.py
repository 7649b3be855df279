"""OTLP requests for tests, written as plain values and encoded either way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from tidemill.telemetry.masking import Mask
from tidemill.telemetry.otlp import CapturePolicy, Decoder, Keys, PriceOf, SpanMapper
from tidemill.telemetry.otlp.decoding import Decoded, survey

NOW_NS = 1_795_000_000 * 10**9
KEYS = Keys(user=b"u" * 32, content=b"c" * 32)


def any_value(value: Any) -> AnyValue:
    if value is None:
        return AnyValue()
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, Mapping):
        return AnyValue(kvlist_value=KeyValueList(values=pairs(value)))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return AnyValue(array_value=ArrayValue(values=[any_value(one) for one in value]))
    return AnyValue(string_value=value)


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def wire_span(
    number: int = 1,
    attributes: Mapping[str, Any] | None = None,
    *,
    events: Sequence[tuple[str, Mapping[str, Any]]] = (),
    **changes: Any,
) -> WireSpan:
    fields: dict[str, Any] = {
        "trace_id": number.to_bytes(16, "big"),
        "span_id": number.to_bytes(8, "big"),
        "name": "chat gpt-4o-mini",
        "start_time_unix_nano": NOW_NS,
        "end_time_unix_nano": NOW_NS + 10**9,
    }
    span = WireSpan(**(fields | changes), attributes=pairs(attributes or {}))
    for place, (name, given) in enumerate(events):
        span.events.add(name=name, time_unix_nano=NOW_NS + place, attributes=pairs(given))
    return span


def traces(*spans: WireSpan, service: str | None = "shop", **resource: Any) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    if service is not None:
        resource = {"service.name": service, **resource}
    group.resource.attributes.extend(pairs(resource))
    group.scope_spans.add(spans=spans).scope.name = "tests"
    return request


def logs(*records: Mapping[str, Any], service: str = "shop") -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    group = request.resource_logs.add()
    group.resource.attributes.extend(pairs({"service.name": service}))
    scope = group.scope_logs.add()
    for place, record in enumerate(records):
        number = record.get("number", 1)
        scope.log_records.add(
            trace_id=number.to_bytes(16, "big") if number else b"",
            span_id=number.to_bytes(8, "big") if number else b"",
            time_unix_nano=NOW_NS + place,
            severity_number=record.get("severity", 0),
            event_name=record.get("event", ""),
            body=any_value(record.get("body")),
            attributes=pairs(record.get("attributes", {})),
        )
    return request


def metrics(
    name: str, attributes: Mapping[str, Any] | None = None, *, total: float, count: int, delta: bool = False
) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name=name, unit="{token}")
    metric.histogram.aggregation_temporality = 1 if delta else 2
    metric.histogram.data_points.add(time_unix_nano=NOW_NS, sum=total, count=count, attributes=pairs(attributes or {}))
    return request


def as_json(request: Any) -> bytes:
    """The request as OTLP writes it in JSON: protobuf's mapping, but for ids, which are hexadecimal."""
    import base64

    def hexed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: hexed(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [hexed(one) for one in value]
        if key in ("traceId", "spanId", "parentSpanId"):
            return base64.b64decode(value).hex()
        return value

    return json.dumps(hexed(MessageToDict(request, use_integers_for_enums=True))).encode()


def mapper(
    *,
    policy: CapturePolicy | None = None,
    mask: Mask = str,
    price_of: PriceOf | None = None,
    **more: Any,
) -> SpanMapper:
    return SpanMapper(
        "shop", "default", keys=KEYS, policy=policy or CapturePolicy(), mask=mask, price_of=price_of, **more
    )


def decoded(request: Any, *, signal: Any = "traces", using: SpanMapper | None = None) -> Decoded:
    found = survey(signal, "protobuf", request.SerializeToString(), NOW_NS)
    return Decoder(using or mapper(), bytes_most=1 << 26).decode_survey(found, NOW_NS)
