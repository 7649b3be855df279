"""What admission, limits and the exchange agree on: the call that asks to be let in, and what it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.kernel import ApiKey, Route, RoutingSnapshot
from tidemill.kernel.routing_policy import Prices, Priority
from tidemill.telemetry.records import AttributeValue


class Admissible(msgspec.Struct, gc=False):
    """A call as far as admission must know it.

    Args:
        key: who asks.
        route: the endpoint, with its policy.
        operation: name of the operation, e.g. ``chat``.
        priority: the key's, else the endpoint's.
        input_bytes: of the request's body: an upper bound for its tokens.
        max_output_tokens: what the request itself allows for one answer; ``None`` when it says nothing.
        n: answers asked for.
        request_id: id of the request's span: reserve and settlement are idempotent by it.
        prices: of the dearest target that may serve it.
        images: in its prompt, whatever way they are given.
    """

    key: ApiKey
    route: Route
    operation: str
    priority: Priority
    input_bytes: int
    max_output_tokens: int | None
    n: int
    request_id: str
    prices: Prices
    images: int = 0


Needs = tuple[int, int, int]
"""Upper bounds in quanta: requests, tokens, billionths of a US dollar."""


class Waiting(Protocol):
    """A call that waits to be let in."""

    def cancel(self) -> None:
        """The client has left: forget the call. Neither of its continuations runs any more."""
        ...


class Ticket(Protocol):
    """A call that is let in. ``settle`` or ``cancel`` must be called once; a second call changes nothing."""

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """What belongs on the intent (read before ``settle``) and on the finished span (read after it).

        Nobody writes to it: what changes is another object, for an open intent keeps the one it was made with.
        """
        ...

    def first_token(self, elapsed_s: float) -> None:
        """The upstream's first token came ``elapsed_s`` after it was asked: what adaptive concurrency listens to."""
        ...

    def more(
        self, then: Callable[[Ticket], None], refused: Callable[[Refusal], None], needs: Needs | None = None
    ) -> Waiting | None:
        """Reserve for one more attempt, or for a call that has grown, before it is made.

        Args:
            then: called with the ticket that takes this one's place, at once or later.
            refused: called instead where a limit has no room; this ticket stays as it is.
            needs: what the call has grown by; ``None`` reserves once more what one attempt may come to.

        Returns:
            What to cancel when nobody wants it any more; ``None`` when one of the two was called already.
        """
        ...

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:
        """The call is over: free its place and give back what it reserved and did not use.

        Args:
            tokens: input and output of all attempts that were charged.
            cost_usd: likewise, at the prices of the targets that served them.
            ok: ``False`` when the upstream failed, timed out or was overloaded. A client that leaves, or is told of
                a mistake of its own, is no failure.
        """
        ...

    def cancel(self) -> None:
        """Instead of ``settle``, when the upstream was never asked: nothing counts."""
        ...


Reservation = Ticket
"""What the limiter holds for one call. It is the call's ticket itself where no cap applies."""


class Limits(Protocol):
    """Rate limits and budgets; ``admission.limits`` keeps them on leases."""

    def follow(self, snapshot: RoutingSnapshot) -> None:
        """Take over the limits of a new snapshot."""
        ...

    def applies(self, route: Route) -> bool:
        """Whether any limit may count a call to a route."""
        ...

    def needs(self, call: Admissible) -> Needs:
        """What would be reserved for one attempt of a call."""
        ...

    def enter_at_once(self, call: Admissible) -> Reservation | None:
        """Reserve for a call at once; ``None``, with nothing reserved, where ``enter`` must be asked and waited for."""
        ...

    def enter(
        self, call: Admissible, then: Callable[[Reservation], None], refused: Callable[[Refusal], None]
    ) -> Waiting | None:
        """Reserve for a call. Calls one of the two at once where it can, and then returns ``None``."""
        ...
