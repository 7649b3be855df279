"""Runs the control plane: its loops in threads, its API on one port, a clean end on SIGTERM."""

from __future__ import annotations

import gc
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from tidemill.loop.project import Places, open_project, open_spans
from tidemill.server.api import create_app
from tidemill.server.control import ControlPlane
from tidemill.server.files import write_atomically
from tidemill.server.otlp import Senders
from tidemill.server.otlp_grpc import start_grpc
from tidemill.server.supervisor import listening_socket

_COLLECT_AFTER: Final = (50_000, 20, 20)
"""A batch of spans is a hundred thousand objects that all live on for a while. Looking through them every 700, as
Python does by itself, takes a seventh of what ingest costs."""


def run_server(project_path: Path) -> None:
    """Serve until told to stop.

    Raises:
        UserError: the project cannot be opened, the port is taken or another process holds the span store.
    """
    with open_project(project_path) as project:
        settings = project.settings
        listener = listening_socket(settings.server.host, settings.server.port, "server")
        control = ControlPlane(project, open_spans(project))
        token = local_token(project.places)

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - the signature of the library
            otlp = settings.telemetry.otlp
            stop_grpc = (
                start_grpc(control.receiving.receiver, Senders(project, token), otlp.grpc_port)
                if otlp.enabled and otlp.grpc_port is not None
                else None
            )
            control.start()
            try:
                yield
            finally:
                if stop_grpc is not None:
                    stop_grpc()
                control.stop()

        app = create_app(control, token=token, lifespan=lifespan)
        gc.collect()
        gc.freeze()  # what a start has loaded stays until the end
        gc.set_threshold(*_COLLECT_AFTER)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])


def local_token(places: Places) -> str:
    """The token that callers of the API on this machine read from the state folder; made once, mode 0600."""
    if places.token.exists():
        return places.token.read_text()
    token = secrets.token_urlsafe(24)
    write_atomically(places.token, token.encode())
    return token
