"""Where commands get telemetry from: the control plane while it runs, else the span store, which nobody then holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from tidemill.kernel import SystemClock, Unavailable, UserError
from tidemill.loop.project import Project
from tidemill.server.client import ControlClient

if TYPE_CHECKING:
    from tidemill.loop.answering import Answers
    from tidemill.loop.asking import (
        CompareQuestion,
        FollowQuestion,
        ListQuestion,
        SeriesQuestion,
        SessionsQuestion,
        Which,
    )
    from tidemill.telemetry import SpanStore


class Telemetry(Protocol):
    """What commands ask. Answers are what the REST API says, whoever gives them; see ``loop.answering.Answers``."""

    def traces(self, question: ListQuestion) -> Any:
        """A page of requests, newest first."""
        ...

    def spans(self, question: FollowQuestion) -> Any:
        """Spans in the order of storing."""
        ...

    def trace(self, trace_id: str) -> Any:
        """All spans and scores of a trace."""
        ...

    def scores(self, *, names: list[str] | None, after_seq: int = 0) -> Any:
        """Scores in the order of storing."""
        ...

    def series(self, question: SeriesQuestion) -> Any:
        """Measures over time and by group."""
        ...

    def sessions(self, question: SessionsQuestion) -> Any:
        """Sessions, newest activity first."""
        ...

    def session(self, session_id: str) -> Any:
        """One session with its requests."""
        ...

    def comparison(self, question: CompareQuestion) -> Any:
        """Two releases side by side."""
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
    from tidemill.loop.answering import Answers

    with stored_spans(project) as store:
        yield _Stored(Answers(project.ledger, store, now_ns=time.time_ns))


@contextmanager
def stored_spans(project: Project) -> Iterator[SpanStore]:
    """The project's span store, with everything in it that is finished; nothing else may run.

    Raises:
        Unavailable: another process holds it.
    """
    from tidemill.loop.project import open_spans
    from tidemill.safety import mask_pii
    from tidemill.server.otlp import open_receiving
    from tidemill.telemetry import Drainer

    store = open_spans(project)
    try:
        decoder = open_receiving(project, lambda: 0).decoder
        drainer = Drainer(project.places.segments, store, mask=mask_pii, clock=SystemClock(), decoder=decoder)
        while drainer.drain_once().more:
            pass
        yield store
    finally:
        store.close()


@contextmanager
def running_telemetry_of(project: Project) -> Iterator[Telemetry]:
    """The project's telemetry from its control plane.

    Raises:
        Unavailable: it does not run; holding the store while something is waited for would keep it from starting.
    """
    client = control_of(project)
    if client is None:
        raise Unavailable("Nothing runs that could be followed.", hint="Start the control plane: tidemill up")
    yield _Running(client)


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

    def _ask(self, path: str, question: Which) -> Any:
        from tidemill.loop.asking import parameters

        return self._client.get(path, **parameters(question))

    def traces(self, question: ListQuestion) -> Any:
        return self._ask("/api/v1/traces", question)

    def spans(self, question: FollowQuestion) -> Any:
        return self._ask("/api/v1/spans", question)

    def trace(self, trace_id: str) -> Any:
        from tidemill.kernel.trace_ids import parse_trace_id

        return self._client.get(f"/api/v1/traces/{parse_trace_id(trace_id)}")

    def scores(self, *, names: list[str] | None, after_seq: int = 0) -> Any:
        return self._client.get("/api/v1/scores", name=names, after_seq=after_seq)

    def series(self, question: SeriesQuestion) -> Any:
        return self._ask("/api/v1/series", question)

    def sessions(self, question: SessionsQuestion) -> Any:
        return self._ask("/api/v1/sessions", question)

    def session(self, session_id: str) -> Any:
        return self._client.get_path(f"/api/v1/sessions/{quote(session_id, safe='')}")

    def comparison(self, question: CompareQuestion) -> Any:
        return self._ask("/api/v1/comparison", question)

    def summary(self, group_by: list[str]) -> Any:
        return self._client.get("/api/v1/summary", group_by=group_by)

    def lineage(self, ref: str) -> Any:
        return self._client.get(f"/api/v1/lineage/{ref}")


class _Stored:
    """Reads the store."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def traces(self, question: ListQuestion) -> Any:
        return self._answers.traces(question)

    def spans(self, question: FollowQuestion) -> Any:
        return self._answers.spans(question)

    def trace(self, trace_id: str) -> Any:
        return self._answers.trace(trace_id)

    def scores(self, *, names: list[str] | None, after_seq: int = 0) -> Any:
        return self._answers.scores(names=names, after_seq=after_seq)

    def series(self, question: SeriesQuestion) -> Any:
        return self._answers.series(question)

    def sessions(self, question: SessionsQuestion) -> Any:
        return self._answers.sessions(question)

    def session(self, session_id: str) -> Any:
        return self._answers.session(session_id)

    def comparison(self, question: CompareQuestion) -> Any:
        return self._answers.comparison(question)

    def summary(self, group_by: list[str]) -> Any:
        groups: Any = group_by
        return self._answers.summary(groups)

    def lineage(self, ref: str) -> Any:
        return self._answers.lineage(ref)
