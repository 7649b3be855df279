"""What every span store must do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.telemetry.making import CONTENT, SECOND, passage, score, span
from tidemill.kernel import InvalidInput, Scope, Unavailable
from tidemill.telemetry import (
    ENTRY_ATTRIBUTE,
    Batch,
    Content,
    ScoreQuery,
    SpanQuery,
    SpanStore,
    SummaryQuery,
)


def test_a_span_comes_back_as_it_went_in(store: SpanStore) -> None:
    full = span(
        parent_span_id="b" * 16, status="error", error_type="upstream_timeout", http_status=504, release="sha256:r",
        assigned_release="sha256:a", arm="canary", session_id="s1", user_key="u", provider="local", request_model="m",
        response_model="m2", input_tokens=3, output_tokens=4, cost_usd=0.25, time_to_first_chunk_s=0.5,
        finish_reasons=("stop", "length"), stream=True, rollout="rollout_1",
        attributes={"a": 1, "b": "x", "c": 0.5, "d": True}, references=(passage(2), passage(1, "cited")),
    )  # fmt: skip
    store.commit(Batch([full], {(full.trace_id, full.span_id): CONTENT}), {})
    (stored,) = store.trace(full.trace_id)
    assert stored.span == full
    assert stored.content == CONTENT
    assert stored.ingest_seq == 1


def test_the_first_complete_record_wins_and_a_different_later_one_is_a_conflict(store: SpanStore) -> None:
    first, second = span(output_tokens=1), span(output_tokens=2)
    assert store.commit(Batch([first], {(first.trace_id, first.span_id): CONTENT}), {}).spans == 1
    report = store.commit(Batch([first, second], {(first.trace_id, first.span_id): Content("x", "y")}), {})
    assert (report.spans, report.duplicates, report.conflicts) == (0, 1, 1)
    (stored,) = store.trace(first.trace_id)
    assert (stored.span, stored.content) == (first, CONTENT)


def test_records_of_one_batch_are_held_against_each_other(store: SpanStore) -> None:
    report = store.commit(
        Batch(
            [span(status="interrupted"), span(), span(), span(name="other")], {}, [score(), score(), score(value=0.0)]
        ),
        {},
    )
    assert (report.spans, report.interrupted, report.replaced) == (1, 0, 1)
    assert (report.scores, report.duplicates, report.conflicts) == (1, 2, 2)
    assert [stored.span for stored in store.spans(SpanQuery())] == [span()]


def test_a_placeholder_gives_way_to_the_finished_record_and_never_replaces_it(store: SpanStore) -> None:
    placeholder, finished = span(status="interrupted"), span(references=(passage(1),))
    assert store.commit(Batch([placeholder]), {}).interrupted == 1
    assert store.commit(Batch([placeholder]), {}).duplicates == 1
    report = store.commit(Batch([finished], {(finished.trace_id, finished.span_id): CONTENT}), {})
    assert (report.spans, report.replaced, report.conflicts) == (1, 1, 0)
    report = store.commit(Batch([placeholder]), {})
    assert (report.interrupted, report.conflicts) == (0, 0)
    (stored,) = store.trace(finished.trace_id)
    assert (stored.span, stored.content) == (finished, CONTENT)
    assert stored.ingest_seq == 2, "a reader behind the placeholder must see the finished record"


def test_scores_are_stored_once(store: SpanStore) -> None:
    full = score(span_id="b" * 16, label="good", comment="fine", correction="better")
    assert store.commit(Batch(scores=[full, score(2, name="groundedness", value=None)]), {}).scores == 2
    assert store.commit(Batch(scores=[full]), {}).duplicates == 1
    assert [stored.score for stored in store.scores(ScoreQuery(trace_ids=[full.trace_id]))] == [full]
    assert [stored.ingest_seq for stored in store.scores(ScoreQuery(names=["groundedness"]))] == [2]
    assert [stored.ingest_seq for stored in store.scores(ScoreQuery(after_seq=1))] == [2]
    assert store.scores(ScoreQuery(trace_ids=[])) == []
    assert len(store.scores(ScoreQuery(limit=1))) == 1


def test_rows_and_offsets_are_committed_together(open_store: Callable[[Scope], SpanStore]) -> None:
    store = open_store(Scope("shop"))
    store.commit(Batch([span()]), {"gw/1": 10, "gw/2": 20})
    with pytest.raises(InvalidInput, match="elsewhere"):
        store.commit(Batch([span(2), span(3, tenant="elsewhere")]), {"gw/1": 99})
    assert store.offsets() == {"gw/1": 10, "gw/2": 20}
    assert len(store.spans(SpanQuery())) == 1
    store.commit(Batch(), {"gw/1": 11}, forget=["gw/2"])
    store.close()
    again = open_store(Scope("shop"))
    assert again.offsets() == {"gw/1": 11}
    assert again.commit(Batch([span(2)]), {}).spans == 1
    assert [stored.ingest_seq for stored in again.spans(SpanQuery())] == [1, 2]


def test_scopes_see_nothing_of_each_other(open_store: Callable[[Scope], SpanStore]) -> None:
    mine, theirs = open_store(Scope("shop")), open_store(Scope("shop", "other"))
    foreign = span(tenant="other", references=(passage(1),))
    theirs.commit(Batch([foreign], {(foreign.trace_id, foreign.span_id): CONTENT}, [score(tenant="other")]), {"x": 1})
    assert mine.spans(SpanQuery()) == []
    assert mine.trace(foreign.trace_id) == []
    assert mine.references([foreign.trace_id]) == []
    assert mine.traces_using([passage(1).ref]) == []
    assert mine.scores(ScoreQuery()) == []
    assert mine.summary(SummaryQuery())[0].requests == 0
    assert mine.offsets() == {}
    assert mine.commit(Batch([span()]), {}).conflicts == 0
    assert len(theirs.trace(foreign.trace_id)) == 1


def test_queries_restrict(store: SpanStore) -> None:
    spans = [
        span(1, release="r1", arm="control", session_id="s1"),
        span(2, release="r2", arm="canary", session_id="s2", assigned_release="r1", rollout="ro", status="error"),
        span(3, operation="retrieval", endpoint=None, parent_span_id="f" * 16),
        span(4, parent_span_id="f" * 16, attributes={ENTRY_ATTRIBUTE: True}),
    ]
    store.commit(Batch(spans), {})

    def found(**query: object) -> list[int]:
        return [int(stored.span.trace_id, 16) for stored in store.spans(SpanQuery(**query))]  # type: ignore[arg-type]

    assert found() == [1, 2, 3, 4]
    assert found(release="r2") == found(arm="canary") == found(session_id="s2") == found(rollout="ro") == [2]
    assert found(assigned_release="r1") == found(status="error") == [2]
    assert found(endpoint="helpdesk") == found(operation="chat") == [1, 2, 4]
    assert found(roots_only=True) == [1, 2, 4]
    assert found(after_seq=2) == [3, 4]
    assert found(limit=2) == [1, 2]
    assert found(newest_first=True, limit=2) == [4, 3]
    assert found(since_ns=spans[1].started_at_ns, until_ns=spans[3].started_at_ns) == [2, 3]


def test_references_are_found_from_both_ends(store: SpanStore) -> None:
    one, two = span(1, references=(passage(1), passage(2))), span(2, references=(passage(2),))
    other = span(1, span_id="c" * 16, references=(passage(3, "cited"),))
    store.commit(Batch([one, two, other]), {})
    assert store.references([two.trace_id]) == [(two.trace_id, passage(2))]
    assert [ref for _, ref in store.references([one.trace_id])] == [passage(1), passage(2), passage(3, "cited")]
    assert store.references([]) == []
    assert store.traces_using([passage(2).ref]) == [one.trace_id, two.trace_id]
    assert store.traces_using([passage(3).ref, passage(1).ref, "psg_unknown"]) == [one.trace_id]
    assert store.traces_using([]) == []
    without = store.spans(SpanQuery(with_references=False))
    assert all(not stored.span.references and stored.content is None for stored in without)


def test_summaries_count_exactly(store: SpanStore) -> None:
    def ended(number: int, seconds: float, **changes: object) -> object:
        start = 1_700_000_040 * SECOND + number
        return span(number, started_at_ns=start, ended_at_ns=start + int(seconds * SECOND), **changes)

    ok = [ended(n, n / 10, release="r1", input_tokens=10, output_tokens=1, cost_usd=0.5) for n in range(1, 11)]
    failed = [
        ended(20 + n, 9, release="r2", status=status) for n, status in enumerate(("error", "truncated", "cancelled"))
    ]
    child = ended(30, 5, release="r1", parent_span_id="f" * 16)
    store.commit(Batch([*ok, *failed, child]), {})  # type: ignore[list-item]
    first, second = store.summary(SummaryQuery(group_by=("release",)))
    assert (first.group, first.requests, first.errors) == ({"release": "r1"}, 10, 0)
    assert first.p50_s == pytest.approx(0.55)
    assert first.p95_s == pytest.approx(0.955)
    assert first.p99_s == pytest.approx(0.991)
    assert (first.input_tokens, first.output_tokens, first.cost_usd) == (100, 10, 5.0)
    assert (second.requests, second.errors, second.p50_s) == (3, 2, 9.0)
    (whole,) = store.summary(SummaryQuery(roots_only=False))
    assert (whole.requests, whole.group) == (14, {})
    (minute,) = store.summary(SummaryQuery(group_by=("minute",), release="r2"))
    assert minute.group == {"minute": 1_700_000_040 * SECOND}
    assert store.summary(SummaryQuery(group_by=("release",), since_ns=1_800_000_000 * SECOND)) == []
    with pytest.raises(InvalidInput, match="cannot be grouped"):
        store.summary(SummaryQuery(group_by=("name",)))  # type: ignore[arg-type]


def test_a_large_batch_keeps_its_order(store: SpanStore) -> None:
    store.commit(Batch([span(number) for number in range(1, 6001)]), {})
    stored = store.spans(SpanQuery(limit=6000))
    assert [entry.ingest_seq for entry in stored] == list(range(1, 6001))
    assert [int(entry.span.trace_id, 16) for entry in stored] == list(range(1, 6001))


def test_readers_and_a_writer_work_at_once(store: SpanStore) -> None:
    errors: list[BaseException] = []
    grown = threading.Condition()
    committed = 0

    def read() -> None:
        last = 0
        try:
            while last < 200:
                with grown:
                    # Readers that asked without a pause would starve a writer whose engine takes one at a time.
                    while committed <= last:
                        assert grown.wait(timeout=120), "the writer goes on"
                for stored in store.spans(SpanQuery(after_seq=last, limit=50)):
                    assert stored.ingest_seq == last + 1, "a reader that follows the sequence misses nothing"
                    assert stored.span.references == (passage(1),)
                    last = stored.ingest_seq
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(0, 200, 20):
        store.commit(Batch([span(n, references=(passage(1),)) for n in range(start, start + 20)]), {"s": start})
        with grown:
            committed = start + 20
            grown.notify_all()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_closed_store_says_so(store: SpanStore) -> None:
    store.close()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.offsets()
