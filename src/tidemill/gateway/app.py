"""What a worker serves: who may ask what, and where each request goes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from time import time_ns
from typing import Any, Final

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.gateway.exchange import Exchange, Operation
from tidemill.gateway.front import Front, Request
from tidemill.gateway.limits import Limits
from tidemill.gateway.metrics import Metrics
from tidemill.gateway.payloads import Asked, read_request
from tidemill.gateway.sessions import Session, SessionTable
from tidemill.gateway.shadows import ShadowQueue
from tidemill.gateway.snapshots import Junction, RoutingTable, SnapshotFile
from tidemill.gateway.tracing import IdSource, Journal
from tidemill.gateway.upstream import UpstreamPool
from tidemill.kernel import ApiKey, Unavailable, fresh_id, key_digest
from tidemill.telemetry.records import Score

_OPERATIONS: Final = {
    b"/v1/chat/completions": Operation("chat", "/chat/completions"),
    b"/v1/completions": Operation("text_completion", "/completions"),
    b"/v1/embeddings": Operation("embeddings", "/embeddings"),
}
_LOOPBACK_NAMES: Final = frozenset((b"localhost", b"127.0.0.1", b"[::1]"))
_HOSTS_MOST: Final = 256
_BEARER: Final = b"bearer "


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


_feedback: Final = msgspec.json.Decoder(Feedback)


@dataclass(frozen=True, slots=True)
class Access:
    """Which callers are let in before any key is looked at.

    Args:
        loopback: whether the listener is reachable from this machine only; then the Host header must name it, so that
            no web page reaches it through a name of its own (DNS rebinding).
        origins: browser origins that may call; all others are refused.
        hosts: further Host names of a loopback listener.
    """

    loopback: bool = True
    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()


class Gateway:
    """The parts of one worker, and the handler of its connections.

    Args:
        project: whose gateway.
        snapshots: the routing snapshot's file.
        journal: where records go.
        sessions: the session table.
        pool: connections to upstreams.
        user_hash_key: key of the hash under which people appear in spans.
        limits: sizes and times.
        metrics: counters.
        access: which browsers and host names are let in.
    """

    def __init__(
        self,
        *,
        project: str,
        snapshots: SnapshotFile,
        journal: Journal,
        sessions: SessionTable,
        user_hash_key: bytes,
        limits: Limits,
        metrics: Metrics,
        access: Access,
    ) -> None:
        self.project = project
        self.snapshots = snapshots
        self.journal = journal
        self.sessions = sessions
        self.limits = limits
        self.metrics = metrics
        self.pool = UpstreamPool(limits)
        self.ids = IdSource()
        self.shadows = ShadowQueue(self)
        self._user_hash_key = user_hash_key
        self._loopback = access.loopback
        self._origins = frozenset(origin.encode() for origin in access.origins)
        self._hosts = _LOOPBACK_NAMES | {host.encode() for host in access.hosts}
        self._local_hosts: set[bytes] = set()  # Host headers found good
        self._pages: dict[bytes, tuple[bytes, Callable[[Front, Request], None]]] = {
            b"/v1/models": (b"GET", self._models),
            b"/v1/feedback": (b"POST", self._score),
            b"/health": (b"GET", self._health),
            b"/metrics": (b"GET", self._scrape),
        }

    # -- Handler ----------------------------------------------------------------------------------------------

    def handle(self, front: Front, request: Request) -> None:
        """Answer a request, or start the exchange that will."""
        try:
            self._check_caller(request)
            operation = _OPERATIONS.get(request.target)
            if operation is not None and request.method == b"POST":
                self._call(front, request, operation)
            else:
                self._page(front, request)
        except Refusal as refusal:
            self.refused(refusal.status)
            front.answer(refusal.status, refusal.body(), headers=self.origin_header(request))

    def refused(self, status: int) -> None:
        """Count a refusal by its status."""
        self.metrics.event(f"refused_{status}")

    def origin_header(self, request: Request) -> bytes:
        """What an allowed browser origin needs to see the answer; empty for other clients."""
        if request.origin is None or request.origin not in self._origins:
            return b""
        return (
            b"access-control-allow-origin: %b\r\nvary: origin\r\n"
            b"access-control-expose-headers: x-tidemill-trace-id, x-tidemill-release\r\n" % request.origin
        )

    def _check_caller(self, request: Request) -> None:
        if request.origin is not None and request.origin not in self._origins:
            origin = request.origin.decode("latin-1")
            text = f"Browser origin {origin} may not call this gateway. Allow it in the settings."
            raise Refusal(403, text, "origin_not_allowed")
        if self._loopback and request.host is not None and request.host not in self._local_hosts:
            host = request.host.lower()
            name = host if host.endswith(b"]") else host.rpartition(b":")[0] or host
            if name not in self._hosts:
                text = f"This gateway is local; it does not answer for host {host.decode('latin-1')}. Use 127.0.0.1."
                raise Refusal(403, text, "host_not_allowed")
            if len(self._local_hosts) < _HOSTS_MOST:
                self._local_hosts.add(request.host)

    # -- calls of endpoints -----------------------------------------------------------------------------------

    def _call(self, front: Front, request: Request, operation: Operation) -> None:
        table, key = self._admit(request)
        late = table.expired(time_ns() / 1e9)
        if late is not None:
            raise Refusal(503, late, "snapshot_expired")
        asked = read_request(request.body)
        junction = table.junctions.get((key.tenant, asked.model))
        if junction is None:
            table = self._renewed(table)
            junction = table.junctions.get((key.tenant, asked.model))
        if junction is None:
            known = ", ".join(f"'{name}'" for name in table.endpoints(key.tenant)) or "none yet"
            text = f"There is no model '{asked.model[:200]}'. The endpoints there are: {known}."
            raise Refusal(404, text, "model_not_found", param="model")
        Exchange(self, front, request, asked=asked, key=key, junction=junction, operation=operation).start()

    def _renewed(self, table: RoutingTable) -> RoutingTable:
        """The newest table, for what ``table`` does not know may stand in a snapshot written a moment ago."""
        self.snapshots.poll()
        return self.snapshots.table or table

    def _admit(self, request: Request) -> tuple[RoutingTable, ApiKey]:
        table = self.snapshots.table
        if table is None and self.snapshots.poll():
            table = self.snapshots.table
        if table is None:
            text = "The gateway has no routing snapshot yet; the control plane writes it. Start it: tidemill up."
            raise Refusal(503, text, "no_snapshot")
        value = request.authorization
        admitted = table.admitted.get(value)
        if admitted is not None:
            return table, admitted
        if value is None or value[:7].lower() != _BEARER:
            text = "No API key was given. Send the header 'Authorization: Bearer KEY'."
            raise Refusal(401, text, "missing_api_key")
        digest = key_digest(value[7:].strip().decode("latin-1"))
        key = table.keys.get(digest)
        if key is None:
            table = self._renewed(table)
            key = table.keys.get(digest)
        if key is None:
            text = "The API key is not known here, or was revoked. Check the key, or have a new one made."
            raise Refusal(401, text, "invalid_api_key")
        table.admit(value, key)
        return table, key

    def session_of(
        self, front: Front, request: Request, asked: Asked, key: ApiKey, junction: Junction, now_ns: int
    ) -> Session:
        """The caller's session: by header, else by ``user``, else by key and client address."""
        if request.session is not None:
            name = _bounded("h:" + request.session.decode("latin-1"))
        elif asked.user is not None:
            name = _bounded("u:" + asked.user)
        else:
            name = f"k:{key.digest}:{front.client_address}"
        return self.sessions.resolve(junction.route, name, now_ns, junction.by_release)

    def user_key(self, user: str | None) -> str | None:
        """Keyed hash of a user's name, or ``None``."""
        if user is None:
            return None
        return hashlib.blake2b(user.encode(), key=self._user_hash_key, digest_size=16).hexdigest()

    # -- pages ------------------------------------------------------------------------------------------------

    def _page(self, front: Front, request: Request) -> None:
        path = request.target.partition(b"?")[0]
        if request.method == b"OPTIONS" and request.origin is not None:
            allow = b"access-control-allow-methods: GET, POST\r\naccess-control-allow-headers: *, authorization\r\n"
            front.answer(200, b"", headers=self.origin_header(request) + allow)
            return
        if path in _OPERATIONS:
            raise Refusal(405, f"{path.decode()} takes POST, without a query.", "method_not_allowed")
        if path.startswith(b"/v1/models/") and request.method == b"GET":
            self._model(front, request, path[11:])
            return
        entry = self._pages.get(path)
        if entry is None:
            text = f"There is no {path[:200].decode('latin-1')} here. The API begins at /v1, e.g. /v1/chat/completions."
            raise Refusal(404, text, "unknown_url")
        method, page = entry
        if request.method != method:
            raise Refusal(405, f"{path.decode()} takes {method.decode()}.", "method_not_allowed")
        page(front, request)

    def _models(self, front: Front, request: Request) -> None:
        table, key = self._admit(request)
        data = [_model_entry(table, name) for name in table.endpoints(key.tenant)]
        body = msgspec.json.encode({"object": "list", "data": data})
        front.answer(200, body, headers=self.origin_header(request))

    def _model(self, front: Front, request: Request, name: bytes) -> None:
        table, key = self._admit(request)
        model = name.decode("utf-8", "replace")
        if (key.tenant, model) not in table.junctions:
            raise Refusal(404, f"There is no model '{model[:200]}'.", "model_not_found", param="model")
        front.answer(200, msgspec.json.encode(_model_entry(table, model)), headers=self.origin_header(request))

    def _score(self, front: Front, request: Request) -> None:
        _, key = self._admit(request)
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
            project=self.project,
            tenant=key.tenant,
        )
        try:
            self.journal.score(score)
        except Unavailable as error:
            raise Refusal(503, f"The feedback was not kept: {error.message}", "not_recordable") from None
        self.metrics.event("feedback")
        body = msgspec.json.encode({"score_id": score.score_id, "trace_id": score.trace_id})
        front.answer(200, body, headers=self.origin_header(request))

    def _health(self, front: Front, _: Request) -> None:
        table = self.snapshots.table
        problem = "no routing snapshot yet" if table is None else table.expired(time_ns() / 1e9)
        state: dict[str, Any] = {"status": "ok" if problem is None else "unavailable", "pid": os.getpid()}
        if table is not None:
            state["epoch"] = table.snapshot.epoch
        if problem is not None:
            state["reason"] = problem
        front.answer(200 if problem is None else 503, msgspec.json.encode(state))

    def _scrape(self, front: Front, _: Request) -> None:
        table = self.snapshots.table
        body = self.metrics.render(epoch=table.snapshot.epoch if table is not None else 0)
        front.answer(200, body, content_type=b"text/plain; version=0.0.4; charset=utf-8")


def _bounded(session_key: str) -> str:
    """Long keys by their hash, for the session table remembers keys."""
    if len(session_key) <= 128:
        return session_key
    return session_key[:2] + hashlib.blake2b(session_key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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
