"""When a failing target is left alone: a circuit breaker over a sliding window, with a single probe.

The rules, all in ``TRANSITIONS``:

* closed: everything passes. It trips when the window holds enough outcomes and enough of them failed, or when enough
  failed in a row (which also judges a target with little traffic).
* open: nothing is sent there by choice. After a time that doubles with each failed probe, one attempt may pass.
* half-open: that one attempt, the probe, is under way; its outcome decides. A probe that ends without an outcome (the
  client left) makes room for another at once.

An attempt is judged only in the state it was let in under, so that what began before the trip, and times out minutes
later, neither trips a recovered target again nor passes for a probe. An attempt sent to an open target because there
was no other is no probe, but if it succeeds the target is proved.

The circuit breaker is Nygard's ("Release It!", 2007); time is an argument, randomness is passed in.
"""

from __future__ import annotations

from enum import Enum
from random import Random
from typing import Final

from tidemill.kernel.routing_policy import Breaker


class AttemptResult(Enum):
    """How an attempt ended, as far as its target is concerned."""

    ANSWERED = "answered"
    """It answered, be it that the request was wrong."""
    FAILED = "failed"
    THROTTLED = "throttled"
    """It asked to be called less; counts as a failure unless it says until when."""
    ABANDONED = "abandoned"
    """Nobody waited for the end: the client left, or another attempt was faster. Says nothing."""


class BreakerState(Enum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerEvent(Enum):
    """What moves a breaker."""

    TRIPPED = "tripped"
    PROBED = "probed"
    PROVED = "proved"
    FAILED = "failed"
    VANISHED = "vanished"


_ANSWERED, _FAILED = AttemptResult.ANSWERED, AttemptResult.FAILED
_THROTTLED, _ABANDONED = AttemptResult.THROTTLED, AttemptResult.ABANDONED
_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

TRANSITIONS: Final[dict[tuple[BreakerState, BreakerEvent], BreakerState]] = {
    (_CLOSED, BreakerEvent.TRIPPED): _OPEN,
    (_OPEN, BreakerEvent.PROBED): _HALF_OPEN,
    (_OPEN, BreakerEvent.PROVED): _CLOSED,
    (_HALF_OPEN, BreakerEvent.PROVED): _CLOSED,
    (_HALF_OPEN, BreakerEvent.FAILED): _OPEN,
    (_HALF_OPEN, BreakerEvent.VANISHED): _OPEN,
}
"""Any other pair leaves the state as it is."""

_SLOTS: Final = 10
_NO_SAY: Final = -1


class CircuitBreaker:
    """The breaker of one target in one worker.

    Args:
        policy: window, thresholds and times.
        rng: for the jitter, so that workers do not probe in step.

    Attributes:
        state: where it stands.
        opens_at_s: when an open breaker lets a probe pass.
        rests_until_s: until then the target asked not to be called (``Retry-After``), whatever the state.
    """

    __slots__ = (
        "_answered", "_closed_at_s", "_failed", "_generation", "_in_a_row", "_policy", "_reopened", "_rng", "_slot",
        "_slot_s", "opens_at_s", "rests_until_s", "state",
    )  # fmt: skip

    def __init__(self, policy: Breaker, rng: Random) -> None:
        self._policy = policy
        self._rng = rng
        self.state = _CLOSED
        self.opens_at_s = self.rests_until_s = self._closed_at_s = float("-inf")
        self._generation = 0  # grows with each change of state
        self._reopened = 0  # times it opened without a quiet window in between
        self._slot_s = policy.window_s / _SLOTS
        self._slot = 0
        self._in_a_row = 0
        self._answered = [0] * _SLOTS
        self._failed = [0] * _SLOTS

    def follow(self, policy: Breaker) -> None:
        """Take over another policy; what was counted under another window is forgotten."""
        if policy.window_s != self._policy.window_s:
            self._slot_s = policy.window_s / _SLOTS
            self._forget()
        self._policy = policy

    def ready(self, now_s: float) -> bool:
        """Whether an attempt may be sent there by choice."""
        if now_s < self.rests_until_s:
            return False
        state = self.state
        return state is _CLOSED or (state is _OPEN and now_s >= self.opens_at_s)

    def ready_at_s(self) -> float:
        """The earliest time at which it may be ready, as far as is known."""
        return self.rests_until_s if self.state is _CLOSED else max(self.opens_at_s, self.rests_until_s)

    def enter(self, now_s: float) -> int:
        """An attempt begins. The first after the open time is the probe.

        Returns:
            What ``exit`` must be given.
        """
        state = self.state
        if state is _CLOSED:
            return self._generation
        if state is _HALF_OPEN:
            return _NO_SAY
        if now_s >= self.opens_at_s:
            self._move(BreakerEvent.PROBED)
        return self._generation

    def exit(self, entered: int, result: AttemptResult, now_s: float, retry_after_s: float | None = None) -> None:
        """An attempt has ended.

        Args:
            entered: what ``enter`` returned.
            result: how it ended.
            now_s: the time.
            retry_after_s: what the target asked for; honoured up to the policy's ``open_max_s``.
        """
        if result is _ANSWERED and self.state is _CLOSED and entered == self._generation:  # the common case
            slot = int(now_s / self._slot_s)
            if slot != self._slot:
                self._turn(slot)
            self._answered[slot % _SLOTS] += 1
            self._in_a_row = 0
            return
        if retry_after_s is not None and result is not _ANSWERED:
            until_s = now_s + min(retry_after_s, self._policy.open_max_s)
            self.rests_until_s = max(self.rests_until_s, until_s)
        if entered != self._generation:
            return
        failed = result is _FAILED or (result is _THROTTLED and retry_after_s is None)
        if self.state is _CLOSED:
            if failed:
                self._count_failure(now_s)
        elif result is _ANSWERED:
            self._close(now_s)
        elif self.state is _HALF_OPEN:
            if failed:
                self._open(BreakerEvent.FAILED, now_s)
            else:
                self._move(BreakerEvent.VANISHED)
                self.opens_at_s = now_s

    def counted(self, now_s: float) -> tuple[int, int]:
        """Outcomes and failures among them in the window."""
        self._turn(int(now_s / self._slot_s))
        failed = sum(self._failed)
        return sum(self._answered) + failed, failed

    def _count_failure(self, now_s: float) -> None:
        self._turn(int(now_s / self._slot_s))
        self._failed[self._slot % _SLOTS] += 1
        self._in_a_row += 1
        policy = self._policy
        failed = sum(self._failed)
        seen = failed + sum(self._answered)
        if self._in_a_row >= policy.consecutive or (
            seen >= policy.min_requests and failed >= policy.error_share * seen
        ):
            if now_s - self._closed_at_s > policy.window_s:
                self._reopened = 0
            self._open(BreakerEvent.TRIPPED, now_s)

    def _open(self, event: BreakerEvent, now_s: float) -> None:
        policy = self._policy
        longest_s = min(policy.open_max_s, policy.open_s * 2.0 ** min(self._reopened, 30))
        self._reopened += 1
        self.opens_at_s = now_s + longest_s * (1 - self._rng.random() / 2)
        self._move(event)

    def _close(self, now_s: float) -> None:
        self._move(BreakerEvent.PROVED)
        self._closed_at_s = now_s
        self._forget()

    def _move(self, event: BreakerEvent) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._generation += 1

    def _turn(self, slot: int) -> None:
        """Go on to a slot of time, and empty those that have left the window."""
        for past in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
            self._answered[past % _SLOTS] = self._failed[past % _SLOTS] = 0
        self._slot = slot

    def _forget(self) -> None:
        self._in_a_row = 0
        self._answered = [0] * _SLOTS
        self._failed = [0] * _SLOTS
