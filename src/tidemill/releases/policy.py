"""What a rollout must show, and how far it may go while it shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

from tidemill.kernel import InvalidInput

SHARE_METRIC: Final = "canary_share"
"""The key under which an observation's metrics may carry the canary's share when the session was assigned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPolicy:
    """The rules of one rollout; fixed when it is opened, for evidence is only worth its rules.

    A canary needs about ``10 * variance / margin**2`` sessions to be decided at level .05.

    Args:
        margins: metric -> the loss that is tolerated. A promotion needs every one of them shown.
        weights: metric -> its weight in the average that rolls back; 1 where not named.
        guards: metric -> alpha; any loss at all, shown at that level, rolls back.
        alpha_promote: chance to promote a release that loses a margin or more.
        alpha_rollback: chance that the average rolls back a release that loses nothing.
        alpha_ratio: chance to hold a rollout whose arms get their shares.
        ramp: shares of the canary, in (0, 1], ascending.
        sessions_per_step: canary sessions on each step of the ramp but the last.
        min_sessions: canary sessions before a promotion.
        max_sessions: canary sessions after which an undecided rollout is given up, as ``on_max`` says.
        on_max: ``hold`` or ``rollback``.
        label_timeout_s: a session without feedback for so long is taken as it is.
        shadow_requests: paired requests of the shadow; 0 goes without one.
        shadow_margin: loss of the paired score that the shadow tolerates.
        latency_slo_s: a request that takes longer is not ``latency_ok``.
    """

    margins: Mapping[str, float] = field(default_factory=lambda: {"success": 0.1, "ok": 0.05, "latency_ok": 0.1})
    weights: Mapping[str, float] = field(default_factory=dict)
    guards: Mapping[str, float] = field(default_factory=dict)
    alpha_promote: float = 0.05
    alpha_rollback: float = 0.05
    alpha_ratio: float = 0.001
    ramp: tuple[float, ...] = (0.5,)
    sessions_per_step: int = 50
    min_sessions: int = 20
    max_sessions: int = 2000
    on_max: Literal["hold", "rollback"] = "hold"
    label_timeout_s: float = 1800.0
    shadow_requests: int = 0
    shadow_margin: float = 0.1
    latency_slo_s: float = 5.0

    def __post_init__(self) -> None:
        alphas = {"alpha_promote": self.alpha_promote, "alpha_rollback": self.alpha_rollback}
        alphas |= {"alpha_ratio": self.alpha_ratio} | {f"guards.{name}": a for name, a in self.guards.items()}
        for name, alpha in alphas.items():
            _check(0 < alpha < 1, f"{name} is {alpha}: an error rate lies between 0 and 1")
        _check(bool(self.margins), "margins are empty: a rollout that must show nothing would promote anything")
        for name, margin in self.margins.items():
            _check(0 <= margin < 1, f"margins.{name} is {margin}: a margin is at least 0 and below 1")
        for name, weight in self.weights.items():
            _check(name in self.margins, f"weights.{name}: there is no margin of that name")
            _check(weight >= 0, f"weights.{name} is {weight}: a weight is not negative")
        _check(sum(self.weights.get(name, 1.0) for name in self.margins) > 0, "weights are all 0")
        _check(bool(self.ramp) and list(self.ramp) == sorted(self.ramp), f"ramp {self.ramp}: shares must ascend")
        _check(all(0 < share <= 1 for share in self.ramp), f"ramp {self.ramp}: shares lie above 0 and are at most 1")
        _check(self.ramp[0] < 1, f"ramp {self.ramp}: a canary that gets everything is compared with nothing")
        _check(self.on_max in ("hold", "rollback"), f"on_max is '{self.on_max}': write hold or rollback")
        _check(self.min_sessions <= self.max_sessions, "min_sessions is greater than max_sessions")
        for name in ("sessions_per_step", "min_sessions", "max_sessions"):
            _check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: it is at least 1")
        for name in ("label_timeout_s", "latency_slo_s", "shadow_requests"):
            _check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: it is not negative")
        _check(0 <= self.shadow_margin < 1, f"shadow_margin is {self.shadow_margin}: at least 0 and below 1")

    def step_at(self, canaries: int) -> int:
        """The step of the ramp, from 0, that so many canary sessions have earned."""
        return min(len(self.ramp) - 1, canaries // self.sessions_per_step)

    def as_json(self) -> dict[str, Any]:
        """The policy as a plain JSON object."""
        value = asdict(self)
        return value | {"ramp": list(self.ramp)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RolloutPolicy:
        """Read back what ``as_json`` wrote; fields left out take their defaults.

        Raises:
            InvalidInput: an unknown field or a value that makes no sense.
        """
        known = [part.name for part in fields(cls)]
        for name in value:
            _check(name in known, f"'{name}' is not a field of a rollout policy; the fields are {', '.join(known)}")
        given = dict(value)
        if "ramp" in given:
            given["ramp"] = tuple(given["ramp"])
        return cls(**given)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidInput(f"rollout policy: {message}")
