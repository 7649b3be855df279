"""The drainer: masks, commits, leaves placeholders, keeps damage, removes what is drained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.making import CONTENT, intent, passage, score, span
from tidemill.kernel import Scope
from tidemill.safety import mask_pii
from tidemill.telemetry import Batch, Content, Drainer, End, ScoreQuery, SegmentWriter, SpanQuery, SpanStore
from tidemill.telemetry.masking import masked_json
from tidemill.telemetry.reading import read_header, read_segment


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    return tmp_path / "segments"


def make(segments: Path, name: str = "gw-0", **options: Any) -> SegmentWriter:
    return SegmentWriter(segments / name, project="shop", tenant="default", **options)


def killed(writer: SegmentWriter, path: Path) -> None:
    """Leave the writer's segment as its death would: no lock, no end record."""
    writer.close()
    ends = [after for record, after in read_segment(path) if not isinstance(record, End)]
    os.truncate(path, ends[-1])


def files(segments: Path) -> list[str]:
    return sorted(path.name for path in segments.glob("*/*"))


def test_a_live_segment_is_read_and_kept(segments: Path, store: SpanStore) -> None:
    drainer = Drainer(segments, store, mask=str)
    assert drainer.drain_once().records == 0
    with make(segments) as writer:
        writer.intent(intent())
        writer.finished(span(references=(passage(1),)), CONTENT)
        report = drainer.drain_once()
        assert (report.records, report.spans, report.files_removed) == (2, 1, 0)
        assert drainer.drain_once().records == 0
        writer.score(score())
        writer.intent(intent(2))
        assert drainer.drain_once().scores == 1
        assert files(segments) == ["00000001.key", "00000001.seg"]
    report = drainer.drain_once()
    assert (report.interrupted, report.files_removed, report.conflicts) == (1, 1, 0)
    assert files(segments) == []
    assert [stored.span.status for stored in store.spans(SpanQuery())] == ["ok", "interrupted"]
    drainer.drain_once()
    assert store.offsets() == {}


def test_a_dead_writers_open_calls_become_interrupted_spans(segments: Path, store: SpanStore) -> None:
    writer = make(segments)
    writer.finished(span(1))
    writer.intent(intent(2, release="sha256:r", session_id="s", arm="canary"))
    drainer = Drainer(segments, store, mask=str)
    assert drainer.drain_once().interrupted == 0
    killed(writer, segments / "gw-0" / "00000001.seg")
    report = Drainer(segments, store, mask=str).drain_once()
    assert (report.interrupted, report.files_removed) == (1, 1)
    (stored,) = store.trace(span(2).trace_id)
    assert (stored.span.status, stored.span.release, stored.span.session_id) == ("interrupted", "sha256:r", "s")


def test_a_torn_tail_is_dropped_in_silence_and_damage_is_kept(segments: Path, store: SpanStore) -> None:
    for start, name in ((10, "torn"), (20, "damaged")):
        path = segments / name / "00000001.seg"
        writer = make(segments, name)
        for number in range(start, start + 3):
            writer.finished(span(number), CONTENT)
        killed(writer, path)
    header, first = read_header(path)
    damaged = bytearray(path.read_bytes())
    damaged[first + 20] ^= 1
    path.write_bytes(damaged)
    torn = segments / "torn" / "00000001.seg"
    os.truncate(torn, torn.stat().st_size - 7)
    report = Drainer(segments, store, mask=str).drain_once()
    assert (report.spans, report.corrupt, report.files_removed) == (4, 1, 2)
    assert files(segments) == [f"{header.segment_id}.corrupt"]


def test_everything_queryable_is_masked(segments: Path, store: SpanStore) -> None:
    said = json.dumps([{"role": "user", "content": "mail\nbob@example.org or\u0020+44 20 7946 0958"}])
    with make(segments) as writer:
        writer.finished(span(attributes={"note": "call bob@example.org"}), Content(said, "I wrote to bob@example.org."))
        writer.score(score(comment="I am bob@example.org", correction='{"password": "hunter2x!"}'))
    Drainer(segments, store, mask=mask_pii).drain_once()
    (stored,) = store.trace(span().trace_id)
    assert stored.content
    assert json.loads(stored.content.input) == [{"role": "user", "content": "mail\n<email> or <phone>"}]
    assert stored.content.output == "I wrote to <email>."
    assert stored.span.attributes == {"note": "call <email>"}
    (one,) = store.scores(ScoreQuery())
    assert (one.score.comment, one.score.correction) == ("I am <email>", '{"password":"<password>"}')


def test_a_session_named_by_an_address_stays_one_session(segments: Path, store: SpanStore) -> None:
    with make(segments) as writer:
        for number, session in enumerate(("bob@example.org", "amy@example.org", "bob@example.org", "s-1")):
            writer.finished(span(number, session_id=session))
    Drainer(segments, store, mask=mask_pii).drain_once()
    one, two, three, plain = (stored.span.session_id for stored in store.spans(SpanQuery()))
    assert one == three != two
    assert "@" not in f"{one}{two}"
    assert plain == "s-1"


def test_hashes_are_not_masked(segments: Path, store: SpanStore) -> None:
    with make(segments, capture="hashed") as writer:
        writer.finished(span(), CONTENT)
    Drainer(segments, store, mask=lambda text: "masked").drain_once()
    content = store.trace(span().trace_id)[0].content
    assert content
    assert content.input.startswith("blake2b:")


def test_a_limit_stops_a_round_and_no_writer_starves(segments: Path, store: SpanStore) -> None:
    for place, name in enumerate(("a", "b", "c")):
        with make(segments, name) as writer:
            for number in range(10):
                writer.finished(span(100 * place + number))
    drainer = Drainer(segments, store, mask=str)
    writers = set()
    for _ in range(3):
        assert drainer.drain_once(limit=4).more
        writers = {int(stored.span.trace_id, 16) // 100 for stored in store.spans(SpanQuery())}
    assert writers == {0, 1, 2}
    while drainer.drain_once(limit=4).more:
        pass
    assert len(store.spans(SpanQuery())) == 30
    assert files(segments) == []


def test_segments_of_another_scope_and_strange_files_are_left_alone(
    segments: Path, open_store: Callable[[Scope], SpanStore]
) -> None:
    with SegmentWriter(segments / "gw-1", project="shop", tenant="other") as writer:
        writer.finished(span(tenant="other"), CONTENT)
    (segments / "gw-0").mkdir()
    (segments / "gw-0" / "strange.seg").write_bytes(b"?")
    mine = open_store(Scope("shop"))
    report = Drainer(segments, mine, mask=str).drain_once()
    assert (report.records, report.files_removed) == (0, 0)
    assert "strange.seg" in report.problems[0]
    assert len(files(segments)) == 3
    theirs = open_store(Scope("shop", "other"))
    assert Drainer(segments, theirs, mask=str).drain_once().spans == 1


def test_a_file_number_that_begins_again_is_another_segment(segments: Path, store: SpanStore) -> None:
    drainer = Drainer(segments, store, mask=str)
    for number in range(3):
        with make(segments) as writer:
            writer.finished(span(number))
        assert files(segments) == ["00000001.key", "00000001.seg"]
        assert drainer.drain_once().spans == 1


def test_a_crash_between_commit_and_removal_changes_nothing(segments: Path, store: SpanStore) -> None:
    writer = make(segments)
    writer.finished(span(1), CONTENT)
    writer.intent(intent(2))
    writer.close()
    path = segments / "gw-0" / "00000001.seg"
    whole, key = path.read_bytes(), path.with_suffix(".key").read_bytes()
    Drainer(segments, store, mask=str).drain_once()
    before = store.spans(SpanQuery(with_content=True))
    for secret in (key, None):
        path.write_bytes(whole)
        if secret:
            path.with_suffix(".key").write_bytes(secret)
        report = Drainer(segments, store, mask=str).drain_once()
        assert (report.spans, report.interrupted, report.conflicts, report.files_removed) == (0, 0, 0, 1)
    assert store.spans(SpanQuery(with_content=True)) == before


def test_a_failed_commit_loses_nothing(segments: Path, store: SpanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(segments) as writer:
        writer.finished(span(), CONTENT)
    drainer = Drainer(segments, store, mask=str)
    with monkeypatch.context() as patched:
        patched.setattr(store, "commit", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            drainer.drain_once()
    assert drainer.drain_once().spans == 1
    assert store.commit(Batch([span()]), {}).duplicates == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=8,
)


@given(json_values)
def test_masking_with_nothing_to_mask_keeps_json_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    assert json.loads(masked_json(text, str)) == value


@given(json_values)
def test_masked_json_stays_json(value: Any) -> None:
    json.loads(masked_json(json.dumps([value]), mask_pii))


@pytest.mark.parametrize("text", ["", "plain", "{broken", "[" * 5000, '["\\ud800"]'])
def test_text_that_is_no_json_is_masked_as_text(text: str) -> None:
    assert masked_json(text, lambda part: f"<{part}>") == f"<{text}>"
