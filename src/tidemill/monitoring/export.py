"""Objectives in other tools' words: Prometheus rules, Sloth's and OpenSLO's YAML.

All three count what Tidemill counts: ``tidemill_slo_events_total`` and ``tidemill_slo_bad_events_total`` of the
control plane's ``/metrics``, so that one pair of queries serves every indicator. The alarms are the classic
multiwindow, multi-burn-rate rules (Google, "The Site Reliability Workbook", chapter 5): Prometheus evaluates them
without Tidemill running, at the price of more false alarms where traffic is thin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.monitoring.slo import Slo

EVENTS: Final = "tidemill_slo_events_total"
BAD_EVENTS: Final = "tidemill_slo_bad_events_total"
_NAME_MOST: Final = 63


@dataclass(frozen=True, slots=True)
class BurnAlert:
    """A classic rule: the burn over both windows is above a factor.

    Args:
        severity: ``page`` or ``ticket``.
        long, short: windows as Prometheus writes them.
        budget: share of a 30-day budget that is spent when it fires.
        factor: the burn.
    """

    severity: str
    long: str
    short: str
    budget: float
    factor: float


CLASSIC: Final = (
    BurnAlert("page", "1h", "5m", 0.02, 14.4),
    BurnAlert("page", "6h", "30m", 0.05, 6.0),
    BurnAlert("ticket", "3d", "6h", 0.10, 1.0),
)
_WINDOWS: Final = tuple(dict.fromkeys(window for alert in CLASSIC for window in (alert.long, alert.short)))


def prometheus_rules(slos: Sequence[Slo], *, service: str) -> dict[str, Any]:
    """A Prometheus rule file: recorded shares of bad events, and the classic alerts.

    Args:
        slos: the objectives.
        service: the project's name; a label of the alerts.
    """
    return {
        "groups": [
            {
                "name": f"tidemill-slo-{slo.name}",
                "rules": [*(_recorded(slo, window) for window in _WINDOWS), *_alerts(slo, service)],
            }
            for slo in slos
        ]
    }


def sloth(slos: Sequence[Slo], *, service: str) -> dict[str, Any]:
    """Sloth's ``prometheus/v1`` specification of the objectives."""
    return {
        "version": "prometheus/v1",
        "service": service,
        "slos": [
            {
                "name": slo.name,
                "objective": _percent(slo),
                "description": slo.promise,
                "labels": {"indicator": slo.indicator},
                "sli": {
                    "events": {
                        "error_query": f"sum(rate({BAD_EVENTS}{_selector(slo)}[{{{{.window}}}}]))",
                        "total_query": f"sum(rate({EVENTS}{_selector(slo)}[{{{{.window}}}}]))",
                    }
                },
                "alerting": {
                    "name": alert_name(slo),
                    "annotations": {"summary": slo.promise},
                    "page_alert": {"labels": {"severity": "page"}},
                    "ticket_alert": {"labels": {"severity": "ticket"}},
                },
            }
            for slo in slos
        ],
    }


def openslo(slos: Sequence[Slo], *, service: str) -> list[dict[str, Any]]:
    """OpenSLO ``v1`` documents: the service, and for each objective an ``SLO`` with its alert policies.

    An OpenSLO alert condition has one window, so each classic rule becomes the policy of its long window.
    """
    documents: list[dict[str, Any]] = [
        _document("Service", service, {"description": f"The Tidemill project {service}."}),
        _document("AlertNotificationTarget", "tidemill", {"description": "Where alarms go.", "target": "default"}),
    ]
    for slo in slos:
        documents.append(_document("SLO", slo.name, _openslo_spec(slo, service), display=slo.promise))
        documents += [_policy(slo, alert) for alert in CLASSIC]
    return documents


def alert_name(slo: Slo) -> str:
    """``TidemillSloWorkshopErrors`` of ``workshop-errors``."""
    return "TidemillSlo" + "".join(part.capitalize() for part in slo.name.replace("_", "-").split("-"))


def _selector(slo: Slo) -> str:
    return f'{{slo="{slo.name}"}}'


def _percent(slo: Slo) -> float:
    return float(f"{slo.objective * 100:.6g}")


def _recorded(slo: Slo, window: str) -> dict[str, Any]:
    selector = _selector(slo)
    return {
        "record": f"slo:tidemill_bad_events:ratio_rate{window}",
        "expr": f"sum(rate({BAD_EVENTS}{selector}[{window}])) / sum(rate({EVENTS}{selector}[{window}]))",
        "labels": {"slo": slo.name},
    }


def _alerts(slo: Slo, service: str) -> list[dict[str, Any]]:
    tolerated = float(f"{1 - slo.objective:.6g}")
    found = []
    for severity in dict.fromkeys(alert.severity for alert in CLASSIC):
        alternatives = [
            " and ".join(
                f"slo:tidemill_bad_events:ratio_rate{window}{_selector(slo)} > {alert.factor:g} * {tolerated:g}"
                for window in (alert.long, alert.short)
            )
            for alert in CLASSIC
            if alert.severity == severity
        ]
        expression = " or ".join(f"({one})" for one in alternatives)
        found.append(
            {
                "alert": alert_name(slo),
                "expr": expression,
                "labels": {"severity": severity, "slo": slo.name, "service": service},
                "annotations": {
                    "summary": f"{slo.name}: the error budget burns too fast",
                    "description": f"{slo.promise}: {{{{ $value | humanizePercentage }}}} of the events are bad.",
                },
            }
        )
    return found


def _document(kind: str, name: str, spec: dict[str, Any], *, display: str | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name[:_NAME_MOST]}
    if display is not None:
        metadata["displayName"] = display
    return {"apiVersion": "openslo/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _openslo_spec(slo: Slo, service: str) -> dict[str, Any]:
    def source(metric: str) -> dict[str, Any]:
        query = f"sum({metric}{_selector(slo)})"
        return {"metricSource": {"type": "Prometheus", "spec": {"query": query}}}

    return {
        "description": slo.promise,
        "service": service,
        "indicator": {
            "metadata": {"name": f"{slo.name}-events"[:_NAME_MOST]},
            "spec": {"ratioMetric": {"counter": True, "bad": source(BAD_EVENTS), "total": source(EVENTS)}},
        },
        "timeWindow": [{"duration": _duration(slo.window_days), "isRolling": True}],
        "budgetingMethod": "Occurrences",
        "objectives": [{"displayName": "objective", "target": float(f"{slo.objective:.8g}")}],
        "alertPolicies": [{"alertPolicyRef": _policy_name(slo, alert)} for alert in CLASSIC],
    }


def _policy_name(slo: Slo, alert: BurnAlert) -> str:
    return f"{slo.name[: _NAME_MOST - 12]}-{alert.severity}-{alert.long}"


def _policy(slo: Slo, alert: BurnAlert) -> dict[str, Any]:
    name = _policy_name(slo, alert)
    condition = {
        "kind": "AlertCondition",
        "metadata": {"name": name},
        "spec": {
            "severity": alert.severity,
            "condition": {
                "kind": "burnrate",
                "op": "gt",
                "threshold": alert.factor,
                "lookbackWindow": alert.long,
                "alertAfter": alert.short,
            },
        },
    }
    spec = {
        "alertWhenNoData": False,
        "alertWhenResolved": True,
        "alertWhenBreaching": True,
        "conditions": [condition],
        "notificationTargets": [{"targetRef": "tidemill"}],
    }
    return _document("AlertPolicy", name, spec)


def _duration(days: float) -> str:
    return f"{days:.0f}d" if days == int(days) else f"{round(days * 24)}h"
