"""The way in: caps, the queue, then rate limits and budgets; and the way out, which lets the next one in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from tidemill.gateway.admission.caps import Gate
from tidemill.gateway.admission.queue import Entry
from tidemill.gateway.admission.seams import Admissible, Limits, Reservation, Ticket, Waiting
from tidemill.gateway.answers import Refusal
from tidemill.kernel import Route, RoutingSnapshot
from tidemill.kernel.routing_policy import Caps
from tidemill.telemetry.records import AttributeValue

_SHORTEST_S: Final = 0.0001
_NOTHING: Final[Mapping[str, AttributeValue]] = MappingProxyType({})


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
        gate = self._gates.get((call.route.tenant, call.route.endpoint))
        now_s = self.now_s()
        key = call.key.name
        if gate is None or (gate.queue.empty and gate.has_room(call.priority, key)):
            if gate is not None:
                gate.take(key)
            if self._limits is None:
                then(_Admitted(self, gate, key, now_s, None))
                return None
            return _Passage(self, gate, call, now_s, then, refused).reserve()
        passage = _Passage(self, gate, call, now_s, then, refused)
        turned_away = gate.queue.offer(passage.wait())
        if turned_away is not None:
            turned_away.refuse("queue_full" if turned_away is passage.entry else "displaced")
        if turned_away is passage.entry:
            return None
        self.let_in(gate)
        return None if passage.decided else passage

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

    def reserve(
        self, call: Admissible, then: Callable[[Reservation | None], None], refused: Callable[[Refusal], None]
    ) -> Waiting | None:
        """The last step in: the limits."""
        if self._limits is None:
            then(None)
            return None
        return self._limits.enter(call, then, refused)


class _Passage:
    """One call on its way in; a ``Waiting`` while it is."""

    __slots__ = (
        "_admission", "_call", "_gate", "_limiting", "_refused", "_since_s", "_then", "decided", "entry",
    )  # fmt: skip

    def __init__(
        self,
        admission: Admission,
        gate: Gate | None,
        call: Admissible,
        now_s: float,
        then: Callable[[Ticket], None],
        refused: Callable[[Refusal], None],
    ) -> None:
        self._admission = admission
        self._gate = gate
        self._call = call
        self._since_s = now_s
        self._then = then
        self._refused = refused
        self._limiting: Waiting | None = None
        self.entry: Entry | None = None
        self.decided = False

    def wait(self) -> Entry:
        """Make the place in the queue."""
        call = self._call
        self.entry = Entry(call.priority, call.key.name, self._since_s, self._let_in, self._turned_away)
        return self.entry

    def reserve(self) -> Waiting | None:
        """There is a place; now the limits."""
        self._limiting = self._admission.reserve(self._call, self._admitted, self._over_limit)
        return None if self.decided else self

    def cancel(self) -> None:
        """The client has left."""
        if self.decided:
            return
        self.decided = True
        gate, entry = self._gate, self.entry
        if self._limiting is not None:
            self._limiting.cancel()
        if gate is None:
            return
        if entry is not None and gate.queue.remove(entry):
            return
        self._free(gate)

    def _let_in(self) -> None:
        assert self._gate is not None
        self.entry = None
        self._gate.take(self._call.key.name)
        self.reserve()

    def _turned_away(self, code: str) -> None:
        assert self._gate is not None
        self.entry = None
        self.decided = True
        self._refused(self._gate.refusal(code, self._call.key.name))

    def _over_limit(self, refusal: Refusal) -> None:
        self.decided = True
        if self._gate is not None:
            self._free(self._gate)
        self._refused(refusal)

    def _free(self, gate: Gate) -> None:
        gate.free(self._call.key.name)
        self._admission.let_in(gate)

    def _admitted(self, reservation: Reservation | None) -> None:
        self.decided = True
        ticket = _Admitted(self._admission, self._gate, self._call.key.name, self._admission.now_s(), reservation)
        waited_s = ticket.began_s - self._since_s
        if waited_s > _SHORTEST_S:
            ticket.waited_s = waited_s
        self._then(ticket)


class _Admitted:
    """A ``Ticket``."""

    __slots__ = ("_admission", "_gate", "_key", "_over", "_reservation", "began_s", "waited_s")

    def __init__(
        self,
        admission: Admission,
        gate: Gate | None,
        key: str,
        began_s: float,
        reservation: Reservation | None,
    ) -> None:
        self._admission = admission
        self._gate = gate
        self._key = key
        self._reservation = reservation
        self._over = False
        self.began_s = began_s
        self.waited_s = 0.0

    @property
    def attributes(self) -> Mapping[str, AttributeValue]:
        known = _NOTHING if self._reservation is None else self._reservation.attributes
        return {**known, "tidemill.queued_s": round(self.waited_s, 6)} if self.waited_s else known

    def first_token(self, elapsed_s: float) -> None:
        if self._gate is not None and not self._over:
            self._gate.first_token(elapsed_s, self._admission.now_s())

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:
        if self._over:
            return
        self._over = True
        if self._reservation is not None:
            self._reservation.settle(tokens=tokens, cost_usd=cost_usd)
        gate = self._gate
        if gate is None:
            return
        now_s = self._admission.now_s()
        if not ok:
            gate.failed(now_s)
        gate.free(self._key, now_s - self.began_s)
        if not gate.queue.empty:
            self._admission.let_in(gate)

    def cancel(self) -> None:
        if self._over:
            return
        self._over = True
        if self._reservation is not None:
            self._reservation.cancel()
        gate = self._gate
        if gate is not None:
            gate.free(self._key)
            self._admission.let_in(gate)


def _capped(caps: Caps) -> bool:
    return caps.in_flight is not None or caps.in_flight_per_key is not None or caps.adaptive
