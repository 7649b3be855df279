"""E-processes by betting with a fixed mixture of stakes, and the block bets of a canary.

Formulas: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024), with a finite
mixture of constant stakes instead of adaptive ones, because constant stakes make the state a sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from tidemill.kernel import InvalidInput

LAMBDAS: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""The stakes of the mixture: fixed before any data, equal weights."""

_LOG_MAX: Final = 700.0  # exp of more overflows a float


def log_mean_exp(logs: Iterable[float]) -> float:
    """The logarithm of the mean of ``exp(logs)``, without overflow."""
    values = tuple(logs)
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values) / len(values))


def average_e(e_values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """The weighted mean of e-values: an e-value for "any of these nulls is false", under every dependence.

    Args:
        e_values: one e-value for each hypothesis.
        weights: non-negative, by the same names; a name left out weighs 1. ``None`` weighs all alike.

    Raises:
        InvalidInput: no e-values, or weights that sum to nothing.
    """
    shares = {name: 1.0 if weights is None else weights.get(name, 1.0) for name in e_values}
    total = sum(shares.values())
    if not total > 0 or min(shares.values()) < 0:
        raise InvalidInput("weights of e-values must not be negative and must not all be zero")
    return sum(shares[name] * value for name, value in e_values.items()) / total


@dataclass(frozen=True, slots=True)
class EProcess:
    """Evidence against "the mean of z is at most ``null_mean``", for z in [-1, 1].

    Wealth by stake: ``W_j *= 1 + lambda_j * (z - null_mean) / (1 + null_mean)``; the e-value is the mean of the W_j.
    While the null holds, ``P(e_value >= 1/alpha at any time) <= alpha`` (Ville's inequality).

    Args:
        null_mean: the largest mean under the null, in (-1, 1].
        log_wealth: log W_j for each of ``LAMBDAS``; sums over observations, hence additive.
        count: observations seen.
    """

    null_mean: float
    log_wealth: tuple[float, ...]
    count: int

    @classmethod
    def start(cls, null_mean: float) -> EProcess:
        """Evidence before any data: wealth 1 on every stake.

        Raises:
            InvalidInput: ``null_mean`` is not in (-1, 1].
        """
        if not -1 < null_mean <= 1:
            raise InvalidInput(f"null mean {null_mean} is out of range: it lies above -1 and is at most 1")
        return cls(null_mean, (0.0,) * len(LAMBDAS), 0)

    def update(self, z: float) -> EProcess:
        """Bet on one more observation.

        Raises:
            InvalidInput: ``z`` is not in [-1, 1] (or not a number).
        """
        if not -1 <= z <= 1:
            raise InvalidInput(f"observation {z} is out of range: bets are on values from -1 to 1")
        gain = (z - self.null_mean) / (1 + self.null_mean)
        wealth = tuple(log_w + math.log1p(stake * gain) for log_w, stake in zip(self.log_wealth, LAMBDAS, strict=True))
        return EProcess(self.null_mean, wealth, self.count + 1)

    @property
    def log_e(self) -> float:
        """The natural logarithm of the e-value."""
        return log_mean_exp(self.log_wealth)

    @property
    def e_value(self) -> float:
        """The e-value: 1 with no data; 1/alpha or more rejects the null at alpha. At most ``exp(700)``."""
        return math.exp(min(self.log_e, _LOG_MAX))

    def as_json(self) -> dict[str, Any]:
        """The state as a plain JSON object."""
        return {"null_mean": self.null_mean, "log_wealth": list(self.log_wealth), "count": self.count}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EProcess:
        """Read back what ``as_json`` wrote."""
        return cls(value["null_mean"], tuple(value["log_wealth"]), value["count"])


def merge(a: EProcess, b: EProcess) -> EProcess:
    """The evidence of two disjoint streams about the same null, as if one process had seen both.

    Raises:
        InvalidInput: they test different nulls.
    """
    if a.null_mean != b.null_mean:
        raise InvalidInput(f"evidence against mean <= {a.null_mean} and mean <= {b.null_mean} cannot be merged")
    wealth = tuple(x + y for x, y in zip(a.log_wealth, b.log_wealth, strict=True))
    return EProcess(a.null_mean, wealth, a.count + b.count)


def _bounded(z: float) -> float:
    return min(1.0, max(-1.0, z))  # a mean of floats may pass 1 by the last bit


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBetting:
    """Evidence on delta = mean of the canary - mean of the control, from sessions in their order of arrival.

    The blocks, which depend on the order of the arms and never on a value:

    * A canary that arrives after one or more unused controls bets against the mean of all of them:
      ``z = canary - mean(controls since the previous bet)``. They are used up.
    * A canary that arrives with no unused control waits.
    * A control that arrives while q canaries wait is used up at once, against the oldest ``ceil(q / 4)`` of them:
      ``z = mean(those canaries) - control``. So few waiting canaries bet one by one, many are averaged, and none
      waits for long when the canary has most of the traffic.

    Both sides of a bet are close in time, so a drift common to both arms cancels, and the share of the canary may
    change at any time. The bets use disjoint sets of sessions; with sessions independent given their arms, each z has
    mean delta given the bets before it, and both processes are exact at every look.

    Args:
        margin: the loss that is tolerated, in [0, 1).
        not_inferior: evidence against H_bad: delta <= -margin.
        inferior: evidence against H_ok: delta >= 0.
        waiting: canary values without a control yet, oldest first.
        control_sum, control_count: the unused controls.
        controls, canaries: values seen in each arm.
        control_total, canary_total: their sums.
        z_sum: sum of all bets; ``bets`` counts them.
    """

    margin: float
    not_inferior: EProcess
    inferior: EProcess
    waiting: tuple[float, ...] = ()
    control_sum: float = 0.0
    control_count: int = 0
    controls: int = 0
    canaries: int = 0
    control_total: float = 0.0
    canary_total: float = 0.0
    z_sum: float = 0.0

    @classmethod
    def start(cls, margin: float) -> BlockBetting:
        """Evidence before any session.

        Raises:
            InvalidInput: ``margin`` is not in [0, 1).
        """
        if not 0 <= margin < 1:
            raise InvalidInput(f"margin {margin} is out of range: it is at least 0 and below 1")
        return cls(margin=margin, not_inferior=EProcess.start(-margin), inferior=EProcess.start(0.0))

    def observe(self, arm: Literal["control", "canary"] | str, value: float) -> BlockBetting:
        """Take the next session's value. See ``step``."""
        return self.step(arm, value)[0]

    def step(self, arm: Literal["control", "canary"] | str, value: float) -> tuple[BlockBetting, float | None]:
        """Take the next session's value and tell the bet it completed.

        Args:
            arm: ``control`` or ``canary``.
            value: in [0, 1].

        Returns:
            The new state, and z if this session completed a bet.

        Raises:
            InvalidInput: another arm, or a value out of range.
        """
        if not 0 <= value <= 1:
            raise InvalidInput(f"value {value} is out of range: canaries compare values from 0 to 1")
        if arm == "canary":
            return self._canary(value)
        if arm == "control":
            return self._control(value)
        raise InvalidInput(f"'{arm}' is not an arm of a canary: write control or canary")

    def _canary(self, value: float) -> tuple[BlockBetting, float | None]:
        seen = replace(self, canaries=self.canaries + 1, canary_total=self.canary_total + value)
        if not self.control_count:
            return replace(seen, waiting=(*self.waiting, value)), None
        z = _bounded(value - self.control_sum / self.control_count)
        return replace(seen._bet(z), control_sum=0.0, control_count=0), z

    def _control(self, value: float) -> tuple[BlockBetting, float | None]:
        seen = replace(self, controls=self.controls + 1, control_total=self.control_total + value)
        if not self.waiting:
            return replace(seen, control_sum=self.control_sum + value, control_count=self.control_count + 1), None
        taken = math.ceil(len(self.waiting) / 4)
        z = _bounded(sum(self.waiting[:taken]) / taken - value)
        return replace(seen._bet(z), waiting=self.waiting[taken:]), z

    def _bet(self, z: float) -> BlockBetting:
        return replace(
            self,
            not_inferior=self.not_inferior.update(z),
            inferior=self.inferior.update(-z),
            z_sum=self.z_sum + z,
        )

    @property
    def bets(self) -> int:
        """How many bets were made."""
        return self.not_inferior.count

    @property
    def delta(self) -> float | None:
        """The estimate of delta: the mean of the bets; ``None`` before the first."""
        return self.z_sum / self.bets if self.bets else None

    @property
    def e_not_inferior(self) -> float:
        """The e-value against H_bad: delta <= -margin. 1/alpha or more: shown to lose less than the margin."""
        return self.not_inferior.e_value

    @property
    def e_inferior(self) -> float:
        """The e-value against H_ok: delta >= 0. 1/alpha or more: shown to be worse."""
        return self.inferior.e_value
