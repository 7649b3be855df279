from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.loop.traffic import fill, request
from tidemill.kernel import InvalidInput, Scope, Unavailable
from tidemill.ledger import open_ledger
from tidemill.loop.answering import Answers
from tidemill.loop.asking import FollowQuestion
from tidemill.loop.exporting import export_spans, format_of, pages
from tidemill.telemetry import Batch, SpanStore, open_span_store

COUNT = 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SpanStore]:
    opened = open_span_store(tmp_path / "state" / "spans.duckdb", Scope("shop"))
    fill(opened, COUNT)
    yield opened
    opened.close()


@pytest.fixture
def answers(store: SpanStore, tmp_path: Path) -> Iterator[Answers]:
    place = tmp_path / "state"
    with open_ledger(f"sqlite:///{place}/ledger.db", blobs=f"{place}/blobs", scope=Scope("shop")) as ledger:
        yield Answers(ledger, store, now_ns=lambda: 0)


def test_lines(answers: Answers, tmp_path: Path) -> None:
    seen: list[int] = []
    file = tmp_path / "spans.jsonl"
    asked = FollowQuestion(content=True, where=["status = error"])
    assert export_spans(answers, asked, file, kind="jsonl", with_scores=True, on_progress=seen.append) == 3
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["output"] for one in records] == [f"It costs {number} euros." for number in (9, 19, 29)]
    assert records[0]["references"][0]["ref"] == "psg_1"
    assert [len(one["scores"]) for one in records] == [0, 0, 0]
    assert seen == [3]


def test_columns_have_the_types_that_spans_have(answers: Answers, tmp_path: Path) -> None:
    file = tmp_path / "spans.parquet"
    assert export_spans(answers, FollowQuestion(spans=True), file, kind="parquet", with_scores=True) == 2 * COUNT
    table = pq.read_table(file)
    types = {name: str(table.schema.field(name).type) for name in table.schema.names}
    assert types["trace_id"] == "string"
    assert types["input_tokens"] == "int64"
    assert types["cost_usd"] == "double"
    assert types["stream"] == "bool"
    assert types["finish_reasons"].startswith("list<")
    (first, *_) = table.to_pylist()
    assert json.loads(first["attributes"]) == {"tool": "search"}
    assert json.loads(first["references"])[0]["role"] == "cited"
    assert json.loads(first["scores"])[0]["name"] == "feedback"
    assert first["duration_s"] == 1.0
    assert first["input"] is None


def test_nothing_to_write_is_an_empty_file_of_its_kind(answers: Answers, tmp_path: Path) -> None:
    nothing = FollowQuestion(endpoint="other")
    for name in ("none.parquet", "none.jsonl"):
        assert export_spans(answers, nothing, tmp_path / name, kind=format_of(tmp_path / name)) == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_pages_follow_each_other_and_take_along_what_comes_meanwhile(answers: Answers, store: SpanStore) -> None:
    found: list[str] = []
    for page in pages(answers, FollowQuestion(), page=10):
        if not found:
            store.commit(Batch(spans=[request(99)]), {})
        found += [one["trace_id"] for one in page]
    assert len(found) == len(set(found)) == COUNT + 1


class _Breaking:
    """Gives a page, and then what is asked cannot be answered."""

    def __init__(self, answers: Answers, error: BaseException) -> None:
        self._answers = answers
        self._error = error

    def spans(self, question: FollowQuestion) -> Any:
        if question.after_seq:
            raise self._error
        return self._answers.spans(question.model_copy(update={"limit": 5}))

    def scores(self, *, names: list[str] | None, after_seq: int = 0) -> Any:
        return self._answers.scores(names=names, after_seq=after_seq)


@pytest.mark.parametrize("error", [Unavailable("gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_interrupted_there_is_no_file_or_the_one_before(
    answers: Answers, tmp_path: Path, error: BaseException, kind: Any
) -> None:
    before, fresh = tmp_path / f"before.{kind}", tmp_path / f"fresh.{kind}"
    before.write_text("as it was")

    class Source(_Breaking):
        def spans(self, question: FollowQuestion) -> Any:
            return {**super().spans(question), "more": True}

    for file in (before, fresh):
        with pytest.raises(type(error)):
            export_spans(Source(answers, error), FollowQuestion(), file, kind=kind)
    assert before.read_text() == "as it was"
    assert sorted(one.name for one in tmp_path.iterdir()) == [before.name, "state"]


def test_a_place_that_cannot_be_written(answers: Answers, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be written"):
        export_spans(answers, FollowQuestion(), tmp_path / "no" / "where.jsonl", kind="jsonl")


def test_formats() -> None:
    assert [format_of(Path(name)) for name in ("a.parquet", "a.PQ", "a.jsonl", "a.ndjson")] == [
        "parquet",
        "parquet",
        "jsonl",
        "jsonl",
    ]
    assert format_of(Path("a.txt"), "jsonl") == "jsonl"
    for name, given in (("a.csv", None), ("a", None), ("a.jsonl", "csv")):
        with pytest.raises(InvalidInput, match="no format"):
            format_of(Path(name), given)
