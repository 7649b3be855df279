"""One request's life between client and upstream: intent, attempts, answer, finished record.

The order that the promises rest on: the intent is written before an upstream hears of the request, and the finished
record before the client gets the last byte. Until an attempt has said something the client has seen nothing, so another
attempt may take its place; afterwards none ever does.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Final, NamedTuple

from tidemill.gateway.answers import error_body
from tidemill.gateway.attempts import Attempt
from tidemill.gateway.calls import Message, Outgoing, message
from tidemill.gateway.delivery import Passing, head_of
from tidemill.gateway.failures import Cause, Failed, reading
from tidemill.gateway.operations import Operation
from tidemill.gateway.payloads import Asked, Heard, with_fields
from tidemill.gateway.recording import Capture, attempt_span, priced, usage_heard
from tidemill.gateway.routing import Again, Attempts, RoutingCall, may_hedge
from tidemill.gateway.sessions import Session
from tidemill.gateway.snapshots import Branch, Junction, Lane
from tidemill.gateway.tracing import Continuation, Identity
from tidemill.gateway.usage import Usage, count_images
from tidemill.kernel import ApiKey, Arm
from tidemill.telemetry.records import AttributeValue, Content, Intent, Span, Status
from tidemill.telemetry.store import ENTRY_ATTRIBUTE

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.dialects import ClientDialect
    from tidemill.gateway.front import Front, Request

_log = logging.getLogger(__name__)

_BODYLESS: Final = frozenset((204, 304))
_SHORT_S: Final = 5.0  # a deadline nearer than this gets an alarm of its own; the sweep sees to the rest
_BROKE_OFF: Final = error_body(502, "The answer broke off upstream.", "upstream_broke_off")
_ASK_USAGE: Final = b'"stream_options":{"include_usage":true}'


class Incoming(NamedTuple):
    """A request that may be made.

    Args:
        request, asked: the request, and what was read of its body.
        body: the body in the pivot's format.
        key: who asks.
        junction: where the endpoint leads.
        operation: what is asked.
        dialect: what the client speaks, if not the pivot.
    """

    request: Request
    asked: Asked
    body: bytes
    key: ApiKey
    junction: Junction
    operation: Operation
    dialect: ClientDialect | None


class Exchange:
    """A request being answered by upstreams. A ``Call`` for the front, a ``Caller`` for its attempts.

    Args:
        gateway: the worker's parts.
        front: the client's connection.
        incoming: the request.
    """

    # What most calls never change stays here: one of these objects is made per request.
    _attempt: Attempt | None = None
    _hedge: Attempt | None = None
    _timer: asyncio.TimerHandle | None = None  # a backoff, or the wait before a hedge
    _alarm: asyncio.TimerHandle | None = None
    _attempts: Attempts | None = None  # from the first failure, hedge or choice on
    _place = 0  # of the lane in its branch
    _passing: Passing | None = None
    _capture: Capture | None = None
    _status = 0
    _first_ns = 0
    _recorded = False  # the finished record is on its way
    _over = False  # nothing more goes to the client
    _untraced = False
    _made = 0  # attempts
    _failures: tuple[tuple[Attempt, Failed | None, int], ...] = ()

    def __init__(self, gateway: Gateway, front: Front, incoming: Incoming) -> None:
        request, asked, body, key, junction, operation, dialect = incoming
        self.operation = operation
        self.streamed = bool(asked.stream)
        self._gateway = gateway
        self._front = front
        self._request = request
        self._asked = asked
        self._body = body
        self._key = key
        self._junction = junction
        self._dialect = dialect
        self._started_ns = time_ns()
        self._deadline_s = monotonic() + junction.policy.timeouts.total_s
        self._identity: Identity = gateway.ids.identify(request.traceparent)
        self._session: Session = gateway.session_of(front, request, asked, key, junction, self._started_ns)
        self._user_key = gateway.user_key(asked.user)
        self._branch: Branch = junction.by_release.get(self._session.release, junction.control)
        self._lane: Lane = self._branch.lanes[0]
        self._attributes: dict[str, AttributeValue] = {}

    def start(self) -> None:
        """Write the intent, then call an upstream."""
        self._front.attend(self)
        self._gateway.metrics.in_flight += 1
        self._gateway.live.add(self)
        self._gateway.journal.add(self._key.tenant, self._intent(), self._intended)

    def _intended(self, written: bool) -> None:
        if self._over:
            return
        if not written:
            if not self._junction.policy.untraced:
                self._gateway.metrics.event("refused_untraceable")
                text = "The gateway cannot record requests at present, so it makes none."
                self._refuse(503, error_body(503, text, "not_recordable"))
                return
            self._untraced = True
            self._gateway.untraced()
        self._junction.budget.deposit()
        if self._deadline_s - monotonic() < _SHORT_S:
            self._alarm = asyncio.get_running_loop().call_later(
                max(0.0, self._deadline_s - monotonic()), self.expire, self._deadline_s
            )
        self._choose()

    def _refuse(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Answer with an error of the gateway's own, without a record."""
        self._over = self._recorded = True
        self._close()
        self._gateway.metrics.in_flight -= 1
        body = body if self._dialect is None else self._dialect.error(status, body)
        self._front.answer(status, body, headers=headers + self._gateway.origin_header(self._request))

    # -- attempts ---------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Make the first attempt at a release."""
        branch = self._branch
        if branch.only is not None:
            self._place = 0
        else:
            place = branch.chooser.choose(self._routing_call(), monotonic())
            if place is None:
                self._give_up(_no_room(self._asked.model))
                return
            self._place = place
        self._attempts = None
        self._try(branch.lanes[self._place])
        hedger = self._junction.hedger
        if hedger is not None and branch.only is None and not self._over:
            self._await_hedge()

    def _try(self, lane: Lane) -> None:
        self._lane = lane
        gateway = self._gateway
        self._made += 1
        attempt = self._attempt = Attempt(self, lane, gateway.pool, self._junction.waits, gateway.limits.capture_bytes)
        attempt.start()

    def _routing_call(self) -> RoutingCall:
        asked = self._asked
        return RoutingCall(
            self.streamed,
            memoryview(asked.messages or asked.prompt or asked.input),
            memoryview(asked.tools),
            asked.user,
            len(self._body),
            asked.output_tokens_most,
        )

    def _plan(self) -> Attempts:
        """Where this release's attempts have been, and where the next may go."""
        if self._attempts is None:
            self._attempts = Attempts(self._branch.parts, self._routing_call(), self._deadline_s, self._place)
        return self._attempts

    def message(self, lane: Lane) -> Message:
        """The call as a target wants it."""
        body = self._body
        if self._asks_usage(lane):
            body = with_fields(body, _ASK_USAGE)
        call = Outgoing(
            self.operation, self._request, self._identity, self._session.session_id, self._junction.rollout_header
        )
        left_ms = int((self._deadline_s - monotonic()) * 1000)
        return message(lane, call, body, left_ms=left_ms if left_ms > 0 else 0)

    def _asks_usage(self, lane: Lane) -> bool:
        """Whether a stream's usage is asked for although the client did not, because the call has a price."""
        return (
            self.streamed
            and lane.asks_usage
            and lane.dialect is None
            and self.operation.says_text
            and self._asked.stream_options is None
            and b'"stream_options"' not in self._body
        )

    def pivot_body(self) -> bytes:
        """The request in the pivot's format."""
        return self._body

    def failed(self, attempt: Attempt, failed: Failed) -> None:
        """Try elsewhere or again where that is safe, else tell the client."""
        if self._over:
            return
        if self._passing is not None:
            if not self._recorded:
                self._break_off(failed)
            return
        other = self._hedge if attempt is self._attempt else self._attempt
        if other is not None and attempt in (self._attempt, self._hedge) and not other.over:
            self._note(attempt, failed)
            self._attempt, self._hedge = other, None
            self._lane = other.lane
            return
        self._follow(attempt, failed)

    def _follow(self, attempt: Attempt, failed: Failed) -> None:
        now = monotonic()
        branch = self._branch
        told = reading(failed)
        plan = self._plan()
        canary = branch.arm is Arm.CANARY
        most = branch.parts.policy.max_attempts
        spare = canary and plan.made + 1 >= most  # the last attempt is the control's
        step = None if spare else plan.after(self._place, told, now)
        if step is not None:
            self._note(attempt, failed)
            self._place = step.target
            self._gateway.metrics.event("retry" if step.wait_s else "fallback")
            if step.wait_s:
                self._attempt = None
                self._timer = asyncio.get_running_loop().call_later(step.wait_s, self._try, branch.lanes[step.target])
            else:
                self._try(branch.lanes[step.target])
        elif canary and told.again is not Again.NOWHERE and plan.made < most and now < self._deadline_s:
            self._note(attempt, failed)
            self._fail_over(failed)
        else:
            self._give_up(failed)

    def _fail_over(self, failed: Failed) -> None:
        """Go on with the control release; scores still count for the one that was assigned."""
        self._attributes["tidemill.failover_from"] = self._branch.release.release
        self._attributes["tidemill.failover_reason"] = failed.error_type
        self._gateway.metrics.event("failover")
        self._branch = self._junction.control
        self._choose()

    def _note(self, attempt: Attempt, failed: Failed | None) -> None:
        """Remember an attempt that came to nothing."""
        self._failures = (*self._failures, (attempt, failed, time_ns()))

    # -- hedging ----------------------------------------------------------------------------------------------

    def _await_hedge(self) -> None:
        hedger = self._junction.hedger
        assert hedger is not None
        delay_s = hedger.delay_s(self._lane.health, streamed=self.streamed)
        if delay_s is not None and may_hedge(self.operation.name, memoryview(self._asked.tools)):
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._start_hedge)

    def _start_hedge(self) -> None:
        """The first attempt is slower than its target's own p95: ask another target too."""
        hedger, first = self._junction.hedger, self._attempt
        if self._over or self._passing is not None or first is None or first.over or hedger is None:
            return
        place = self._plan().another(monotonic())
        if place is None or not hedger.spend():
            return
        self._made += 1
        self._gateway.metrics.event("hedge")
        self._attributes["tidemill.hedged"] = True
        gateway, lane = self._gateway, self._branch.lanes[place]
        self._hedge = Attempt(self, lane, gateway.pool, self._junction.waits, gateway.limits.capture_bytes)
        self._hedge.start()

    def _settle_on(self, attempt: Attempt) -> None:
        """This attempt answers; the other one, if there is one, is given up."""
        if self._timer is not None:
            self._timer.cancel()
        if self._hedge is not None:
            loser = self._attempt if attempt is self._hedge else self._hedge
            self._attempt, self._hedge, self._lane = attempt, None, attempt.lane
            if loser is not None and not loser.over:
                loser.give_up()
                self._note(loser, None)

    # -- from the attempts ------------------------------------------------------------------------------------

    def answered(self, attempt: Attempt, body: bytes, heard: Heard) -> None:
        """Record a whole answer, then let the client have it."""
        if self._over:
            return
        self._settle_on(attempt)
        self._status = attempt.status
        self._record("ok", None, lambda _: self._deliver_whole(attempt, body), heard)

    def _deliver_whole(self, attempt: Attempt, body: bytes) -> None:
        if self._over:
            return
        self._over = True
        assert attempt.head is not None
        front = self._front
        if self._dialect is not None:
            body = self._dialect.answer(body)
        framing = b"" if attempt.status in _BODYLESS else b"\r\ncontent-length: %d" % len(body)
        kind = attempt.head.content_type if attempt.lane.dialect is None else b"application/json"
        head = head_of(attempt.status, kind, framing, attempt.head.passed + self._trace_headers(), stays=front.stays)
        front.write(head + body)
        front.finished(stays=front.stays)

    def opened(self, attempt: Attempt) -> None:
        """Prepare to pass an answer on."""
        self._settle_on(attempt)
        head = attempt.head
        assert head is not None
        self._status, self._first_ns = attempt.status, attempt.opened_ns
        front, sse = self._front, attempt.sse
        chunked, framing = False, b""
        if head.length is not None and not sse:
            framing = b"\r\ncontent-length: " + head.length
        elif attempt.status not in _BODYLESS and self._request.modern:
            chunked, framing = True, b"\r\ntransfer-encoding: chunked"
        lines = head.passed + self._trace_headers()
        self._passing = Passing(
            front,
            head_of(
                attempt.status,
                b"text/event-stream; charset=utf-8" if attempt.lane.dialect is not None and sse else head.content_type,
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
        if front.slow:
            attempt.pause()

    def events(self, attempt: Attempt, data: bytes) -> None:
        """Pass whole events on; with the last one comes the record."""
        if self._over:
            return
        assert self._passing is not None
        assert self._capture is not None
        if not self._recorded:
            self._capture.add(data)
        if self._passing.events(data) and not self._recorded:
            self._record_stream(attempt)

    def piece(self, attempt: Attempt, data: bytes) -> None:  # noqa: ARG002 - the caller's interface
        """Pass bytes on."""
        if self._over:
            return
        assert self._passing is not None
        assert self._capture is not None
        self._capture.add(data)
        self._passing.piece(data)

    def ended(self, attempt: Attempt) -> None:
        """Record, then let the client have the end."""
        if self._over:
            return
        assert self._passing is not None
        assert self._capture is not None
        if self._recorded:
            self._passing.ended()
        elif attempt.sse:
            heard = self._capture.hear_events()
            if not heard.finished:
                detail = "the stream ended without its end"
                self._break_off(Failed(Cause.LOST, 502, "stream_without_end", detail))
                return
            self._passing.ended()
            self._record_stream(attempt, heard)
        else:
            self._passing.ended()
            text = self._capture.raw.decode("utf-8", "replace") if _is_text(attempt) else ""
            self._record("ok", None, self._release, Heard(text=text, finished=True))

    def _record_stream(self, attempt: Attempt, heard: Heard | None = None) -> None:  # noqa: ARG002
        assert self._capture is not None
        if self._capture.cut:
            self._attributes["tidemill.capture_cut"] = True
        self._record("ok", None, self._release, heard or self._capture.hear_events())

    def _release(self, _written: bool) -> None:
        if self._over:
            return
        assert self._passing is not None
        self._passing.recorded()
        if self._attempt is None or self._attempt.over:
            self._over = True

    # -- failures towards the client --------------------------------------------------------------------------

    def _give_up(self, failed: Failed) -> None:
        """Tell the client that there is no answer."""
        _log.warning("trace %s: %s: %s", self._identity.trace_id, failed.error_type, failed.detail)
        self._status = failed.status
        self._record("error", failed.error_type, lambda _: self._deliver_failure(failed))

    def _deliver_failure(self, failed: Failed) -> None:
        if self._over:
            return
        self._over = True
        status, body = failed.status, failed.body
        if not body:
            text = f"The model behind '{self._asked.model}' gave no complete answer. Try again, or see the trace."
            code = "upstream_timeout" if status == 504 else "upstream_failed"
            body = error_body(status, text, code)
        if self._dialect is not None:
            body = self._dialect.error(status, body)
        self._front.answer(status, body, headers=failed.passed + self._trace_headers())

    def _break_off(self, failed: Failed) -> None:
        """End an answer that broke off after its beginning was sent."""
        _log.warning("trace %s: %s: %s", self._identity.trace_id, failed.error_type, failed.detail)
        assert self._capture is not None
        assert self._passing is not None
        attempt, passing = self._attempt, self._passing
        if attempt is not None:
            attempt.give_up()
        body = failed.body if failed.cause is Cause.EVENT else _BROKE_OFF
        heard = self._capture.hear_events() if attempt is not None and attempt.sse else Heard()

        def deliver(_written: bool) -> None:
            if not self._over:
                self._over = True
                passing.broken_off(body)

        self._record("truncated", failed.error_type, deliver, heard)

    def expire(self, now: float) -> None:
        """End the request if its own time is over. ``now`` is monotonic, in seconds."""
        if now < self._deadline_s or self._over or self._recorded:
            return
        failed = Failed(Cause.DEADLINE, 504, "deadline_exceeded", "the time of the whole request is over")
        if self._passing is not None:
            self._break_off(failed)
            return
        for attempt in (self._attempt, self._hedge):
            if attempt is not None:
                attempt.give_up()
        self._give_up(failed)

    def _trace_headers(self) -> bytes:
        headers = f"x-tidemill-trace-id: {self._identity.trace_id}\r\n".encode() + self._lane.answer_header
        if self._untraced:
            headers += b"x-tidemill-untraced: 1\r\n"
        return headers if self._request.origin is None else headers + self._gateway.origin_header(self._request)

    # -- from the client --------------------------------------------------------------------------------------

    def client_left(self) -> None:
        """Stop the upstreams: nobody reads the answer, and its tokens cost."""
        self._over = True
        for attempt in (self._attempt, self._hedge):
            if attempt is not None:
                attempt.give_up()
        if not self._recorded:
            self._record("cancelled", "client_disconnected", _nothing)

    def client_slow(self) -> None:
        """Stop reading upstream until the client has caught up."""
        if self._passing is not None and self._attempt is not None:
            self._attempt.pause()

    def client_ready(self) -> None:
        """Read on."""
        if self._passing is not None and self._attempt is not None:
            self._attempt.resume()

    # -- records ----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Stop all timers, and leave the set of live requests."""
        self._gateway.live.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._alarm is not None:
            self._alarm.cancel()

    def _intent(self) -> Intent:
        identity, session, release = self._identity, self._session, self._lane.release
        return Intent(
            trace_id=identity.trace_id,
            span_id=identity.span_id,
            parent_span_id=identity.parent_span_id,
            started_at_ns=self._started_ns,
            name=f"{self.operation.name} {self._asked.model}",
            operation=self.operation.name,
            endpoint=self._junction.route.endpoint,
            release=release.release,
            assigned_release=session.release,
            arm=self._lane.arm,
            session_id=session.session_id,
            user_key=self._user_key,
            request_model=self._asked.model,
            stream=self.streamed,
            rollout=self._junction.route.rollout if session.in_rollout else None,
        )

    def _record(self, status: Status, error_type: str | None, then: Continuation, heard: Heard | None = None) -> None:
        """Write the finished record, count the request, and go on with ``then``."""
        self._recorded = True
        self._close()
        gateway = self._gateway
        ended_ns = time_ns()
        usage: Usage | None = None
        if heard is None:
            heard = Heard()
            if self._capture is not None:
                heard = self._capture.hear_events()
        if self._status < 300 and self._status and (status == "ok" or heard.text or heard.usage is not None):
            images = count_images(self._asked.messages) if self._lane.target.prices.image_usd else 0
            usage = usage_heard(self.operation, self._asked, heard, images=images)
        cost_usd = priced(usage, self._lane)
        span = self._span(status, error_type, heard, ended_ns, usage, cost_usd)
        tenant = self._key.tenant
        for attempt, failed, at_ns in self._failures:
            gateway.journal.add(tenant, (self._lost_span(span, attempt, failed, at_ns), None), _nothing)
        gateway.journal.add(tenant, (span, Content(self._asked.input_text(), heard.text)), then)
        gateway.metrics.in_flight -= 1
        arm = self._lane.arm
        duration_s = (ended_ns - self._started_ns) / 1e9
        gateway.metrics.request(self._junction.route.endpoint, arm, self._status, status, duration_s)
        if self._junction.shadow is not None and status == "ok":
            gateway.shadows.offer(self._junction, self.operation, self._request, self._body, span)

    def _lost_span(self, parent: Span, attempt: Attempt, failed: Failed | None, ended_ns: int) -> Span:
        usage = None
        return attempt_span(parent, attempt, self._gateway.ids.span_id(), failed=failed, usage=usage, ended_ns=ended_ns)

    def _span(
        self,
        status: Status,
        error_type: str | None,
        heard: Heard,
        ended_ns: int,
        usage: Usage | None,
        cost: float | None,
    ) -> Span:
        identity, session, lane = self._identity, self._session, self._lane
        attributes = self._attributes
        if identity.parent_span_id is not None:
            attributes[ENTRY_ATTRIBUTE] = True
        if usage is not None:
            attributes.update(usage.attributes())
        if self._made > 1:
            attributes["tidemill.attempts"] = self._made
        if self._branch.only is None:
            attributes["tidemill.target"] = lane.name
        first_ns = self._first_ns
        sse = self._passing is not None and self._attempt is not None and self._attempt.sse
        return Span(  # by place: see Span
            identity.trace_id,
            identity.span_id,
            self._gateway.project,
            self._key.tenant,
            f"{self.operation.name} {self._asked.model}",
            self.operation.name,
            self._started_ns,
            ended_ns,
            identity.parent_span_id,
            status,
            error_type,
            self._status or None,  # http_status
            self._junction.route.endpoint,
            lane.release.release,
            session.release,  # assigned_release
            lane.arm,
            session.session_id,
            self._user_key,
            lane.provider,
            self._asked.model,  # request_model
            heard.model,  # response_model
            usage.input_tokens if usage is not None else None,
            usage.output_tokens if usage is not None else None,
            cost,
            (first_ns - self._started_ns) / 1e9 if sse and first_ns else None,
            heard.finish_reasons,
            sse,  # stream
            self._junction.route.rollout if session.in_rollout else None,
            attributes,
            (*heard.references, lane.reference),
        )


def _nothing(_written: bool) -> None:
    """What waits for a record that nobody waits for."""


def _is_text(attempt: Attempt) -> bool:
    assert attempt.head is not None
    return attempt.head.content_type.startswith((b"text/", b"application/json"))


def _no_room(model: str) -> Failed:
    text = f"Every target of '{model}' has as many calls in flight as it may have. Try again in a moment."
    return Failed(Cause.UNAVAILABLE, 503, "no_target", text, error_body(503, text, "no_target"), b"retry-after: 1\r\n")
