"""The records of telemetry: spans, their content and references, intents and scores.

Field names follow OpenTelemetry's GenAI conventions where those have one. Light on purpose: the gateway imports this
module on its hot path, so it needs msgspec and nothing else.

What a request writes is encoded as arrays, without the names of its fields: a field's place is part of the format of
segments, and a new one goes to the end, with a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "error", "cancelled", "truncated", "interrupted"]
"""How a span ended. ``interrupted`` is kept for placeholders the drainer writes for a dead writer's open intents."""

Capture = Literal["masked", "hashed", "none"]
"""What is kept of content: masked text, keyed hashes only, or nothing."""

AttributeValue = str | int | float | bool


class Reference(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A passage or an artifact that an answer used.

    Args:
        kind: ``passage`` or ``artifact``.
        ref: the passage's row id, or the artifact's digest.
        role: ``retrieved``, ``cited``, ``model``, ``prompt``, ``index`` or ``release``.
        rank: place among the retrieved, from 1.
        score: the search's score.
    """

    kind: Literal["passage", "artifact"]
    ref: str
    role: str
    rank: int | None = None
    score: float | None = None


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One finished operation of a trace, written once and never changed.

    Name the fields when making one; only the gateway's hot path gives them by place, for by name a record of so many
    fields costs as much as its encoding.

    Args:
        trace_id, span_id, parent_span_id: W3C ids in lower-case hexadecimal.
        project, tenant: whose span it is.
        name: what people read, e.g. ``chat helpdesk``.
        operation: OpenTelemetry's GenAI operation name: ``chat``, ``embeddings``, ``retrieval``, ``invoke_agent``, …
        started_at_ns, ended_at_ns: nanoseconds since 1970.
        error_type: a short class of the failure, e.g. ``upstream_timeout``.
        endpoint: the public model name that was asked for.
        release: digest of the release that served.
        assigned_release: digest first assigned to the session; scores count for it, whatever failover did.
        arm: ``control``, ``canary`` or ``shadow``.
        user_key: keyed hash of the person; never the name.
        cost_usd: price of the call.
        time_to_first_chunk_s: seconds from the start to the first streamed chunk.
        attributes: anything else that is a plain value; no content belongs here.
        references: passages and artifacts the answer used.
        prompt: name and version of the prompt, ``answer@3``.
        service: ``service.name`` of the program that sent the span; ``None`` for Tidemill's own.
        cached_input_tokens, reasoning_output_tokens: parts of the input and output tokens that have prices of their
            own.
    """

    trace_id: str
    span_id: str
    project: str
    tenant: str
    name: str
    operation: str
    started_at_ns: int
    ended_at_ns: int
    parent_span_id: str | None = None
    status: Status = "ok"
    error_type: str | None = None
    http_status: int | None = None
    endpoint: str | None = None
    release: str | None = None
    assigned_release: str | None = None
    arm: str | None = None
    session_id: str | None = None
    user_key: str | None = None
    provider: str | None = None
    request_model: str | None = None
    response_model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    time_to_first_chunk_s: float | None = None
    finish_reasons: tuple[str, ...] = ()
    stream: bool = False
    rollout: str | None = None
    attributes: dict[str, AttributeValue] = {}
    references: tuple[Reference, ...] = ()
    prompt: str | None = None
    service: str | None = None
    cached_input_tokens: int | None = None
    reasoning_output_tokens: int | None = None

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return (self.ended_at_ns - self.started_at_ns) / 1e9


class Content(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was said.

    Args:
        input: the messages as JSON text (or any text).
        output: the answer's text, or JSON where it is not plain text.
        detail: a JSON object of what else came with a span and has no column: ``attributes`` under the names they came
            with, ``events``, ``links``, ``resource``, ``scope``; empty where there is nothing.
    """

    input: str
    output: str
    detail: str = ""


class Intent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is known before the upstream call; it becomes an ``interrupted`` span if its writer dies first.

    Name the fields when making one, as of ``Span``.

    Args:
        attributes: what the span is to carry even then, e.g. what the call has reserved of its limits.
    """

    trace_id: str
    span_id: str
    started_at_ns: int
    parent_span_id: str | None = None
    name: str = ""
    operation: str = "chat"
    endpoint: str | None = None
    release: str | None = None
    assigned_release: str | None = None
    arm: str | None = None
    session_id: str | None = None
    user_key: str | None = None
    provider: str | None = None
    request_model: str | None = None
    stream: bool = False
    rollout: str | None = None
    attributes: dict[str, AttributeValue] = {}


class Score(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A number or label on a trace or span.

    Args:
        score_id: names the score; written again, it is the same score.
        name: ``feedback``, ``groundedness``, …
        comment, correction: free text; content like any other (encrypted in segments, masked before it is stored).
        source: ``user``, ``scorer``, ``judge`` or ``person``.
        at_ns: nanoseconds since 1970.
    """

    score_id: str
    trace_id: str
    name: str
    source: Literal["user", "scorer", "judge", "person"]
    at_ns: int
    project: str
    tenant: str
    span_id: str | None = None
    value: float | None = None
    label: str | None = None
    comment: str | None = None
    correction: str | None = None


def interrupted_span(intent: Intent, *, project: str, tenant: str) -> Span:
    """The placeholder for a call whose writer died before the finished record.

    Its end is its start, for nobody knows the end; so the same intent gives the same record whenever it is noticed.

    Args:
        intent: what the writer had noted before the call.
        project: whose call it was.
        tenant: whose, within the project.
    """
    return Span(
        trace_id=intent.trace_id,
        span_id=intent.span_id,
        parent_span_id=intent.parent_span_id,
        project=project,
        tenant=tenant,
        name=intent.name or intent.operation,
        operation=intent.operation,
        started_at_ns=intent.started_at_ns,
        ended_at_ns=intent.started_at_ns,
        status="interrupted",
        error_type="writer_died",
        endpoint=intent.endpoint,
        release=intent.release,
        assigned_release=intent.assigned_release,
        arm=intent.arm,
        session_id=intent.session_id,
        user_key=intent.user_key,
        provider=intent.provider,
        request_model=intent.request_model,
        stream=intent.stream,
        rollout=intent.rollout,
        attributes=intent.attributes,
    )
