"""Spans as a file: Parquet for analysis, JSONL for anything else. The file is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

import msgspec

from tidemill.kernel import InvalidInput, Unavailable
from tidemill.telemetry import Span

if TYPE_CHECKING:
    from tidemill.loop.asking import FollowQuestion

Format = Literal["parquet", "jsonl"]

_SUFFIXES: Final[dict[str, Format]] = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_AS_JSON: Final = ("attributes", "references")
_PAGE: Final = 5000


class SpanSource(Protocol):
    """Where spans and scores are read from; ``loop.answering.Answers`` is one, a client of the REST API another."""

    def spans(self, question: FollowQuestion) -> Any:
        """Spans in the order of storing, from a place on."""
        ...

    def scores(self, *, names: list[str] | None, after_seq: int = 0) -> Any:
        """Scores in the order of storing, from a place on."""
        ...


def format_of(path: Path, given: str | None = None) -> Format:
    """The format of a file: the one given, else by its ending.

    Raises:
        InvalidInput: neither says one that there is.
    """
    found = _SUFFIXES.get(f".{given}" if given else path.suffix.lower())
    if found is None:
        what = f"'{given}'" if given else f"the ending of '{path.name}'"
        raise InvalidInput(f"{what} is no format of an export.", hint="Name the file NAME.parquet or NAME.jsonl")
    return found


def pages(source: SpanSource, question: FollowQuestion, *, page: int = _PAGE) -> Iterator[list[Mapping[str, Any]]]:
    """All spans that a question asks for, a page at a time, in the order of storing.

    What is stored while it is read comes along at the end; nothing comes twice and nothing is left out.
    """
    after = question.after_seq
    while True:
        found = source.spans(question.model_copy(update={"after_seq": after, "limit": page}))
        if found["spans"]:
            yield found["spans"]
        after = found["after_seq"]
        if not found["more"]:
            return


def scores_by_trace(source: SpanSource, names: list[str] | None = None) -> dict[str, list[Mapping[str, Any]]]:
    """All scores by the trace they belong to, in the order of storing."""
    by_trace: dict[str, list[Mapping[str, Any]]] = {}
    after = 0
    while True:
        found = source.scores(names=names, after_seq=after)
        for one in found["scores"]:
            by_trace.setdefault(one["trace_id"], []).append(one)
        after = found["after_seq"]
        if not found["more"]:
            return by_trace


def export_spans(
    source: SpanSource,
    question: FollowQuestion,
    path: Path,
    *,
    kind: Format,
    with_scores: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Write spans to a file.

    It is written beside its place and renamed into it when it is complete and on disk: killed before, there is no
    file, or the one that was there. Memory holds one page.

    Args:
        source: where spans come from.
        question: which.
        path: the file; replaced if it is there.
        kind: its format. In Parquet, attributes, references and scores are JSON text.
        with_scores: bring the scores of each span's trace along.
        on_progress: called with how many spans are written.

    Returns:
        How many spans it holds.

    Raises:
        Unavailable: the file cannot be written.
    """
    scores = scores_by_trace(source) if with_scores else None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    written = 0
    try:
        with temporary.open("xb") as file:
            writer = _Parquet(file, with_scores=with_scores) if kind == "parquet" else _Lines(file)
            for page in pages(source, question):
                writer.write([_record(one, scores) for one in page])
                written += len(page)
                if on_progress is not None:
                    on_progress(written)
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _record(span: Mapping[str, Any], scores: Mapping[str, list[Mapping[str, Any]]] | None) -> dict[str, Any]:
    content = span["content"] or {}
    record = {name: value for name, value in span.items() if name != "content"}
    record |= {name: content.get(name) or None for name in ("input", "output", "detail")}
    if scores is not None:
        record["scores"] = scores.get(span["trace_id"], [])
    return record


class _Lines:
    """JSON, one object a line."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._encoder = msgspec.json.Encoder()

    def write(self, records: list[dict[str, Any]]) -> None:
        self._file.write(self._encoder.encode_lines(records))

    def close(self) -> None:
        """Nothing follows the last line."""


class _Parquet:
    """Columns of the types that spans have, one row group a page, zstd."""

    def __init__(self, file: Any, *, with_scores: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._arrow = pa
        self._as_json = (*_AS_JSON, "scores")
        self._schema = pa.schema(_columns(pa, with_scores=with_scores))
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, records: list[dict[str, Any]]) -> None:
        columns = {name: [self._cell(name, record.get(name)) for record in records] for name in self._schema.names}
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()

    def _cell(self, name: str, value: Any) -> Any:
        return json.dumps(value, ensure_ascii=False) if name in self._as_json and value is not None else value


def _columns(pa: Any, *, with_scores: bool) -> list[tuple[str, Any]]:
    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    columns = []
    for one in msgspec.structs.fields(Span):
        if one.name in _AS_JSON:
            columns.append((one.name, pa.string()))
        elif one.name == "finish_reasons":
            columns.append((one.name, pa.list_(pa.string())))
        else:
            kinds = [kind for kind in get_args(one.type) if kind is not NoneType] or [one.type]
            columns.append((one.name, plain.get(kinds[0], pa.string())))
    columns += [("duration_s", pa.float64()), ("ingest_seq", pa.int64())]
    columns += [(name, pa.string()) for name in ("input", "output", "detail")]
    return [*columns, ("scores", pa.string())] if with_scores else columns
