"""What is sent to an upstream: the head and body of one call, in the target's own dialect."""

from __future__ import annotations

from time import time

from tidemill.gateway.front import Request
from tidemill.gateway.operations import Operation
from tidemill.gateway.payloads import rewritten, rewritten_form
from tidemill.gateway.snapshots import Lane
from tidemill.gateway.tracing import Identity
from tidemill.models.providers import UnsupportedOperation


def message(
    lane: Lane,
    operation: Operation,
    request: Request,
    identity: Identity,
    body: bytes,
    lines: str,
    rollout_header: bytes,
) -> tuple[bytes, bytes]:
    """Write one call of one target: its head and its body.

    The client's own Authorization never leaves. A provider with a dialect of its own gets no header of ours but
    ``traceparent``; other upstreams learn session, rollout, arm and how long the answer is still worth something.

    Args:
        lane: the target.
        operation: what is asked.
        request: the client's request, of whose headers content type, accept and trace state go on.
        identity: of the span that the upstream's own spans shall hang below.
        body: the request in the pivot's format.
        lines: session and deadline, as header lines without the last line end.
        rollout_header: the header line that names the rollout, or nothing.

    Raises:
        UserError: the provider cannot serve the request; the message names the field.
    """
    if lane.dialect is not None:
        return _translated(lane, operation, request, identity, body)
    if lane.target.model is not None:
        if operation.form:
            body = rewritten_form(request, body, lane.target.model)
        else:
            body = rewritten(body, model=lane.target.model)
    ids = (
        f"traceparent: 00-{identity.trace_id}-{identity.span_id}-{identity.flags}\r\n{lines}\r\n"
        f"content-length: {len(body)}\r\ncontent-type: "
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
    return head, body


def _translated(
    lane: Lane, operation: Operation, request: Request, identity: Identity, body: bytes
) -> tuple[bytes, bytes]:
    assert lane.dialect is not None
    if operation.name not in lane.dialect.operations:
        raise UnsupportedOperation(operation.name, lane.dialect.name)
    if operation.form and lane.target.model is not None:  # dialects pass forms on as they are
        body = rewritten_form(request, body, lane.target.model)
    provider = lane.dialect.request(operation.name, body, lane.place, lane.credentials, now_s=time())
    lines = [f"POST {provider.path} HTTP/1.1", f"host: {lane.host}"]
    lines += [f"{header}: {value}" for header, value in provider.headers]
    if not any(header == "content-type" for header, _ in provider.headers):  # a form keeps its boundary
        lines.append(f"content-type: {(request.content_type or b'application/json').decode('latin-1')}")
    lines += [
        f"traceparent: 00-{identity.trace_id}-{identity.span_id}-{identity.flags}",
        f"content-length: {len(provider.body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), provider.body
