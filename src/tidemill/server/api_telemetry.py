"""The part of the REST API that answers about telemetry: traces, series, sessions, scores, releases, lineage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Query

from tidemill.loop.answering import Answers, ScoreBody
from tidemill.loop.asking import CompareQuestion, FollowQuestion, ListQuestion, SeriesQuestion, SessionsQuestion
from tidemill.loop.erasing import ErasureBody, order_of
from tidemill.safety import mask_pii

if TYPE_CHECKING:
    from tidemill.server.control import ControlPlane


def add_telemetry(app: FastAPI, control: ControlPlane) -> None:
    """Add the routes.

    What was finished before a question is in its answer: segments are drained first.

    Args:
        app: where to.
        control: whose span store is asked.
    """
    answers = Answers(control.project.ledger, control.store, now_ns=time.time_ns)
    _add_traces(app, control, answers)
    _add_sums(app, control, answers)
    _add_keeping(app, control)

    @app.get("/api/v1/lineage/{ref:path}", summary="What something came from and what came from it")
    def lineage(ref: str) -> dict[str, Any]:
        control.drain()
        return answers.lineage(ref)


def _add_traces(app: FastAPI, control: ControlPlane, answers: Answers) -> None:
    @app.get("/api/v1/traces", summary="Requests, newest first, a page at a time")
    def traces(question: Annotated[ListQuestion, Query()]) -> dict[str, Any]:
        control.drain()
        return answers.traces(question)

    @app.get("/api/v1/traces/{trace_id:path}", summary="All spans and scores of a trace")
    def trace(trace_id: str) -> dict[str, Any]:
        control.drain()
        return answers.trace(trace_id)

    @app.get("/api/v1/spans", summary="Spans in the order of storing, from a place on")
    def spans(question: Annotated[FollowQuestion, Query()]) -> dict[str, Any]:
        control.drain()
        return answers.spans(question)

    @app.get("/api/v1/scores", summary="Scores in the order of storing, from a place on")
    def scores(
        name: Annotated[list[str] | None, Query(description="Only scores of these names.")] = None,
        after_seq: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    ) -> dict[str, Any]:
        control.drain()
        return answers.scores(names=name, after_seq=after_seq, limit=limit)

    @app.post("/api/v1/scores", summary="Score a trace or a span")
    def score(body: ScoreBody) -> dict[str, str]:
        return answers.score(body, mask_pii)


def _add_sums(app: FastAPI, control: ControlPlane, answers: Answers) -> None:
    @app.get("/api/v1/series", summary="Measures over time and by group")
    def series(question: Annotated[SeriesQuestion, Query()]) -> dict[str, Any]:
        control.drain()
        return answers.series(question)

    @app.get("/api/v1/sessions", summary="Sessions, newest activity first")
    def sessions(question: Annotated[SessionsQuestion, Query()]) -> list[dict[str, Any]]:
        control.drain()
        return answers.sessions(question)

    @app.get("/api/v1/sessions/{session_id:path}", summary="One session with its requests")
    def session(session_id: str) -> dict[str, Any]:
        control.drain()
        return answers.session(session_id)

    @app.get("/api/v1/comparison", summary="Two releases side by side")
    def comparison(question: Annotated[CompareQuestion, Query()]) -> dict[str, Any]:
        control.drain()
        return answers.comparison(question)

    @app.get("/api/v1/summary", summary="Requests, errors, latency, tokens and cost by group")
    def summary(
        group_by: list[Literal["release", "arm", "endpoint", "minute", "request_model"]] = Query(default=[]),  # noqa: B008 - the library's way
        since_ns: int | None = None,
    ) -> list[dict[str, Any]]:
        control.drain()
        return answers.summary(list(group_by), since_ns=since_ns)


def _add_keeping(app: FastAPI, control: ControlPlane) -> None:
    @app.get("/api/v1/telemetry", summary="What is kept in which tier, how long, and how keeping went")
    def telemetry() -> dict[str, Any]:
        control.drain()
        return {**control.keeping.kept(), "waiting_bytes": control.waiting_bytes()}

    @app.post("/api/v1/erasures", summary="Forget persons, traces or everything before a time")
    def erase(body: ErasureBody) -> dict[str, Any]:
        order = order_of(body, control.project.places, now_ns=time.time_ns())
        return control.keeping.erase(order)
