"""The straight way of a plain call: one target, a whole answer, nothing in between.

Most calls go this way. It keeps every promise of the general way in ``attempts`` and does the same in fewer steps;
whatever is not plain (a stream, an error, a broken connection, an answer without usage) becomes an ``Attempt`` at that
moment, and goes on as if it had been one from the start.
"""

from __future__ import annotations

from time import monotonic, time_ns
from typing import TYPE_CHECKING, Final, NamedTuple

from tidemill.gateway.answer_reading import AnswerHead
from tidemill.gateway.attempts import Attempt
from tidemill.gateway.known_heads import WholeAnswer
from tidemill.gateway.payloads import hear_body
from tidemill.gateway.recording import is_plain
from tidemill.gateway.replying import Replying
from tidemill.gateway.upstream import Failure, UpstreamConnection

if TYPE_CHECKING:
    from tidemill.gateway.operations import Operation
    from tidemill.gateway.payloads import Heard
    from tidemill.gateway.reading import Request
    from tidemill.gateway.snapshots import Junction, Lane, RoutingTable
    from tidemill.kernel import ApiKey

_JSON: Final = b"application/json"
_JOINED_BYTES: Final = 1 << 14


class Course(NamedTuple):
    """What holds for every request with one head on one connection, while its routing table holds.

    Args:
        table: under which it was found out.
        until_ns: when key or table run out, in nanoseconds since 1970.
        key, operation, model, junction: who asks for what, and where it leads.
        lane: the one target of the control release.
        head, tail: what the head of its call begins and ends with; text, for ids stand between.
    """

    table: RoutingTable
    until_ns: int
    key: ApiKey
    operation: Operation
    model: str
    junction: Junction
    lane: Lane
    head: str
    tail: str


def course_of(
    table: RoutingTable, key: ApiKey, operation: Operation, model: str, junction: Junction, request: Request
) -> Course | None:
    """What further requests with the head of this one need not be asked again; ``None`` where nothing is gained.

    Args:
        table: the table of the moment.
        key: who asks.
        operation: what is asked.
        model: of which endpoint.
        junction: where that leads.
        request: the request, let in.
    """
    lane = junction.control.only
    if lane is None or lane.dialect is not None or lane.target.model is not None or operation.form:
        return None
    ends_s = table.ends_s if key.expires_at is None else min(table.ends_s, key.expires_at)
    tail = b"\r\ncontent-type: %b%b%b\r\n\r\n" % (
        request.content_type or _JSON,
        b"\r\naccept: " + request.accept if request.accept is not None else b"",
        b"\r\ntracestate: " + request.tracestate if request.tracestate is not None else b"",
    )
    head = lane.call_lines[operation.path] + junction.rollout_header
    return Course(
        table,
        int(ends_s * 1e9),
        key,
        operation,
        model,
        junction,
        lane,
        head.decode("latin-1"),
        tail.decode("latin-1"),
    )


class Straight(Replying):
    """A request whose first attempt goes the straight way where it can. A ``WholeSink`` for its connection."""

    __slots__ = ("_asked_ns", "_came", "_connection", "course")

    course: Course | None
    _connection: UpstreamConnection | None  # of a call that goes the straight way, until something comes
    _asked_ns: int
    _came: WholeAnswer

    def _pursue(self) -> None:
        lane = self._branch.only
        if (
            lane is None
            or self.streamed
            or self._timed
            or self._made
            or lane.dialect is not None
            or self._dialect is not None
            or self.conversation is not None
            or lane.target.model is not None
        ):
            super()._pursue()
            return
        connection = self._gateway.pool.take_idle(lane.address)
        if connection is None:
            super()._pursue()
            return
        self._made = 1
        self.lane = lane
        self._asked_ns = time_ns()
        self._connection = connection
        course = self.course
        if course is None or course.lane is not lane or self._bounds_output:
            head, body = self.message(lane)
        else:
            body = self.body
            identity = self.identity
            left_ms = int((self._deadline_s - monotonic()) * 1000)
            head = (
                f"{course.head}traceparent: 00-{identity.trace_id}-{identity.span_id}-{identity.flags}\r\n"
                f"x-tidemill-session: {self._session.session_id}\r\n"
                f"x-tidemill-deadline-ms: {left_ms if left_ms > 0 else 0}\r\ncontent-length: {len(body)}{course.tail}"
            ).encode("latin-1")
        if len(body) < _JOINED_BYTES:
            connection.ask(self, head + body, b"", self.junction.waits)
        else:
            connection.ask(self, head, body, self.junction.waits)

    # -- sink -------------------------------------------------------------------------------------------------

    def on_whole(self, answer: WholeAnswer) -> None:
        """A whole answer: recorded, then delivered, if it is as plain as most; else looked at closely."""
        self._connection = None
        if self._over:
            return
        content_type, passed, body = answer
        if content_type.startswith(_JSON) and self.lane.prices_by_tokens:
            heard = hear_body(body)
            told = heard.usage
            if told is not None and not heard.broken and not heard.error and is_plain(told):
                self._status = 200
                self._settled = True
                self._came = answer
                self._record("ok", None, self._deliver_straight, heard)
                if self.cache_key is not None:
                    self._keep_whole(body, heard)
                return
        attempt = self._attempt_of(None)
        head = AnswerHead()
        head.content_type, head.passed = content_type, passed
        head.length = b"%d" % len(body)
        attempt.on_head(200, head)
        attempt.on_data(body)
        attempt.on_done()

    def on_head(self, status: int, headers: AnswerHead) -> None:
        """Something else than a plain answer."""
        connection = self._connection
        attempt = self._attempt_of(connection)
        if connection is not None:
            connection.hand_over(attempt)
        attempt.on_head(status, headers)

    def on_data(self, data: bytes) -> None:
        """Never called: see ``on_head``."""
        raise NotImplementedError

    def on_done(self) -> None:
        """Likewise."""
        raise NotImplementedError

    def on_failure(self, failure: Failure) -> None:
        """There will be no answer."""
        self._attempt_of(self._connection).on_failure(failure)

    def on_fault(self, error: Exception) -> None:
        """The answer could not be taken."""
        if self._settled:
            self.faulted(error)
        else:
            self._attempt_of(None).on_fault(error)

    def _attempt_of(self, connection: UpstreamConnection | None) -> Attempt:
        """The call as an attempt like any other."""
        gateway = self._gateway
        attempt = Attempt(self, self.lane, gateway.pool, self.junction.waits, gateway.limits.capture_bytes)
        attempt.take_over(connection, self._asked_ns)
        self._attempt = attempt
        self._connection = None
        return attempt

    def _give_up_attempts(self) -> None:
        if self._connection is not None:
            self._attempt_of(self._connection)
        super()._give_up_attempts()

    # -- answer -----------------------------------------------------------------------------------------------

    def _deliver_straight(self, _written: bool) -> None:
        if self._over:
            return
        self._over = True
        front, (content_type, passed, body) = self._front, self._came
        stays = front.stays
        front.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b%b%b"
            % (
                content_type,
                len(body),
                passed,
                self._trace_headers(),
                b"\r\n" if stays else b"connection: close\r\n\r\n",
                body,
            )
        )
        front.finished(stays=stays)

    def _keep_whole(self, body: bytes, heard: Heard) -> None:
        """Keep the answer for the cache, where the endpoint has one."""
        raise NotImplementedError
