"""Error-rate and latency monitors on a Shiryaev-Roberts e-detector, with a stated horizon of false alarms.

Time is cut into bins of ``bin_s``; the horizon counts bins with traffic. Within a bin every request is looked at, so
an outage fires after a handful of requests, and the promise "at most one false alarm in so many days" holds at any
traffic. A service level on latency is a share of slow requests, so both kinds are the same test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

from tidemill.evidence import RateDetector
from tidemill.kernel import InvalidInput, Verdict, check_name

_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """What is watched and what is tolerated.

    Args:
        name: its name.
        kind: ``error_rate`` watches the share of failed requests, ``latency`` the share of slow ones.
        endpoint: the endpoint it watches; ``None`` for all.
        max_share: the largest tolerated share of bad requests, in (0, 1): 1 - the service level objective.
        latency_slo_s: a request that takes longer is slow (``latency`` only).
        false_alarm_days: while the share is tolerated, one false alarm is expected in no less than this.
        bin_s: length of a bin of time.
        clear_horizon: an alarm ends when the share is shown to have fallen below ``max_share``; while it has not,
            that happens by mistake no more than once in so many requests.
    """

    name: str
    kind: Literal["error_rate", "latency"] = "error_rate"
    endpoint: str | None = None
    max_share: float = 0.05
    latency_slo_s: float = 5.0
    false_alarm_days: float = 90.0
    bin_s: float = 300.0
    clear_horizon: float = 200.0

    def __post_init__(self) -> None:
        check_name(self.name, "monitor")
        _check(self.kind in ("error_rate", "latency"), self.name, f"kind is '{self.kind}': error_rate or latency")
        _check(0 < self.max_share < 1, self.name, f"max_share is {self.max_share}: it lies between 0 and 1")
        _check(self.latency_slo_s > 0, self.name, f"latency_slo_s is {self.latency_slo_s}: it is positive")
        _check(self.bin_s > 0, self.name, f"bin_s is {self.bin_s}: it is positive")
        _check(self.clear_horizon >= 1, self.name, f"clear_horizon is {self.clear_horizon}: it is at least 1")
        _check(self.horizon_bins >= 1, self.name, "false_alarm_days is shorter than one bin")

    @property
    def horizon_bins(self) -> float:
        """The false-alarm horizon in bins of time."""
        return self.false_alarm_days * _DAY_S / self.bin_s

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
class MonitorState:
    """All that a monitor remembers.

    Args:
        detector: the change detector; starts anew at each alarm.
        bin_index: the open bin, counted from 1970; ``None`` before the first sample.
        clearing: while firing, the detector of the share's return to what is tolerated.
        fired_at: when the current alarm fired; ``None`` while all is well.
        samples, bad: requests seen, and those that failed or were slow.
        alarms: alarms so far.
    """

    detector: RateDetector
    bin_index: int | None = None
    clearing: RateDetector | None = None
    fired_at: datetime | None = None
    samples: int = 0
    bad: int = 0
    alarms: int = 0

    @property
    def firing(self) -> bool:
        """Whether an alarm is on."""
        return self.fired_at is not None

    def as_json(self) -> dict[str, Any]:
        """The state as a plain JSON object."""
        return {
            "detector": self.detector.as_json(),
            "bin_index": self.bin_index,
            "clearing": self.clearing.as_json() if self.clearing else None,
            "fired_at": self.fired_at.isoformat() if self.fired_at else None,
            "samples": self.samples,
            "bad": self.bad,
            "alarms": self.alarms,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MonitorState:
        """Read back what ``as_json`` wrote."""
        state = dict(value)
        state["detector"] = RateDetector.from_json(state["detector"])
        state["clearing"] = RateDetector.from_json(state["clearing"]) if state["clearing"] else None
        state["fired_at"] = datetime.fromisoformat(state["fired_at"]) if state["fired_at"] else None
        return cls(**state)


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


def initial_state(monitor: Monitor) -> MonitorState:
    """A monitor's state before any request."""
    return MonitorState(detector=RateDetector.start(monitor.max_share, monitor.horizon_bins))


def evaluate(monitor: Monitor, state: MonitorState, samples: Iterable[Sample]) -> tuple[MonitorState, Alarm | None]:
    """Show a monitor the requests that came since the last call.

    A request that arrives late counts in the open bin. While an alarm is on, requests are taken as evidence that it
    may end; it ends in silence, seen in ``firing``. A call raises at most one alarm: after it, the rest of the samples
    still may clear it, but a second one waits for the next call.

    Args:
        monitor: what is watched.
        state: the state after the last call, or ``initial_state``.
        samples: finished requests in the order they were stored; the caller has chosen those of the endpoint.

    Returns:
        The new state, and an alarm if one fired.
    """
    alarm: Alarm | None = None
    for sample in samples:
        bad = not sample.ok if monitor.kind == "error_rate" else sample.latency_s > monitor.latency_slo_s
        state = replace(state, samples=state.samples + 1, bad=state.bad + bad)
        if state.firing:
            state = _clear(state, bad)
            continue
        state = _watch(monitor, state, sample.at, bad)
        if alarm is None and state.detector.alarmed:
            alarm = _alarm(monitor, state, sample.at)
            fresh = initial_state(monitor).detector
            clearing = RateDetector.start(1 - monitor.max_share, monitor.clear_horizon)
            state = replace(
                state, detector=fresh, bin_index=None, clearing=clearing, fired_at=sample.at, alarms=state.alarms + 1
            )
    return state, alarm


def _watch(monitor: Monitor, state: MonitorState, at: datetime, bad: bool) -> MonitorState:
    index = int(at.timestamp() // monitor.bin_s)
    detector = state.detector
    if state.bin_index is not None and index > state.bin_index:
        detector = detector.close_step()
    newest = index if state.bin_index is None else max(index, state.bin_index)
    return replace(state, detector=detector.observe(float(bad)), bin_index=newest)


def _clear(state: MonitorState, bad: bool) -> MonitorState:
    assert state.clearing is not None
    # A detector, not an e-process: after a long outage it forgets, and a recovery is seen as soon as after a short one.
    clearing = state.clearing.close_step().observe(float(not bad))
    if clearing.alarmed:
        return replace(state, clearing=None, fired_at=None)
    return replace(state, clearing=clearing)


def _alarm(monitor: Monitor, state: MonitorState, at: datetime) -> Alarm:
    detector = state.detector
    what = "failed" if monitor.kind == "error_rate" else f"took longer than {monitor.latency_slo_s:g} s"
    where = f" of '{monitor.endpoint}'" if monitor.endpoint else ""
    reason = (
        f"more than {monitor.max_share:.1%} of the requests{where} {what}: {state.bad} of {state.samples} so far "
        f"(one false alarm in {monitor.false_alarm_days:g} days)"
    )
    evidence = {
        "statistic": detector.value,
        "horizon_bins": detector.horizon,
        "bins": detector.steps + 1,
        "bin_s": monitor.bin_s,
        "max_share": monitor.max_share,
        "samples": state.samples,
        "bad": state.bad,
        "kind": monitor.kind,
        "endpoint": monitor.endpoint,
        "at": at.astimezone(UTC).isoformat(),
    }
    return Alarm(monitor=monitor.name, at=at, verdict=Verdict("alarm", reason, evidence))
