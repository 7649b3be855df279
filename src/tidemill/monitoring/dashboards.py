"""Grafana dashboards and alert rules over Tidemill's metrics, generated: they load without edits.

A dashboard is plain JSON of Grafana's schema; its data source is a variable, so that any Prometheus will do. Metrics
are those of the control plane's and the workers' ``/metrics``; a test parses every query and finds every name there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Names = Literal["new", "old", "both"]

_SCHEMA: Final = 39
_COLUMNS: Final = 24
_HEIGHT: Final = 8
_WINDOW: Final = "$__rate_interval"
_IN_FLIGHT: Final = "sum by (endpoint, model) (tidemill_gateway_target_in_flight)"
_OPEN: Final = 'sum by (endpoint, model) (tidemill_gateway_breaker_state{state="open"})'
_FAILED: Final = 'status=~"error|truncated|interrupted"'
_WITH_ERROR: Final = 'error_type!=""'
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


#: name, expression, how long it must hold, severity, what is said
_ALERTS: Final = (
    (
        "TidemillSloPage",
        'tidemill_slo_alarm{severity="page"} == 1',
        "0s",
        "page",
        "The error budget of {{ $labels.slo }} burns at more than six times its pace.",
    ),
    (
        "TidemillSloTicket",
        'tidemill_slo_alarm{severity="ticket"} == 1',
        "0s",
        "ticket",
        "{{ $labels.slo }} has more bad events than its objective allows.",
    ),
    (
        "TidemillMonitorAlarm",
        "tidemill_monitor_alarm == 1",
        "0s",
        "ticket",
        "The monitor {{ $labels.monitor }} fires.",
    ),
    (
        "TidemillBudgetSpent",
        "tidemill_slo_budget_left_ratio <= 0",
        "5m",
        "ticket",
        "The error budget of {{ $labels.slo }} is spent.",
    ),
    (
        "TidemillDrainBehind",
        "tidemill_drain_lag_seconds > 60",
        "5m",
        "ticket",
        "Telemetry is received faster than it is stored, for {{ $value | humanizeDuration }}.",
    ),
    (
        "TidemillTelemetryDamaged",
        "increase(tidemill_drain_corrupt_total[15m]) > 0",
        "0s",
        "ticket",
        "Segments of telemetry could not be read to their end.",
    ),
    (
        "TidemillForwardStuck",
        "tidemill_forward_backlog_spans > 0 and on (target) rate(tidemill_forward_spans_total[15m]) == 0",
        "15m",
        "ticket",
        "{{ $labels.target }} takes no spans.",
    ),
    (
        "TidemillControlPlaneDown",
        "absent(tidemill_info) == 1",
        "2m",
        "page",
        "No control plane is scraped. The gateway serves on until its snapshot's lifetime ends.",
    ),
)


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel.

    Args:
        title: what it shows.
        queries: legend -> PromQL.
        unit: Grafana's unit id.
        kind: ``timeseries``, ``stat`` or ``gauge``.
        width: of 24 columns.
        about: shown at the title.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "gauge"] = "timeseries"
    width: int = 8
    about: str = ""


def overview(names: Names = "new") -> dict[str, Any]:
    """The dashboard of the whole project."""
    return _dashboard(
        "tidemill-overview",
        "Tidemill: overview",
        "Everything at a glance: load, failures, times, cost, objectives, and whether telemetry keeps up.",
        [
            ("What people see", _traffic(names, "")),
            ("Objectives", _objectives()),
            ("Gateway", _gateway("")),
            ("Telemetry", _telemetry()),
        ],
        variables=[],
    )


def endpoint(names: Names = "new") -> dict[str, Any]:
    """The dashboard of one endpoint, chosen by a variable."""
    where = 'endpoint=~"$endpoint"'
    chosen = {
        "name": "endpoint",
        "label": "Endpoint",
        "type": "query",
        "datasource": _SOURCE,
        "definition": "label_values(tidemill_requests_total, endpoint)",
        "query": {"query": "label_values(tidemill_requests_total, endpoint)", "refId": "endpoint"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "options": [],
    }
    return _dashboard(
        "tidemill-endpoint",
        "Tidemill: endpoint",
        "One endpoint: load, failures, times and cost, by model and by status.",
        [
            ("What people see", _traffic(names, where)),
            ("By model", _by_model(names, where)),
            ("Gateway", _gateway(where)),
        ],
        variables=[chosen],
    )


def alert_rules() -> dict[str, Any]:
    """A Prometheus rule file about Tidemill itself and its objectives' own alarms."""
    return {"groups": [{"name": "tidemill", "rules": [_alert(*one) for one in _ALERTS]}]}


def scrape_config(*, control: str, gateway: str, token_file: str) -> dict[str, Any]:
    """A Prometheus configuration that scrapes a project on this machine.

    Args:
        control: host and port of the control plane.
        gateway: host and port of the gateway.
        token_file: the local token, which the control plane asks for.
    """
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["tidemill-alerts.yml", "tidemill-slos.yml"],
        "scrape_configs": [
            {
                "job_name": "tidemill",
                "authorization": {"type": "Bearer", "credentials_file": token_file},
                "static_configs": [{"targets": [control]}],
            },
            {"job_name": "tidemill-gateway", "static_configs": [{"targets": [gateway]}]},
        ],
    }


def _alert(name: str, expression: str, lasting: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def _selector(*parts: str) -> str:
    given = ",".join(part for part in parts if part)
    return f"{{{given}}}" if given else ""


def _quantile(share: float, metric: str, where: str, by: str = "") -> str:
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({metric}_bucket{_selector(where)}[{_WINDOW}])))"


def _first_chunk(names: Names) -> str:
    return (
        "gen_ai_server_time_to_first_token_seconds"
        if names == "old"
        else "gen_ai_client_operation_time_to_first_chunk_seconds"
    )


def _per_token(names: Names) -> str:
    return (
        "gen_ai_server_time_per_output_token_seconds"
        if names == "old"
        else "gen_ai_client_operation_time_per_output_chunk_seconds"
    )


def _traffic(names: Names, where: str) -> list[Panel]:
    requests = f"tidemill_requests_total{_selector(where)}"
    failed = f"tidemill_requests_total{_selector(where, _FAILED)}"
    duration = "gen_ai_client_operation_duration_seconds"
    tokens = f"gen_ai_client_token_usage_sum{_selector(where)}"
    return [
        Panel(
            "Requests a second",
            {"{{endpoint}} {{status}}": f"sum by (endpoint, status) (rate({requests}[{_WINDOW}]))"},
            "reqps",
        ),
        Panel(
            "Share that fails",
            {
                "{{endpoint}}": f"sum by (endpoint) (rate({failed}[{_WINDOW}]))"
                f" / sum by (endpoint) (rate({requests}[{_WINDOW}]))"
            },
            "percentunit",
        ),
        Panel(
            "Seconds of an operation",
            {f"p{round(share * 100)}": _quantile(share, duration, where) for share in (0.5, 0.95, 0.99)},
            "s",
        ),
        Panel(
            "Seconds to the first token",
            {f"p{round(share * 100)}": _quantile(share, _first_chunk(names), where) for share in (0.5, 0.95)},
            "s",
            about="Streamed answers.",
        ),
        Panel(
            "Tokens a second",
            {"{{gen_ai_token_type}}": f"sum by (gen_ai_token_type) (rate({tokens}[{_WINDOW}]))"},
        ),
        Panel(
            "USD an hour",
            {"{{endpoint}}": f"3600 * sum by (endpoint) (rate(tidemill_cost_usd_total{_selector(where)}[{_WINDOW}]))"},
            "currencyUSD",
        ),
    ]


def _by_model(names: Names, where: str) -> list[Panel]:
    duration = "gen_ai_client_operation_duration_seconds"
    return [
        Panel(
            "p95 seconds, by model",
            {"{{gen_ai_request_model}}": _quantile(0.95, duration, where, "gen_ai_request_model")},
            "s",
        ),
        Panel(
            "Seconds from token to token, p95",
            {"{{gen_ai_request_model}}": _quantile(0.95, _per_token(names), where, "gen_ai_request_model")},
            "s",
        ),
        Panel(
            "USD an hour, by model",
            {"{{model}}": f"3600 * sum by (model) (rate(tidemill_cost_usd_total{_selector(where)}[{_WINDOW}]))"},
            "currencyUSD",
        ),
        Panel(
            "Errors, by class",
            {
                "{{error_type}}": f"sum by (error_type) (rate({duration}_count"
                f"{_selector(where, _WITH_ERROR)}[{_WINDOW}]))"
            },
            "reqps",
        ),
    ]


def _objectives() -> list[Panel]:
    return [
        Panel(
            "Error budget left",
            {"{{slo}}": "tidemill_slo_budget_left_ratio"},
            "percentunit",
            "gauge",
            about="1 untouched, 0 spent.",
        ),
        Panel("Burn", {"{{slo}} {{window}}": 'tidemill_slo_burn_ratio{window=~"1h|1d"}'}, about="1 spends it exactly."),
        Panel(
            "Alarm: statistic as a part of its horizon",
            {"{{slo}} {{severity}}": "tidemill_slo_statistic / tidemill_slo_horizon"},
            "percentunit",
            about="At 100 % an alarm begins.",
        ),
        Panel(
            "Alarms that are on",
            {
                "objectives": "sum(tidemill_slo_alarm) or vector(0)",
                "monitors": "sum(tidemill_monitor_alarm) or vector(0)",
            },
            kind="stat",
        ),
        Panel("Limits and budgets spent", {"{{limit}}": "tidemill_limit_used_ratio"}, "percentunit"),
    ]


def _gateway(where: str) -> list[Panel]:
    answers = f"rate(tidemill_gateway_requests_total{_selector(where)}[{_WINDOW}])"
    return [
        Panel(
            "Answers a second",
            {"{{code}} {{outcome}}": f"sum by (code, outcome) ({answers})"},
            "reqps",
        ),
        Panel(
            "Seconds at the gateway",
            {
                f"p{round(share * 100)}": _quantile(share, "tidemill_gateway_request_seconds", where)
                for share in (0.5, 0.95, 0.99)
            },
            "s",
        ),
        *(
            []
            if where
            else [
                Panel("Calls at once", {"{{worker}}": "tidemill_gateway_in_flight"}),
                Panel(
                    "What happens",
                    {"{{event}}": f"sum by (event) (rate(tidemill_gateway_events_total[{_WINDOW}]))"},
                    "ops",
                ),
                Panel("Calls at once, by target", {"{{endpoint}} {{model}}": _IN_FLIGHT}),
                Panel("Targets that are cut off", {"{{endpoint}} {{model}}": _OPEN}),
                Panel("Epoch of the snapshot", {"{{worker}}": "tidemill_gateway_snapshot_epoch"}, kind="stat"),
            ]
        ),
    ]


def _telemetry() -> list[Panel]:
    return [
        Panel("Not stored yet", {"lag": "tidemill_drain_lag_seconds"}, "s"),
        Panel("Not stored yet", {"backlog": "tidemill_drain_backlog_bytes"}, "bytes"),
        Panel("Records stored a second", {"records": f"rate(tidemill_drained_records_total[{_WINDOW}])"}, "ops"),
        Panel(
            "Set aside",
            {
                "{{reason}}": f"sum by (reason) (rate(tidemill_rejections_total[{_WINDOW}]))",
                "conflicts": f"rate(tidemill_drain_conflicts_total[{_WINDOW}])",
                "corrupt": f"rate(tidemill_drain_corrupt_total[{_WINDOW}])",
            },
            "ops",
        ),
        Panel("Span store", {"{{tier}}": "tidemill_store_bytes"}, "bytes"),
        Panel("Waiting to be passed on", {"{{target}}": "tidemill_forward_backlog_spans"}),
    ]


def _dashboard(
    uid: str,
    title: str,
    about: str,
    rows: Sequence[tuple[str, Sequence[Panel]]],
    *,
    variables: list[dict[str, Any]],
) -> dict[str, Any]:
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
        "options": [],
    }
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["tidemill"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source, *variables]},
        "annotations": {"list": []},
        "links": [],
        "panels": _placed(rows),
    }


def _placed(rows: Sequence[tuple[str, Sequence[Panel]]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in rows:
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = 0
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + _HEIGHT
            found.append(_panel(panel, len(found) + 1, x, y))
            x += panel.width
        y += _HEIGHT
    return found


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}}
    if panel.kind != "timeseries":
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend,
                "range": True,
                "instant": False,
                "editorMode": "code",
            }
            for place, (legend, query) in enumerate(panel.queries.items())
        ],
    }
