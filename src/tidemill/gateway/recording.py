"""What is written about a request: its intent, its span, and the spans of attempts that came to nothing."""

from __future__ import annotations

import asyncio
from time import time_ns
from typing import TYPE_CHECKING, Final, NamedTuple

from tidemill.gateway.failures import Cause, Failed
from tidemill.gateway.payloads import Asked, Heard, hear_stream
from tidemill.gateway.pursuit import Lost, Pursuit
from tidemill.gateway.usage import NO_USAGE, Usage, UsageObject, cost_usd, counted_usage, images_in, usage_of
from tidemill.telemetry.records import AttributeValue, Content, Intent, Span, Status
from tidemill.telemetry.store import ENTRY_ATTRIBUTE

if TYPE_CHECKING:
    from tidemill.gateway.cache import CacheKey
    from tidemill.gateway.dialects.responses import ResponsesDialect
    from tidemill.gateway.guarding import Guarding
    from tidemill.gateway.operations import Operation
    from tidemill.gateway.snapshots import Lane
    from tidemill.gateway.tracing import Continuation
    from tidemill.kernel import ApiKey

ATTEMPT: Final = "attempt"
"""The operation of spans that stand for one attempt of a request, so that nobody counts them as requests."""

_TAIL_BYTES: Final = 16 * 1024
_NOTHING: Final[dict[str, AttributeValue]] = {}  # nobody writes to the attributes of an intent
_MAYBE_CHARGED: Final = frozenset(
    (Cause.LOST, Cause.TIMEOUT, Cause.MALFORMED, Cause.EVENT, Cause.DEADLINE, Cause.FAULT)
)


class Capture:
    """What an answer that is passed on says, kept for the record within bounds.

    Args:
        most_bytes: of the answer; of what is longer the end is kept too, where usage and finish reason stand.
    """

    __slots__ = ("_most_bytes", "_pieces", "_size", "_tail")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._tail = b""

    def add(self, data: bytes) -> None:
        """Keep a piece."""
        if self._size < self._most_bytes:
            self._pieces.append(data)
            self._size += len(data)
        else:
            self._tail = (self._tail + data)[-_TAIL_BYTES:]

    @property
    def cut(self) -> bool:
        """Whether something is missing."""
        return bool(self._tail)

    @property
    def raw(self) -> bytes:
        """What was kept, without the tail."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def hear_events(self) -> Heard:
        """Read the events of a stream."""
        if not self._tail:
            return hear_stream(self.raw)
        # The cut falls inside an event; the line reader steps over what it cannot read.
        heard = hear_stream(self.raw + b"\n\n" + self._tail)
        heard.broken = False
        return heard


class Bill(NamedTuple):
    """What a request used.

    Args:
        usage: of the attempt that decided; ``None`` where nothing was used, or it is not counted in tokens.
        cost_usd: of all attempts.
        tokens: input and output of all attempts.
    """

    usage: Usage | None
    cost_usd: float | None
    tokens: int


def is_plain(told: UsageObject) -> bool:
    """Whether a provider's count has nothing but the two sums, so that it costs what they do."""
    return told.prompt_tokens_details is None and told.completion_tokens_details is None


def usage_heard(operation: Operation, asked: Asked, heard: Heard, *, images: int = 0) -> Usage | None:
    """The usage of a call that was answered, at least in part; ``None`` where it is not in tokens and none was told."""
    told = heard.usage
    if told is not None and (told.prompt_tokens is not None or told.completion_tokens is not None):
        return usage_of(told, images=images)
    if not operation.counted:
        return None
    return counted_usage(asked.input_text(), heard.text, images=images)


def priced(usage: Usage | None, lane: Lane) -> float | None:
    """What a usage costs at a target's prices."""
    return None if usage is None else cost_usd(usage, lane.target.prices)


class Recording(Pursuit):
    """A request with its records."""

    __slots__ = (
        "_alarm", "_capture", "_first_ns", "_recorded", "_started_ns", "_status", "_user_key", "cache_key",
        "conversation", "guarding", "key",
    )  # fmt: skip

    guarding: Guarding | None
    cache_key: CacheKey | None
    _alarm: asyncio.TimerHandle | None
    _capture: Capture | None
    _status: int
    _first_ns: int
    _recorded: bool  # the finished record is on its way

    key: ApiKey
    _started_ns: int
    _user_key: str | None
    conversation: ResponsesDialect | None

    def _close(self) -> None:
        """Stop all timers and guardrails, and leave the set of live requests."""
        self._gateway.live.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        if self.guarding is not None:
            self.guarding.stop()

    def _intent(self) -> Intent:
        identity, session, lane, ticket = self.identity, self._session, self.lane, self.ticket
        operation, model, route = self.operation.name, self.asked.model, self.junction.route
        return Intent(  # by place: see Span
            identity.trace_id,
            identity.span_id,
            self._started_ns,
            identity.parent_span_id,
            f"{operation} {model}",
            operation,
            route.endpoint,
            lane.release.release,
            session.release,  # assigned_release
            lane.arm,
            session.session_id,
            self._user_key,
            None,  # provider: not known before an attempt
            model,  # request_model
            self.streamed,
            route.rollout if session.in_rollout else None,
            ticket.attributes if ticket is not None else _NOTHING,
        )

    def _record(
        self,
        status: Status,
        error_type: str | None,
        then: Continuation,
        heard: Heard | None = None,
        *,
        failed: Failed | None = None,
        content: Content | None = None,
        from_cache: bool = False,
    ) -> None:
        """Write the finished record, count the request, and go on with ``then``.

        Args:
            status: how it ended.
            error_type: why, if it did not end well.
            then: called when the record is in the segment.
            heard: what the client got; ``None`` takes what was captured.
            failed: the failure that ended it.
            content: instead of what was asked and heard.
            from_cache: whether nobody was asked.
        """
        self._recorded = True
        gateway, lane, ended_ns = self._gateway, self.lane, time_ns()
        gateway.live.discard(self)
        if self._timed:
            self._close()
        if heard is None:
            sse = self._attempt is not None and self._attempt.sse
            heard = self._capture.hear_events() if self._capture is not None and sse else Heard()
        told = heard.usage
        if status == "ok" and told is not None and lane.prices_by_tokens and is_plain(told) and not self._lost:
            given, made = told.prompt_tokens or 0, told.completion_tokens or 0
            tokens = given + made
            cost: float | None = (given * lane.input_usd_per_mtok + made * lane.output_usd_per_mtok) / 1e6
            self._attributes["tidemill.usage_source"] = "provider"
            used: tuple[int | None, int | None] = (given, made)
        else:
            bill = Bill(NO_USAGE, 0.0, 0) if from_cache else self._bill(heard, status, failed)
            tokens, cost, usage = bill.tokens, bill.cost_usd, bill.usage
            used = (usage.input_tokens, usage.output_tokens) if usage is not None else (None, None)
            if usage is not None:
                self._attributes.update(usage.attributes())
        if self.ticket is not None:
            troubled = self._status >= 500 or self._status == 429 or status == "truncated"
            self.ticket.settle(tokens=tokens, cost_usd=cost or 0.0, ok=not troubled)
        span = self._span(status, error_type, heard, ended_ns, used, cost)
        if self._lost:
            for lost in self._lost:
                gateway.journal.add(span.tenant, (self._lost_span(span, lost), None), nothing)
        gateway.journal.add(span.tenant, (span, content or Content(self.asked.input_text(), heard.text)), then, self)
        metrics, junction = gateway.metrics, self.junction
        metrics.in_flight -= 1
        duration_s = (ended_ns - self._started_ns) / 1e9
        metrics.request(junction.route.endpoint, lane.arm, self._status, status, duration_s)
        if junction.shadow is not None and status == "ok" and not from_cache:
            gateway.shadows.offer(junction, self.operation, self.request, self.body, span)

    def _bill(self, heard: Heard, status: Status, failed: Failed | None) -> Bill:
        """Count what was used, be it only begun: what an upstream may charge is charged."""
        attempt, lane = self._attempt, self.lane
        usage = None
        if attempt is not None and (
            status == "ok"
            or heard.usage is not None
            or self._settled
            or (attempt.asked and (failed is None or failed.cause in _MAYBE_CHARGED))
        ):
            images = images_in(self.body) if lane.target.prices.image_usd else 0
            usage = usage_heard(self.operation, self.asked, heard, images=images)
        cost = priced(usage, lane)
        tokens = usage.input_tokens + usage.output_tokens if usage is not None else 0
        if not self._lost:
            return Bill(usage, cost, tokens)
        for lost in self._lost:
            used = self._lost_usage(lost)
            if used is not None:
                cost = (cost or 0.0) + cost_usd(used, lost.attempt.lane.target.prices)
                tokens += used.input_tokens + used.output_tokens
        return Bill(usage, cost, tokens)

    def _lost_usage(self, lost: Lost) -> Usage | None:
        attempt, failed = lost.attempt, lost.failed
        if (
            not self.operation.counted
            or not attempt.asked
            or (failed is not None and failed.cause not in _MAYBE_CHARGED)
        ):
            return None
        said = hear_stream(attempt.held).text if attempt.sse else ""
        images = images_in(self.body) if attempt.lane.target.prices.image_usd else 0
        return counted_usage(self.asked.input_text(), said, images=images)

    def _note(self) -> None:
        """Say on the span what was not as usual."""
        attributes = self._attributes
        if self.identity.parent_span_id is not None:
            attributes[ENTRY_ATTRIBUTE] = True
        if self._made > 1:
            attributes["tidemill.attempts"] = self._made
        if self._branch.only is None:
            attributes["tidemill.target"] = self.lane.name
        if self.guarding is not None:
            attributes.update(self.guarding.watch.attributes)
        if self.conversation is not None and self.conversation.kept is not None:
            attributes["tidemill.kept"] = self.conversation.kept

    def _span(
        self,
        status: Status,
        error_type: str | None,
        heard: Heard,
        ended_ns: int,
        used: tuple[int | None, int | None],
        cost: float | None,
    ) -> Span:
        identity, session, lane, junction = self.identity, self._session, self.lane, self.junction
        if self.ticket is not None:
            self._attributes.update(self.ticket.attributes)
        if (
            self._made != 1
            or self.guarding is not None
            or self.conversation is not None
            or identity.parent_span_id is not None
            or self._branch.only is None
        ):
            self._note()
        first_ns = self._first_ns
        sse = first_ns != 0 and self._attempt is not None and self._attempt.sse
        operation = self.operation.name
        return Span(  # by place: see Span
            identity.trace_id,
            identity.span_id,
            self._gateway.project,
            self.key.tenant,
            f"{operation} {self.asked.model}",
            operation,
            self._started_ns,
            ended_ns,
            identity.parent_span_id,
            status,
            error_type,
            self._status or None,  # http_status
            junction.route.endpoint,
            lane.release.release,
            session.release,  # assigned_release
            lane.arm,
            session.session_id,
            self._user_key,
            lane.provider,
            self.asked.model,  # request_model
            heard.model,  # response_model
            used[0],  # input_tokens
            used[1],  # output_tokens
            cost,
            (first_ns - self._started_ns) / 1e9 if sse else None,
            heard.finish_reasons,
            sse,  # stream
            junction.route.rollout if session.in_rollout else None,
            self._attributes,
            (*heard.references, lane.reference) if heard.references else lane.references,
        )

    def _lost_span(self, parent: Span, lost: Lost) -> Span:
        """The span of an attempt beside the one that decided."""
        usage = self._lost_usage(lost)
        attempt, failed = lost.attempt, lost.failed
        lane = attempt.lane
        attributes: dict[str, AttributeValue] = {"tidemill.target": lane.name}
        if usage is not None:
            attributes.update(usage.attributes())
        return Span(
            trace_id=parent.trace_id,
            span_id=self._gateway.ids.span_id(),
            parent_span_id=parent.span_id,
            project=parent.project,
            tenant=parent.tenant,
            name=f"{parent.operation} {lane.name}",
            operation=ATTEMPT,
            started_at_ns=attempt.started_ns,
            ended_at_ns=lost.ended_ns,
            status="cancelled" if failed is None else "error",
            error_type="hedge_lost" if failed is None else failed.error_type,
            http_status=attempt.status or None,
            endpoint=parent.endpoint,
            release=lane.release.release,
            provider=lane.provider,
            request_model=lane.target.model or parent.request_model,
            input_tokens=usage.input_tokens if usage is not None else None,
            output_tokens=usage.output_tokens if usage is not None else None,
            cost_usd=priced(usage, lane),
            stream=attempt.sse,
            attributes=attributes,
        )


def nothing(_written: bool) -> None:
    """What waits for a record that nobody waits for."""
