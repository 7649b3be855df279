"""What only the embedded store does: migrates, moves days out, survives kills, forgets down to the bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests.telemetry.making import CONTENT, SECOND, passage, score, span
from tidemill.kernel import Scope, Unavailable
from tidemill.telemetry import Batch, Content, Erasure, ScoreQuery, Span, SpanQuery, open_span_store
from tidemill.telemetry.spans.embedded import COLD_SUFFIX, DuckDBSpanStore

ROOT = Path(__file__).parents[3]
DAY = 86_400 * SECOND
START = 1_700_000_000 * SECOND // DAY * DAY

FIRST_SCHEMA = """
CREATE SEQUENCE ingest_seq;
CREATE TABLE store_version (version INTEGER NOT NULL);
INSERT INTO store_version VALUES (1);
CREATE TABLE spans (project VARCHAR NOT NULL, tenant VARCHAR NOT NULL, ingest_seq BIGINT NOT NULL,
    trace_key BIGINT NOT NULL, digest BIGINT NOT NULL, is_root BOOLEAN NOT NULL, trace_id VARCHAR, span_id VARCHAR,
    parent_span_id VARCHAR, name VARCHAR, operation VARCHAR, started_at_ns BIGINT, ended_at_ns BIGINT, status VARCHAR,
    error_type VARCHAR, http_status BIGINT, endpoint VARCHAR, release VARCHAR, assigned_release VARCHAR, arm VARCHAR,
    session_id VARCHAR, user_key VARCHAR, provider VARCHAR, request_model VARCHAR, response_model VARCHAR,
    input_tokens BIGINT, output_tokens BIGINT, cost_usd DOUBLE, time_to_first_chunk_s DOUBLE, stream BOOLEAN,
    rollout VARCHAR, finish_reasons VARCHAR, attributes VARCHAR);
CREATE TABLE span_content (project VARCHAR NOT NULL, tenant VARCHAR NOT NULL, trace_key BIGINT NOT NULL,
    trace_id VARCHAR, span_id VARCHAR, input VARCHAR, output VARCHAR);
CREATE TABLE trace_references (project VARCHAR NOT NULL, tenant VARCHAR NOT NULL, trace_key BIGINT NOT NULL,
    ref_key BIGINT NOT NULL, trace_id VARCHAR, span_id VARCHAR, place INTEGER, kind VARCHAR, ref VARCHAR, role VARCHAR,
    rank BIGINT, score DOUBLE);
CREATE TABLE scores (project VARCHAR NOT NULL, tenant VARCHAR NOT NULL, ingest_seq BIGINT NOT NULL,
    trace_key BIGINT NOT NULL, digest BIGINT NOT NULL, score_id VARCHAR, trace_id VARCHAR, span_id VARCHAR,
    name VARCHAR, value DOUBLE, label VARCHAR, comment VARCHAR, correction VARCHAR, source VARCHAR, at_ns BIGINT);
CREATE TABLE segment_offsets (project VARCHAR NOT NULL, tenant VARCHAR NOT NULL, segment VARCHAR NOT NULL,
    "offset" BIGINT NOT NULL);
"""
"""What version 1 of the store made, as it made it."""


def old_key(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def write_first_version(path: Path) -> Span:
    """A file of version 1 with one whole span, a bare one and a score."""
    full = span(
        references=(passage(2), passage(1, "cited")), attributes={"a": 1}, finish_reasons=("stop",), session_id="s",
        input_tokens=3, cost_usd=0.25, stream=True,
    )  # fmt: skip
    with duckdb.connect(str(path)) as file:
        file.execute(FIRST_SCHEMA)
        for number, one in enumerate((full, span(2))):
            file.execute(
                "INSERT INTO spans SELECT 'shop', 'default', nextval('ingest_seq'), ?, 1, true, ?, ?, NULL, ?, ?, ?, "
                "?, 'ok', NULL, NULL, ?, NULL, NULL, NULL, ?, NULL, NULL, NULL, NULL, ?, NULL, ?, NULL, ?, NULL, ?, ?",
                [
                    old_key(one.trace_id), one.trace_id, one.span_id, one.name, one.operation, one.started_at_ns,
                    one.ended_at_ns, one.endpoint, one.session_id, one.input_tokens, one.cost_usd, one.stream,
                    None if number else '["stop"]', None if number else '{"a":1}',
                ],
            )  # fmt: skip
        file.execute(
            "INSERT INTO span_content VALUES ('shop', 'default', ?, ?, ?, ?, ?)",
            [old_key(full.trace_id), full.trace_id, full.span_id, CONTENT.input, CONTENT.output],
        )
        for place, used in enumerate(full.references):
            file.execute(
                "INSERT INTO trace_references VALUES ('shop', 'default', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [old_key(full.trace_id), old_key(used.ref), full.trace_id, full.span_id, place, used.kind, used.ref,
                 used.role, used.rank, used.score],
            )  # fmt: skip
        file.execute(
            "INSERT INTO scores VALUES ('shop', 'default', nextval('ingest_seq'), ?, 1, 'score_1', ?, NULL, "
            "'feedback', 1.0, NULL, 'fine', NULL, 'user', 1000000000)",
            [old_key(full.trace_id), full.trace_id],
        )
        file.execute("INSERT INTO segment_offsets VALUES ('shop', 'default', 'gateway/1', 77)")
    return full


def test_a_file_of_version_1_goes_on(tmp_path: Path) -> None:
    full = write_first_version(tmp_path / "telemetry.duckdb")
    for _ in range(2):  # the second time it is of this version
        with DuckDBSpanStore(tmp_path / "telemetry.duckdb", Scope("shop")) as store:
            (stored,) = store.trace(full.trace_id)
            assert (stored.span, stored.content, stored.ingest_seq) == (full, CONTENT, 1)
            assert [one.span for one in store.spans(SpanQuery())] == [full, span(2)]
            assert store.offsets() == {"gateway/1": 77}
            assert store.traces_using([passage(1).ref]) == [full.trace_id]
            assert [one.score for one in store.scores(ScoreQuery())] == [score(comment="fine")]
            report = store.commit(Batch([full], {}, [score(comment="fine")]), {})
            assert (report.spans, report.scores, report.duplicates, report.conflicts) == (0, 0, 2, 0)
    with DuckDBSpanStore(tmp_path / "telemetry.duckdb", Scope("shop")) as store:
        assert store.commit(Batch([span(3)], {(span(3).trace_id, span(3).span_id): Content("new", "words")}), {}).spans
        assert [one.span for one in store.spans(SpanQuery(text="assert"))] == [full]
        assert store.spans(SpanQuery(text="words"))[0].ingest_seq > 3


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "t.duckdb")) as file:
        file.execute("CREATE TABLE store_version (version INTEGER); INSERT INTO store_version VALUES (99)")
    before = (tmp_path / "t.duckdb").read_bytes()
    with pytest.raises(Unavailable, match="newer Tidemill"):
        open_span_store(tmp_path / "t.duckdb", Scope("shop"))
    assert (tmp_path / "t.duckdb").read_bytes() == before


def days(count: int, each: int) -> list[Span]:
    """Spans over days; traces of two, some of them over midnight."""
    return [
        span(n, trace_id=f"{n // 2:032x}", started_at_ns=START + n * count * DAY // (count * each),
             ended_at_ns=START + n * DAY // each + SECOND, user_key=f"user-{n // 2 % 5}")
        for n in range(1, count * each)
    ]  # fmt: skip


def contents_of(spans: list[Span]) -> dict[tuple[str, str], Content]:
    return {(one.trace_id, one.span_id): Content(f"question {one.span_id}", one.trace_id) for one in spans}


def test_cold_days_are_read_in_place_and_what_comes_again_is_known(tmp_path: Path) -> None:
    spans = days(4, 20)
    with DuckDBSpanStore(tmp_path / "t.duckdb", Scope("shop")) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
        before = store.spans(SpanQuery(limit=1000, with_content=True))
        done = store.compact(START + 3 * DAY + DAY // 2)
        assert (done.partitions, done.spans) == (3, sum(one.started_at_ns < START + 3 * DAY for one in spans))
        assert sorted(store.sizes()) == ["cold", "hot"]
        assert store.sizes()["cold"] == done.bytes > 0
        assert store.compact(START + 3 * DAY + DAY // 2).partitions == 0
        assert store.spans(SpanQuery(limit=1000, with_content=True)) == before
        report = store.commit(Batch([spans[0], span(1, trace_id=spans[0].trace_id, name="other",
                                     started_at_ns=spans[0].started_at_ns)]), {})  # fmt: skip
        assert (report.spans, report.duplicates, report.conflicts) == (0, 1, 1)
        late = span(900, started_at_ns=START + 5)
        assert store.commit(Batch([late]), {}).spans == 1
        assert store.compact(START + DAY).spans == 1
        assert len(store.trace(late.trace_id)) == 1
        names = sorted(path.name for path in (tmp_path / f"t.duckdb{COLD_SUFFIX}").rglob("day=*"))
        assert names == [f"day=2023-11-{day}" for day in (14, 15, 16)]
    with DuckDBSpanStore(tmp_path / "t.duckdb", Scope("shop")) as store:
        assert [one.span for one in store.spans(SpanQuery(limit=1000))] == [*spans, late]


def test_age_drops_partitions_as_files(tmp_path: Path) -> None:
    spans = [one for one in days(4, 20) if one.started_at_ns % DAY > DAY // 10]
    with DuckDBSpanStore(tmp_path / "t.duckdb", Scope("shop")) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
        store.compact(START + 4 * DAY)
        erased = store.erase(Erasure(before_ns=START + 2 * DAY))
        assert (erased.partitions_dropped, erased.partitions_rewritten) == (2, 0)
        assert len(list((tmp_path / f"t.duckdb{COLD_SUFFIX}").rglob("*.parquet"))) == 2


COMPACTING = """
import sys
from pathlib import Path
from tests.telemetry.spans.test_embedded import DAY, START
from tidemill.kernel import Scope
from tidemill.telemetry.spans.embedded import DuckDBSpanStore
with DuckDBSpanStore(Path(sys.argv[1]), Scope("shop")) as store:
    print("open", flush=True)
    store.compact(START + 6 * DAY)
    print("done", flush=True)
"""


@pytest.mark.parametrize("most_kills", [5, pytest.param(40, marks=pytest.mark.soak)])
def test_a_killed_compaction_loses_and_doubles_nothing(tmp_path: Path, most_kills: int) -> None:
    path, draw = tmp_path / "t.duckdb", random.Random()
    spans = days(6, 300)
    with DuckDBSpanStore(path, Scope("shop")) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
    for _ in range(most_kills):
        child = subprocess.Popen(
            [sys.executable, "-c", COMPACTING, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert child.stdout
        assert child.stdout.readline() == "open\n"
        try:
            child.wait(draw.uniform(0, 0.6))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        child.stdout.close()
        with DuckDBSpanStore(path, Scope("shop")) as store:
            stored = store.spans(SpanQuery(limit=10_000, with_content=True))
            assert [one.span for one in stored] == spans
            assert {(one.span.trace_id, one.span.span_id): one.content for one in stored} == contents_of(spans)
    with DuckDBSpanStore(path, Scope("shop")) as store:
        store.compact(START + 6 * DAY)
        named = {name for (name,) in store._database.rows("SELECT name FROM partitions")}
        folder = tmp_path / f"t.duckdb{COLD_SUFFIX}"
        assert {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()} == named
        assert [one.span for one in store.spans(SpanQuery(limit=10_000))] == spans


@pytest.mark.parametrize("cold", [False, True])
def test_the_bytes_of_what_is_erased_are_nowhere(tmp_path: Path, cold: bool) -> None:
    """Compression is off here, so that a text that is anywhere is found by its bytes."""
    path = tmp_path / "t.duckdb"
    spans = days(2, 400)
    said = contents_of(spans)
    secret = spans[100]
    said[secret.trace_id, secret.span_id] = Content("my number is SECRET-4711 " * 20, "SECRET-4712")
    secret_score = score(trace_id=secret.trace_id, comment="SECRET-4713")
    with DuckDBSpanStore(path, Scope("shop")) as store:
        with store._database.cursor() as cursor:
            cursor.execute("SET GLOBAL force_compression = 'uncompressed'")
            cursor.execute("ALTER TABLE contents ADD COLUMN plain VARCHAR DEFAULT ''")
            cursor.execute("ALTER TABLE contents DROP COLUMN plain")
        same = ("trace_id", "started_at_ns", "ended_at_ns", "user_key")
        changed = [
            span(
                int(one.span_id, 16),
                attributes={"note": "SECRET-4714" if one is secret else "x"},
                **{name: getattr(one, name) for name in same},
            )
            for one in spans
        ]
        store.commit(Batch(changed, said, [secret_score]), {})
        store._database.checkpoint()
        assert b"SECRET-471" in path.read_bytes(), "the test itself finds what is there"
        if cold:
            store.compact(START + DAY)
        gone = Erasure(user_keys=(secret.user_key or "",))
        assert store.erase(gone).spans > 0
        assert store.spans(SpanQuery(text="secret", limit=10)) == []
        left = [one for one in tmp_path.rglob("*") if one.is_file() and b"SECRET-471" in one.read_bytes()]
        assert left == []
        kept = [one for one in changed if one.user_key != secret.user_key]
        assert [one.span for one in store.spans(SpanQuery(limit=10_000))] == kept
