"""Which spans are refused, and why: the same before the acknowledgement, to tell the sender, and when it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidemill.telemetry.otlp.wire import RawLog, RawSpan

_DAY_NS: Final = 86_400 * 1_000_000_000
AHEAD_MOST_NS: Final = _DAY_NS
"""A clock that is further ahead is wrong."""
BEHIND_MOST_NS: Final = 366 * _DAY_NS
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16

REASONS: Final = {
    "invalid_trace_id": "a trace id has 16 bytes, not all zero",
    "invalid_span_id": "a span id has 8 bytes, not all zero",
    "invalid_parent_id": "a parent's id has 8 bytes",
    "not_ended": "a span has a start and an end",
    "negative_duration": "a span ends after its start",
    "from_the_future": "a start or end is more than a day ahead of this server's clock",
    "too_old": "a start is more than 366 days behind this server's clock",
    "parent_loop": "a span is its own ancestor",
    "unreadable": "a record cannot be decoded",
    "no_span_context": "a log record outside a trace says nothing of a request",
}
"""What is told of a refusal; the keys are the classes that are counted."""


def refusals(spans: Sequence[RawSpan], received_ns: int) -> dict[int, str]:
    """The spans that are refused: place in the sequence to one of ``REASONS``.

    Args:
        spans: of one group or request; only loops among these are seen.
        received_ns: when they came, nanoseconds since 1970.
    """
    latest, earliest = received_ns + AHEAD_MOST_NS, received_ns - BEHIND_MOST_NS
    found: dict[int, str] = {}
    for place, span in enumerate(spans):
        start, end = span.started_at_ns, span.ended_at_ns
        if (
            len(span.trace_id) == 32
            and len(span.span_id) == 16
            and earliest <= start <= end <= latest
            and span.trace_id != _NO_TRACE
            and span.span_id != _NO_SPAN
            and len(span.parent_span_id) in (0, 16)
        ):
            continue
        found[place] = _reason(span, earliest, latest)
    for place in _looped(spans):
        found.setdefault(place, "parent_loop")
    return found


def _reason(span: RawSpan, earliest: int, latest: int) -> str:
    start, end = span.started_at_ns, span.ended_at_ns
    if len(span.trace_id) != 32 or span.trace_id == _NO_TRACE:
        return "invalid_trace_id"
    if len(span.span_id) != 16 or span.span_id == _NO_SPAN:
        return "invalid_span_id"
    if len(span.parent_span_id) not in (0, 16):
        return "invalid_parent_id"
    if not start or not end:
        return "not_ended"
    if start > latest or end > latest:
        return "from_the_future"
    return "too_old" if start < earliest else "negative_duration"


def _looped(spans: Sequence[RawSpan]) -> list[int]:
    """Places of the spans that are their own ancestors within the sequence. In linear time."""
    parents = {(one.trace_id, one.span_id): one.parent_span_id for one in spans if one.parent_span_id}
    state: dict[tuple[str, str], int] = {}
    looped: set[tuple[str, str]] = set()
    for walk, first in enumerate(parents):
        path: list[tuple[str, str]] = []
        at = first
        while at in parents and at not in state:
            state[at] = walk
            path.append(at)
            at = (at[0], parents[at])
        if path and state.get(at) == walk:  # this walk came back to itself
            looped.update(path[path.index(at) :])
    if not looped:
        return []
    return [place for place, one in enumerate(spans) if (one.trace_id, one.span_id) in looped]


def log_refusal(log: RawLog, received_ns: int) -> str | None:
    """Why a log record is refused, or ``None``."""
    if not log.trace_id and not log.span_id:
        return None if is_genai_event(log) else "no_span_context"
    if len(log.trace_id) != 32 or log.trace_id == _NO_TRACE:
        return "invalid_trace_id"
    if len(log.span_id) != 16 or log.span_id == _NO_SPAN:
        return "invalid_span_id"
    if log.at_ns > received_ns + AHEAD_MOST_NS:
        return "from_the_future"
    return "too_old" if log.at_ns and log.at_ns < received_ns - BEHIND_MOST_NS else None


def event_name(log: RawLog) -> str:
    """The name of the event that a log record is; older senders have it among the attributes."""
    named = log.event or log.attributes.get("event.name")
    return named if isinstance(named, str) else ""


def is_genai_event(log: RawLog) -> bool:
    """Whether a log record is an event of the GenAI conventions."""
    return event_name(log).startswith("gen_ai.")
