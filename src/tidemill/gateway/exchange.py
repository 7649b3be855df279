"""One request's life between client and upstream: intent, attempts, answer, finished record.

The order that the promises rest on: the intent is written before an upstream hears of the request, and the finished
record before the client gets the last byte. Until an attempt has said something the client has seen nothing, so another
attempt may take its place; afterwards none ever does.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Final

from tidemill.gateway.answers import Refusal, error_body, status_line
from tidemill.gateway.attempts import Attempt
from tidemill.gateway.callers import Forward
from tidemill.gateway.delivery import Client, Passing, head_of
from tidemill.gateway.failures import Cause, Failed, fault, malformed, too_deep
from tidemill.gateway.operations import Operation
from tidemill.gateway.payloads import Asked, Heard, hear_body
from tidemill.gateway.preparing import Preparation, prepare_at_once
from tidemill.gateway.recording import Capture, nothing
from tidemill.gateway.replying import EVENT_STREAM
from tidemill.gateway.snapshots import Junction
from tidemill.gateway.straight import Straight
from tidemill.gateway.streams import without_usage
from tidemill.kernel import ApiKey, UserError

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.cache import CacheKey
    from tidemill.gateway.dialects import ClientDialect
    from tidemill.gateway.dialects.responses import ResponsesDialect
    from tidemill.gateway.front import Request

_log = logging.getLogger(__name__)

_BODYLESS: Final = frozenset((204, 304))
_SHORT_S: Final = 5.0  # a deadline nearer than this gets an alarm of its own; the sweep sees to the rest
_BROKE_OFF: Final = error_body(502, "The answer broke off upstream.", "upstream_broke_off")
_JSON: Final = b"application/json"


class Exchange(Straight):
    """A request being answered by upstreams. A ``Call`` for the front, a ``Caller`` for its attempts.

    Args:
        gateway: the worker's parts.
        front: the client's connection.
        request, asked: the request, and what was read of its body.
        body: the body in the pivot's format.
        key: who asks.
        junction: where the endpoint leads.
        operation: what is asked.

    Attributes:
        course: what is known of it already, if it comes over a connection that sent others like it.
    """

    __slots__ = ("_ending", "_preparation", "_task", "_whole")

    _whole: bytes  # the answer, until its record is written
    _preparation: Preparation | None
    _task: asyncio.Task[None] | None
    _ending: bool  # an opened answer has come to its end and waits for what is due before the record

    def __init__(
        self,
        gateway: Gateway,
        front: Client,
        request: Request,
        asked: Asked,
        body: bytes,
        key: ApiKey,
        junction: Junction,
        operation: Operation,
    ) -> None:
        self.operation = operation
        self.request = request
        self.asked = asked
        self.body = body
        self.key = key
        self.junction = junction
        self.streamed = bool(asked.stream)
        self._gateway = gateway
        self._front = front
        self._started_ns = started_ns = time_ns()
        self._deadline_s = monotonic() + junction.total_s
        self.identity = gateway.ids.identify(request.traceparent)
        self._session = session = gateway.session_of(front, request, asked, key, junction, started_ns)
        self._branch = branch = junction.by_release.get(session.release, junction.control)
        self.lane = branch.lanes[0]
        self._attributes = {}
        self.course = self._connection = None
        self._attempt = self._hedge = None
        self._timer = self._plan = None
        self._place = 0
        self._made = 0
        self._timed = False
        self._bounds_output = False
        self._settled = False
        self._over = False
        self._lost = ()
        self.ticket = None
        self.guarding = None
        self.cache_key = None
        self._alarm = None
        self._capture = None
        self._status = 0
        self._first_ns = 0
        self._recorded = False
        self._user_key = gateway.user_key(asked.user) if asked.user is not None else None
        self.conversation = None
        self._dialect = None
        self._whole = b""
        self._preparation = None
        self._task = None
        self._passing = None
        self._untraced = False
        self._ending = False

    def start(self, dialect: ClientDialect | None = None, conversation: ResponsesDialect | None = None) -> None:
        """Take the steps that the endpoint has, write the intent, then call an upstream.

        Args:
            dialect: what the client speaks, if not the pivot.
            conversation: the same one, where it has steps of its own.
        """
        self._front.attend(self)
        gateway, junction = self._gateway, self.junction
        gateway.metrics.in_flight += 1
        gateway.live.add(self)
        if dialect is not None:
            self._dialect, self.conversation = dialect, conversation
        if junction.total_s < _SHORT_S:
            self._timed = True
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(junction.total_s, self.expire, self._deadline_s)
        if not junction.prepares and conversation is None:
            gateway.journal.add(self.key.tenant, self._intent(), self._intended, self)
            return
        if junction.plan is not None:
            from tidemill.gateway.guarding import Guarding

            self._timed = True
            self.guarding = Guarding(junction.plan, self.operation.name, self.blocked)
        elif conversation is None and junction.context_tokens is None and prepare_at_once(gateway, self):
            return
        self._preparation = Preparation(gateway, self)
        self._preparation.start()

    def prepared(self, body: bytes) -> None:
        """All steps are taken. ``body`` is the request to send."""
        self.body = body
        self._preparation = None
        if self.ticket is not None and self.ticket.attributes:
            self._bounds_output = self.operation.says_text and self.asked.output_tokens_most is None
        self._gateway.journal.add(self.key.tenant, self._intent(), self._intended, self)

    def _intended(self, written: bool) -> None:
        if self._over:
            return
        if not written:
            if not self.junction.policy.untraced:
                self._gateway.metrics.event("refused_untraceable")
                text = "The gateway cannot record requests at present, so it makes none."
                self.refused(Refusal(503, text, "not_recordable"))
                return
            self._untraced = True
            self._gateway.untraced()
        self.junction.budget.deposit()
        self._pursue()
        if self.guarding is not None and not self._over:
            self.guarding.alongside(self.body)

    # -- whole answers ----------------------------------------------------------------------------------------

    def answered(self, attempt: Attempt, body: bytes, heard: Heard) -> None:
        """Record a whole answer, then let the client have it."""
        if self._over:
            return
        self._status = attempt.status
        if self._made > 1 or self._timed:
            self._settle_on(attempt)
        self._settled = True
        if self.guarding is not None:
            self.guarding.whole(
                body, lambda passed: self._conclude(passed, heard if passed is body else hear_body(passed))
            )
        else:
            self._conclude(body, heard)

    def _conclude(self, body: bytes, heard: Heard) -> None:
        if self.conversation is not None:
            self._task = self._gateway.spawn(self._keep_turn(self.conversation, body, heard), self)
            return
        try:
            self._whole = body if self._dialect is None else self._dialect.answer(body)
        except UserError as error:  # an answer in good order that says nothing the dialect could
            self._give_up(malformed(str(error), self._status))
            return
        self._record("ok", None, self._deliver_whole, heard)
        self._keep_whole(body, heard)

    async def _keep_turn(self, conversation: ResponsesDialect, body: bytes, heard: Heard) -> None:
        try:
            kept = await conversation.keep(conversation.answer(body))
        except UserError as error:
            self._give_up(malformed(str(error), self._status))
            return
        self._task = None
        if not self._over:
            self._record("ok", None, lambda _: self._answer(200, kept), heard)

    def _keep_whole(self, body: bytes, heard: Heard) -> None:
        if self.cache_key is not None:
            self._keep_answer(self.cache_key, body, heard, streamed=False)

    def _keep_answer(self, key: CacheKey, body: bytes, heard: Heard, *, streamed: bool) -> None:
        """Keep the answer for the next who asks the same."""
        cache = self.junction.cache
        if cache is not None:
            cache.keep(
                key,
                status=self._status,
                streamed=streamed,
                body=body,
                finish_reasons=heard.finish_reasons,
                trace_id=self.identity.trace_id,
                usage=None,
            )

    def _deliver_whole(self, _written: bool) -> None:
        if self._over:
            return
        self._over = True
        attempt, front, body = self._attempt, self._front, self._whole
        assert attempt is not None
        self._attempt = None  # it knows this object, and two that know each other are not freed at once
        head = attempt.head
        assert head is not None
        kind = head.content_type
        if self._dialect is not None or attempt.lane.dialect is not None:
            kind = _JSON
        stays = front.stays
        front.write(
            b"%bcontent-type: %b%b\r\n%b%b%b%b"
            % (
                status_line(attempt.status),
                kind,
                b"" if attempt.status in _BODYLESS else b"\r\ncontent-length: %d" % len(body),
                head.passed,
                self._trace_headers(),
                b"\r\n" if stays else b"connection: close\r\n\r\n",
                body,
            )
        )
        front.finished(stays=stays)

    # -- answers that are passed on as they come --------------------------------------------------------------

    def opened(self, attempt: Attempt) -> Forward | None:
        """Prepare to pass an answer on."""
        self._settle_on(attempt)
        head = attempt.head
        assert head is not None
        self._status, self._first_ns = attempt.status, attempt.opened_ns
        if self.ticket is not None:
            self.ticket.first_token((attempt.opened_ns - attempt.started_ns) / 1e9)
        front, sse = self._front, attempt.sse
        chunked, framing = False, b""
        if head.length is not None and not sse:
            framing = b"\r\ncontent-length: " + head.length
        elif attempt.status not in _BODYLESS and self.request.modern:
            chunked, framing = True, b"\r\ntransfer-encoding: chunked"
        translates = sse and (attempt.lane.dialect is not None or self._dialect is not None)
        lines = head.passed + self._trace_headers()
        self._passing = Passing(
            front,
            head_of(
                attempt.status,
                EVENT_STREAM if translates else head.content_type,
                framing,
                lines + b"cache-control: no-cache\r\n" if sse else lines,
                stays=front.stays,
            ),
            sse=sse,
            chunked=chunked,
            strip_usage=sse and self._asks_usage(attempt.lane),
            translator=self._dialect.stream() if self._dialect is not None and sse else None,
        )
        self._capture = Capture(self._gateway.limits.capture_bytes)
        if self.guarding is not None:
            self.guarding.begin(self._pass, self._finish, events=sse)
        if front.slow:
            attempt.pause()
        return self._passing.forwarder(self._capture.add) if self.guarding is None else None

    def events(self, attempt: Attempt, data: bytes) -> None:
        """Whole events of a stream: pass them on, with the last one comes the record."""
        if self.guarding is None:
            self._pass(data)
        else:
            self._guard(attempt, data)

    def piece(self, attempt: Attempt, data: bytes) -> None:
        """Pass bytes on."""
        if self.guarding is None:
            self._pass(data)
        else:
            self._guard(attempt, data)

    def _guard(self, attempt: Attempt, data: bytes) -> None:
        guarding = self.guarding
        if self._over or guarding is None:
            return
        guarding.feed(data)
        if attempt.done_seen:
            guarding.finish()
        elif guarding.full:
            attempt.pause()

    def _pass(self, data: bytes) -> None:
        passing, capture, attempt = self._passing, self._capture, self._attempt
        if self._over or passing is None or capture is None or attempt is None:
            return
        if not self._recorded:
            capture.add(data)
        if not attempt.sse:
            passing.piece(data)
        elif passing.events(data) and not self._ending:
            self._end_stream()
        if self.guarding is not None and not self._front.slow and not attempt.over:
            attempt.resume()

    def ended(self, attempt: Attempt) -> None:  # noqa: ARG002 - the caller's interface
        """The upstream has nothing more: record, then let the client have the end."""
        if self._over:
            return
        if self.guarding is None or self._ending:
            self._finish()
        else:
            self.guarding.finish()

    def _finish(self) -> None:
        passing, capture, attempt = self._passing, self._capture, self._attempt
        if self._over or passing is None or capture is None or attempt is None:
            return
        if self._ending:
            if attempt.over:
                self._end()
        elif attempt.sse:
            heard = capture.hear_events()
            if heard.finished:
                self._end_stream(heard)
            else:
                text = "the stream ended without its end"
                self._break_off(Failed(Cause.LOST, 502, "stream_without_end", text))
        else:
            self._ending = True
            passing.ended()
            text = capture.raw.decode("utf-8", "replace") if _is_text(attempt) else ""
            self._record("ok", None, self._release, Heard(text=text, finished=True))

    def _end_stream(self, heard: Heard | None = None) -> None:
        """The stream has said its last: keep what must be kept, then record."""
        self._ending = True
        passing, capture, conversation = self._passing, self._capture, self.conversation
        assert passing is not None
        assert capture is not None
        if capture.cut:
            self._attributes["tidemill.capture_cut"] = True
        last = passing.finish()
        told = heard or capture.hear_events()
        if conversation is None:
            passing.add(last)
            self._record("ok", None, self._release, told)
            if self.cache_key is not None and not capture.cut:
                kept = without_usage(capture.raw) if self._asks_usage(self.lane) else capture.raw
                self._keep_answer(self.cache_key, kept, told, streamed=True)
            return

        async def keep() -> None:
            passing.add(await conversation.keep(last))
            self._task = None
            if not self._over:
                self._record("ok", None, self._release, told)

        self._task = self._gateway.spawn(keep(), self)

    def _release(self, _written: bool) -> None:
        if self._over or self._passing is None:
            return
        self._passing.recorded()
        if self._attempt is None or self._attempt.over:
            self._end()

    def _end(self) -> None:
        """The upstream has nothing more: the client may have its end, if the record is written."""
        if self._passing is not None and self._passing.ended():
            self._over = True
            self._attempt = None

    # -- failures towards the client -----------------------------------------------------------------------------

    def _break_off(self, failed: Failed) -> None:
        """End an answer that broke off after it had opened."""
        if self._over or self._recorded or self._ending:
            if self._ending and not self._over:
                self._end()  # it had said its last; only the framing is missing
            return
        _log.warning("trace %s: %s: %s", self.identity.trace_id, failed.error_type, failed.detail)
        passing, attempt = self._passing, self._attempt
        assert passing is not None
        if attempt is not None:
            attempt.give_up()
        body = failed.body if failed.cause is Cause.EVENT else _BROKE_OFF

        def deliver(_written: bool) -> None:
            if not self._over:
                self._over = True
                passing.broken_off(body)

        self._record("truncated", failed.error_type, deliver, failed=failed)

    def expire(self, now: float) -> None:
        """End the request if its own time is over. ``now`` is monotonic, in seconds."""
        if now < self._deadline_s or self._over or self._recorded or self._ending:
            return
        failed = Failed(Cause.DEADLINE, 504, "deadline_exceeded", "the time of the whole request is over")
        if self._passing is not None:
            self._break_off(failed)
            return
        self._cancel_steps()
        self._give_up_attempts()
        self._give_up(failed)

    def faulted(self, error: Exception) -> None:
        """A mistake of the gateway's own, logged where it was caught: nobody may wait for what will not come."""
        self._cancel_steps()
        if not self._recorded and not self._over:
            self._ending = False
            failed = fault()
            if isinstance(error, RecursionError):
                failed = malformed("the answer is nested too deeply", self._status) if self._made else too_deep()
            try:
                self._end_faulted(failed)
                return
            except Exception:  # noqa: BLE001 - then without a record: its intent says that there was a call
                _log.exception("trace %s: a call could not be ended", self.identity.trace_id)
        self._over = True
        self._close()
        self._give_up_attempts()
        if self._front.call is self:
            self._front.cut()

    def _end_faulted(self, failed: Failed) -> None:
        if self._passing is not None and self._passing.begun:
            self._break_off(failed)
        else:
            self._give_up_attempts()
            self._give_up(failed)

    # -- from the client --------------------------------------------------------------------------------------

    def client_left(self) -> None:
        """Stop the upstreams: nobody reads the answer, and its tokens cost."""
        self._over = True
        self._cancel_steps()
        self._give_up_attempts()
        if not self._recorded:
            self._record("cancelled", "client_disconnected", nothing)
        self._attempt = self._hedge = None

    def client_slow(self) -> None:
        """Stop reading upstream until the client has caught up."""
        if self._passing is not None and self._attempt is not None:
            self._attempt.pause()

    def client_ready(self) -> None:
        """Read on."""
        if self._passing is not None and self._attempt is not None:
            self._attempt.resume()

    def _cancel_steps(self) -> None:
        if self._preparation is not None:
            self._preparation.cancel()
        if self._task is not None:
            self._task.cancel()


def _is_text(attempt: Attempt) -> bool:
    assert attempt.head is not None
    return attempt.head.content_type.startswith((b"text/", b"application/json"))
