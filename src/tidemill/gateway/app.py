"""What a worker serves: who may ask what, and where each request goes."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from math import ceil
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tidemill.gateway.answers import Refusal
from tidemill.gateway.backing import ConversationDesk
from tidemill.gateway.delivery import Client
from tidemill.gateway.exchange import Exchange
from tidemill.gateway.failures import fault, too_deep
from tidemill.gateway.front import Call, Front, Request
from tidemill.gateway.metrics import Metrics
from tidemill.gateway.operations import COUNT_TOKENS, MESSAGES, OPERATIONS, RESPONSES, TRANSLATED, Operation
from tidemill.gateway.pages import Pages
from tidemill.gateway.payloads import Asked, asked_by_form, read_request
from tidemill.gateway.sessions import Session, SessionTable
from tidemill.gateway.shadows import ShadowQueue
from tidemill.gateway.snapshots import Junction, RoutingTable, SnapshotFile
from tidemill.gateway.straight import Course, course_of
from tidemill.gateway.tracing import IdSource, Journal
from tidemill.kernel import ApiKey, key_digest

if TYPE_CHECKING:
    from tidemill.gateway.conversations.summaries import SummaryMemory
    from tidemill.gateway.dialects import ClientDialect
    from tidemill.gateway.dialects.responses import ResponsesDialect

_log = logging.getLogger(__name__)

_LOOPBACK_NAMES: Final = frozenset((b"localhost", b"127.0.0.1", b"[::1]"))
_HOSTS_MOST: Final = 256
_BEARER: Final = b"bearer "
_SHOUT_S: Final = 1.0


class Spoken(NamedTuple):
    """What a client speaks.

    Args:
        dialect: translates to the pivot; ``None`` where the client speaks it.
        conversation: the same one, where it has steps of its own.
    """

    dialect: ClientDialect | None
    conversation: ResponsesDialect | None


PIVOT: Final = Spoken(None, None)


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
        snapshots: the routing snapshot's file, and what its tables share.
        journal: where records go.
        sessions: the session table.
        user_hash_key: key of the hash under which people appear in spans.
        metrics: counters.
        conversations: what ``/v1/responses`` rests on.
        access: which browsers and host names are let in.
    """

    def __init__(
        self,
        *,
        snapshots: SnapshotFile,
        journal: Journal,
        sessions: SessionTable,
        user_hash_key: bytes,
        metrics: Metrics,
        conversations: ConversationDesk,
        access: Access,
    ) -> None:
        shared = snapshots.shared
        self.project = shared.project
        self.snapshots = snapshots
        self.journal = journal
        self.sessions = sessions
        self.limits = shared.limits
        self.metrics = metrics
        self.admission = shared.admission
        self.conversations = conversations
        self.pool = shared.pool
        self.ids = IdSource()
        self.shadows = ShadowQueue(self)
        self._summaries: SummaryMemory | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._user_hash_key = user_hash_key
        self._loopback = access.loopback
        self._origins = frozenset(origin.encode() for origin in access.origins)
        self._hosts = _LOOPBACK_NAMES | {host.encode() for host in access.hosts}
        self._local_hosts: set[bytes] = set()  # Host headers found good
        self._pages = Pages(self)
        self.live: set[Exchange] = set()
        self._shouted_at = 0.0

    # -- Handler ----------------------------------------------------------------------------------------------

    def handle(self, front: Front, request: Request) -> None:
        """Answer a request, or start the exchange that will."""
        spoken = PIVOT
        try:
            known = request.known
            if known is not None:
                course = known.memory
                if course is not None and self._follow(front, request, course):
                    return
            operation = OPERATIONS.get(request.target)
            self._check_caller(request)
            if operation is None and request.method == b"POST":
                path = request.target.partition(b"?")[0]
                operation = OPERATIONS.get(path)
                if path in TRANSLATED:
                    operation = TRANSLATED[path]
                    spoken = self._spoken(path, request)
            if operation is not None and request.method == b"POST":
                self._call(front, request, operation, spoken)
            else:
                self._pages.serve(front, request)
        except Refusal as refusal:
            self.refuse(front, request, refusal, spoken.dialect)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._faulted(front, request, error, spoken.dialect)

    def _faulted(self, front: Client, request: Request, error: Exception, dialect: ClientDialect | None) -> None:
        """A mistake of the gateway's own, or a body that is deeper than a step after its reader can follow."""
        failed = too_deep() if isinstance(error, RecursionError) else fault()
        if failed.status == 500:
            _log.error("a request could not be treated", exc_info=error)
        if front.call is not None:
            front.call.faulted(error)
        else:
            code = "invalid_json" if failed.status == 400 else "internal_error"
            self.refuse(front, request, Refusal(failed.status, failed.detail, code), dialect)

    def _follow(self, front: Front, request: Request, course: Course) -> bool:
        """Start an exchange that is like those before it on its connection. Returns whether it is."""
        if course.table is not self.snapshots.table or time_ns() >= course.until_ns:
            return False
        body = request.body
        try:
            asked = read_request(body)
        except Refusal as refusal:
            self.refuse(front, request, refusal)
            return True
        if asked.model != course.model:
            return False
        exchange = Exchange(self, front, request, asked, body, course.key, course.junction, course.operation)
        exchange.course = course
        exchange.start()
        return True

    def _spoken(self, path: bytes, request: Request) -> Spoken:
        """What the client of a path speaks. Most workers never load any of it."""
        if path == RESPONSES:
            _, key = self.admit(request)
            conversation = self.conversations.dialect(key)
            return Spoken(conversation, conversation)
        from tidemill.gateway.dialects import client_dialect

        return Spoken(client_dialect(path), None)

    def refuse(self, front: Client, request: Request, refusal: Refusal, dialect: ClientDialect | None = None) -> None:
        """Answer with an error, in the client's dialect."""
        self.refused(refusal.status)
        if dialect is None and request.target.startswith(MESSAGES):
            from tidemill.gateway.dialects import client_dialect

            dialect = client_dialect(MESSAGES)
        body = refusal.body() if dialect is None else dialect.error(refusal.status, refusal.body())
        headers = self.origin_header(request)
        if refusal.retry_after_s is not None:
            headers += b"retry-after: %d\r\n" % max(1, ceil(refusal.retry_after_s))
        front.answer(refusal.status, body, headers=headers)

    def spawn(self, steps: Coroutine[Any, Any, None], owner: Call | None = None) -> asyncio.Task[None]:
        """Run steps that wait for something; the task is kept until it ends.

        Args:
            steps: what to run.
            owner: whose steps; told when they raise.
        """
        task = asyncio.get_running_loop().create_task(steps)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, owner))
        return task

    def _ended(self, task: asyncio.Task[None], owner: Call | None) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            _log.error("a step of a request failed", exc_info=error)
            if owner is not None:
                owner.faulted(error)

    async def close(self) -> None:
        """Give up what still waits for something, and close the stores."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.conversations.close()

    @property
    def summaries(self) -> SummaryMemory:
        """The summaries that were made for requests too long for their model."""
        if self._summaries is None:
            from tidemill.gateway.conversations.summaries import SummaryMemory

            self._summaries = SummaryMemory()
        return self._summaries

    def untraced(self) -> None:
        """A request is served although it cannot be recorded: count it, and say so once a second."""
        self.metrics.event("untraced")
        now = monotonic()
        if now - self._shouted_at >= _SHOUT_S:
            self._shouted_at = now
            _log.error("requests cannot be recorded and are served untraced, as their endpoints' policy wants")

    def sweep(self, now: float) -> None:
        """Run the timers of live requests. ``now`` is monotonic, in seconds."""
        for exchange in tuple(self.live):
            exchange.expire(now)

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

    def _call(self, front: Client, request: Request, operation: Operation, spoken: Spoken) -> None:
        """Start the exchange of a request for an operation.

        Raises:
            Refusal: it may not be made, or cannot be read.
        """
        table, key = self.admit(request)
        now_s = time_ns() / 1e9
        if now_s > table.ends_s:
            raise Refusal(503, table.expired(now_s) or "The routing snapshot ran out.", "snapshot_expired")
        if key.operations and (operation.scope or operation.name) not in key.operations:
            allowed = ", ".join(key.operations)
            asked_for = operation.scope or operation.name
            text = f"The API key '{key.name}' may not ask for '{asked_for}', only for: {allowed}."
            raise Refusal(403, text, "operation_not_allowed")
        dialect, conversation = spoken
        body = request.body if dialect is None else dialect.request(request.body)
        asked = asked_by_form(request) if operation.form else read_request(body)
        if key.endpoints and asked.model not in key.endpoints:
            allowed = ", ".join(f"'{name}'" for name in key.endpoints)
            text = f"The API key '{key.name}' may not call '{asked.model[:200]}', only: {allowed}."
            raise Refusal(403, text, "endpoint_not_allowed", param="model")
        junction = table.junctions.get((key.tenant, asked.model))
        if junction is None:
            table = self._renewed(table)
            junction = table.junctions.get((key.tenant, asked.model))
        if junction is None:
            known = ", ".join(f"'{name}'" for name in table.endpoints(key.tenant)) or "none yet"
            text = f"There is no model '{asked.model[:200]}'. The endpoints there are: {known}."
            raise Refusal(404, text, "model_not_found", param="model")
        if operation is COUNT_TOKENS and not self._counts(front, request, asked, key, junction):
            from tidemill.gateway.dialects.count_tokens import estimate

            self.metrics.event("tokens_estimated")
            front.answer(200, estimate(body), headers=self.origin_header(request))
            return
        if request.known is not None and dialect is None:
            request.known.memory = course_of(table, key, operation, asked.model, junction, request)
        Exchange(self, front, request, asked, body, key, junction, operation).start(dialect, conversation)

    def _counts(self, front: Client, request: Request, asked: Asked, key: ApiKey, junction: Junction) -> bool:
        """Whether the release of the caller's session counts tokens itself, whichever of its targets is asked."""
        session = self.session_of(front, request, asked, key, junction, time_ns())
        lanes = junction.by_release.get(session.release, junction.control).lanes
        return all(lane.dialect is not None and COUNT_TOKENS.name in lane.dialect.operations for lane in lanes)

    def _renewed(self, table: RoutingTable) -> RoutingTable:
        """The newest table, for what ``table`` does not know may stand in a snapshot written a moment ago."""
        self.snapshots.poll()
        return self.snapshots.table or table

    def admit(self, request: Request) -> tuple[RoutingTable, ApiKey]:
        """The table of the moment, and the key that the request was sent with.

        Raises:
            Refusal: no table yet, no key, an unknown one, or one that has run out.
        """
        table = self.snapshots.table
        if table is None and self.snapshots.poll():
            table = self.snapshots.table
        if table is None:
            text = "The gateway has no routing snapshot yet; the control plane writes it. Start it: tidemill up."
            raise Refusal(503, text, "no_snapshot")
        value = request.authorization or request.api_key
        key = table.admitted.get(value)
        if key is None:
            table, key = self._look_up(table, request)
        if key.expires_at is not None and time_ns() / 1e9 >= key.expires_at:
            text = f"The API key '{key.name}' has expired. Have it rotated: tidemill keys rotate."
            raise Refusal(401, text, "api_key_expired")
        return table, key

    def _look_up(self, table: RoutingTable, request: Request) -> tuple[RoutingTable, ApiKey]:
        value = request.authorization
        if value is not None and value[:7].lower() == _BEARER:
            secret = value[7:].strip()
        elif request.api_key is not None:  # how Anthropic's clients send it
            value, secret = request.authorization or request.api_key, request.api_key
        else:
            text = "No API key was given. Send the header 'Authorization: Bearer KEY' (or 'x-api-key: KEY')."
            raise Refusal(401, text, "missing_api_key")
        digest = key_digest(secret.decode("latin-1"))
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
        self, front: Client, request: Request, asked: Asked, key: ApiKey, junction: Junction, now_ns: int
    ) -> Session:
        """The caller's session: by header, else by ``user``, else by key and client address."""
        if request.session is not None:
            name = _bounded("h:" + request.session.decode("latin-1"))
        elif asked.user is not None:
            name = _bounded("u:" + asked.user)
        else:
            name = _named(key.digest, front.client_address)
        return self.sessions.resolve(junction.route, name, now_ns, junction.by_release)

    def user_key(self, user: str | None) -> str | None:
        """Keyed hash of a user's name, or ``None``."""
        if user is None:
            return None
        return hashlib.blake2b(user.encode(), key=self._user_hash_key, digest_size=16).hexdigest()


@functools.lru_cache(maxsize=1024)
def _named(digest: str, address: str) -> str:
    """The session of a caller that names none. Kept, for to look a text up costs its hash once."""
    return f"k:{digest}:{address}"


def _bounded(session_key: str) -> str:
    """Long keys by their hash, for the session table remembers keys."""
    if len(session_key) <= 128:
        return session_key
    return session_key[:2] + hashlib.blake2b(session_key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
