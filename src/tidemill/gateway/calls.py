"""What is sent to an upstream: the head and body of one call, in the target's own dialect."""

from __future__ import annotations

from time import time
from typing import NamedTuple

from tidemill.gateway.front import Request
from tidemill.gateway.operations import Operation
from tidemill.gateway.payloads import rewritten, rewritten_form
from tidemill.gateway.snapshots import Lane
from tidemill.gateway.tracing import Identity
from tidemill.models.providers import UnsupportedOperation


class Message(NamedTuple):
    """A call, ready to be written."""

    head: bytes
    body: bytes


class Outgoing(NamedTuple):
    """What every call for one request has in common.

    Args:
        operation: what is asked.
        request: the client's request, of whose headers content type, accept and trace state go on.
        identity: of the span that the upstream's own spans shall hang below.
        session_id: the caller's session.
        rollout_header: the header line that names the rollout, or nothing.
    """

    operation: Operation
    request: Request
    identity: Identity
    session_id: str
    rollout_header: bytes


def message(lane: Lane, call: Outgoing, body: bytes, *, left_ms: int, now_s: float | None = None) -> Message:
    """Write one call of one target.

    The client's own Authorization never leaves. A provider with a dialect of its own gets no header of ours but
    ``traceparent``; other upstreams learn session, rollout, arm and how long the answer is still worth something.

    Args:
        lane: the target.
        call: what is asked.
        body: the request in the pivot's format.
        left_ms: of the request's deadline.
        now_s: Unix time for signatures; ``None`` takes the clock.

    Raises:
        UserError: the provider cannot serve the request; the message names the field.
    """
    if lane.dialect is not None:
        return _translated(lane, call, body, time() if now_s is None else now_s)
    operation, request, identity, session_id, rollout_header = call
    if lane.target.model is not None:
        if operation.form:
            body = rewritten_form(request, body, lane.target.model)
        else:
            body = rewritten(body, model=lane.target.model)
    ids = (
        f"traceparent: 00-{identity.trace_id}-{identity.span_id}-{identity.flags}\r\nx-tidemill-session: {session_id}"
        f"\r\nx-tidemill-deadline-ms: {left_ms}\r\ncontent-length: {len(body)}\r\ncontent-type: "
    )
    head = b"".join(
        (
            lane.call_lines[operation.path],
            rollout_header,
            ids.encode(),
            request.content_type or b"application/json",
            b"\r\naccept: " + request.accept if request.accept is not None else b"",
            b"\r\ntracestate: " + request.tracestate if request.tracestate is not None else b"",
            b"\r\n\r\n",
        )
    )
    return Message(head, body)


def _translated(lane: Lane, call: Outgoing, body: bytes, now_s: float) -> Message:
    assert lane.dialect is not None
    name, identity = call.operation.name, call.identity
    if name not in lane.dialect.operations:
        raise UnsupportedOperation(name, lane.dialect.name)
    provider = lane.dialect.request(name, body, lane.place, lane.credentials, now_s=now_s)
    lines = [f"POST {provider.path} HTTP/1.1", f"host: {lane.host}"]
    lines += [f"{header}: {value}" for header, value in provider.headers]
    if not any(header == "content-type" for header, _ in provider.headers):  # a form keeps its boundary
        lines.append(f"content-type: {(call.request.content_type or b'application/json').decode('latin-1')}")
    lines += [
        f"traceparent: 00-{identity.trace_id}-{identity.span_id}-{identity.flags}",
        f"content-length: {len(provider.body)}",
    ]
    return Message(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), provider.body)
