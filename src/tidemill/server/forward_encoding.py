"""Stored spans as OTLP: the protobuf that other collectors take at ``/v1/traces``.

Names are those of OpenTelemetry's GenAI conventions where those have one, ``tidemill.…`` otherwise. A person is a keyed
hash (``user.hash``). What was said goes along only if asked for: as ``input.value`` and ``output.value``, with the
events, links and further attributes that a span came with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as OtlpStatus

from tidemill import __version__
from tidemill.kernel import Scope
from tidemill.loop.feed import is_request
from tidemill.telemetry import FAILED_STATUSES, StoredSpan
from tidemill.telemetry.records import Content, Span

_INFERENCE: Final = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
_OWN_SERVICE: Final = "tidemill"
#: attribute -> field of a span, for plain values
_FIELDS: Final = {
    "gen_ai.operation.name": "operation",
    "gen_ai.provider.name": "provider",
    "gen_ai.request.model": "request_model",
    "gen_ai.response.model": "response_model",
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_input_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_output_tokens",
    "gen_ai.response.time_to_first_chunk": "time_to_first_chunk_s",
    "gen_ai.conversation.id": "session_id",
    "error.type": "error_type",
    "http.response.status_code": "http_status",
    "user.hash": "user_key",
    "tidemill.endpoint": "endpoint",
    "tidemill.release": "release",
    "tidemill.assigned_release": "assigned_release",
    "tidemill.arm": "arm",
    "tidemill.rollout": "rollout",
    "tidemill.prompt": "prompt",
    "tidemill.cost_usd": "cost_usd",
    "tidemill.status": "status",
}


def encode_spans(stored: Sequence[StoredSpan], scope: Scope) -> bytes:
    """An ``ExportTraceServiceRequest`` with these spans, grouped by the service that made them.

    Args:
        stored: spans, with content where it is to be sent.
        scope: whose they are.
    """
    request = ExportTraceServiceRequest()
    services: dict[str, Any] = {}
    for one in stored:
        service = one.span.service or _OWN_SERVICE
        scoped = services.get(service)
        if scoped is None:
            group = request.resource_spans.add()
            resource = {"service.name": service, "tidemill.project": scope.project, "tidemill.tenant": scope.tenant}
            group.resource.attributes.extend(_attributes(resource.items()))
            scoped = services[service] = group.scope_spans.add()
            scoped.scope.name, scoped.scope.version = "tidemill", __version__
        scoped.spans.append(_span(one.span, one.content))
    return request.SerializeToString()


def _span(span: Span, content: Content | None) -> OtlpSpan:
    found = OtlpSpan(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        name=span.name,
        kind=_kind(span),
        start_time_unix_nano=max(0, span.started_at_ns),
        end_time_unix_nano=max(0, span.ended_at_ns),
    )
    if span.parent_span_id:
        found.parent_span_id = bytes.fromhex(span.parent_span_id)
    if span.status in FAILED_STATUSES:
        found.status.code = OtlpStatus.STATUS_CODE_ERROR
        found.status.message = span.error_type or span.status
    named = dict(_named(span))
    if content is not None:
        _add_content(found, named, content)
    found.attributes.extend(_attributes(named.items()))
    return found


def _add_content(found: OtlpSpan, named: dict[str, Any], content: Content) -> None:
    """What was said, and what a span came with that has no column."""
    if content.input:
        named["input.value"] = content.input
    if content.output:
        named["output.value"] = content.output
    try:
        detail = json.loads(content.detail or "{}")
    except ValueError:  # cut where it was too long
        return
    for name, value in (detail.get("attributes") or {}).items():
        named.setdefault(name, value)
    for event in detail.get("events") or ():
        one = found.events.add(name=str(event.get("name", "")), time_unix_nano=max(0, int(event.get("at_ns") or 0)))
        one.attributes.extend(_attributes((event.get("attributes") or {}).items()))
    for link in detail.get("links") or ():
        other = found.links.add(trace_id=bytes.fromhex(link["trace_id"]), span_id=bytes.fromhex(link["span_id"]))
        other.attributes.extend(_attributes((link.get("attributes") or {}).items()))


def _kind(span: Span) -> OtlpSpan.SpanKind.ValueType:
    if span.service is None and is_request(span):
        return OtlpSpan.SPAN_KIND_SERVER
    return OtlpSpan.SPAN_KIND_CLIENT if span.operation in _INFERENCE else OtlpSpan.SPAN_KIND_INTERNAL


def _named(span: Span) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in span.attributes.items() if name not in _FIELDS)
    for name, field in _FIELDS.items():
        value = getattr(span, field)
        if value is not None:
            yield name, value
    if span.finish_reasons:
        yield "gen_ai.response.finish_reasons", list(span.finish_reasons)
    if span.stream:
        yield "gen_ai.request.stream", True


def _attributes(named: Iterable[tuple[str, Any]]) -> Iterator[KeyValue]:
    for name, value in named:
        yield KeyValue(key=name, value=_value(value))


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):  # before int: a bool is one
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value) if abs(value) < 1 << 63 else AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, dict):
        return AnyValue(kvlist_value=KeyValueList(values=_attributes(value.items())))
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[_value(one) for one in value]))
    return AnyValue(string_value=str(value))
