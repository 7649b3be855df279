"""What telemetry is kept where, as the REST API and the command say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidemill.telemetry import Measure, SeriesQuery

if TYPE_CHECKING:
    from tidemill.kernel.settings_telemetry import RetentionSettings
    from tidemill.telemetry import SpanStore


def kept_json(store: SpanStore, retention: RetentionSettings) -> dict[str, Any]:
    """Spans and bytes by tier, and how long they stay.

    Args:
        store: the span store.
        retention: how long and where.

    Returns:
        ``{"spans", "tiers": {"hot": {"bytes"}, "cold": {"bytes"}}, "retention"}``.
    """
    counted = store.series(SeriesQuery(measures=(Measure("requests"),))).rows
    return {
        "spans": int(counted[0].values["requests"] or 0) if counted else 0,
        "tiers": {tier: {"bytes": size} for tier, size in store.sizes().items()},
        "retention": retention.model_dump(),
    }
