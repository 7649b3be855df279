from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tidemill.loop.sessions import SessionCollector
from tidemill.telemetry.records import Score, Span

SECOND = 1_000_000_000


def span(session: str, start_s: float, *, arm: str = "control", status: str = "ok", took_s: float = 1.0) -> Span:
    start_ns = int(start_s * SECOND)
    return Span(
        trace_id=f"trace-{session}-{start_s}",
        span_id=f"span-{start_s}",
        project="p",
        tenant="t",
        name="chat",
        operation="chat",
        started_at_ns=start_ns,
        ended_at_ns=start_ns + int(took_s * SECOND),
        status=status,  # type: ignore[arg-type]
        arm=arm,
        release="new" if arm == "canary" else "old",
        assigned_release="new" if arm == "canary" else "old",
        session_id=session,
    )


def feedback(of: Span, value: float) -> Score:
    return Score(
        score_id=f"score-{of.trace_id}",
        trace_id=of.trace_id,
        name="feedback",
        source="user",
        at_ns=of.ended_at_ns,
        project="p",
        tenant="t",
        value=value,
    )


def collector() -> SessionCollector:
    return SessionCollector(candidate="new", latency_slo_s=2.0, label_timeout_s=60.0)


def test_a_session_without_feedback_holds_back_those_assigned_later() -> None:
    first, second = span("a", 0), span("b", 1, arm="canary")
    sessions = collector()
    sessions.feed([first, second], [feedback(second, 1.0)])
    assert sessions.ready(2 * SECOND) == []
    sessions.feed([], [feedback(first, 0.0)])
    observed = sessions.ready(3 * SECOND)
    assert [(one.unit, one.arm, one.metrics["success"]) for one in observed] == [
        ("a", "control", 0.0),
        ("b", "canary", 1.0),
    ]
    assert sessions.ready(4 * SECOND) == []


def test_after_the_time_limit_it_is_unmeasured_not_forgotten() -> None:
    sessions = collector()
    sessions.feed([span("a", 0)], [])
    assert sessions.ready(60 * SECOND) == []
    (observed,) = sessions.ready(61 * SECOND)
    assert observed.metrics == {"success": None, "ok": 1.0, "latency_ok": 1.0}


def test_errors_and_slow_answers_count_and_our_own_deaths_do_not() -> None:
    sessions = collector()
    slow = span("slow", 0, took_s=3.0)
    sessions.feed(
        [slow, span("broken", 1, status="error"), span("killed", 2, status="interrupted")], [feedback(slow, 1.0)]
    )
    observed = {one.unit: one.metrics for one in sessions.ready(100 * SECOND)}
    assert observed["slow"]["latency_ok"] == 0.0
    assert observed["broken"] == {"success": None, "ok": 0.0, "latency_ok": 1.0}
    assert observed["killed"] == {"success": None, "ok": None, "latency_ok": None}


def test_the_first_arm_counts_for_the_whole_session() -> None:
    sessions = collector()
    early, late = span("a", 0, arm="canary"), span("a", 5, arm="control")
    sessions.feed([late], [feedback(late, 1.0)])
    sessions.feed([early], [feedback(early, 0.0)])
    (observed,) = sessions.ready(10 * SECOND)
    assert (observed.arm, observed.metrics["success"]) == ("canary", 0.5)


def test_being_saved_by_failover_counts_against_the_release_assigned() -> None:
    sessions = collector()
    saved = msgspec.structs.replace(span("a", 0, arm="control"), assigned_release="new")
    sessions.feed([saved], [feedback(saved, 1.0)])
    (observed,) = sessions.ready(10 * SECOND)
    assert observed.arm == "canary"
    assert observed.metrics["ok"] == 0.0


@given(st.permutations(range(6)), st.integers(1, 3))
def test_the_order_of_arrival_does_not_matter(order: list[int], chunk: int) -> None:
    """However telemetry arrives, the sequence handed to the test is the order of assignment."""
    spans = [span(f"s{place}", float(place), arm="canary" if place % 2 else "control") for place in range(6)]
    sessions = collector()
    observed = []
    for begin in range(0, 6, chunk):
        part = [spans[place] for place in order[begin : begin + chunk]]
        sessions.feed(part, [feedback(one, 1.0) for one in part])
    observed = sessions.ready(100 * SECOND)
    assert [one.unit for one in observed] == [f"s{place}" for place in range(6)]
