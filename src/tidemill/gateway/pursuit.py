"""The attempts of one request, in turn or two at once, until one answers.

The first attempt is made directly; the plan of further ones is only made when it is needed. Over the targets of the
release first, then, for a canary, at the control release, whose answer counts as the canary's failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, time_ns
from typing import TYPE_CHECKING, NamedTuple

from msgspec import UNSET

from tidemill.gateway.answers import error_body
from tidemill.gateway.attempts import Attempt
from tidemill.gateway.callers import Forward
from tidemill.gateway.calls import message
from tidemill.gateway.failures import Cause, Failed, reading
from tidemill.gateway.operations import Operation
from tidemill.gateway.payloads import Asked, Heard, with_fields
from tidemill.gateway.routing import Again, Attempts, Hedger, RoutingCall, Step, may_hedge
from tidemill.gateway.sessions import Session
from tidemill.gateway.snapshots import Branch, Junction, Lane
from tidemill.gateway.tracing import Identity
from tidemill.kernel import ApiKey, Arm
from tidemill.telemetry.records import AttributeValue, Intent

if TYPE_CHECKING:
    from tidemill.gateway.admission import Ticket, Waiting
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.front import Request

_ASK_USAGE = b'"stream_options":{"include_usage":true}'


class Lost(NamedTuple):
    """An attempt that came to nothing, beside the one that decided.

    Args:
        attempt: it.
        failed: why; ``None`` means that another one was faster.
        ended_ns: when.
    """

    attempt: Attempt
    failed: Failed | None
    ended_ns: int


class Pursuit:
    """Who makes the attempts. What becomes of their answers is the exchange's part, which fills in the last methods."""

    __slots__ = (
        "_attempt", "_attributes", "_bounds_output", "_branch", "_deadline_s", "_gateway", "_hedge", "_lost",
        "_made", "_over", "_place", "_plan", "_session", "_settled", "_timed", "_timer", "asked", "body", "identity",
        "junction", "lane", "operation", "request", "streamed", "ticket",
    )  # fmt: skip

    _attempt: Attempt | None
    _hedge: Attempt | None
    _timer: asyncio.TimerHandle | Waiting | None  # before another attempt: a backoff, a hedge's wait, or for limits
    _plan: Attempts | None  # from the first failure or hedge on
    _place: int  # of the lane in its branch
    _made: int
    _timed: bool  # there may be a timer, or guardrails, to be stopped at the end
    _bounds_output: bool  # whether the answer's length is bounded by the endpoint's policy
    _settled: bool  # an attempt has won
    _over: bool  # nothing more goes to the client
    _lost: tuple[Lost, ...]

    operation: Operation
    streamed: bool
    _gateway: Gateway
    request: Request
    asked: Asked
    body: bytes
    junction: Junction
    identity: Identity
    _session: Session
    _deadline_s: float
    _branch: Branch
    lane: Lane
    _attributes: dict[str, AttributeValue]
    key: ApiKey
    ticket: Ticket | None

    # -- what is sent -----------------------------------------------------------------------------------------

    def message(self, lane: Lane) -> tuple[bytes, bytes]:
        """The call as a target wants it."""
        body = self.body
        if self._bounds_output:
            body = with_fields(body, b'"%b":%d' % (lane.bound_field, self.junction.policy.max_output_tokens))
        if self.streamed and self._asks_usage(lane):
            body = with_fields(body, _ASK_USAGE)
        left_ms = int((self._deadline_s - monotonic()) * 1000)
        left_ms = max(left_ms, 0)
        lines = f"x-tidemill-session: {self._session.session_id}\r\nx-tidemill-deadline-ms: {left_ms}"
        rollout_header = self.junction.rollout_header
        return message(lane, self.operation, self.request, self.identity, body, lines, rollout_header)

    def pivot_body(self) -> bytes:
        """The request in the pivot's format."""
        return self.body

    def _asks_usage(self, lane: Lane) -> bool:
        """Whether a stream's usage is asked for although the client did not: a call should be known, not estimated."""
        return self.streamed and lane.asks_usage and self.operation.says_text and self.asked.stream_options is UNSET

    def _routing_call(self) -> RoutingCall:
        asked = self.asked
        return RoutingCall(
            self.streamed,
            asked.messages or asked.prompt or asked.input,
            asked.tools,
            asked.user,
            len(self.body),
            asked.output_tokens_most,
        )

    # -- attempts ---------------------------------------------------------------------------------------------

    def _pursue(self) -> None:
        """Make the first attempt at the branch."""
        branch = self._branch
        if branch.only is not None:
            self._try(branch.only)
            return
        place = branch.chooser.choose(self._routing_call(), monotonic())
        if place is None:
            self._give_up(_no_room(self.asked.model))
            return
        self._place = place
        self._try(branch.lanes[place])
        hedger = self.junction.hedger
        if hedger is not None and not self._over:
            delay_s = hedger.delay_s(self.lane.health, streamed=self.streamed)
            if delay_s is not None and may_hedge(self.operation.name, bytes(self.asked.tools)):
                self._timed = True
                self._timer = asyncio.get_running_loop().call_later(delay_s, self._start_hedge)

    def _try(self, lane: Lane) -> None:
        self._made += 1
        self.lane = lane
        gateway = self._gateway
        self._attempt = Attempt(self, lane, gateway.pool, self.junction.waits, gateway.limits.capture_bytes)
        self._attempt.start()

    def _planned(self) -> Attempts:
        if self._plan is None:
            self._plan = Attempts(self._branch.parts, self._routing_call(), self._deadline_s, self._place)
        return self._plan

    def failed(self, attempt: Attempt, failed: Failed) -> None:
        """Try elsewhere or again where that is safe, else tell the client."""
        if self._over:
            return
        if self._settled:
            self._break_off(failed)
            return
        other = self._hedge if attempt is self._attempt else self._attempt
        if other is not None and not other.over:
            self._lose(attempt, failed)
            self._attempt, self._hedge, self.lane = other, None, other.lane
            return
        self._place = self._branch.lanes.index(attempt.lane)
        self._follow(attempt, failed)

    def _follow(self, attempt: Attempt, failed: Failed) -> None:
        now = monotonic()
        branch, plan, meaning = self._branch, self._planned(), reading(failed)
        most = branch.parts.policy.max_attempts
        canary = branch.arm is Arm.CANARY
        # The last attempt of a canary's request is the control's.
        step = None if canary and plan.made + 1 >= most else plan.after(self._place, meaning, now)
        if step is not None:
            self._afford(lambda: self._take(step, attempt, failed), lambda: self._give_up(failed))
        elif canary and meaning.again is not Again.NOWHERE and plan.made < most and now < self._deadline_s:
            self._afford(lambda: self._fail_over(attempt, failed), lambda: self._give_up(failed))
        else:
            self._give_up(failed)

    def _take(self, step: Step, attempt: Attempt, failed: Failed) -> None:
        """Make the next attempt of the plan."""
        self._lose(attempt, failed)
        self._place = step.target
        lane = self._branch.lanes[step.target]
        if step.wait_s:
            self._gateway.metrics.event("retry")
            self._attempt, self._timed = None, True
            self._timer = asyncio.get_running_loop().call_later(step.wait_s, self._try, lane)
        else:
            self._gateway.metrics.event("fallback")
            self._try(lane)

    def _fail_over(self, attempt: Attempt, failed: Failed) -> None:
        """Ask the control release. Scores still count for the release that was assigned."""
        self._lose(attempt, failed)
        self._attributes["tidemill.failover_from"] = self._branch.release.release
        self._attributes["tidemill.failover_reason"] = failed.error_type
        self._gateway.metrics.event("failover")
        self._branch = self.junction.control
        self._place, self._plan = 0, None
        self._pursue()

    def _afford(self, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Reserve for one more attempt, for it may be charged too, and note that before it is made.

        Args:
            then: called when the attempt may be made; at once where no limit counts what it costs.
            otherwise: called instead where a limit has no room for it. The trace says so.
        """
        ticket = self.ticket
        if ticket is None or not ticket.attributes:
            then()
            return
        before = ticket.attributes

        def reserved(more: Ticket) -> None:
            self.ticket, self._timer = more, None
            if more.attributes == before:  # only requests are counted, and this is the same one
                then()
            else:
                self._gateway.journal.add(self.key.tenant, self._intent(), noted, self)

        def noted(written: bool) -> None:
            if self._over or self._settled:
                return
            if written or self.junction.policy.untraced:
                then()
            else:
                forbidden("not_recordable")

        def forbidden(code: str) -> None:
            self._timer = None
            self._attributes["tidemill.attempt_forbidden"] = code
            self._gateway.metrics.event("attempt_forbidden")
            otherwise()

        self._timed = True
        if self._timer is not None:
            self._timer.cancel()
        waiting = ticket.more(reserved, lambda refusal: forbidden(refusal.code or "limited"))
        if waiting is not None:
            self._timer = waiting

    def _lose(self, attempt: Attempt, failed: Failed | None) -> None:
        self._lost = (*self._lost, Lost(attempt, failed, time_ns()))

    # -- hedging ----------------------------------------------------------------------------------------------

    def _start_hedge(self) -> None:
        """The first attempt is slower than its target's own p95: ask another target too."""
        hedger, first = self.junction.hedger, self._attempt
        if self._over or self._settled or hedger is None or first is None or first.over or self._hedge is not None:
            return
        self._timer = None
        ready = self._branch.chooser.choose(self._routing_call(), monotonic(), (self._place,)) is not None
        if ready and hedger.ready:
            self._afford(lambda: self._hedge_beside(first, hedger), _no_hedge)

    def _hedge_beside(self, first: Attempt, hedger: Hedger) -> None:
        if first.over or first is not self._attempt or self._hedge is not None or not hedger.spend():
            return
        place = self._planned().another(monotonic())
        if place is None:
            return
        self._made += 1
        self._gateway.metrics.event("hedge")
        self._attributes["tidemill.hedged"] = True
        gateway = self._gateway
        lane = self._branch.lanes[place]
        self._hedge = Attempt(self, lane, gateway.pool, self.junction.waits, gateway.limits.capture_bytes)
        self._hedge.start()

    def _settle_on(self, attempt: Attempt) -> None:
        """This attempt answers; the other one, if there is one, is given up."""
        self._settled = True
        if self._timer is not None:
            self._timer.cancel()
        if self._hedge is not None:
            loser = self._attempt if attempt is self._hedge else self._hedge
            self._attempt, self._hedge, self.lane = attempt, None, attempt.lane
            if loser is not None and not loser.over:
                loser.give_up()
                self._lose(loser, None)

    def _give_up_attempts(self) -> None:
        for attempt in (self._attempt, self._hedge):
            if attempt is not None:
                attempt.give_up()

    # -- the exchange's part ----------------------------------------------------------------------------------

    def opened(self, attempt: Attempt) -> Forward | None:
        """See ``Caller``."""
        raise NotImplementedError

    def events(self, attempt: Attempt, data: bytes) -> None:
        """See ``Caller``."""
        raise NotImplementedError

    def piece(self, attempt: Attempt, data: bytes) -> None:
        """See ``Caller``."""
        raise NotImplementedError

    def ended(self, attempt: Attempt) -> None:
        """See ``Caller``."""
        raise NotImplementedError

    def answered(self, attempt: Attempt, body: bytes, heard: Heard) -> None:
        """See ``Caller``."""
        raise NotImplementedError

    def faulted(self, error: Exception) -> None:
        """See ``Caller``."""
        raise NotImplementedError

    def _intent(self) -> Intent:
        raise NotImplementedError

    def _give_up(self, failed: Failed) -> None:
        raise NotImplementedError

    def _break_off(self, failed: Failed) -> None:
        raise NotImplementedError


def _no_hedge() -> None:
    """The limit has no room for a second call: the first one goes on alone."""


def _no_room(model: str) -> Failed:
    text = f"Every target of '{model}' has as many calls in flight as it may have. Try again in a moment."
    return Failed(
        Cause.UNAVAILABLE, 503, "targets_busy", text, error_body(503, text, "targets_busy"), b"retry-after: 1\r\n"
    )
