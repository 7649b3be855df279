"""Admission: places are never given twice or lost, the urgent go first, and who leaves is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tidemill.gateway.admission import Admissible, Admission, Reservation, Ticket, Waiting
from tidemill.gateway.answers import Refusal
from tidemill.kernel import ApiKey, ReleaseRoute, Route, RoutingSnapshot, Target
from tidemill.kernel.routing_policy import Caps, Prices, Priority, RoutePolicy

INTERACTIVE, BATCH, SHADOW = Priority.INTERACTIVE, Priority.BATCH, Priority.SHADOW


def route(caps: Caps | None = None, endpoint: str = "desk") -> Route:
    release = ReleaseRoute("r", "release/desk@1", (Target("http://a"),))
    return Route(endpoint, "default", (release,), policy=RoutePolicy(caps=caps or Caps()))


def snapshot(*routes: Route) -> RoutingSnapshot:
    return RoutingSnapshot("demo", 1, 0.0, 60.0, routes=routes)


@dataclass(eq=False)
class Caller:
    """One call, and what became of it."""

    desk: Desk
    priority: Priority = INTERACTIVE
    key: str = "alice"
    ticket: Ticket | None = None
    refusal: Refusal | None = None
    waiting: Waiting | None = None
    turn: int = -1
    left: bool = False

    def enter(self) -> Caller:
        where = self.desk.route
        call = Admissible(
            ApiKey("d", self.key, "default"), where, "chat", self.priority, 100, None, 1, "span", Prices()
        )
        self.waiting = self.desk.admission.enter(call, self._then, self._refused)
        assert (self.waiting is None) == (self.ticket is not None or self.refusal is not None)
        return self

    def _then(self, ticket: Ticket) -> None:
        assert self.ticket is None
        assert self.refusal is None
        assert not self.left
        self.ticket = ticket
        self.turn = self.desk.next_turn()

    def _refused(self, refusal: Refusal) -> None:
        assert self.ticket is None
        assert self.refusal is None
        assert not self.left
        self.refusal = refusal

    def leave(self) -> None:
        self.left = True
        assert self.waiting is not None
        self.waiting.cancel()

    def end(self, *, ok: bool = True) -> None:
        assert self.ticket is not None
        self.ticket.settle(tokens=1, cost_usd=0.0, ok=ok)


@dataclass
class Desk:
    """An admission with one endpoint and a clock that is set by hand."""

    caps: Caps
    limits: object = None
    now_s: float = 100.0
    turns: int = 0
    route: Route = field(init=False)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.route = route(self.caps)
        self.admission = Admission(lambda: self.now_s, self.limits)  # type: ignore[arg-type]
        self.admission.follow(snapshot(self.route))

    def next_turn(self) -> int:
        self.turns += 1
        return self.turns

    def call(self, priority: Priority = INTERACTIVE, key: str = "alice") -> Caller:
        return Caller(self, priority, key).enter()


def test_a_route_without_caps_needs_no_admission() -> None:
    desk = Desk(Caps())
    assert not desk.admission.applies(desk.route)
    assert desk.call().ticket is not None
    for caps in (Caps(in_flight=1), Caps(in_flight_per_key=1), Caps(adaptive=True)):
        assert Desk(caps).admission.applies(route())


def test_calls_beyond_the_cap_wait_and_are_let_in_as_places_become_free() -> None:
    desk = Desk(Caps(in_flight=2))
    first, second, third = desk.call(), desk.call(), desk.call()
    assert third.ticket is None
    desk.now_s += 0.25
    second.end()
    assert third.ticket is not None
    assert third.ticket.attributes == {"tidemill.queued_s": 0.25}
    assert first.ticket is not None
    assert first.ticket.attributes == {}


def test_a_place_is_freed_once_however_often_it_is_settled() -> None:
    desk = Desk(Caps(in_flight=1))
    first = desk.call()
    second, third = desk.call(), desk.call()
    first.end()
    first.end()
    assert first.ticket is not None
    first.ticket.cancel()
    assert second.ticket is not None
    assert third.ticket is None


def test_a_full_queue_is_429_at_once_with_when_to_come_back() -> None:
    desk = Desk(Caps(in_flight=1, queue=1))
    held = desk.call()
    desk.now_s += 8
    held.end()
    desk.call()
    desk.call()
    refused = desk.call().refusal
    assert refused is not None
    assert (refused.status, refused.code) == (429, "queue_full")
    assert refused.retry_after_s == pytest.approx(16.0), "two before it, eight seconds each"
    assert "Try again in 16 s" in refused.message


def test_nobody_waits_longer_than_the_timeout() -> None:
    desk = Desk(Caps(in_flight=1, queue_timeout_s=2.0))
    held, waits = desk.call(), desk.call()
    desk.now_s += 1.9
    later = desk.call()
    desk.admission.sweep(desk.now_s)
    assert waits.refusal is None
    desk.now_s += 0.1
    desk.admission.sweep(desk.now_s)
    assert waits.refusal is not None
    assert (waits.refusal.status, waits.refusal.code) == (429, "queue_timeout")
    assert later.refusal is None
    held.end()
    assert later.ticket is not None


def test_interactive_goes_before_batch_and_takes_its_place_when_the_queue_is_full() -> None:
    desk = Desk(Caps(in_flight=1, queue=3))
    held = desk.call()
    batches = [desk.call(BATCH) for _ in range(3)]
    urgent = desk.call()
    displaced = batches[2].refusal
    assert displaced is not None, "the newest of the lower class"
    assert (displaced.status, displaced.code) == (503, "displaced")
    assert desk.call(BATCH).refusal is not None
    held.end()
    assert urgent.ticket is not None
    assert batches[0].ticket is None
    urgent.end()
    assert batches[0].ticket is not None
    assert batches[1].ticket is None


def test_shadow_calls_never_wait_and_leave_half_of_the_places_to_others() -> None:
    desk = Desk(Caps(in_flight=4))
    shadows = [desk.call(SHADOW) for _ in range(3)]
    assert [shadow.ticket is not None for shadow in shadows] == [True, True, False]
    refused = shadows[2].refusal
    assert refused is not None
    assert refused.status == 429
    assert desk.call().ticket is not None


def test_oldest_first_and_newest_first_once_the_queue_stands() -> None:
    desk = Desk(Caps(in_flight=1, queue_timeout_s=2.0))
    held = desk.call()
    waiting = []
    for _ in range(4):
        waiting.append(desk.call())
        desk.now_s += 0.1
    held.end()
    assert waiting[0].turn == 2
    desk.now_s += 0.2  # 0.6 s since the queue was last empty
    waiting[0].end()
    assert waiting[3].turn == 3
    waiting[3].end()
    assert waiting[2].turn == 4


def test_a_key_at_its_cap_waits_without_holding_up_the_others() -> None:
    desk = Desk(Caps(in_flight=3, in_flight_per_key=1))
    first = desk.call()
    second = desk.call()
    other = desk.call(key="bob")
    assert second.ticket is None
    assert other.ticket is not None
    first.end()
    assert second.ticket is not None


def test_a_key_at_its_cap_is_told_so() -> None:
    desk = Desk(Caps(in_flight_per_key=2, queue=0))
    desk.call()
    desk.call()
    refused = desk.call().refusal
    assert refused is not None
    assert (refused.status, refused.code) == (429, "key_in_flight")
    assert "Key 'alice' has 2 requests at 'desk' in flight" in refused.message


def test_who_leaves_while_waiting_is_forgotten() -> None:
    desk = Desk(Caps(in_flight=1))
    held, gone, next_one = desk.call(), desk.call(), desk.call()
    gone.leave()
    held.end()
    assert gone.ticket is None
    assert next_one.ticket is not None
    assert gone.waiting is not None
    gone.waiting.cancel()
    assert desk.call().ticket is None


def test_a_call_that_fails_as_soon_as_it_is_let_in_does_not_recurse() -> None:
    desk = Desk(Caps(in_flight=1, queue=2000))
    held = desk.call()
    ended: list[int] = []

    def end_at_once(ticket: Ticket) -> None:
        ended.append(1)
        ticket.settle(tokens=0, cost_usd=0.0)

    for _ in range(2000):
        call = Admissible(ApiKey("d", "k", "default"), desk.route, "chat", INTERACTIVE, 1, None, 1, "s", Prices())
        desk.admission.enter(call, end_at_once, pytest.fail)
    held.end()
    assert len(ended) == 2000


def test_a_new_snapshot_lets_in_who_now_has_room_and_keeps_the_count() -> None:
    desk = Desk(Caps(in_flight=1))
    desk.call()
    waits = [desk.call() for _ in range(3)]
    desk.admission.follow(snapshot(route(Caps(in_flight=2))))
    assert [caller.ticket is not None for caller in waits] == [True, False, False]
    desk.admission.follow(snapshot(route()))
    assert all(caller.ticket is not None for caller in waits)
    assert not desk.admission.applies(desk.route)


def test_the_end_of_the_worker_turns_away_who_waits() -> None:
    desk = Desk(Caps(in_flight=1))
    desk.call()
    waits = desk.call()
    desk.admission.close()
    assert waits.refusal is not None


# -- with limits behind ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Held:
    attributes: dict[str, str | int | float | bool] = field(default_factory=lambda: {"tidemill.charges": "[]"})
    settled: list[tuple[int, float]] = field(default_factory=list)
    cancelled: int = 0

    def first_token(self, elapsed_s: float) -> None:
        pass

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:
        self.settled.append((tokens, cost_usd))

    def cancel(self) -> None:
        self.cancelled += 1


class SlowLimits:
    """Limits that answer when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Callable[[Reservation], None], Callable[[Refusal], None]]] = []
        self.cancelled = 0

    def follow(self, snapshot: RoutingSnapshot) -> None:
        pass

    def applies(self, route: Route) -> bool:
        return True

    def enter(
        self, call: Admissible, then: Callable[[Reservation], None], refused: Callable[[Refusal], None]
    ) -> Waiting:
        self.asked.append((then, refused))
        return self

    def cancel(self) -> None:
        self.cancelled += 1


def test_limits_are_asked_last_and_settled_with_the_ticket() -> None:
    limits = SlowLimits()
    desk = Desk(Caps(in_flight=1), limits)
    first, second = desk.call(), desk.call()
    assert len(limits.asked) == 1, "who waits in the queue holds no reserve"
    reservation = Held()
    limits.asked[0][0](reservation)
    assert first.ticket is not None
    assert first.ticket.attributes == {"tidemill.charges": "[]"}
    first.ticket.settle(tokens=12, cost_usd=0.5)
    first.ticket.settle(tokens=12, cost_usd=0.5)
    assert reservation.settled == [(12, 0.5)]
    assert len(limits.asked) == 2
    limits.asked[1][1](Refusal(429, "used up", "budget", retry_after_s=3.0))
    assert second.refusal is not None
    third = desk.call()
    assert len(limits.asked) == 3, "the refused call gave its place back"
    third.leave()
    assert limits.cancelled == 1
    desk.call()
    assert len(limits.asked) == 4
    unused = Held()
    limits.asked[3][0](unused)


def test_without_caps_the_reservation_is_the_ticket() -> None:
    limits = SlowLimits()
    caller = Desk(Caps(), limits).call()
    assert caller.waiting is limits
    reservation = Held()
    limits.asked[0][0](reservation)
    assert caller.ticket is reservation


def test_a_cancelled_ticket_cancels_its_reservation() -> None:
    limits = SlowLimits()
    desk = Desk(Caps(in_flight=1), limits)
    caller = desk.call()
    reservation = Held()
    limits.asked[0][0](reservation)
    assert caller.ticket is not None
    caller.ticket.cancel()
    caller.ticket.settle(tokens=1, cost_usd=1.0)
    assert (reservation.cancelled, reservation.settled) == (1, [])


# -- over every order of events ----------------------------------------------------------------------------------

CAPS = Caps(in_flight=4, in_flight_per_key=2, queue=5, queue_timeout_s=2.0)


class AnyOrder(RuleBasedStateMachine):
    """Calls come, leave, end and time out in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(CAPS)
        self.callers: list[Caller] = []
        self.ended: set[Caller] = set()

    def waiting(self) -> list[Caller]:
        return [c for c in self.callers if c.ticket is None and c.refusal is None and not c.left]

    def running(self) -> list[Caller]:
        return [c for c in self.callers if c.ticket is not None and c not in self.ended]

    @rule(priority=st.sampled_from(Priority), key=st.sampled_from("abc"))
    def comes(self, priority: Priority, key: str) -> None:
        self.callers.append(self.desk.call(priority, key))

    @rule(data=st.data(), ok=st.booleans())
    def ends(self, data: st.DataObject, ok: bool) -> None:
        if running := self.running():
            caller = data.draw(st.sampled_from(running))
            self.ended.add(caller)
            caller.end(ok=ok)

    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        if waiting := self.waiting():
            data.draw(st.sampled_from(waiting)).leave()

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.desk.now_s += seconds
        self.desk.admission.sweep(self.desk.now_s)

    @invariant()
    def caps_hold_and_no_place_stays_empty(self) -> None:
        running, waiting = self.running(), self.waiting()
        assert len(running) <= 4
        assert len(waiting) <= 5
        held = {key: sum(c.key == key for c in running) for key in "abc"}
        assert max(held.values()) <= 2
        if len(running) < 4:
            assert all(held[c.key] == 2 for c in waiting), "a place is free and somebody fit for it waits"
        assert not any(c.priority is SHADOW for c in waiting)
        gate = self.desk.admission._gates["default", "desk"]
        assert gate.in_flight == len(running)
        assert len(gate.queue) == len(waiting)
        assert gate.queue.empty == (not waiting)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
