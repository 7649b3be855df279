"""The way in: caps, the queue, then rate limits and budgets; and the way out, which lets the next one in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tidemill.gateway.admission.caps import Gate
from tidemill.gateway.admission.queue import Entry
from tidemill.gateway.admission.seams import Admissible, Limits, Needs, Ticket, Waiting
from tidemill.gateway.answers import Refusal
from tidemill.kernel import Route, RoutingSnapshot
from tidemill.kernel.routing_policy import Caps
from tidemill.telemetry.records import AttributeValue

_SHORTEST_S: Final = 0.0001
_NOTHING: Final[dict[str, AttributeValue]] = {}


class Admission:
    """Who is let in, in one worker.

    Args:
        clock: seconds that never run backwards.
        limits: rate limits and budgets, asked last, so that nobody who waits in the queue holds a reserve.
    """

    def __init__(self, clock: Callable[[], float], limits: Limits | None = None) -> None:
        self.now_s = clock
        self._letting_in: set[Gate] = set()
        self._limits = limits
        self._gates: dict[tuple[str, str], Gate] = {}

    def follow(self, snapshot: RoutingSnapshot) -> None:
        """Take over the caps and limits of a new snapshot. Calls in flight keep their places."""
        if self._limits is not None:
            self._limits.follow(snapshot)
        capped = {(route.tenant, route.endpoint): route for route in snapshot.routes if _capped(route.policy.caps)}
        for place, gate in list(self._gates.items()):
            if place not in capped:
                gate.follow(Caps(queue=gate.queue.most, queue_timeout_s=gate.queue.timeout_s))
                del self._gates[place]
                self.let_in(gate)
        for place, route in capped.items():
            known = self._gates.get(place)
            if known is None:
                self._gates[place] = Gate(route.endpoint, route.policy.caps)
            else:
                known.follow(route.policy.caps)
                self.let_in(known)

    def applies(self, route: Route) -> bool:
        """Whether calls to a route need ``enter`` at all under the snapshot last followed."""
        if (route.tenant, route.endpoint) in self._gates:
            return True
        return self._limits is not None and self._limits.applies(route)

    def needs(self, call: Admissible) -> Needs:
        """What one attempt of a call may come to, as far as limits count it."""
        return (0, 0, 0) if self._limits is None else self._limits.needs(call)

    def enter_at_once(self, call: Admissible) -> Ticket | None:
        """Let a call in if nothing has to be waited for and no cap applies; ``None`` where ``enter`` must be asked."""
        route = call.route
        if self._limits is None or (route.tenant, route.endpoint) in self._gates:
            return None
        return self._limits.enter_at_once(call)

    def enter(
        self, call: Admissible, then: Callable[[Ticket], None], refused: Callable[[Refusal], None]
    ) -> Waiting | None:
        """Ask to be let in.

        Args:
            call: who asks for what.
            then: called with the ticket, at once or later.
            refused: called instead, at once or later.

        Returns:
            What to cancel when the client leaves; ``None`` when one of the two was called already.
        """
        route = call.route
        gate = self._gates.get((route.tenant, route.endpoint))
        if gate is None:
            if self._limits is not None:
                return self._limits.enter(call, then, refused)
            then(_UNCOUNTED)
            return None
        key = call.key.name
        passage = _Passage(self, gate, key, self.now_s())
        if gate.queue.empty and gate.has_room(call.priority, key):
            gate.take(key)
            if self._limits is None:
                passage.inside = True
                then(passage)
                return None
            return passage.reserve(self._limits, call, then, refused)
        return self._queue(gate, passage, call, then, refused)

    def _queue(
        self,
        gate: Gate,
        passage: _Passage,
        call: Admissible,
        then: Callable[[Ticket], None],
        refused: Callable[[Refusal], None],
    ) -> Waiting | None:
        def let_in() -> None:
            gate.take(call.key.name)
            passage.entry = None
            passage.waited_s = self.now_s() - passage.began_s
            passage.began_s += passage.waited_s
            if self._limits is not None:
                passage.reserve(self._limits, call, then, refused)
            else:
                passage.inside = True
                then(passage)

        def turned_away(code: str) -> None:
            passage.entry = None
            passage.over = True
            refused(gate.refusal(code, call.key.name))

        passage.entry = entry = Entry(call.priority, call.key.name, passage.began_s, let_in, turned_away)
        displaced = gate.queue.offer(entry)
        if displaced is not None:
            displaced.refuse("queue_full" if displaced is entry else "displaced")
        self.let_in(gate)
        return None if passage.inside or passage.over else passage

    def let_in(self, gate: Gate) -> None:
        """Give free places to those whose turn it is."""
        if gate.queue.empty or gate in self._letting_in:  # a call that ends as soon as it is let in frees its place
            return
        self._letting_in.add(gate)
        try:
            while (entry := gate.queue.take(self.now_s(), gate.fits)) is not None:
                entry.let_in()
        finally:
            self._letting_in.discard(gate)

    def sweep(self, now_s: float) -> None:
        """Turn away who has waited for too long. Call it ten times a second; it costs nothing while nobody waits."""
        for gate in self._gates.values():
            if not gate.queue.empty:
                for entry in gate.queue.expired(now_s):
                    entry.refuse("queue_timeout")
                self.let_in(gate)  # an adaptive limit may have grown

    def close(self) -> None:
        """Turn away all who wait: the worker ends."""
        for gate in self._gates.values():
            for entry in gate.queue.everyone():
                entry.refuse("queue_timeout")


class _Passage:
    """One call at a gate: a ``Waiting`` on its way in, a ``Ticket`` once it is in.

    What most calls never change stays with the class: one of these objects is made per request.
    """

    entry: Entry | None = None  # while it waits in the queue
    inside = False
    over = False
    waited_s = 0.0
    _limiting: Waiting | None = None  # while it waits for a lease
    _reservation: Ticket | None = None

    def __init__(self, admission: Admission, gate: Gate, key: str, began_s: float) -> None:
        self._admission = admission
        self._gate = gate
        self._key = key
        self.began_s = began_s

    def reserve(
        self, limits: Limits, call: Admissible, then: Callable[[Ticket], None], refused: Callable[[Refusal], None]
    ) -> Waiting | None:
        """There is a place; now the limits."""

        def reserved(reservation: Ticket) -> None:
            self.inside = True
            self._reservation = reservation
            then(self)

        def over_limit(refusal: Refusal) -> None:
            self.over = True
            self._free()
            refused(refusal)

        self._limiting = limits.enter(call, reserved, over_limit)
        return None if self.inside or self.over else self

    def _free(self) -> None:
        gate = self._gate
        gate.free(self._key)
        self._admission.let_in(gate)

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        known = _NOTHING if self._reservation is None else self._reservation.attributes
        return {**known, "tidemill.queued_s": round(self.waited_s, 6)} if self.waited_s > _SHORTEST_S else known

    def first_token(self, elapsed_s: float) -> None:
        gate = self._gate
        if gate.adaptive is not None and not self.over:
            gate.adaptive.observe(elapsed_s, gate.in_flight, self._admission.now_s())

    def more(
        self, then: Callable[[Ticket], None], refused: Callable[[Refusal], None], needs: Needs | None = None
    ) -> Waiting | None:
        reservation = self._reservation
        if reservation is None or self.over:
            then(self)
            return None

        def reserved(ticket: Ticket) -> None:
            self._reservation = ticket
            then(self)

        return reservation.more(reserved, refused, needs)

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:
        if self.over:
            return
        self.over = True
        if self._reservation is not None:
            self._reservation.settle(tokens=tokens, cost_usd=cost_usd)
        gate = self._gate
        now_s = self._admission.now_s()
        if not ok and gate.adaptive is not None:
            gate.adaptive.observe_failure(now_s)
        gate.free(self._key, now_s - self.began_s)
        if not gate.queue.empty:
            self._admission.let_in(gate)

    def cancel(self) -> None:
        if self.over:
            return
        self.over = True
        if self._reservation is not None:
            self._reservation.cancel()
        elif self._limiting is not None:
            self._limiting.cancel()
        if self.entry is None or not self._gate.queue.remove(self.entry):
            self._free()


class _Uncounted:
    """The ticket of a call that nothing counts."""

    attributes: Final = _NOTHING

    def first_token(self, elapsed_s: float) -> None:
        pass

    def more(
        self,
        then: Callable[[Ticket], None],
        refused: Callable[[Refusal], None],  # noqa: ARG002 - the ticket's interface
        needs: Needs | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        then(self)

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:
        pass

    def cancel(self) -> None:
        pass


_UNCOUNTED: Final = _Uncounted()


def _capped(caps: Caps) -> bool:
    return caps.in_flight is not None or caps.in_flight_per_key is not None or caps.adaptive
