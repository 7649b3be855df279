"""Records for tests."""

from __future__ import annotations

from typing import Any

from tidemill.telemetry import Content, Intent, Reference, Score, Span

SECOND = 1_000_000_000
CONTENT = Content('[{"role":"user","content":"how do I assert?"}]', "Write assert.")


def span(number: int = 1, **changes: Any) -> Span:
    fields: dict[str, Any] = {
        "trace_id": f"{number:032x}",
        "span_id": f"{number:016x}",
        "project": "shop",
        "tenant": "default",
        "name": "chat helpdesk",
        "operation": "chat",
        "started_at_ns": 1_700_000_000 * SECOND + number * SECOND,
        "ended_at_ns": 1_700_000_001 * SECOND + number * SECOND,
        "endpoint": "helpdesk",
    }
    return Span(**(fields | changes))


def intent(number: int = 1, **changes: Any) -> Intent:
    fields: dict[str, Any] = {
        "trace_id": f"{number:032x}",
        "span_id": f"{number:016x}",
        "started_at_ns": 1_700_000_000 * SECOND,
        "endpoint": "helpdesk",
    }
    return Intent(**(fields | changes))


def score(number: int = 1, **changes: Any) -> Score:
    fields: dict[str, Any] = {
        "score_id": f"score_{number}",
        "trace_id": f"{number:032x}",
        "name": "feedback",
        "source": "user",
        "value": 1.0,
        "at_ns": SECOND,
        "project": "shop",
        "tenant": "default",
    }
    return Score(**(fields | changes))


def passage(number: int, role: str = "retrieved") -> Reference:
    return Reference("passage", f"psg_{number:024x}", role, number, 0.5)
