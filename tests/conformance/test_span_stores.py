"""Every query gives the same answer, whatever keeps the spans: DuckDB hot, DuckDB with everything cold, ClickHouse."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.telemetry.engines import open_chdb, open_duckdb
from tests.telemetry.making import SECOND, passage, score, span
from tidemill.kernel import InvalidInput, Scope
from tidemill.telemetry import (
    Batch,
    Condition,
    Content,
    Erasure,
    Measure,
    ScoreQuery,
    SeriesQuery,
    SessionQuery,
    SetAside,
    Span,
    SpanQuery,
    SpanStore,
    SummaryQuery,
)
from tidemill.telemetry.queries import Aggregate

DAY = 86_400 * SECOND
START = 1_700_000_000 * SECOND // DAY * DAY
WORDS = [
    "the",
    "refund",
    "policy",
    "of",
    "our",
    "shop",
    "says",
    "that",
    "Assert-ions",
    "naïve",
    "退款",
    "fail_fast",
    "within",
    "days",
    "—",
    "always",
]


def made_spans() -> tuple[list[Span], dict[tuple[str, str], Content]]:
    """Three days of traces of three spans, drawn with a fixed seed."""
    draw = random.Random(7)
    spans, contents = [], {}
    for trace in range(60):
        start = START + draw.randrange(3 * DAY)
        for place in range(3):
            number = trace * 3 + place + 1
            began = start + place * SECOND
            known: dict[str, Any] = {}
            if place:
                known = {"parent_span_id": f"{trace * 3 + 1:016x}", "endpoint": None, "operation": "retrieval"}
            if draw.random() < 0.8:
                known |= {
                    "input_tokens": draw.randrange(1000), "output_tokens": draw.randrange(1, 100),
                    "cost_usd": draw.randrange(1000) / 1000, "time_to_first_chunk_s": draw.random(),
                    "cached_input_tokens": draw.randrange(10), "request_model": f"model-{draw.randrange(3)}",
                }  # fmt: skip
            made = span(
                number, trace_id=f"{trace + 1:032x}", started_at_ns=began,
                ended_at_ns=began + draw.randrange(1, 5 * SECOND), user_key=f"user-{trace % 7}",
                status=draw.choice(("ok", "ok", "ok", "error", "cancelled", "truncated", "interrupted")),
                session_id=f"session-{trace % 11}" if trace % 5 else None, release=f"r{trace % 2}",
                prompt=f"answer@{trace % 3}", service=draw.choice((None, "web", "it's \\ \"quoted\"")),
                stream=bool(trace % 2), finish_reasons=("stop",), attributes=attributes(draw),
                references=tuple(passage(draw.randrange(20)) for _ in range(draw.randrange(3))), **known,
            )  # fmt: skip
            spans.append(made)
            if place != 1:
                text = " ".join(draw.choices(WORDS, k=12))
                contents[made.trace_id, made.span_id] = Content(text, text[::-1][:9] + " THE end", '{"a":[1]}')
    return spans, contents


def attributes(draw: random.Random) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {"user.plan": draw.choice(("pro", "free", 'q"uote/~'))}
    if draw.random() < 0.5:
        found |= {"retries": draw.randrange(4), "temperature": draw.choice((0.5, 1e-7, 2.0)), "cached": True}
    return found


def fill(store: SpanStore) -> None:
    spans, contents = made_spans()
    scores = [
        score(n, trace_id=f"{n + 1:032x}", name=("feedback", "groundedness")[n % 2], value=n % 5 / 4,
              label="good" if n % 3 else None)
        for n in range(40)
    ]  # fmt: skip
    for first in range(0, len(spans), 50):
        store.commit(Batch(spans[first : first + 50], contents, scores if not first else ()), {"segment": first})


def open_cold(folder: Path, scope: Scope) -> SpanStore:
    return open_duckdb(folder, scope)


OPENERS: dict[str, Callable[[Path, Scope], SpanStore]] = {
    "hot": open_duckdb,
    "cold": open_cold,
    "half": open_cold,
    "clickhouse": open_chdb,
}
COMPACTED = {"cold": START + 4 * DAY, "half": START + DAY + DAY // 2}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], SpanStore]]:
    """Stores with the same spans, opened once; nothing here changes them."""
    opened: dict[str, SpanStore] = {}

    def opener(kind: str) -> SpanStore:
        if kind not in opened:
            store = opened[kind] = OPENERS[kind](tmp_path_factory.mktemp(kind), Scope("shop"))
            fill(store)
            if kind in COMPACTED:
                assert store.compact(COMPACTED[kind]).spans > 0
        return opened[kind]

    yield opener
    for store in opened.values():
        store.close()


def where(*conditions: tuple[str, str, Any]) -> tuple[Condition, ...]:
    return tuple(Condition(field, operator, value) for field, operator, value in conditions)  # type: ignore[arg-type]


CONDITIONS = [
    where(("endpoint", "=", "helpdesk")),
    where(("endpoint", "!=", "helpdesk")),
    where(("endpoint", "exists", False)),
    where(("service", "=", 'it\'s \\ "quoted"')),
    where(("status", "in", ("error", "truncated"))),
    where(("status", "in", ())),
    where(("input_tokens", "in", ())),
    where(("attributes.retries", "in", ())),
    where(("score.feedback", "in", ())),
    where(("name", "contains", "help")),
    where(("cost_usd", ">", 0.5), ("input_tokens", "<=", 500)),
    where(("duration_s", ">=", 2.5)),
    where(("between_tokens_s", "<", 0.1)),
    where(("total_tokens", "!=", 17)),
    where(("stream", "=", True)),
    where(("is_root", "=", False)),
    where(("attributes.user.plan", "=", "pro")),
    where(("attributes.user.plan", "=", 'q"uote/~')),
    where(("attributes.user.plan", "!=", "pro")),
    where(("attributes.user.plan", "=", 1)),
    where(("attributes.retries", ">", 1)),
    where(("attributes.retries", "in", (0, 3))),
    where(("attributes.temperature", "<=", 0.5)),
    where(("attributes.cached", "=", True)),
    where(("attributes.cached", "exists", False)),
    where(("attributes.user.plan", "contains", "r")),
    where(("score.feedback", ">=", 0.5)),
    where(("score.feedback", "!=", 0.5)),
    where(("score.feedback", "=", "good")),
    where(("score.groundedness", "exists", False)),
    where(("score.groundedness", "in", (0.25, 0.75))),
    where(("ingest_seq", ">", 100)),
]
TEXTS = ["refund", "REFUND policy", '"refund policy"', "assert-ions", "fail_fast", "fail", "naïve", "NAÏVE", "退款",
         "the THE end", '"shop says" policy', "nowhere", "—", "a.b(c"]  # fmt: skip
NUMBERS = ("duration_s", "time_to_first_chunk_s", "between_tokens_s", "input_tokens", "total_tokens", "cost_usd")
AGGREGATES: tuple[Aggregate, ...] = ("sum", "mean", "min", "max", "p50", "p75", "p90", "p95", "p99")
MEASURES = (
    Measure("requests"),
    Measure("errors"),
    Measure("error_share"),
    *(Measure(of, aggregate) for of in NUMBERS for aggregate in AGGREGATES),
)

QUESTIONS: dict[str, Callable[[SpanStore], Any]] = {
    "newest": lambda store: store.spans(SpanQuery(newest_first=True, roots_only=True, limit=7, with_content=True)),
    "oldest": lambda store: store.spans(SpanQuery(after_seq=20, limit=33)),
    "page": lambda store: store.spans(SpanQuery(newest_first=True, limit=9, before=page_end(store))),
    "all": lambda store: store.spans(SpanQuery(limit=1000, with_content=True)),
    "window": lambda store: store.spans(
        SpanQuery(since_ns=START + DAY, until_ns=START + 2 * DAY, session_id="session-3")
    ),
    "trace": lambda store: [store.trace(f"{n:032x}") for n in (1, 17, 60, 61)],
    "references": lambda store: store.references([f"{n:032x}" for n in (40, 3, 3, 99)]),
    "using": lambda store: store.traces_using([passage(3).ref, passage(7).ref, "psg_unknown"]),
    "scores": lambda store: store.scores(ScoreQuery(names=("feedback",), trace_ids=[f"{n:032x}" for n in range(9)])),
    "summary": lambda store: store.summary(SummaryQuery(group_by=("release", "status"), roots_only=False)),
    "minutes": lambda store: store.summary(SummaryQuery(group_by=("minute",), until_ns=START + DAY)),
    "sessions": lambda store: store.sessions(SessionQuery()),
    "few sessions": lambda store: store.sessions(
        SessionQuery(limit=3, since_ns=START + DAY, where=where(("status", "=", "error")))
    ),
    "series": lambda store: store.series(
        SeriesQuery(measures=MEASURES, group_by=("request_model", "attributes.user.plan"), every_s=6 * 3600)
    ),
    "whole series": lambda store: store.series(SeriesQuery(measures=MEASURES, roots_only=True)),
    "empty series": lambda store: store.series(SeriesQuery(measures=MEASURES, since_ns=START + 9 * DAY)),
    "cut series": lambda store: store.series(
        SeriesQuery(measures=(Measure("requests"),), group_by=("trace_id",), limit=5)
    ),
    "grouped by flags and numbers": lambda store: store.series(
        SeriesQuery(measures=(Measure("requests"),), group_by=("stream", "attributes.retries", "attributes.cached"))
    ),
    "offsets": lambda store: store.offsets(),
    "last": lambda store: store.last_seq(),
}
for _name in (
    "status",
    "service",
    "stream",
    "http_status",
    "input_tokens",
    "attributes.user.plan",
    "attributes.retries",
):
    QUESTIONS[f"values of {_name}"] = lambda store, name=_name: store.values(name, since_ns=START, limit=12)
for _number, _conditions in enumerate(CONDITIONS):
    QUESTIONS[f"condition {_number}"] = lambda store, asked=_conditions: places(store, SpanQuery(where=asked))
    QUESTIONS[f"series under condition {_number}"] = lambda store, asked=_conditions: store.series(
        SeriesQuery(measures=(Measure("requests"), Measure("duration_s", "p95")), where=asked)
    )
for _text in TEXTS:
    QUESTIONS[f"text {_text}"] = lambda store, text=_text: places(store, SpanQuery(text=text))
    QUESTIONS[f"newest with {_text}"] = lambda store, text=_text: places(
        store, SpanQuery(text=text, newest_first=True, limit=4, roots_only=True)
    )


def places(store: SpanStore, query: SpanQuery) -> list[int]:
    return [one.ingest_seq for one in store.spans(query)]


def page_end(store: SpanStore) -> tuple[int, int]:
    last = store.spans(SpanQuery(newest_first=True, limit=9))[-1]
    return last.span.started_at_ns, last.ingest_seq


def same(found: Any, expected: Any) -> bool:
    """Equal, but for the order in which numbers were added up."""
    if isinstance(expected, float) and isinstance(found, float):
        return bool(found == pytest.approx(expected, rel=1e-9, abs=1e-12))
    if hasattr(expected, "__dataclass_fields__"):
        names = expected.__dataclass_fields__
        return type(found) is type(expected) and all(
            same(getattr(found, name), getattr(expected, name)) for name in names
        )
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("kind", ["cold", "half", "clickhouse"])
def test_every_answer_is_the_embedded_hot_stores(filled: Callable[[str], SpanStore], kind: str) -> None:
    hot, other = filled("hot"), filled(kind)
    for name, ask in QUESTIONS.items():
        expected, found = ask(hot), ask(other)
        if not same(found, expected):
            pytest.fail(f"{name}: {str(found)[:1500]} is not {str(expected)[:1500]}")


def test_the_hot_stores_answers_are_right(filled: Callable[[str], SpanStore]) -> None:
    """Against plain Python over the same spans: the reference that the others are held against."""
    store, (spans, contents) = filled("hot"), made_spans()
    chosen = [one for one in spans if (one.cost_usd or 0) > 0.5 and one.input_tokens is not None]
    asked = SpanQuery(where=where(("cost_usd", ">", 0.5), ("input_tokens", "exists", True)))
    assert [one.span for one in store.spans(asked)] == chosen
    newest = sorted((one for one in spans if not one.parent_span_id), key=lambda one: -one.started_at_ns)[:7]
    assert [one.span for one in store.spans(SpanQuery(newest_first=True, roots_only=True, limit=7))] == newest
    rows = store.series(SeriesQuery(measures=(Measure("input_tokens", "p90"),), group_by=("request_model",))).rows
    for row in rows:
        held = sorted(one.input_tokens for one in spans
                      if one.request_model == row.group["request_model"] and one.input_tokens is not None)  # fmt: skip
        if not held:
            assert row.values == {"p90_input_tokens": None}
            continue
        at = 0.9 * (len(held) - 1)
        low = held[int(at)]
        exact = low + (held[min(int(at) + 1, len(held) - 1)] - low) * (at - int(at))
        assert row.values["p90_input_tokens"] == pytest.approx(exact)
    said = {key: f"{content.input} {content.output}".lower() for key, content in contents.items()}
    found = {(one.span.trace_id, one.span.span_id) for one in store.spans(SpanQuery(text="refund 退款"))}
    assert found == {key for key, text in said.items() if "refund" in text.split() and "退款" in text}
    assert found


@pytest.mark.parametrize("kind", sorted(OPENERS))
@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.spans(SpanQuery(where=where(("name; DROP TABLE spans", "=", "x")))),
        lambda store: store.spans(SpanQuery(where=where(("endpoint", "LIKE", "x")))),
        lambda store: store.spans(SpanQuery(where=where(("endpoint", "=", 3)))),
        lambda store: store.spans(SpanQuery(where=where(("cost_usd", "=", "3")))),
        lambda store: store.spans(SpanQuery(where=where(("stream", "<", True)))),
        lambda store: store.spans(SpanQuery(where=where(("cost_usd", "contains", "3")))),
        lambda store: store.spans(SpanQuery(where=where(("cost_usd", "<", float("nan"))))),
        lambda store: store.spans(SpanQuery(text=" ")),
        lambda store: store.values("score.feedback"),
        lambda store: store.values("attributes."),
        lambda store: store.series(SeriesQuery(measures=())),
        lambda store: store.series(SeriesQuery(measures=(Measure("duration_s"),))),
        lambda store: store.series(SeriesQuery(measures=(Measure("name", "sum"),))),
        lambda store: store.series(SeriesQuery(measures=(Measure("errors", "sum"),))),
        lambda store: store.series(SeriesQuery(measures=(Measure("errors"),), every_s=0)),
        lambda store: store.series(SeriesQuery(measures=(Measure("errors"),), group_by=("1 OR 1",))),
        lambda store: store.erase(Erasure()),
        lambda store: store.erase(Erasure(trace_ids=("a",), before_ns=1)),
    ],
)
def test_what_cannot_be_asked_is_refused(
    filled: Callable[[str], SpanStore], kind: str, ask: Callable[[SpanStore], Any]
) -> None:
    with pytest.raises(InvalidInput):
        ask(filled(kind))


@pytest.mark.parametrize("kind", sorted(OPENERS))
@pytest.mark.parametrize(
    "erasure",
    [
        Erasure(user_keys=("user-3", "user-5")),
        Erasure(trace_ids=(f"{5:032x}", f"{50:032x}", "f" * 32)),
        Erasure(before_ns=START + DAY + DAY // 3),
    ],
    ids=["subject", "trace", "age"],
)
def test_what_is_erased_is_gone_and_nothing_else(tmp_path: Path, kind: str, erasure: Erasure) -> None:
    store = OPENERS[kind](tmp_path, Scope("shop"))
    fill(store)
    if kind in COMPACTED:
        store.compact(COMPACTED[kind])
    spans, _ = made_spans()
    gone = {
        one.trace_id
        for one in spans
        if one.user_key in erasure.user_keys
        or one.trace_id in erasure.trace_ids
        or (erasure.before_ns is not None and one.started_at_ns < erasure.before_ns)
    }
    scored = {one.score.trace_id for one in store.scores(ScoreQuery())}
    kept = [one for one in store.spans(SpanQuery(limit=1000, with_content=True)) if one.span.trace_id not in gone]
    erased = store.erase(erasure)
    assert (erased.traces, erased.spans) == (len(gone), len(spans) - len(kept))
    assert erased.scores == len(scored & gone)
    assert store.spans(SpanQuery(limit=1000, with_content=True)) == kept
    assert {one.score.trace_id for one in store.scores(ScoreQuery())} == scored - gone
    assert store.references(sorted(gone)) == []
    found = {one.span.trace_id for one in store.spans(SpanQuery(text="the", limit=1000))}
    assert found == {one.span.trace_id for one in kept if one.content is not None}
    assert store.erase(erasure).spans == 0
    store.close()


@pytest.mark.parametrize("kind", ["hot", "clickhouse"])
def test_what_is_refused_is_counted_and_sampled(tmp_path: Path, kind: str) -> None:
    store = OPENERS[kind](tmp_path, Scope("shop"))
    refusals = [SetAside(reason="wrong_protobuf", at_ns=n, source="web", detail="x" * 9000) for n in range(150)]
    report = store.commit(Batch([span(), span(name="other")], {}, [score(), score(value=0.0)], refusals), {})
    assert (report.rejected, report.conflicts) == (150, 2)
    found = store.set_aside()
    assert found.counts == {"wrong_protobuf": 150, "differing_span": 1, "differing_score": 1}
    (differing,) = store.set_aside(reason="differing_span").samples
    assert (differing.trace_id, differing.span_id) == (span().trace_id, span().span_id)
    assert '"other"' in differing.detail
    newest = store.set_aside(reason="wrong_protobuf", limit=3).samples
    assert [one.at_ns for one in newest] == [149, 148, 147]
    assert max(len(one.detail) for one in newest) == 4096
    store.close()


@pytest.mark.parametrize("kind", ["hot", "clickhouse"])
def test_content_that_comes_apart_joins_its_span(tmp_path: Path, kind: str) -> None:
    store = OPENERS[kind](tmp_path, Scope("shop"))
    first, second = (span().trace_id, span().span_id), (span(2).trace_id, span(2).span_id)
    question, answer = Content('[{"content":"why?"}]', ""), Content("", '[{"content":"because"}]')
    for _ in range(2):
        store.commit(Batch(late=[(first, question), (second, question)]), {})
    assert store.trace(first[0]) == []
    store.commit(Batch([span(), span(2)]), {})
    for _ in range(2):
        store.commit(Batch(late=[(first, answer)]), {})
    whole = [one.content for one in store.spans(SpanQuery(with_content=True))]
    assert whole == [Content(question.input, answer.output), question]
    store.close()
