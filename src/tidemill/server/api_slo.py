"""The routes of objectives, forecasts and forwarding."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Query

from tidemill.kernel import NotFound
from tidemill.loop.forecasting import forecast_endpoints

if TYPE_CHECKING:
    from tidemill.server.control import ControlPlane


def add_slo_routes(app: FastAPI, control: ControlPlane) -> None:
    """Answer for objectives: what they are, what is left of their budgets, what is to be expected."""

    @app.get("/api/v1/slos", summary="Objectives with their error budgets, burns and alarms")
    def slos() -> list[dict[str, Any]]:
        return control.watching.slos.states()

    @app.get("/api/v1/slos/{name}", summary="One objective")
    def slo(name: str) -> dict[str, Any]:
        for one in control.watching.slos.states():
            if one["slo"]["name"] == name:
                return one
        raise NotFound(f"There is no objective '{name}'.", hint="List them: tidemill slo list")

    @app.get("/api/v1/forecast", summary="Expected requests, tokens and cost by endpoint, and when a limit is reached")
    def forecast(
        endpoint: str | None = None,
        days: float = Query(14.0, gt=0, le=365),
        history_days: float = Query(56.0, gt=0, le=730),
    ) -> list[dict[str, Any]]:
        control.drain()
        return forecast_endpoints(
            control.project.settings,
            control.store,
            now_s=time.time(),
            endpoint=endpoint,
            days=days,
            history_days=history_days,
        )

    @app.get("/api/v1/forwarding", summary="How far each collector has come")
    def forwarding() -> list[dict[str, Any]]:
        return control.forwarding.states()
