"""What a worker answers by itself: the list of models, feedback, health, metrics."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tidemill.gateway.answers import Refusal, error_body
from tidemill.gateway.operations import OPERATIONS, TRANSLATED
from tidemill.gateway.snapshots import RoutingTable
from tidemill.kernel import Unavailable, fresh_id
from tidemill.telemetry.records import Score

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.front import Front, Request


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/feedback``: a score of a trace by its user.

    Args:
        trace_id: from the answer's ``x-tidemill-trace-id``.
        value: a number, e.g. 1 for helpful and 0 for not.
        label, comment, correction: a word, free text, and the answer that would have been right.
    """

    trace_id: str
    name: str = "feedback"
    span_id: str | None = None
    value: float | bool | None = None
    label: str | None = None
    comment: str | None = None
    correction: str | None = None


_UNKNOWN_TRACE: Final = (
    "The feedback is kept, but this gateway does not remember an answer with that trace id. Check the id, unless the "
    "answer is old or another host gave it."
)
_KEPT_PAGES: Final = (b"/v1/responses/", b"/v1/conversations")
_feedback: Final = msgspec.json.Decoder(Feedback)


class Pages:
    """The requests that go to no upstream.

    Args:
        gateway: the worker's parts.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._by_path: dict[bytes, tuple[bytes, Callable[[Front, Request], None]]] = {
            b"/v1/models": (b"GET", self._models),
            b"/v1/feedback": (b"POST", self._score),
            b"/health": (b"GET", self._health),
            b"/metrics": (b"GET", self._scrape),
        }

    def serve(self, front: Front, request: Request) -> None:
        """Answer.

        Raises:
            Refusal: no such page, or it cannot be served.
        """
        path = request.target.partition(b"?")[0]
        if request.method == b"OPTIONS" and request.origin is not None:
            allow = (
                b"access-control-allow-methods: GET, POST, DELETE\r\naccess-control-allow-headers: *, authorization\r\n"
            )
            front.answer(200, b"", headers=self._gateway.origin_header(request) + allow)
            return
        if path in OPERATIONS or path in TRANSLATED:
            raise Refusal(405, f"{path.decode()} takes POST.", "method_not_allowed")
        if path.startswith(b"/v1/models/") and request.method == b"GET":
            self._model(front, request, path[11:])
            return
        if path.startswith(_KEPT_PAGES):
            self._kept(front, request)
            return
        entry = self._by_path.get(path)
        if entry is None:
            text = f"There is no {path[:200].decode('latin-1')} here. The API begins at /v1, e.g. /v1/chat/completions."
            raise Refusal(404, text, "unknown_url")
        method, page = entry
        if request.method != method:
            raise Refusal(405, f"{path.decode()} takes {method.decode()}.", "method_not_allowed")
        page(front, request)

    def _kept(self, front: Front, request: Request) -> None:
        """A page of kept responses or conversations, which takes time."""
        gateway = self._gateway
        _, key = gateway.admit(request)
        reader = _Reader(front)

        async def answer() -> None:
            try:
                body = await gateway.conversations.page(request, key)
            except Refusal as refusal:
                if not reader.left:
                    gateway.refuse(front, request, refusal)
                return
            if not reader.left:
                front.answer(200, body, headers=gateway.origin_header(request))

        front.attend(reader)
        reader.task = gateway.spawn(answer(), reader)

    def _models(self, front: Front, request: Request) -> None:
        table, key = self._gateway.admit(request)
        data = [_model_entry(table, name) for name in table.endpoints(key.tenant)]
        body = msgspec.json.encode({"object": "list", "data": data})
        front.answer(200, body, headers=self._gateway.origin_header(request))

    def _model(self, front: Front, request: Request, name: bytes) -> None:
        table, key = self._gateway.admit(request)
        model = name.decode("utf-8", "replace")
        if (key.tenant, model) not in table.junctions:
            raise Refusal(404, f"There is no model '{model[:200]}'.", "model_not_found", param="model")
        front.answer(200, msgspec.json.encode(_model_entry(table, model)), headers=self._gateway.origin_header(request))

    def _score(self, front: Front, request: Request) -> None:
        _, key = self._gateway.admit(request)
        feedback = _read_feedback(request.body)
        score = Score(
            score_id=fresh_id("score"),
            trace_id=feedback.trace_id,
            span_id=feedback.span_id,
            name=feedback.name,
            value=None if feedback.value is None else float(feedback.value),
            label=feedback.label,
            comment=feedback.comment,
            correction=feedback.correction,
            source="user",
            at_ns=time_ns(),
            project=self._gateway.project,
            tenant=key.tenant,
        )
        try:
            self._gateway.journal.score(score)
        except Unavailable as error:
            raise Refusal(503, f"The feedback was not kept: {error.message}", "not_recordable") from None
        self._gateway.metrics.event("feedback")
        told = {"score_id": score.score_id, "trace_id": score.trace_id, "trace": "known"}
        if not self._gateway.journal.knows(key.tenant, score.trace_id):
            self._gateway.metrics.event("feedback_unknown_trace")
            told |= {"trace": "unknown", "message": _UNKNOWN_TRACE}
        front.answer(200, msgspec.json.encode(told), headers=self._gateway.origin_header(request))

    def _health(self, front: Front, _: Request) -> None:
        table = self._gateway.snapshots.table
        problem = "no routing snapshot yet" if table is None else table.expired(time_ns() / 1e9)
        state: dict[str, Any] = {"status": "ok" if problem is None else "unavailable", "pid": os.getpid()}
        if table is not None:
            state["epoch"] = table.snapshot.epoch
        if problem is not None:
            state["reason"] = problem
        front.answer(200 if problem is None else 503, msgspec.json.encode(state))

    def _scrape(self, front: Front, _: Request) -> None:
        from tidemill.gateway.gauges import limit_lines, target_lines

        table, shared, metrics = self._gateway.snapshots.table, self._gateway.snapshots.shared, self._gateway.metrics
        further = [*target_lines(metrics.worker, shared.health)]
        if shared.limiter is not None:
            further += limit_lines(metrics.worker, shared.limiter)
        body = metrics.render(epoch=table.snapshot.epoch if table is not None else 0, further=further)
        front.answer(200, body, content_type=b"text/plain; version=0.0.4; charset=utf-8")


class _Reader:
    """A client that waits for a page."""

    def __init__(self, front: Front) -> None:
        self.left = False
        self._front = front
        self.task: asyncio.Task[None] | None = None

    def client_left(self) -> None:
        """Nobody waits any more."""
        self.left = True
        if self.task is not None:
            self.task.cancel()

    def client_slow(self) -> None:
        """A page is written at once."""

    def client_ready(self) -> None:
        """A page is written at once."""

    def faulted(self, error: Exception) -> None:  # noqa: ARG002 - the interface of calls
        """There will be no page."""
        if not self.left and self._front.call is self:
            text = "The page could not be made; the gateway's log says why."
            self._front.answer(500, error_body(500, text, "internal_error"))


def _model_entry(table: RoutingTable, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(table.snapshot.issued_at), "owned_by": table.snapshot.project}


def _read_feedback(body: bytes) -> Feedback:
    try:
        feedback = _feedback.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"The feedback cannot be read: {error}.", "invalid_json") from None
    trace_id = feedback.trace_id
    if len(trace_id) != 32 or any(digit not in "0123456789abcdef" for digit in trace_id):
        text = "trace_id must be the 32 hexadecimal digits of the answer's x-tidemill-trace-id."
        raise Refusal(400, text, "invalid_trace_id", param="trace_id")
    said = (feedback.value, feedback.label, feedback.comment, feedback.correction)
    if all(part is None for part in said) or not 0 < len(feedback.name) <= 64:
        text = "Feedback needs a name of at most 64 characters and one of value, label, comment, correction."
        raise Refusal(400, text, "empty_feedback")
    return feedback
