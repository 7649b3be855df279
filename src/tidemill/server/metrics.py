"""``/metrics`` of the control plane: stored spans under GenAI names, and Tidemill's own state.

The gateway's workers have a ``/metrics`` each, for what never reaches the span store (``tidemill_gateway_…``). The
families below and ``spanmetrics`` are all that is shown here; ``families()`` lists them, and the reference page, the
dashboards and the rules are tested against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tidemill import __version__
from tidemill.kernel import UserError
from tidemill.server.spanmetrics import KINDS, BoundedValues

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tidemill.server.control import ControlPlane


@dataclass(frozen=True, slots=True)
class Family:
    """A metric family: its name as Prometheus shows it, its type, its labels and what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    about: str


OWN: Final = (
    Family("tidemill_info", "gauge", ("version", "project", "tenant"), "Always 1; says what runs."),
    Family("tidemill_drain_lag_seconds", "gauge", (), "Seconds since everything received was last stored."),
    Family("tidemill_drain_backlog_bytes", "gauge", (), "Bytes of segments that are not stored yet."),
    Family("tidemill_drained_records_total", "counter", (), "Records read from segments."),
    Family("tidemill_drain_conflicts_total", "counter", (), "Records that differ from the one stored first."),
    Family("tidemill_drain_corrupt_total", "counter", (), "Stretches of segments that could not be read."),
    Family("tidemill_drain_content_lost_total", "counter", (), "Contents that could not be decrypted any more."),
    Family("tidemill_rejections_total", "counter", ("reason",), "Records refused or set aside, by reason."),
    Family("tidemill_store_bytes", "gauge", ("tier",), "Size of the span store: hot, cold."),
    Family("tidemill_slo_objective_ratio", "gauge", ("slo",), "Share of events that must be good."),
    Family("tidemill_slo_events_total", "counter", ("slo",), "Events of an objective."),
    Family("tidemill_slo_bad_events_total", "counter", ("slo",), "Bad events of an objective."),
    Family("tidemill_slo_budget_left_ratio", "gauge", ("slo",), "Error budget that is left: 1 untouched, 0 spent."),
    Family("tidemill_slo_burn_ratio", "gauge", ("slo", "window"), "Burn as a multiple of what the objective allows."),
    Family("tidemill_slo_statistic", "gauge", ("slo", "severity"), "The burn detector's statistic."),
    Family("tidemill_slo_horizon", "gauge", ("slo", "severity"), "The statistic at which an alarm begins."),
    Family("tidemill_slo_alarm", "gauge", ("slo", "severity"), "1 while an objective's alarm is on."),
    Family("tidemill_monitor_alarm", "gauge", ("monitor",), "1 while a monitor's alarm is on."),
    Family("tidemill_forward_backlog_spans", "gauge", ("target",), "Stored spans not yet passed on."),
    Family("tidemill_forward_spans_total", "counter", ("target",), "Spans passed on."),
    Family("tidemill_forward_rejected_total", "counter", ("target",), "Spans that a collector refused for good."),
    Family("tidemill_forward_failures_total", "counter", ("target",), "Attempts that will be made again."),
    Family("tidemill_settled_total", "counter", ("what",), "Requests charged to limits, and what went wrong with it."),
    Family("tidemill_limit_used_ratio", "gauge", ("limit",), "Part of a rate limit or budget that is spent."),
)
#: Families of ``spanmetrics`` besides its histograms.
SPAN: Final = (
    Family("tidemill_requests_total", "counter", ("endpoint", "service", "status"), "Whole requests stored."),
    Family("tidemill_cost_usd_total", "counter", ("endpoint", "model"), "What stored spans cost, in USD."),
    Family("tidemill_spans_followed_total", "counter", (), "Spans counted here since the start."),
)
Samples: TypeAlias = "list[tuple[tuple[str, ...], float]]"
_BY_NAME: Final = {family.name: family for family in OWN}


class ControlCollector:
    """The metric families of a control plane, for a registry of ``prometheus_client``.

    Args:
        control: what is shown.
    """

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._reasons = BoundedValues()
        self._limits = BoundedValues()

    def collect(self) -> Iterator[Any]:
        """All families."""
        yield from self._control.watching.spans.collect()
        for name, samples in self._samples():
            family = _BY_NAME[name]
            metric = _new(family)
            for labels, value in samples:
                metric.add_metric(labels, value)
            yield metric

    def _samples(self) -> Iterator[tuple[str, Samples]]:
        control = self._control
        settings = control.project.settings
        yield "tidemill_info", [((__version__, settings.project, settings.tenant), 1.0)]
        yield "tidemill_drain_lag_seconds", [((), max(0.0, time.monotonic() - control.caught_up_s))]
        yield "tidemill_drain_backlog_bytes", [((), float(control.waiting_bytes()))]
        settled = asdict(control.settled)
        yield "tidemill_settled_total", [((what,), float(count)) for what, count in settled.items()]
        for name in ("drained_records", "drain_conflicts", "drain_corrupt", "drain_content_lost"):
            yield f"tidemill_{name}_total", [((), float(control.counts[name]))]
        rejected = control.store.set_aside(limit=1).counts
        reasons: dict[str, float] = {}
        for reason, count in rejected.items():
            shown = self._reasons.of(reason)
            reasons[shown] = reasons.get(shown, 0.0) + count
        yield "tidemill_rejections_total", [((reason,), count) for reason, count in reasons.items()]
        yield "tidemill_store_bytes", [((tier,), float(size)) for tier, size in control.store.sizes().items()]
        yield from self._objectives()
        firing: Samples = [((str(one["monitor"]["name"]),), float(one["firing"])) for one in control.monitors.states()]
        yield "tidemill_monitor_alarm", firing
        yield from self._forwarded()
        used: Samples = []
        with suppress(UserError):  # the store of accounts does not answer; the rest is still worth showing
            standing = [one for one in control.standing() if one.amount > 0]
            used.extend(((self._limits.of(one.limit.limit_id),), one.spent / one.amount) for one in standing)
        yield "tidemill_limit_used_ratio", used

    def _objectives(self) -> Iterator[tuple[str, Samples]]:
        states = self._control.watching.slos.states()
        named = [(str(one["slo"]["name"]), one) for one in states]
        yield "tidemill_slo_objective_ratio", [((name,), one["slo"]["objective"]) for name, one in named]
        yield "tidemill_slo_events_total", [((name,), one["events"]) for name, one in named]
        yield "tidemill_slo_bad_events_total", [((name,), one["bad"]) for name, one in named]
        left: Samples = [((name,), one["budget"]["left"]) for name, one in named if one["budget"]["left"] is not None]
        yield "tidemill_slo_budget_left_ratio", left
        burns: Samples = [
            ((name, window), burn)
            for name, one in named
            for window, burn in one["budget"]["burn"].items()
            if burn is not None
        ]
        yield "tidemill_slo_burn_ratio", burns
        for family, part in (("statistic", "statistic"), ("horizon", "horizon_bins"), ("alarm", "firing")):
            rows: Samples = [
                ((name, severity), float(alarm[part]))
                for name, one in named
                for severity, alarm in one["alarms"].items()
            ]
            yield f"tidemill_slo_{family}", rows

    def _forwarded(self) -> Iterator[tuple[str, Samples]]:
        states = self._control.forwarding.states()
        for family, part in (
            ("backlog_spans", "backlog"),
            ("spans_total", "sent"),
            ("rejected_total", "rejected"),
            ("failures_total", "failures"),
        ):
            yield f"tidemill_forward_{family}", [((str(one["target"]),), float(one[part])) for one in states]


def add_metrics(app: FastAPI, control: ControlPlane) -> None:
    """Answer ``/metrics`` in Prometheus' text format."""
    from fastapi.responses import Response
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(ControlCollector(control))

    @app.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response, response_model=None)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def families(names: str = "new") -> list[Family]:
    """Every family that ``/metrics`` can show under a generation of GenAI names."""
    from tidemill.server.spanmetrics import label_names

    shown = [
        Family(kind.name, "histogram", label_names(kind, names), kind.about)  # type: ignore[arg-type]  # the three words
        for kind in KINDS
        if names in kind.names
    ]
    return [*shown, *SPAN, *OWN]


def _new(family: Family) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    if family.kind == "counter":
        return CounterMetricFamily(family.name.removesuffix("_total"), family.about, labels=family.labels)
    return GaugeMetricFamily(family.name, family.about, labels=family.labels)
