"""Which target a request is sent to, and which next when that fails.

A chooser is asked before every attempt, not once a request: minutes may lie between a first attempt and its failure,
and by then other targets are fit. The order of attempts that results starts with the strategy's choice and goes on
with its choice among the targets not yet tried.

A target is skipped while its breaker is open or it asked for rest (``Retry-After``), and while it has as many calls in
flight as its cap allows. When no target is ready for the first attempt, the one that will be soonest gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Final, Protocol

from tidemill.gateway.routing.health import TargetHealth
from tidemill.gateway.routing.learned import score
from tidemill.gateway.routing.rules import RoutingCall, RuleList
from tidemill.kernel import InvalidInput, Target
from tidemill.kernel.routing_policy import Choice, ChoicePolicy

_BYTES_PER_TOKEN: Final = 4.0
_OUTPUT_TOKENS: Final = 256.0
"""Length of answer that ``cheapest`` reckons with, where the request allows no less."""


class Strategy(Protocol):
    """Picks one of several targets that are ready."""

    def pick(self, ready: Sequence[int], call: RoutingCall, now_s: float, first: bool, /) -> int:
        """Choose an element of ``ready`` (two at least, rising); ``first`` tells a first attempt from a fallback."""
        ...


class Chooser:
    """The choice among a release's targets, in one worker.

    Args:
        targets: the targets.
        healths: what is known of each.
        policy: how to choose.
        rng: for ties and draws.

    Raises:
        InvalidInput: rules or learned weights that cannot be used.
    """

    __slots__ = ("_caps", "_healths", "_only", "_several", "_strategy")

    def __init__(
        self, targets: Sequence[Target], healths: Sequence[TargetHealth], policy: ChoicePolicy, rng: Random
    ) -> None:
        self._healths = tuple(healths)
        self._caps = tuple(target.max_in_flight for target in targets)
        self._several = range(len(self._healths))
        self._only = len(self._healths) == 1
        self._strategy = STRATEGIES[policy.kind](targets, self._healths, policy, rng)

    def choose(self, call: RoutingCall, now_s: float, tried: Collection[int] = ()) -> int | None:
        """The target of the next attempt.

        Args:
            call: the request.
            now_s: the time, of a clock that never runs backwards.
            tried: targets that had an attempt already, in this round.

        Returns:
            Its place, or ``None``: on a first attempt all targets are at their caps; on a later one nothing is left
            that is ready, so a new round (``tried`` empty) begins with the first again, after a backoff.
        """
        if self._only and not tried:
            most = self._caps[0]
            return 0 if most is None or self._healths[0].in_flight < most else None
        ready = [place for place in self._several if place not in tried and self._fit(place, now_s)]
        if len(ready) > 1:
            return self._strategy.pick(ready, call, now_s, not tried)
        if ready:
            return ready[0]
        return None if tried else self.soonest()

    def order(self, call: RoutingCall, now_s: float) -> list[int]:
        """The whole order of attempts as it would be now: what explains a choice. Changes the turn of ``weighted``."""
        order: list[int] = []
        while (place := self.choose(call, now_s, order)) is not None:
            order.append(place)
        return order

    def _fit(self, place: int, now_s: float) -> bool:
        health, most = self._healths[place], self._caps[place]
        return (most is None or health.in_flight < most) and health.breaker.ready(now_s)

    def soonest(self, left_out: Collection[int] = ()) -> int | None:
        """The target with room that will be ready first; ``None`` when all others are at their caps."""
        room = [
            place
            for place, most in enumerate(self._caps)
            if place not in left_out and (most is None or self._healths[place].in_flight < most)
        ]
        return min(room, key=self.ready_at_s, default=None)

    def ready_at_s(self, place: int) -> float:
        """When a target will be ready, as far as is known."""
        return self._healths[place].breaker.ready_at_s()


class _Ordered:
    """The first in the project file's order, after the one that a rule names."""

    def __init__(
        self, targets: Sequence[Target], _healths: Sequence[TargetHealth], policy: ChoicePolicy, _rng: Random
    ) -> None:
        self._rules = RuleList(policy.rules, [target.name for target in targets]) if policy.rules else None

    def pick(self, ready: Sequence[int], call: RoutingCall, _now_s: float, first: bool, /) -> int:
        if first and self._rules is not None:
            found = self._rules.find(call)
            if found in ready:
                assert found is not None
                return found
        return ready[0]


class _Weighted:
    """Smooth weighted round-robin, as nginx's: over any stretch each target gets its share to within one request.

    Workers begin at random places of the turn, so that they do not call the same target in step. Source: nginx,
    ``ngx_http_upstream_round_robin``.
    """

    def __init__(
        self, targets: Sequence[Target], _healths: Sequence[TargetHealth], _policy: ChoicePolicy, rng: Random
    ) -> None:
        self._weights = [max(0.0, target.weight) for target in targets]
        self._credit = [weight * rng.random() for weight in self._weights]

    def pick(self, ready: Sequence[int], _call: RoutingCall, _now_s: float, _first: bool, /) -> int:
        credit, weights = self._credit, self._weights
        total = 0.0
        best = ready[0]
        for place in ready:
            total += weights[place]
            credit[place] += weights[place]
            if credit[place] > credit[best]:
                best = place
        credit[best] -= total
        return best


class _LeastInFlight:
    """The fewest calls in flight; ties go around."""

    def __init__(
        self, targets: Sequence[Target], healths: Sequence[TargetHealth], _policy: ChoicePolicy, rng: Random
    ) -> None:
        self._healths = healths
        self._count = len(targets)
        self._turn = int(rng.random() * self._count)

    def pick(self, ready: Sequence[int], _call: RoutingCall, _now_s: float, _first: bool, /) -> int:
        self._turn = turn = (self._turn + 1) % self._count
        healths, count = self._healths, self._count
        return min(ready, key=lambda place: (healths[place].in_flight, (place - turn) % count))


class _PeakEwma:
    """Two targets at random, and of these the one with the smaller load: peak latency times calls in flight.

    Source of the two choices: Mitzenmacher, "The power of two choices in randomized load balancing" (2001).
    """

    def __init__(
        self, _targets: Sequence[Target], healths: Sequence[TargetHealth], _policy: ChoicePolicy, rng: Random
    ) -> None:
        self._healths = healths
        self._random = rng.random

    def pick(self, ready: Sequence[int], call: RoutingCall, now_s: float, _first: bool, /) -> int:
        count = len(ready)
        one = int(self._random() * count)
        other = int(self._random() * (count - 1))
        if other >= one:
            other += 1
        a, b = ready[one], ready[other]
        healths, streamed = self._healths, call.streamed
        return a if healths[a].load(now_s, streamed=streamed) <= healths[b].load(now_s, streamed=streamed) else b


class _Cheapest:
    """The lowest price for this request among those of sufficient quality; the others only when none of these is left.

    Below the floor the better comes first. The size of the request is taken at four bytes a token, of the answer at
    256 tokens or what the request allows, if that is less.
    """

    def __init__(
        self, targets: Sequence[Target], _healths: Sequence[TargetHealth], policy: ChoicePolicy, _rng: Random
    ) -> None:
        self._good = [target.quality >= policy.quality_floor for target in targets]
        self._quality = [target.quality for target in targets]
        prices = [target.prices for target in targets]
        self._prices = [
            (price.request_usd, price.input_usd_per_mtok / 1e6, price.output_usd_per_mtok / 1e6) for price in prices
        ]

    def pick(self, ready: Sequence[int], call: RoutingCall, _now_s: float, _first: bool, /) -> int:
        good = [place for place in ready if self._good[place]]
        if not good:
            return max(ready, key=self._quality.__getitem__)
        tokens_in = call.input_bytes / _BYTES_PER_TOKEN
        allowed = call.max_output_tokens
        tokens_out = _OUTPUT_TOKENS if allowed is None else min(_OUTPUT_TOKENS, allowed)

        def price_usd(place: int) -> float:
            fixed, each_in, each_out = self._prices[place]
            return fixed + each_in * tokens_in + each_out * tokens_out

        return min(good, key=price_usd)


class _Learned:
    """The first target (small) for easy requests, the second (large) for hard ones; the others stand by in order."""

    def __init__(
        self, targets: Sequence[Target], _healths: Sequence[TargetHealth], policy: ChoicePolicy, _rng: Random
    ) -> None:
        if len(targets) < 2:
            raise InvalidInput("learned choice needs two targets: the small model first, the large one second")
        self._learned = policy.learned
        score(self._learned.weights, RoutingCall())  # refuses weights of another length at once

    def pick(self, ready: Sequence[int], call: RoutingCall, _now_s: float, first: bool, /) -> int:
        if first and 1 in ready and score(self._learned.weights, call) >= self._learned.threshold:
            return 1
        return ready[0]


Factory = Callable[[Sequence[Target], Sequence[TargetHealth], ChoicePolicy, Random], Strategy]

STRATEGIES: Final[dict[Choice, Factory]] = {
    Choice.ORDERED: _Ordered,
    Choice.WEIGHTED: _Weighted,
    Choice.LEAST_IN_FLIGHT: _LeastInFlight,
    Choice.PEAK_EWMA: _PeakEwma,
    Choice.CHEAPEST: _Cheapest,
    Choice.LEARNED: _Learned,
}
