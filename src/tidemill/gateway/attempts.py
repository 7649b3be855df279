"""One call of one target: sent, watched, translated, and held back until it says something.

An attempt belongs to a ``Caller`` (the exchange, or a shadow copy) and tells it one of: ``answered`` with a whole
answer; ``opened``, then ``events`` or ``piece`` as it comes, then ``ended``; or ``failed``. Until it has opened nothing
of it has reached anybody, so another attempt may take its place.
"""

from __future__ import annotations

import asyncio
from time import monotonic, time, time_ns
from typing import TYPE_CHECKING, Final

import msgspec

from tidemill.gateway.answers import error_body
from tidemill.gateway.callers import Caller, Forward
from tidemill.gateway.failures import (
    Cause,
    Failed,
    event_failure,
    malformed,
    reading,
    retry_facts,
    too_deep,
    unsupported,
)
from tidemill.gateway.payloads import Heard, hear_body
from tidemill.gateway.routing import Attempt as HealthAttempt
from tidemill.gateway.routing import AttemptResult
from tidemill.gateway.streams import (
    DONE,
    DONE_WITHIN,
    Trouble,
    View,
    is_object,
    opening,
    read_event,
    trouble,
    whole_events,
)
from tidemill.gateway.upstream import AnswerHead, Failure, UpstreamConnection, UpstreamPool, Waits
from tidemill.kernel import UserError
from tidemill.models.providers import StreamTranslator

if TYPE_CHECKING:
    from tidemill.gateway.snapshots import Lane

_JSON: Final = b"application/json"
_JSONS: Final = (_JSON, b"application/problem+json")
_SSE: Final = b"text/event-stream"
_EVENT_BYTES_MOST: Final = 1 << 20
_ERROR_BYTES_MOST: Final = 1 << 16
_EVENT: Final = b"data: {"
_EVENT_END: Final = b"\n\n"
_JOINED_BYTES: Final = 1 << 14  # a body up to this is cheaper joined with its head than written by itself
_ANSWERED: Final = AttemptResult.ANSWERED
_BODYLESS: Final = frozenset((204, 304))


class Attempt:
    """A sink for the upstream.

    Args:
        caller: who wants the answer.
        lane: the target.
        pool: where connections come from.
        waits: how long to wait for what.
        hold_bytes: how much of an answer that has not opened is held; what is longer opens.

    Attributes:
        status: the upstream's HTTP status; 0 before it came.
        head: the headers that matter; ``None`` before they came.
        sse: whether the answer is a stream of events.
        opened: whether anything of it has been passed on.
        over: whether it has told its end, or was given up.
        asked: whether the upstream has got the request, so that it may charge for it.
        opened_ns: when it opened; 0 before, and for a whole answer.
    """

    __slots__ = (
        "_body", "_caller", "_connecting", "_connection", "_first_token_at", "_forward", "_health", "_held",
        "_hold_bytes", "_passes", "_pool", "_renewed", "_rest", "_size", "_translator", "_waits", "asked",
        "done_seen", "head", "lane", "opened", "opened_ns", "over", "sse", "started_ns", "status",
    )  # fmt: skip

    status: int
    head: AnswerHead | None
    sse: bool
    opened: bool
    over: bool
    done_seen: bool
    asked: bool
    opened_ns: int
    _connection: UpstreamConnection | None
    _connecting: asyncio.Task[None] | None
    _translator: StreamTranslator | None
    _forward: Forward | None  # of an opened stream whose events pass unchanged
    _health: HealthAttempt | None
    _renewed: bool
    _passes: bool
    _first_token_at: float
    _body: bytes  # of a whole answer, while it came in one piece
    _held: list[bytes] | None
    _rest: bytes
    _size: int

    def __init__(self, caller: Caller, lane: Lane, pool: UpstreamPool, waits: Waits, hold_bytes: int) -> None:
        self.lane = lane
        self.started_ns = time_ns()
        self._caller = caller
        self._pool = pool
        self._waits = waits
        self._hold_bytes = hold_bytes
        self.status = 0
        self.head = None
        self.sse = False
        self.opened = False
        self.over = False
        self.done_seen = False
        self.asked = False
        self.opened_ns = 0
        self._connection = None
        self._connecting = None
        self._translator = None
        self._forward = None
        self._health = None
        self._renewed = False
        self._passes = False
        self._first_token_at = 0.0
        self._body = b""
        self._held = None
        self._rest = b""
        self._size = 0
        if not lane.alone:
            self._health = lane.health.begin(monotonic(), streamed=caller.streamed)

    # -- for the caller ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the call over an idle connection, or over a new one."""
        connection = self._pool.take_idle(self.lane.address)
        if connection is None:
            self._connecting = self._pool.connect(self.lane.address, self, self._waits)
        else:
            self._send(connection)

    def take_over(self, connection: UpstreamConnection | None, asked_ns: int) -> None:
        """Go on with a call that was sent already, see ``straight``.

        Args:
            connection: that it was sent over; ``None`` once that has brought the whole answer.
            asked_ns: when.
        """
        self.asked = True
        self.started_ns = asked_ns
        self._connection = connection
        if connection is not None:
            self._first_token_at = connection.deadline

    def give_up(self) -> None:
        """Nobody wants the answer any more: stop the upstream, for its tokens cost."""
        if self.over:
            return
        self._finish(AttemptResult.ABANDONED)
        self._drop()

    def pause(self) -> None:
        """Stop reading: the client is slow."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    @property
    def held(self) -> bytes:
        """What has come and was passed on to nobody."""
        return b"".join((self._body, *(self._held or ())))

    # -- sink -------------------------------------------------------------------------------------------------

    def on_connected(self, connection: UpstreamConnection) -> None:
        """Send the request over a new connection."""
        self._connecting = None
        if self.over:
            self._pool.give_back(connection)
        else:
            self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        try:
            head, body = self._caller.message(self.lane)
        except (UserError, RecursionError) as error:
            self._connection = None
            self._pool.give_back(connection)
            self._fail(unsupported(error) if isinstance(error, UserError) else too_deep())
            return
        if len(body) < _JOINED_BYTES:
            connection.start(self, head + body, b"", self._waits)
        else:
            connection.start(self, head, body, self._waits)
        self.asked = True
        self._first_token_at = connection.deadline

    def on_head(self, status: int, headers: AnswerHead) -> None:
        """Keep status and headers; they go nowhere before there is something to say."""
        self.status = status
        self.head = headers
        kind = headers.content_type
        if status < 300 and (kind != _JSON or headers.passed):
            self._look_at(kind, headers.passed)

    def _look_at(self, kind: bytes, passed: bytes) -> None:
        """What a good answer is, if it is not plain JSON."""
        lane = self.lane
        self.sse = kind.startswith(_SSE)
        if lane.dialect is not None and (self.sse or kind.startswith(lane.dialect.stream_type)):
            self.sse = True
            caller = self._caller
            self._translator = lane.dialect.stream(
                caller.operation.name, caller.pivot_body(), model=lane.place.model, now_s=time()
            )
        if self.sse:
            self._await_first_token()
        else:
            self._passes = not kind.startswith(_JSONS) or b"content-encoding" in passed.lower()

    def on_data(self, data: bytes) -> None:
        """Hold, or pass on."""
        if self.sse:
            forward = self._forward
            # The common event of an opened stream, all by itself in this read: JSON without an error in it.
            if forward is not None and data[:7] == _EVENT and data[-2:] == _EVENT_END and not self._rest:
                try:
                    event = read_event(data[6:])
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    pass  # several events, or a bad one
                else:
                    if not event.error:
                        forward(data, event.usage)
                        return
            self._hear_events(data)
        elif self.opened:
            self._caller.piece(self, data)
        elif not self._body and len(data) <= self._hold_bytes and not self._passes:
            self._body = data
        else:
            self._hold(data)

    def _hold(self, data: bytes) -> None:
        if self._held is None:
            self._held = []
            self._size = len(self._body)
        self._held.append(data)
        self._size += len(data)
        if self.status >= 300:
            if self._size > _ERROR_BYTES_MOST:
                self._fail(self._status_failure())
        elif self._passes or (self._size > self._hold_bytes and self.lane.dialect is None):
            held = self._unheld()
            self._open()
            self._caller.piece(self, held)

    def _unheld(self) -> bytes:
        held, self._held, self._body = self.held, None, b""
        return held

    def on_done(self) -> None:
        """The answer is complete."""
        self._connection = None
        if self.over:
            return
        if self.sse:
            self._end_events()
        elif self.opened:
            self._finish(_ANSWERED)
            self._caller.ended(self)
        elif self.status >= 300:
            self._fail(self._status_failure())
        else:
            self._end_whole()

    def on_failure(self, failure: Failure) -> None:
        """Send it again if only a kept-alive connection was stale; else tell."""
        connection, self._connection, self._connecting = self._connection, None, None
        if self.over:
            return
        if self.done_seen:  # only the framing is missing
            self._finish(_ANSWERED)
            self._caller.ended(self)
            return
        stale = failure.untouched and failure.kind == "lost" and connection is not None and not connection.fresh
        if stale and not self._renewed:
            # The upstream closed a kept-alive connection just as it was taken: nothing was answered on it.
            self._renewed = True
            self._connecting = self._pool.connect(self.lane.address, self, self._waits)
            return
        self._fail(
            Failed(
                Cause(failure.kind),
                504 if failure.kind == "timeout" else 502,
                f"upstream_{failure.kind}",
                failure.detail,
                head_status=self.status or None,
            )
        )

    def on_fault(self, error: Exception) -> None:
        """What came could not be taken. An answer too deep for every reader is the target's failure."""
        self._drop()
        if isinstance(error, RecursionError) and not (self.over or self.opened):
            self._fail(malformed("the answer is nested too deeply", self.status))
            return
        if not self.over:
            self._finish(AttemptResult.ABANDONED)
        self._caller.faulted(error)

    # -- whole answers ----------------------------------------------------------------------------------------

    def _end_whole(self) -> None:
        body = self._body if self._held is None else self.held
        lane = self.lane
        if lane.dialect is not None:
            try:
                body = lane.dialect.answer(self._caller.operation.name, body, model=lane.place.model, now_s=time())
            except UserError as error:
                self._fail(malformed(str(error), self.status))
                return
        heard = hear_body(body)
        if heard.broken and self.status not in _BODYLESS and not is_object(body):
            self._fail(malformed("the answer is no JSON object", self.status))
        elif heard.error:
            self._fail(event_failure(heard.error)._replace(head_status=self.status))
        else:
            if self._health is not None:
                self._health.first_token(monotonic())
            self._finish(_ANSWERED)
            self._caller.answered(self, body, heard)

    def _status_failure(self) -> Failed:
        assert self.head is not None
        status, body = self.status, self.held[:_ERROR_BYTES_MOST]
        if self.lane.dialect is not None:
            status, body = self.lane.dialect.error(status, body)
        wait_s, again = retry_facts(self.head.passed, time())
        heard = hear_body(body) if body else Heard()
        word = event_failure(heard.error).error_type if heard.error else f"http_{status}"
        if not heard.error and not is_object(body):  # a proxy's page, or a server's one line: no client can read it
            text = f"The model's server answered with status {status} and no error that can be read."
            body = error_body(status, text, "upstream_error")
        return Failed(
            Cause.STATUS, status, word, f"HTTP status {self.status}", body, self.head.passed, wait_s, again, self.status
        )

    # -- streams ----------------------------------------------------------------------------------------------

    def _hear_events(self, data: bytes) -> None:
        if self._translator is not None:
            try:
                data = self._translator.feed(data)
            except UserError as error:
                self._fail(malformed(str(error), self.status))
                return
        if self._rest:
            data, self._rest = self._rest + data, b""
        end = whole_events(data)
        if end != len(data):
            data, self._rest = data[:end], data[end:]
            if len(self._rest) > _EVENT_BYTES_MOST:
                self._fail(malformed("an event of the stream never ends", self.status))
                return
        if data:
            self._take_events(data)
        elif not self.opened:
            self._await_first_token()

    def _take_events(self, data: bytes) -> None:
        if DONE in data[DONE_WITHIN:]:
            self.done_seen = True
        if self.opened:
            found = trouble(data)
            if found is None:
                self._caller.events(self, data)
                return
            if found.at:
                self._caller.events(self, data[: found.at])
            self._fail(_event_trouble(found, self.status))
            return
        view, found = opening(data, says_text=self._caller.operation.says_text)
        if found is not None:
            self._fail(_event_trouble(found, self.status))
            return
        if self._held is None:
            self._held = []
        self._held.append(data)
        self._size += len(data)
        if view is View.NOTHING and self._size <= self._hold_bytes:
            self._await_first_token()
            return
        held = self._unheld()
        self._open()
        later = trouble(held)
        self._caller.events(self, held if later is None else held[: later.at])
        if later is not None and not self.over:
            self._fail(_event_trouble(later, self.status))

    def _end_events(self) -> None:
        if self._translator is not None:
            last = self._rest + self._translator.finish()
            self._rest = b""
            if last:
                self._take_events(last)
                if self.over:
                    return
        if self._rest and not self.done_seen:
            self._fail(malformed("the stream ended inside an event", self.status, Cause.LOST))
        elif not self.opened:
            self._fail(malformed("the stream ended without saying anything", self.status))
        else:
            self._finish(_ANSWERED)
            self._caller.ended(self)

    def _await_first_token(self) -> None:
        """Until there is content, all that comes must come within the time for the first token."""
        if self._connection is not None:
            self._connection.deadline = self._first_token_at

    # -- ends -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self.opened = True
        self.opened_ns = time_ns()
        if self._health is not None:
            self._health.first_token(monotonic())
        forward = self._caller.opened(self)
        if self._translator is None:
            self._forward = forward

    def _fail(self, failed: Failed) -> None:
        if self.over:
            return
        if self._health is None:  # a target without rivals is only looked at when it fails: how long it wants rest
            self._health = self.lane.health.begin(monotonic(), streamed=self._caller.streamed)
        self._finish(reading(failed).result, failed.retry_after_s)
        self._drop()
        self._caller.failed(self, failed)

    def _finish(self, result: AttemptResult, retry_after_s: float | None = None) -> None:
        self.over = True
        if self._health is not None:
            self._health.end(result, monotonic(), retry_after_s)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.stop()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None


def _event_trouble(found: Trouble, head_status: int) -> Failed:
    if found.view is View.MALFORMED:
        return malformed("an event of the stream is no JSON", head_status)
    return event_failure(found.error)._replace(head_status=head_status)
