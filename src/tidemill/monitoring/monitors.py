"""Error-rate and latency monitors, with a stated horizon of false alarms.

A service level on latency is a share of slow requests, so both kinds are the same test (``burning``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from tidemill.kernel import InvalidInput, Verdict, check_name
from tidemill.monitoring.burning import BIN_S, BurnRule, BurnState, Turn, watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """What is watched and what is tolerated.

    Args:
        name: its name.
        kind: ``error_rate`` watches the share of failed requests, ``latency`` the share of slow ones.
        endpoint: the endpoint it watches; ``None`` for all.
        max_share: the largest tolerated share of bad requests, in (0, 1): 1 - the service level objective.
        latency_slo_s: a request that takes longer is slow (``latency`` only).
        false_alarm_days, bin_s, clear_horizon: as in ``BurnRule``.
    """

    name: str
    kind: Literal["error_rate", "latency"] = "error_rate"
    endpoint: str | None = None
    max_share: float = 0.05
    latency_slo_s: float = 5.0
    false_alarm_days: float = 90.0
    bin_s: float = BIN_S
    clear_horizon: float = 200.0

    def __post_init__(self) -> None:
        check_name(self.name, "monitor")
        _check(self.kind in ("error_rate", "latency"), self.name, f"kind is '{self.kind}': error_rate or latency")
        _check(self.latency_slo_s > 0, self.name, f"latency_slo_s is {self.latency_slo_s}: it is positive")
        try:
            _ = self.rule
        except InvalidInput as error:
            raise InvalidInput(f"monitor '{self.name}': {error.message}") from None

    @property
    def rule(self) -> BurnRule:
        """The test behind it."""
        return BurnRule(
            max_share=self.max_share,
            false_alarm_days=self.false_alarm_days,
            bin_s=self.bin_s,
            clear_horizon=self.clear_horizon,
        )

    def as_json(self) -> dict[str, Any]:
        """The monitor as a plain JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Monitor:
        """Read back what ``as_json`` wrote; fields left out take their defaults.

        Raises:
            InvalidInput: an unknown field or a value that makes no sense.
        """
        known = [part.name for part in fields(cls)]
        for name in value:
            _check(name in known, str(value.get("name")), f"'{name}' is not a field; they are {', '.join(known)}")
        return cls(**value)


def _check(holds: bool, name: str, message: str) -> None:
    if not holds:
        raise InvalidInput(f"monitor '{name}': {message}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request: when it ended, whether it succeeded, how long it took."""

    at: datetime
    ok: bool
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A monitor's finding that the promise is broken.

    Args:
        monitor: its name.
        at: time of the request that decided it.
        verdict: value ``alarm``; evidence: the detector's statistic and horizon, counts, what is tolerated.
    """

    monitor: str
    at: datetime
    verdict: Verdict


def initial_state(monitor: Monitor) -> BurnState:
    """A monitor's state before any request."""
    return monitor.rule.start()


def evaluate(monitor: Monitor, state: BurnState, samples: Iterable[Sample]) -> tuple[BurnState, list[Alarm]]:
    """Show a monitor the requests that came since the last call.

    A request that arrives late counts in the open bin. While an alarm is on, requests are taken as evidence that it
    may end; it ends in silence, seen in ``firing``.

    Args:
        monitor: what is watched.
        state: the state after the last call, or ``initial_state``.
        samples: finished requests in the order they were stored; the caller has chosen those of the endpoint.

    Returns:
        The new state, and the alarms that fired.
    """
    if monitor.kind == "error_rate":
        events = ((one.at.timestamp(), not one.ok) for one in samples)
    else:
        events = ((one.at.timestamp(), one.latency_s > monitor.latency_slo_s) for one in samples)
    state, turns = watch(monitor.rule, state, events)
    return state, [_alarm(monitor, turn) for turn in turns if turn.fired]


def _alarm(monitor: Monitor, turn: Turn) -> Alarm:
    at = datetime.fromtimestamp(turn.at_s, UTC)
    what = "failed" if monitor.kind == "error_rate" else f"took longer than {monitor.latency_slo_s:g} s"
    where = f" of '{monitor.endpoint}'" if monitor.endpoint else ""
    reason = (
        f"more than {monitor.max_share:.1%} of the requests{where} {what}: {turn.bad} of {turn.events} so far "
        f"(one false alarm in {monitor.false_alarm_days:g} days)"
    )
    evidence = {
        "statistic": turn.statistic,
        "horizon_bins": monitor.rule.horizon_bins,
        "bins": turn.bins,
        "bin_s": monitor.bin_s,
        "max_share": monitor.max_share,
        "samples": turn.events,
        "bad": turn.bad,
        "kind": monitor.kind,
        "endpoint": monitor.endpoint,
        "at": at.isoformat(),
    }
    return Alarm(monitor=monitor.name, at=at, verdict=Verdict("alarm", reason, evidence))
