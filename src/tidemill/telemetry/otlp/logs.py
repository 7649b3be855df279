"""Log records: messages and evaluations that belong to a span, and events of requests that have none.

A record with a trace and span id becomes part of what is known of that span, whenever the span comes. A GenAI event
outside a trace becomes a trace of its own; any other record outside a trace is refused (``refusal.log_refusal``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from tidemill.telemetry.otlp.content import Said, read_content
from tidemill.telemetry.otlp.events import Told, read_events
from tidemill.telemetry.otlp.mapping import Mapped, SpanMapper
from tidemill.telemetry.otlp.messages import answer_of, json_text
from tidemill.telemetry.otlp.refusal import event_name
from tidemill.telemetry.otlp.wire import Group, RawEvent, RawLog, RawSpan


def add_logs(mapper: SpanMapper, group: Group, logs: Iterable[RawLog], into: Mapped) -> None:
    """Map log records of a group: all records of one span together.

    Args:
        mapper: maps what stands for a span.
        group: where they came from.
        logs: the ones that were not refused.
        into: takes what they become; ``late`` what belongs to spans.
    """
    origin = mapper.origin(group)
    by_span: dict[tuple[str, str], list[RawEvent]] = {}
    alone: list[RawSpan] = []
    for log in logs:
        if log.trace_id:
            by_span.setdefault((log.trace_id, log.span_id), []).append(_event(log))
        else:
            alone.append(_span(log))
    for (trace_id, span_id), events in by_span.items():
        told = read_events(mapper.table, events)
        said = _said(mapper, told)
        detail: dict[str, Any] = {"events": told.kept} if told.kept else {}
        names = tuple(told.attributes)
        mask = mapper.mask_for([json_text([one._asdict() for one in events])], names)
        content = mapper.content(said, detail, origin.capture, mask)
        if content is not None:
            into.late.append(((trace_id, span_id), content))
        into.scores += mapper.scores(trace_id, span_id, told.evaluations, origin.capture)
    mapper.add(group, alone, into)


def _said(mapper: SpanMapper, told: Told) -> Said:
    said = read_content(mapper.table, mapper.plan(tuple(told.attributes)), told.attributes)
    if told.asked and not said.input:
        said.input = json_text(told.asked)
    if told.answered and not said.output:
        said.output = json_text(told.answered) if len(told.answered) > 1 else answer_of(told.answered)[0]
    return said


def _event(log: RawLog) -> RawEvent:
    """A record as an event. A body that is an object holds what later conventions put among the attributes."""
    attributes = dict(log.attributes)
    if isinstance(log.body, dict):
        attributes = {**log.body, **attributes}
    elif log.body is not None:
        attributes["body"] = log.body
    if log.severity:
        attributes["severity"] = log.severity
    attributes.pop("event.name", None)
    return RawEvent(log.at_ns, event_name(log) or "log", attributes)


def _span(log: RawLog) -> RawSpan:
    """The span of an event that came without one; the same event again is the same span."""
    event = _event(log)
    said = hashlib.blake2b(json_text([event.at_ns, event.name, event.attributes]).encode(), digest_size=24).hexdigest()
    severe = log.severity >= _ERROR
    return RawSpan(said[:32], said[32:], "", event.name, 0, log.at_ns, log.at_ns, {}, (event,), (), 2 if severe else 0)


_ERROR = 17
"""OTLP's least severity of an error."""
