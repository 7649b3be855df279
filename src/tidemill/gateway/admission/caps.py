"""How many calls of an endpoint, and of one key at it, are in flight in this worker."""

from __future__ import annotations

import math
from typing import Final

from tidemill.gateway.admission.adaptive import AdaptiveLimit
from tidemill.gateway.admission.queue import Entry, WaitingQueue
from tidemill.gateway.answers import Refusal
from tidemill.kernel.routing_policy import Caps, Priority

_ADAPTIVE_FIRST: Final = 64.0
_ADAPTIVE_MOST: Final = 1024.0
_SHADOW_SHARE: Final = 0.5
_HOLD_WEIGHT: Final = 0.1
_RETRY_LEAST_S: Final = 1.0
_RETRY_MOST_S: Final = 60.0


class Gate:
    """The places of one endpoint in one worker.

    Shadow calls are let in while at most half of the places are taken.

    Args:
        endpoint: its name, for messages.
        caps: the policy.

    Attributes:
        in_flight: calls that hold a place.
        queue: those that wait for one.
        adaptive: what lowers the cap; ``None`` where the policy wants none.
    """

    __slots__ = ("_by_key", "_caps", "_endpoint", "_hold_s", "_per_key", "adaptive", "in_flight", "queue")

    def __init__(self, endpoint: str, caps: Caps) -> None:
        self._endpoint = endpoint
        self._by_key: dict[str, int] = {}
        self._hold_s = 0.0
        self.adaptive: AdaptiveLimit | None = None
        self.in_flight = 0
        self.queue = WaitingQueue(caps.queue, caps.queue_timeout_s)
        self.follow(caps)

    def follow(self, caps: Caps) -> None:
        """Take over another policy; nobody in flight is put out."""
        self._caps = caps
        self._per_key = caps.in_flight_per_key
        self.queue.most, self.queue.timeout_s = caps.queue, caps.queue_timeout_s
        if not caps.adaptive:
            self.adaptive = None
            return
        most = _ADAPTIVE_MOST if caps.in_flight is None else float(caps.in_flight)
        if self.adaptive is None:
            self.adaptive = AdaptiveLimit(min(most, _ADAPTIVE_FIRST) if caps.in_flight is None else most, most)
        else:
            self.adaptive.follow(most)

    @property
    def places(self) -> float:
        """How many calls may be in flight as of now."""
        if self.adaptive is not None:
            return int(self.adaptive.limit)
        return math.inf if self._caps.in_flight is None else self._caps.in_flight

    def has_room(self, priority: Priority, key: str) -> bool:
        """Whether a call may be let in."""
        places = self.places
        if priority is Priority.SHADOW:
            places = places * _SHADOW_SHARE
        if self.in_flight >= places:
            return False
        return self._per_key is None or self._by_key.get(key, 0) < self._per_key

    def fits(self, entry: Entry) -> bool:
        """Whether a waiting call may be let in."""
        return self.has_room(entry.priority, entry.key)

    def take(self, key: str) -> None:
        """A call is let in."""
        self.in_flight += 1
        if self._per_key is not None or self._by_key:
            self._by_key[key] = self._by_key.get(key, 0) + 1

    def free(self, key: str, held_s: float | None = None) -> None:
        """A call is over.

        Args:
            key: name of its key.
            held_s: how long it held its place; ``None`` if the upstream was never asked.
        """
        self.in_flight -= 1
        if held_s is not None:
            self._hold_s += _HOLD_WEIGHT * (held_s - self._hold_s) if self._hold_s else held_s
        held = self._by_key.get(key)
        if held is not None:
            if held > 1:
                self._by_key[key] = held - 1
            else:
                del self._by_key[key]

    def refusal(self, code: str, key: str) -> Refusal:
        """Why a call is not let in.

        503 when the upstream is what bears no more (adaptive concurrency, or a call of a higher class took the place),
        429 when a cap is at its end: then the caller can do something about it.
        """
        retry_s = self._retry_after_s()
        if self._per_key is not None and self._by_key.get(key, 0) >= self._per_key:
            requests = "request" if self._per_key == 1 else "requests"
            text = f"Key '{key}' has {self._per_key} {requests} at '{self._endpoint}' in flight, the most it may have."
            return Refusal(429, f"{text} Send the next when one is answered.", "key_in_flight", retry_after_s=retry_s)
        adapted = self.adaptive is not None and self.adaptive.limit < (self._caps.in_flight or math.inf)
        text = _TEXTS[code].format(endpoint=self._endpoint, wait_s=self.queue.timeout_s)
        status = 503 if adapted or code == "displaced" else 429
        return Refusal(status, f"{text} Try again in {retry_s:.0f} s.", code, retry_after_s=retry_s)

    def _retry_after_s(self) -> float:
        """When a place will be free for one more than wait already, as far as the last calls tell."""
        places = max(1.0, min(self.places, self.in_flight or 1))
        return min(_RETRY_MOST_S, max(_RETRY_LEAST_S, (len(self.queue) + 1) * self._hold_s / places))


_TEXTS: Final = {
    "queue_full": "'{endpoint}' is busy, and as many requests as may wait are waiting.",
    "queue_timeout": "'{endpoint}' is busy: the request waited {wait_s:g} s for a place.",
    "displaced": "'{endpoint}' is busy: the request gave up its place in the queue to a more urgent one.",
}
