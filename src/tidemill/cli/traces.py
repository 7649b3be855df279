"""Telemetry for commands: asked of the running control plane, which owns the span store, else read from the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from tidemill.kernel import NotFound, SystemClock, UserError
from tidemill.server.client import ControlClient

if TYPE_CHECKING:
    from tidemill.loop.project import Project
    from tidemill.telemetry import SpanStore


class Telemetry(Protocol):
    """What commands ask. Answers are what the REST API says, whoever gives them."""

    def traces(self, *, endpoint: str | None, release: str | None, status: str | None, limit: int) -> Any:
        """Newest requests first."""
        ...

    def trace(self, trace_id: str) -> Any:
        """All spans and scores of a trace."""
        ...

    def summary(self, group_by: list[str]) -> Any:
        """Requests, errors, latency, tokens and cost by group."""
        ...

    def lineage(self, ref: str) -> Any:
        """What something came from and what came from it."""
        ...


@contextmanager
def telemetry_of(project: Project) -> Iterator[Telemetry]:
    """The project's telemetry: from its control plane if one runs, else from the store itself.

    Raises:
        Unavailable: no control plane answers, and another process holds the store.
    """
    client = control_of(project)
    if client is not None:
        yield _Running(client)
        return
    from tidemill.safety import mask_pii
    from tidemill.telemetry import Drainer, open_span_store

    store = open_span_store(project.places.spans, project.settings.scope)
    try:
        drainer = Drainer(project.places.segments, store, mask=mask_pii, clock=SystemClock())
        while drainer.drain_once().more:
            pass
        yield _Stored(project, store)
    finally:
        store.close()


def control_of(project: Project) -> ControlClient | None:
    """A client of the project's own control plane, or ``None`` while it does not run."""
    server = project.settings.server
    client = ControlClient(f"http://{server.host}:{server.port}", project.places.token)
    try:
        client.get("/api/v1/status")
    except UserError:
        return None  # nothing answers there, or what does is another project's
    return client


class _Running:
    """Asks the control plane."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def traces(self, *, endpoint: str | None, release: str | None, status: str | None, limit: int) -> Any:
        return self._client.get("/api/v1/traces", endpoint=endpoint, release=release, status=status, limit=limit)

    def trace(self, trace_id: str) -> Any:
        return self._client.get(f"/api/v1/traces/{trace_id}")

    def summary(self, group_by: list[str]) -> Any:
        return self._client.get("/api/v1/summary", group_by=group_by)

    def lineage(self, ref: str) -> Any:
        return self._client.get(f"/api/v1/lineage/{ref}")


class _Stored:
    """Reads the store."""

    def __init__(self, project: Project, store: SpanStore) -> None:
        self._project = project
        self._store = store

    def traces(self, *, endpoint: str | None, release: str | None, status: str | None, limit: int) -> Any:
        from tidemill.server.api import span_json
        from tidemill.telemetry import SpanQuery

        query = SpanQuery(
            endpoint=endpoint,
            release=release,
            status=status,
            limit=limit,
            newest_first=True,
            roots_only=True,
            with_references=False,
        )
        return [span_json(one) for one in self._store.spans(query)]

    def trace(self, trace_id: str) -> Any:
        import msgspec

        from tidemill.server.api import span_json
        from tidemill.telemetry import ScoreQuery

        spans = self._store.trace(trace_id)
        if not spans:
            raise NotFound(f"There is no trace '{trace_id}'.", hint="List the newest: tidemill trace list")
        scores = self._store.scores(ScoreQuery(trace_ids=(trace_id,)))
        return {
            "trace_id": trace_id,
            "spans": [span_json(one) for one in spans],
            "scores": [msgspec.to_builtins(one.score) for one in scores],
        }

    def summary(self, group_by: list[str]) -> Any:
        from tidemill.telemetry import SummaryQuery

        groups: Any = tuple(group_by)
        return [asdict(row) for row in self._store.summary(SummaryQuery(group_by=groups))]

    def lineage(self, ref: str) -> Any:
        from tidemill.loop.following import follow

        return follow(self._project.ledger, self._store, ref)
