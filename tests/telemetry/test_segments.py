"""The segment log: what is written is read, whatever happens to the file in between."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.telemetry.making import CONTENT, intent, passage, score, span
from tidemill.kernel import FakeClock, InvalidInput, Unavailable
from tidemill.telemetry import (
    Content,
    Corrupt,
    End,
    Finished,
    Intent,
    Reference,
    Score,
    SegmentWriter,
    Span,
    read_segment,
)
from tidemill.telemetry.frames import FRAME, KIND_INTENT, MARKER, SCHEMA_VERSION, checksum_start, frame_head
from tidemill.telemetry.reading import hold_if_abandoned, inspect_segment, read_header


def make(folder: Path, **options: Any) -> SegmentWriter:
    return SegmentWriter(folder / "gw-0", project="shop", tenant="default", **options)


def only(folder: Path) -> Path:
    (path,) = (folder / "gw-0").glob("*.seg")
    return path


def records(path: Path, offset: int = 0) -> list[Any]:
    return [record for record, _ in read_segment(path, offset)]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    full = score(comment="call 555", correction='"x"')
    with make(tmp_path) as writer:
        writer.intent(intent())
        writer.finished(span(references=(passage(1),)), CONTENT)
        writer.finished(span(2))
        writer.score(full)
    assert records(only(tmp_path)) == [
        intent(), Finished(span(references=(passage(1),)), CONTENT), Finished(span(2)), full, End(False, 4),
    ]  # fmt: skip
    for record, after in read_segment(only(tmp_path)):
        if isinstance(record, Score):
            assert records(only(tmp_path), after) == [End(False, 4)]


texts = st.text(st.characters(exclude_categories=["Cs"]))
optional = st.none() | texts
references = st.builds(Reference, st.just("passage"), texts, texts, st.none() | st.integers(0, 9))
spans = st.builds(
    Span,
    trace_id=texts, span_id=texts, project=st.just("shop"), tenant=st.just("default"), name=texts, operation=texts,
    started_at_ns=st.integers(0, 2**63 - 1), ended_at_ns=st.integers(0, 2**63 - 1), parent_span_id=optional,
    status=st.sampled_from(["ok", "error", "cancelled"]), http_status=st.none() | st.integers(0, 999),
    cost_usd=st.none() | st.floats(allow_nan=False), finish_reasons=st.lists(texts, max_size=3).map(tuple),
    attributes=st.dictionaries(texts, texts | st.integers(-(2**63), 2**63 - 1) | st.booleans(), max_size=4),
    references=st.lists(references, max_size=3).map(tuple), session_id=optional,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(spans, st.none() | st.builds(Content, texts, texts)), min_size=1, max_size=5), st.data())
def test_any_record_survives_and_any_cut_leaves_a_prefix(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[Span, Content | None]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("segments")
    with make(folder, fsync="never") as writer:
        for one, content in written:
            writer.finished(one, content)
    path = only(folder)
    expected = [Finished(one, content) for one, content in written]
    assert records(path)[:-1] == expected
    whole = path.read_bytes()
    _, first = read_header(path)
    path.write_bytes(whole[: data.draw(st.integers(first, len(whole) - 1))])
    assert records(path) == expected[: len(records(path))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_costs_the_records_it_hits_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("segments")
    with make(folder, fsync="never") as writer:
        for number in range(6):
            writer.finished(span(number), CONTENT)
    path = only(folder)
    ends = [read_header(path)[1], *(after for _, after in read_segment(path))]
    hit = data.draw(st.integers(0, 5))
    damaged = bytearray(path.read_bytes())
    at = data.draw(st.integers(ends[hit], ends[hit + 1] - 1))
    size = data.draw(st.integers(1, ends[hit + 1] - at))
    damaged[at : at + size] = bytes(byte ^ data.draw(st.integers(1, 255)) for byte in damaged[at : at + size])
    path.write_bytes(damaged)
    found = records(path)
    assert [record for record in found if isinstance(record, Corrupt)] == [
        Corrupt(ends[hit], ends[hit + 1], "the checksum does not fit")
    ]
    assert [record.span for record in found if isinstance(record, Finished)] == [span(n) for n in range(6) if n != hit]


def test_bytes_of_another_segment_are_not_taken_for_records(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with make(tmp_path / name) as writer:
            writer.finished(span(), CONTENT)
            writer.finished(span(2), CONTENT)
    path, other = only(tmp_path / "a"), only(tmp_path / "b").read_bytes()
    start = read_header(path)[1]
    path.write_bytes(path.read_bytes()[:start] + b"lost" + other[start:])
    assert records(path) == []


def test_text_cannot_hold_a_marker() -> None:
    with pytest.raises(UnicodeDecodeError):
        MARKER.decode()


def test_content_is_unreadable_without_the_key_and_in_the_wrong_place(tmp_path: Path) -> None:
    with make(tmp_path) as writer:
        writer.finished(span(), CONTENT)
        writer.score(score(comment="my own words"))
    path = only(tmp_path)
    assert b"assert" not in path.read_bytes()
    assert b"own words" not in path.read_bytes()
    key = path.with_suffix(".key")
    assert stat.S_IMODE(key.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o600
    key.write_bytes(os.urandom(32))
    assert records(path)[:2] == [Finished(span(), None, content_lost=True), score()]
    key.unlink()
    assert records(path)[0].content_lost


@pytest.mark.parametrize("capture", ["hashed", "none"])
def test_content_is_stripped_at_receipt(tmp_path: Path, capture: Any) -> None:
    for name in ("gw-0", "gw-1"):
        with SegmentWriter(tmp_path / name, project="shop", tenant="default", capture=capture) as writer:
            writer.finished(span(), CONTENT)
            writer.score(score(comment="my own words"))
    contents = [records(path)[0].content for path in sorted(tmp_path.glob("*/*.seg"))]
    if capture == "none":
        assert contents == [None, None]
    else:
        assert contents[0] == contents[1], "one key for all writers, so equal texts are known as equal"
        assert contents[0].input.startswith("blake2b:")
        assert contents[0].input != contents[0].output
        assert stat.S_IMODE((tmp_path / "hash.key").stat().st_mode) == 0o600
    assert records(only(tmp_path))[1] == score()


def test_nothing_is_made_before_the_first_record(tmp_path: Path) -> None:
    with make(tmp_path):
        pass
    assert list((tmp_path / "gw-0").iterdir()) == []


def test_segments_rotate_by_size_and_open_intents_move_on(tmp_path: Path) -> None:
    with make(tmp_path, max_segment_bytes=1500) as writer:
        writer.intent(intent(999))
        for number in range(20):
            writer.finished(span(number), CONTENT)
        writer.finished(span(999))
    paths = sorted((tmp_path / "gw-0").glob("*.seg"))
    assert len(paths) > 3
    assert all(path.stat().st_size < 2250 for path in paths)
    found = [record for path in paths for record in records(path)]
    assert [r.span.trace_id for r in found if isinstance(r, Finished)] == [span(n).trace_id for n in [*range(20), 999]]
    assert sum(isinstance(record, Intent) for record in found) == len(paths), "one copy in each segment"
    assert all(inspect_segment(path).open_intents == () for path in paths)
    assert [record.rotated for record in found if isinstance(record, End)] == [True] * (len(paths) - 1) + [False]


def test_segments_rotate_by_age(tmp_path: Path) -> None:
    clock = FakeClock(datetime(2026, 5, 1, tzinfo=UTC))
    with make(tmp_path, max_segment_age_s=60, clock=clock) as writer:
        writer.finished(span())
        clock.advance(61)
        writer.finished(span(2))
    first, second = sorted((tmp_path / "gw-0").glob("*.seg"))
    assert records(first) == [Finished(span()), End(True, 1)]
    assert records(second) == [Finished(span(2)), End(False, 1)]
    assert read_header(first)[0].created_ns == int(datetime(2026, 5, 1, tzinfo=UTC).timestamp() * 1e9)


def test_an_idle_segment_is_ended_in_time_that_its_key_may_go(tmp_path: Path) -> None:
    with make(tmp_path, max_segment_age_s=0.1) as writer:
        writer.finished(span())
        until = time.monotonic() + 10
        while not (free := is_free(only(tmp_path))) and time.monotonic() < until:
            time.sleep(0.05)
        assert free
        assert records(only(tmp_path))[-1] == End(True, 1)
        writer.finished(span(2))
        assert len(list((tmp_path / "gw-0").glob("*.seg"))) == 2


def is_free(path: Path) -> bool:
    with hold_if_abandoned(path) as free:
        return free


def test_the_lock_tells_whether_a_writer_lives(tmp_path: Path) -> None:
    writer = make(tmp_path)
    writer.finished(span())
    with hold_if_abandoned(only(tmp_path)) as free:
        assert not free
    writer.close()
    with hold_if_abandoned(only(tmp_path)) as free:
        assert free


def test_writers_of_one_folder_never_share_a_file(tmp_path: Path) -> None:
    with make(tmp_path) as one, make(tmp_path) as two:
        one.finished(span(1))
        two.finished(span(2))
        one.finished(span(3))
    found = [records(path) for path in sorted((tmp_path / "gw-0").glob("*.seg"))]
    assert [len(entry) for entry in found] == [3, 2]


def test_no_space_leaves_the_segment_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make(tmp_path)
    writer.finished(span(1), CONTENT)
    real, calls = os.write, []

    def full_disk(descriptor: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) == 1:  # half of the record fits
            return real(descriptor, bytes(data)[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tidemill.telemetry.segments.os.write", full_disk)
        with pytest.raises(Unavailable, match="No space left"):
            writer.finished(span(1), CONTENT)
    writer.finished(span(2), CONTENT)
    writer.close()
    assert [record.span for record in records(only(tmp_path))[:-1]] == [span(1), span(2)]


def test_records_written_together_cost_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.write, []

    def counted(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        return real(descriptor, data)

    with make(tmp_path) as writer:
        writer.intent(intent(1))
        monkeypatch.setattr("tidemill.telemetry.segments.os.write", counted)
        writer.write_all([intent(2), (span(1), CONTENT), intent(3), (span(2), None)])
        assert len(calls) == 1
        writer.write_all([(span(3), CONTENT)])
        writer.write_all([intent(4)])
        writer.write_all([])
    assert records(only(tmp_path)) == [
        intent(1), intent(2), Finished(span(1), CONTENT), intent(3), Finished(span(2)),
        Finished(span(3), CONTENT), intent(4), End(False, 7),
    ]  # fmt: skip


def test_records_written_together_are_written_all_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make(tmp_path, max_segment_bytes=2000)
    writer.intent(intent(1))
    together: list[Any] = [intent(2), (span(1), CONTENT), (span(3), Content("in" * 500, "out" * 500))]
    with pytest.raises(InvalidInput, match="shop/elsewhere"):
        writer.write_all([intent(2), (span(tenant="elsewhere"), None)])
    real, calls = os.write, []

    def full_disk(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:  # the first of the three fits
            return real(descriptor, data[:300])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tidemill.telemetry.segments.os.write", full_disk)
        with pytest.raises(Unavailable, match="No space left"):
            writer.write_all(together)
    assert records(only(tmp_path)) == [intent(1)]
    writer.write_all(together)
    writer.finished(span(4))  # the segment is full: the one intent still open moves on
    writer.close()
    old, new = sorted((tmp_path / "gw-0").glob("*.seg"))
    assert [record for record in records(old) if isinstance(record, Intent)] == [intent(1), intent(2)]
    assert records(new) == [intent(2), Finished(span(4)), End(False, 2)]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    writer = make(tmp_path)
    with pytest.raises(InvalidInput, match="shop/elsewhere"):
        writer.finished(span(tenant="elsewhere"))
    with pytest.raises(InvalidInput):
        writer.score(score(project="other"))
    writer.finished(span(), Content("x" * (20 << 20), ""))
    writer.close()
    writer.close()
    assert records(only(tmp_path))[0].span.attributes["tidemill.content_dropped_bytes"] > 20 << 20
    with pytest.raises(InvalidInput, match="closed"):
        writer.finished(span())
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be written"):
        make(tmp_path / "file")


def test_half_surrogates_do_not_stop_a_record(tmp_path: Path) -> None:
    with make(tmp_path) as writer:
        writer.finished(span(), Content("a\ud800", ""))
        writer.score(score(comment="b\udfff"))
    found = records(only(tmp_path))
    assert found[0].content == Content("a?", "")
    assert found[1].comment == "b?"


def test_always_brings_each_record_to_the_disk(tmp_path: Path) -> None:
    with make(tmp_path, fsync="always") as writer:
        writer.finished(span())
    assert len(records(only(tmp_path))) == 2


def test_files_that_are_no_segments_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.seg"
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match="not a Tidemill segment"):
        read_header(path)
    with make(tmp_path) as writer:
        writer.finished(span())
    whole = bytearray(only(tmp_path).read_bytes())
    path.write_bytes(whole[:8] + b"\x09" + whole[9:])
    with pytest.raises(InvalidInput, match="segment format 9"):
        read_header(path)
    whole[30] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InvalidInput, match="damaged"):
        read_header(path)


def test_records_of_other_versions_are_read_or_named(tmp_path: Path) -> None:
    with make(tmp_path) as writer:
        writer.finished(span())
    path = only(tmp_path)
    seed, encode = read_header(path)[0].seed, msgspec.msgpack.encode
    fields = msgspec.to_builtins(intent(2))
    with path.open("ab") as file:
        for payload in (encode(fields[:3]), encode([*fields, "a field of a later version"])):
            file.write(frame_head(KIND_INTENT, payload, checksum_start(KIND_INTENT, SCHEMA_VERSION, seed)) + payload)
        payload, newer = encode(fields), SCHEMA_VERSION + 1
        checksum = crc32(payload, checksum_start(KIND_INTENT, newer, seed) ^ len(payload))
        file.write(FRAME.pack(MARKER, checksum, len(payload), KIND_INTENT, newer) + payload)
    *_, shorter, longer, unknown = records(path)
    assert shorter == intent(2, endpoint=None)
    assert longer == intent(2)
    assert isinstance(unknown, Corrupt)
    assert f"schema {newer} is newer" in unknown.reason


def test_the_write_side_loads_no_database() -> None:
    code = (
        "import sys, tidemill.telemetry.segments\n"
        "print([name for name in ('duckdb', 'pyarrow', 'numpy', 'pandas', 'sqlalchemy') if name in sys.modules])"
    )
    said = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
