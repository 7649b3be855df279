from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.otlp.making import NOW_NS, decoded, traces, wire_span
from tidemill.telemetry.otlp.refusal import refusals
from tidemill.telemetry.otlp.wire import RawSpan

DAY = 86_400 * 10**9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trace_id": b"\0" * 16}, "invalid_trace_id"),
        ({"trace_id": b"abc"}, "invalid_trace_id"),
        ({"span_id": b"\0" * 8}, "invalid_span_id"),
        ({"parent_span_id": b"abc"}, "invalid_parent_id"),
        ({"end_time_unix_nano": 0}, "not_ended"),
        ({"end_time_unix_nano": NOW_NS - 1}, "negative_duration"),
        (
            {"start_time_unix_nano": NOW_NS + 3 * 365 * DAY, "end_time_unix_nano": NOW_NS + 3 * 365 * DAY},
            "from_the_future",
        ),
        ({"end_time_unix_nano": 2**64 - 1}, "from_the_future"),
        ({"start_time_unix_nano": NOW_NS - 3 * 365 * DAY}, "too_old"),
        ({"parent_span_id": (7).to_bytes(8, "big")}, "parent_loop"),
    ],
)
def test_a_span_that_cannot_be_is_refused_with_its_reason_and_the_rest_is_kept(
    changes: dict[str, Any], reason: str
) -> None:
    found = decoded(traces(wire_span(1), wire_span(7, {"note": "x"}, **changes), wire_span(2)))
    assert [span.span_id[-1] for span in found.spans] == ["1", "2"]
    (rejected,) = found.rejected
    assert rejected.reason == reason
    assert rejected.source == "shop"
    assert '"note":"x"' in rejected.detail


def test_loops_are_found_whatever_hangs_on_them() -> None:
    def child(number: int, parent: int) -> Any:
        return wire_span(number, trace_id=b"t" * 16, parent_span_id=parent.to_bytes(8, "big"))

    found = decoded(traces(child(1, 2), child(2, 3), child(3, 1), child(4, 1), child(5, 99)))
    assert [span.span_id[-1] for span in found.spans] == ["4", "5"]
    assert Counter(one.reason for one in found.rejected) == {"parent_loop": 3}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_exactly_the_spans_that_are_their_own_ancestors_are_loops(links: list[tuple[int, int]]) -> None:
    spans = [
        RawSpan("a" * 32, f"{own + 1:016x}", f"{parent + 1:016x}", "x", 0, NOW_NS, NOW_NS, {}) for own, parent in links
    ]
    parents = {span.span_id: span.parent_span_id for span in spans}

    def is_looped(first: str) -> bool:
        at = parents[first]
        for _ in range(len(parents)):
            if at == first:
                return True
            if at not in parents:
                return False
            at = parents[at]
        return at == first

    assert set(refusals(spans, NOW_NS)) == {place for place, span in enumerate(spans) if is_looped(span.span_id)}


def test_a_thousand_refusals_are_counted_and_a_few_described() -> None:
    found = decoded(traces(*(wire_span(number, trace_id=b"\0" * 16) for number in range(1, 1001))))
    assert len(found.rejected) == 1000
    assert sum(bool(one.detail) for one in found.rejected) == 5
