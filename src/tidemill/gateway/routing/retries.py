"""Whether and when a failed attempt is made again.

A budget bounds how much retries add to the load of an upstream that is already in trouble; backoff spreads what is left
over time; nothing is begun that could not end before the request's deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from tidemill.gateway.routing.breaker import AttemptResult
from tidemill.gateway.routing.choice import Chooser
from tidemill.gateway.routing.rules import RoutingCall
from tidemill.kernel.routing_policy import Retries

_BURST: Final = 10.0
_FLOOR_PER_S: Final = 0.5


class Again(Enum):
    """Where a failed attempt may be repeated."""

    NOWHERE = "nowhere"
    ELSEWHERE = "elsewhere"
    """Only at another target: this one would answer the same."""
    ANYWHERE = "anywhere"


@dataclass(frozen=True, slots=True)
class Reading:
    """What an attempt's end means.

    Args:
        result: for the target's health.
        again: for the request.
    """

    result: AttemptResult
    again: Again


_FINE: Final = Reading(AttemptResult.ANSWERED, Again.NOWHERE)
_BROKEN: Final = Reading(AttemptResult.FAILED, Again.ANYWHERE)
_MISPLACED: Final = Reading(AttemptResult.FAILED, Again.ELSEWHERE)
_BUSY: Final = Reading(AttemptResult.THROTTLED, Again.ANYWHERE)

# Not the client's doing although below 500: a wrong secret, an unpaid bill, a model that is not there are the
# project file's; OpenAI's and Anthropic's clients themselves repeat 408, 409 and 429 (and 529 is Anthropic's overload).
_READINGS: Final[dict[int, Reading]] = {
    401: _MISPLACED,
    402: _MISPLACED,
    403: _MISPLACED,
    404: _MISPLACED,
    408: _BROKEN,
    409: Reading(AttemptResult.ANSWERED, Again.ANYWHERE),
    425: _BUSY,
    429: _BUSY,
    501: _MISPLACED,
    503: _BUSY,
    505: _MISPLACED,
    529: _BUSY,
}

FAILURE: Final = _BROKEN
"""An attempt without an answer: refused, reset, timed out, malformed, an error event before the first token."""


def reading_of(status: int) -> Reading:
    """What an upstream's HTTP status means, after translation to OpenAI's."""
    found = _READINGS.get(status)
    if found is not None:
        return found
    return _BROKEN if status >= 500 else _FINE


class RetryBudget:
    """A token bucket: each request adds a share of a retry, each retry takes a whole one.

    Over any stretch of N requests and T seconds there are at most ``10 + share * N + 0.5 * T`` retries: the burst and
    the floor let a quiet endpoint retry at all. As in Finagle's ``RetryBudget``.

    Args:
        share: retries per request.
        now_s: the time.
    """

    __slots__ = ("_at_s", "_saved", "share")

    def __init__(self, share: float, now_s: float) -> None:
        self.share = share
        self._saved = _BURST
        self._at_s = now_s

    def deposit(self) -> None:
        """A request has come."""
        saved = self._saved + self.share
        self._saved = saved if saved < _BURST else _BURST

    def withdraw(self, now_s: float) -> bool:
        """Take a retry out, if one is there."""
        if self.share <= 0:
            return False
        self._saved = min(_BURST, self._saved + max(0.0, now_s - self._at_s) * _FLOOR_PER_S)
        self._at_s = max(self._at_s, now_s)
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


def backoff_s(policy: Retries, repeats: int, rng: Random) -> float:
    """How long to wait before a target is asked again, over what it asked for itself.

    Args:
        policy: base and most.
        repeats: how often the request came back to a target it had already asked: 0 for the first time.
        rng: draws from [0, min(max_s, base_s * 2^repeats)] ("full jitter", Brooker, AWS architecture blog, 2015). Added
            to a ``Retry-After`` it keeps the crowd that was sent away from returning in step.
    """
    return rng.random() * min(policy.max_s, policy.base_s * 2.0 ** min(repeats, 30))


def retry_after_of(seconds: bytes | None, milliseconds: bytes | None, now_s: float) -> float | None:
    """Read ``Retry-After`` (RFC 9110, section 10.2.3: seconds or a date) or OpenAI's finer ``retry-after-ms``.

    Args:
        seconds: value of ``retry-after``.
        milliseconds: value of ``retry-after-ms``; counts first.
        now_s: seconds since 1970, for dates.

    Returns:
        Seconds from now, at least 0; ``None`` where nothing usable is said.
    """
    if milliseconds is not None and (waited := _number(milliseconds)) is not None:
        return waited / 1000
    if seconds is None:
        return None
    if (waited := _number(seconds)) is not None:
        return waited
    from email.utils import parsedate_to_datetime  # loads a dozen modules, for a form that is seldom used

    try:
        return max(0.0, parsedate_to_datetime(seconds.decode("latin-1")).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _number(value: bytes) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < 1e9 else None


@dataclass(frozen=True, slots=True)
class Step:
    """The next attempt of a request.

    Args:
        target: place of the target.
        wait_s: to be waited first; 0 for a target that was not asked yet.
    """

    target: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class RetryParts:
    """What the requests of one release share.

    Args:
        policy: how many attempts, and how far apart.
        chooser: knows the targets.
        budget: of the endpoint.
        rng: for backoff.
    """

    policy: Retries
    chooser: Chooser
    budget: RetryBudget
    rng: Random


class Attempts:
    """Where a request goes after a failed attempt. Needed from the first failure (or hedge) on.

    A target that is ready and was not asked yet is next, at once, and free of the budget: it adds nothing to the load
    of the one that failed, and a burst of failures must not outrun the burst of the budget while a good target stands
    by. A target that was asked before is asked again after a backoff, out of the budget; a longer ``Retry-After`` than
    the policy's ``max_s`` is left to the client.

    Args:
        parts: what the requests of the release share.
        call: the request.
        deadline_s: when the request must be over, on the clock of ``now_s``.
        target: of the first attempt.
    """

    __slots__ = ("_call", "_deadline_s", "_hopeless", "_parts", "_repeats", "_tried", "made")

    def __init__(self, parts: RetryParts, call: RoutingCall, deadline_s: float, target: int) -> None:
        self._parts = parts
        self._call = call
        self._deadline_s = deadline_s
        self._tried = {target}
        self._hopeless: set[int] = set()
        self._repeats = 0
        self.made = 1

    def another(self, now_s: float) -> int | None:
        """A ready target that had no attempt, for a hedge; ``None`` without one. Counts as an attempt."""
        target = self._parts.chooser.choose(self._call, now_s, self._tried)
        if target is not None:
            self._tried.add(target)
            self.made += 1
        return target

    def after(self, target: int, reading: Reading, now_s: float) -> Step | None:
        """What follows a failed attempt (its ``Attempt.end`` has been called).

        Args:
            target: that failed.
            reading: what its end meant.
            now_s: the time.

        Returns:
            The next attempt, or ``None``: the failure is the client's to hear.
        """
        parts = self._parts
        if reading.again is Again.NOWHERE or self.made >= parts.policy.max_attempts or now_s >= self._deadline_s:
            return None
        if reading.again is Again.ELSEWHERE:
            self._hopeless.add(target)
        fresh = self.another(now_s)
        if fresh is not None:
            return Step(fresh, 0.0)
        again = parts.chooser.soonest(self._hopeless)
        if again is None:
            return None
        rest_s = max(0.0, parts.chooser.ready_at_s(again) - now_s)
        wait_s = rest_s + backoff_s(parts.policy, self._repeats, parts.rng)
        if rest_s > parts.policy.max_s or now_s + wait_s >= self._deadline_s or not parts.budget.withdraw(now_s):
            return None
        self._repeats += 1
        self.made += 1
        return Step(again, wait_s)
