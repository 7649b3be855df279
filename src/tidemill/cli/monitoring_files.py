"""The files that Grafana and Prometheus take: dashboards, rules, and a scrape configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.kernel.settings import Settings
    from tidemill.monitoring import Slo


def monitoring_files(settings: Settings, *, token_file: str, slos: Sequence[Slo]) -> Mapping[str, str]:
    """File name -> text.

    Args:
        settings: where the processes listen, and which generation of metric names is shown.
        token_file: the local token, which the control plane asks a scraper for.
        slos: objectives, as the classic rules.
    """
    from tidemill.monitoring import dashboards
    from tidemill.monitoring.export import prometheus_rules

    names = settings.telemetry.metric_names
    scrape = dashboards.scrape_config(
        control=f"{settings.server.host}:{settings.server.port}",
        gateway=f"{settings.gateway.host}:{settings.gateway.port}",
        token_file=token_file,
    )
    return {
        "tidemill-overview.json": _json(dashboards.overview(names)),
        "tidemill-endpoint.json": _json(dashboards.endpoint(names)),
        "tidemill-alerts.yml": _yaml(dashboards.alert_rules()),
        "tidemill-slos.yml": _yaml(prometheus_rules(slos, service=settings.project)),
        "prometheus.yml": _yaml(scrape),
    }


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _yaml(document: Any) -> str:
    import yaml

    return str(yaml.safe_dump(document, sort_keys=False, width=1000))
