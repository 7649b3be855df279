"""The REST API of the control plane. OpenAPI at ``/openapi.json``.

Listens on loopback with a local token: a page in a browser is kept out by the checks on Host and Origin, another user
of the machine by the token, which stands in a file only the owner can read.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from tidemill import __version__
from tidemill.kernel import Conflict, NotFound, Unavailable, UserError, Verdict
from tidemill.releases import Rollout, RolloutEvent, apply_event, explain, list_rollouts, load_rollout
from tidemill.server.api_slo import add_slo_routes
from tidemill.server.api_telemetry import add_telemetry
from tidemill.server.control import ControlPlane
from tidemill.server.metrics import add_metrics
from tidemill.server.otlp import Senders, mount_otlp

_STATUS: Final[dict[type[UserError], int]] = {NotFound: 404, Conflict: 409, Unavailable: 503}
_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_OPEN: Final = frozenset({"/health"})


class EventBody(BaseModel):
    """Who moves a rollout and why."""

    model_config = ConfigDict(extra="forbid")

    actor: str = Field(min_length=1, description="Who decides.")
    reason: str = Field(min_length=1, description="Why, in a sentence.")


def create_app(control: ControlPlane, *, token: str, lifespan: Any = None) -> FastAPI:
    """The application.

    Args:
        control: what it shows and moves.
        token: callers send it as ``Authorization: Bearer``.
        lifespan: started and stopped with the application.
    """
    app = FastAPI(title="Tidemill", version=__version__, lifespan=lifespan)
    _guard(app, token)
    _add_status(app, control)
    _add_rollouts(app, control)
    add_telemetry(app, control)
    add_slo_routes(app, control)
    add_metrics(app, control)
    if control.project.settings.telemetry.otlp.enabled:
        mount_otlp(app, control.receiving.receiver, Senders(control.project, token))
    return app


def _guard(app: FastAPI, token: str) -> None:
    expected = f"Bearer {token}"

    @app.middleware("http")
    async def check(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "").rsplit(":", 1)[0]
        if host not in _LOCAL or "origin" in request.headers:
            return _problem(403, "This API answers local programs only, not pages in a browser.")
        given = request.headers.get("authorization", "")
        if request.url.path not in _OPEN and not hmac.compare_digest(given.encode(), expected.encode()):
            return _problem(401, "The local token is missing or wrong: it stands in .tidemill/run/token.")
        return await proceed(request)

    @app.exception_handler(UserError)
    async def explain_error(request: Request, error: UserError) -> JSONResponse:  # noqa: ARG001 - the library's signature
        status = next((code for family, code in _STATUS.items() if isinstance(error, family)), 400)
        return _problem(status, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    async def explain_request(request: Request, error: RequestValidationError) -> JSONResponse:  # noqa: ARG001 - as above
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _problem(422, f"The request's {place} cannot be used: {first['msg']}.", "See /openapi.json")

    @app.exception_handler(HTTPException)
    async def explain_path(request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, f"{request.url.path}: {error.detail}.", "See /openapi.json")


def _add_status(app: FastAPI, control: ControlPlane) -> None:
    @app.get("/health", summary="Whether the control plane is up")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/v1/status", summary="What is served and rolled out")
    def status() -> dict[str, Any]:
        return control.status()

    @app.get("/api/v1/limits", summary="How much of each limit is spent, lent to workers, and left")
    def limits() -> list[dict[str, Any]]:
        return [asdict(one) for one in control.standing()]

    @app.get("/api/v1/monitors", summary="Monitors and what they have seen")
    def monitors() -> list[dict[str, Any]]:
        return control.monitors.states()


def _add_rollouts(app: FastAPI, control: ControlPlane) -> None:
    ledger = control.project.ledger

    @app.get("/api/v1/rollouts", summary="All rollouts")
    def rollouts(endpoint: str | None = None) -> list[dict[str, Any]]:
        return [rollout_json(one) for one in list_rollouts(ledger, endpoint)]

    @app.get("/api/v1/rollouts/{rollout_id}", summary="One rollout with its decisions")
    def rollout(rollout_id: str) -> dict[str, Any]:
        one = load_rollout(ledger, rollout_id)
        return {**rollout_json(one), "story": explain(one)}

    @app.post("/api/v1/rollouts/{rollout_id}/{event}", summary="Move a rollout by hand")
    def move(rollout_id: str, event: RolloutEvent, body: EventBody) -> dict[str, Any]:
        one = load_rollout(ledger, rollout_id)
        return rollout_json(apply_event(ledger, one, event, Verdict(event.value, body.reason), body.actor))


def rollout_json(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a plain JSON object."""
    return {
        "rollout": rollout.rollout_id,
        "endpoint": rollout.endpoint,
        "state": rollout.state.value,
        "candidate": str(rollout.candidate.ref),
        "baseline": str(rollout.baseline.ref) if rollout.baseline else None,
        "share": rollout.share,
        "decisions": [
            {"at": one.at.isoformat(), "kind": one.kind, "actor": one.actor, **one.verdict.as_json()}
            for one in rollout.history
        ],
    }


def _problem(status: int, message: str, hint: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "hint": hint}}, status_code=status)
