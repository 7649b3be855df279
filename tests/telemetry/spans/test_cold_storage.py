"""The cold tier in object storage: an S3 server of this machine holds the partitions, a folder holds copies."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import obstore
import obstore.store
import pytest

from tests.ledger.conftest import new_bucket, s3_server
from tests.telemetry.spans.test_embedded import DAY, ROOT, START, contents_of, days
from tidemill.kernel import Scope, Unavailable
from tidemill.telemetry import Batch, Erasure, Measure, SeriesQuery, SpanQuery
from tidemill.telemetry.spans.cold_files import ObjectStorage, cold_files
from tidemill.telemetry.spans.embedded import COLD_SUFFIX, DuckDBSpanStore


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket, with a prefix, that the environment gives access to."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return new_bucket(endpoint)


def kept(bucket: str) -> dict[str, bytes]:
    """What the bucket holds below its prefix."""
    store = obstore.store.from_url(bucket)
    names = [one["path"] for page in obstore.list(store) for one in page]
    return {name: bytes(obstore.get(store, name).bytes()) for name in names}


def open_store(folder: Path, bucket: str) -> DuckDBSpanStore:
    return DuckDBSpanStore(folder / "t.duckdb", Scope("shop"), cold=bucket)


ALL = SpanQuery(limit=10_000, with_content=True)
QUESTIONS = (
    ALL,
    SpanQuery(newest_first=True, limit=7),
    SpanQuery(since_ns=START + DAY, until_ns=START + DAY + DAY // 2),
    SpanQuery(text="question", newest_first=True, limit=30),
)
SERIES = SeriesQuery(measures=(Measure("requests"), Measure("duration_s", "p95")), every_s=3600)


def test_cold_days_in_a_bucket_are_asked_like_hot_ones(tmp_path: Path, bucket: str) -> None:
    spans = days(4, 30)
    with open_store(tmp_path, bucket) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
        expected = [store.spans(query) for query in QUESTIONS], store.series(SERIES), store.trace(spans[9].trace_id)
        done = store.compact(START + 3 * DAY)
        assert done.partitions == 3
        assert sum(map(len, kept(bucket).values())) == done.bytes == store.sizes()["cold"]
    for lost in (False, True):
        if lost:
            shutil.rmtree(tmp_path / f"t.duckdb{COLD_SUFFIX}")
        with open_store(tmp_path, bucket) as store:
            found = [store.spans(query) for query in QUESTIONS], store.series(SERIES), store.trace(spans[9].trace_id)
            assert found == expected
            assert store.commit(Batch(spans, {}), {}).duplicates == len(spans)


def test_what_is_erased_is_gone_from_the_bucket_and_from_its_copies(tmp_path: Path, bucket: str) -> None:
    spans = days(3, 30)
    with open_store(tmp_path, bucket) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
        store.compact(START + 3 * DAY)
        before = kept(bucket)
        erased = store.erase(Erasure(trace_ids=(spans[3].trace_id,)))
        assert (erased.spans, erased.partitions_rewritten) == (2, 1)
        after = kept(bucket)
        assert len(after.keys() - before.keys()) == len(before.keys() - after.keys()) == 1
        left = [one for one in spans if one.trace_id != spans[3].trace_id]
        assert [one.span for one in store.spans(ALL)] == left
        assert store.erase(Erasure(before_ns=START + DAY)).partitions_dropped == 1
        assert len(kept(bucket)) == 2
        copies = tmp_path / f"t.duckdb{COLD_SUFFIX}"
        assert {one.relative_to(copies).as_posix() for one in copies.rglob("*") if one.is_file()} <= set(kept(bucket))


def test_copies_take_no_more_room_than_they_may(tmp_path: Path, bucket: str) -> None:
    storage = ObjectStorage(obstore.store.from_url(bucket), tmp_path / "copies", cache_bytes=2500)
    for number in range(4):
        draft = tmp_path / "draft"
        draft.write_bytes(bytes([number]) * 1000)
        storage.keep(draft, f"{number}.parquet")

    def copied() -> set[str]:
        return {path.name for path in (tmp_path / "copies").iterdir()}

    assert copied() == {"2.parquet", "3.parquet"}
    assert [path.read_bytes()[0] for path in storage.local(["0.parquet", "1.parquet", "2.parquet"])] == [0, 1, 2]
    assert copied() == {"0.parquet", "1.parquet", "2.parquet"}, "what one query reads is there as a whole"
    storage.local(["3.parquet"])
    assert len(copied()) == 2
    storage.remove("3.parquet")
    storage.remove("3.parquet")
    with pytest.raises(FileNotFoundError):
        storage.local(["3.parquet"])
    assert storage.names("") == ["0.parquet", "1.parquet", "2.parquet"]


def test_storage_that_does_not_answer_is_named(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = days(2, 10)
    with open_store(tmp_path, bucket) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
        store.compact(START + DAY)
    shutil.rmtree(tmp_path / f"t.duckdb{COLD_SUFFIX}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with open_store(tmp_path, bucket) as store:
        with pytest.raises(Unavailable, match="cannot be reached"):
            store.spans(ALL)
        late = [one for one in spans if one.started_at_ns >= START + DAY]
        assert [one.span for one in store.spans(SpanQuery(since_ns=START + DAY))] == late, "hot days need no bucket"


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.telemetry.spans.test_cold_storage import open_store
from tests.telemetry.spans.test_embedded import DAY, START
from tidemill.telemetry import Erasure
from tidemill.telemetry.spans.partitions import Partitions
moment, folder, bucket, trace_id = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
with open_store(Path(folder), bucket) as store:
    setattr(Partitions, moment, die)
    store.erase(Erasure(trace_ids=(trace_id,))) if trace_id else store.compact(START + 3 * DAY)
"""


def die_at(moment: str, folder: Path, bucket: str, trace_id: str = "") -> None:
    command = [sys.executable, "-c", KILLED, moment, str(folder), bucket, trace_id]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["enter", "strike"])
def test_a_kill_between_upload_and_listing_leaves_every_span_once(tmp_path: Path, bucket: str, moment: str) -> None:
    """``enter`` comes after the upload and before rows are deleted; an erasure strikes what it replaces there."""
    spans = days(3, 30)
    secret = spans[3].trace_id
    with open_store(tmp_path, bucket) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
        if moment == "strike":
            store.compact(START + 3 * DAY)
    before = len(kept(bucket))
    die_at(moment, tmp_path, bucket, secret if moment == "strike" else "")
    assert len(kept(bucket)) == before + 1, "one upload that nothing lists"
    with open_store(tmp_path, bucket) as store:
        assert [one.span for one in store.spans(ALL)] == spans
        store.compact(START + 3 * DAY)
        assert len(kept(bucket)) == 3, "the leftover is swept"
        assert [one.span for one in store.spans(ALL)] == spans
        store.erase(Erasure(trace_ids=(secret,)))
        assert [one.span for one in store.spans(ALL)] == [one for one in spans if one.trace_id != secret]


def test_an_erasure_killed_before_its_files_are_removed_ends_when_the_store_is_opened(
    tmp_path: Path, bucket: str
) -> None:
    spans = days(3, 30)
    with open_store(tmp_path, bucket) as store:
        store.commit(Batch(spans, contents_of(spans)), {})
        store.compact(START + 3 * DAY)
    (tmp_path / "t.duckdb.other.draft").write_bytes(b"left by a process that died")
    before = kept(bucket)
    die_at("sweep", tmp_path, bucket, spans[3].trace_id)
    assert kept(bucket).keys() > before.keys()
    with open_store(tmp_path, bucket) as store:
        assert len(kept(bucket)) == 3
        assert len(kept(bucket).keys() & before.keys()) == 2
        assert [one.span for one in store.spans(ALL)] == [one for one in spans if one.trace_id != spans[3].trace_id]
        assert store._database.rows("SELECT * FROM erasures_due") == []
    assert not list(tmp_path.glob("*.draft"))


def test_a_setting_names_a_folder_or_a_bucket(tmp_path: Path, bucket: str) -> None:
    assert cold_files(None, tmp_path).local(["a"]) == [tmp_path / "a"]
    assert cold_files(str(tmp_path / "b"), tmp_path).local(["a"]) == [tmp_path / "b" / "a"]
    assert isinstance(cold_files(bucket, tmp_path), ObjectStorage)
