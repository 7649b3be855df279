"""Traffic as a span store keeps it, for the suites that ask about it."""

from __future__ import annotations

from typing import Any

from tidemill.telemetry import Batch, Content, Reference, Score, Span, SpanStore

SECOND = 10**9
BEGUN_NS = 1_790_000_000 * SECOND  # 2026-09-21 14:13:20 UTC


def trace_id(number: int) -> str:
    return f"{number + 1:032x}"


def request(number: int, **changes: Any) -> Span:
    """A whole request; its start, model, session and outcome follow from its number."""
    fields: dict[str, Any] = {
        "trace_id": trace_id(number),
        "span_id": f"{number + 1:016x}",
        "project": "shop",
        "tenant": "default",
        "name": "chat desk",
        "operation": "chat",
        "started_at_ns": BEGUN_NS + number * 60 * SECOND,
        "ended_at_ns": BEGUN_NS + number * 60 * SECOND + (1 + number % 4) * SECOND,
        "endpoint": "desk",
        "release": f"sha256:{'ab'[number % 2] * 64}",
        "session_id": f"session-{number // 5}",
        "user_key": f"user-{number % 7}",
        "request_model": ("small", "small", "large")[number % 3],
        "status": "error" if number % 10 == 9 else "ok",
        "input_tokens": 100 + number,
        "output_tokens": 10,
        "cost_usd": 0.001 * (1 + number % 3),
        "attributes": {"tool": "search"} if number % 5 == 0 else {},
        "references": (Reference("passage", f"psg_{number % 4}", "cited", 1, 0.5),),
    }
    return Span(**(fields | changes))


def fill(store: SpanStore, count: int, *, project: str = "shop", feedback_every: int = 4) -> None:
    """``count`` requests with a step below each, what was said, and some feedback."""
    requests = [request(number, project=project) for number in range(count)]
    steps = [
        request(number, project=project, span_id=f"{number + 1_000_001:016x}", parent_span_id=one.span_id, name="step")
        for number, one in enumerate(requests)
    ]
    contents = {
        (one.trace_id, one.span_id): Content(
            f'[{{"role":"user","content":"What costs tyre number {number}?"}}]', f"It costs {number} euros."
        )
        for number, one in enumerate(requests)
    }
    scores = [
        Score(
            score_id=f"score-{number}",
            trace_id=trace_id(number),
            name="feedback",
            source="user",
            at_ns=BEGUN_NS,
            project=project,
            tenant="default",
            value=float(number % (2 * feedback_every) == 0),
        )
        for number in range(0, count, feedback_every)
    ]
    store.commit(Batch(spans=[*requests, *steps], contents=contents, scores=scores), {})
