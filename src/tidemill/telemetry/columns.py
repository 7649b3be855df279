"""How records become rows and rows become records, for stores with columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa

from tidemill.telemetry.records import Content, Reference, Score, Span
from tidemill.telemetry.store import ENTRY_ATTRIBUTE

_TEXT: Final = pa.string()
_INT: Final = pa.int64()
_REAL: Final = pa.float64()
_FLAG: Final = pa.bool_()

SPAN_FIELDS: Final[dict[str, pa.DataType]] = {
    "trace_id": _TEXT,
    "span_id": _TEXT,
    "parent_span_id": _TEXT,
    "name": _TEXT,
    "operation": _TEXT,
    "started_at_ns": _INT,
    "ended_at_ns": _INT,
    "status": _TEXT,
    "error_type": _TEXT,
    "http_status": _INT,
    "endpoint": _TEXT,
    "release": _TEXT,
    "assigned_release": _TEXT,
    "arm": _TEXT,
    "session_id": _TEXT,
    "user_key": _TEXT,
    "provider": _TEXT,
    "request_model": _TEXT,
    "response_model": _TEXT,
    "input_tokens": _INT,
    "output_tokens": _INT,
    "cost_usd": _REAL,
    "time_to_first_chunk_s": _REAL,
    "stream": _FLAG,
    "rollout": _TEXT,
}
"""Columns that hold a span's field as it is."""

SCORE_FIELDS: Final[dict[str, pa.DataType]] = {
    "score_id": _TEXT,
    "trace_id": _TEXT,
    "span_id": _TEXT,
    "name": _TEXT,
    "value": _REAL,
    "label": _TEXT,
    "comment": _TEXT,
    "correction": _TEXT,
    "source": _TEXT,
    "at_ns": _INT,
}

_json = msgspec.json.Encoder()
_packed = msgspec.msgpack.Encoder()
_attributes = msgspec.json.Decoder(dict[str, str | int | float | bool])
_reasons = msgspec.json.Decoder(tuple[str, ...])


def key_of(text: str) -> int:
    """A 64-bit key of an id. Scanning a million of them takes a millisecond, of the ids themselves thirty."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big", signed=True)


def digest_of(record: Span | Score) -> int:
    """64 bits that tell whether two records with the same ids are the same."""
    return int.from_bytes(hashlib.blake2b(_packed.encode(record), digest_size=8).digest(), "big", signed=True)


def span_table(spans: Sequence[Span]) -> pa.Table:
    """Spans as columns: the keys, the fields, and JSON text for what is not a plain value."""
    arrays = {"trace_key": pa.array([key_of(span.trace_id) for span in spans], _INT)}
    arrays["digest"] = pa.array([digest_of(span) for span in spans], _INT)
    arrays["is_root"] = pa.array([_is_root(span) for span in spans], _FLAG)
    for name, kind in SPAN_FIELDS.items():
        arrays[name] = pa.array([getattr(span, name) for span in spans], kind)
    arrays["finish_reasons"] = pa.array([_text(span.finish_reasons) for span in spans], _TEXT)
    arrays["attributes"] = pa.array([_text(span.attributes) for span in spans], _TEXT)
    return pa.table(arrays)


def _is_root(span: Span) -> bool:
    return span.parent_span_id is None or span.attributes.get(ENTRY_ATTRIBUTE) is True


def _text(value: object) -> str | None:
    return _json.encode(value).decode() if value else None


def content_table(contents: Mapping[tuple[str, str], Content]) -> pa.Table:
    """Contents as columns."""
    return pa.table(
        {
            "trace_key": pa.array([key_of(trace_id) for trace_id, _ in contents], _INT),
            "trace_id": pa.array([trace_id for trace_id, _ in contents], _TEXT),
            "span_id": pa.array([span_id for _, span_id in contents], _TEXT),
            "input": pa.array([content.input for content in contents.values()], _TEXT),
            "output": pa.array([content.output for content in contents.values()], _TEXT),
        }
    )


def reference_table(spans: Iterable[Span]) -> pa.Table:
    """References as columns, one row each, ``place`` giving their order within the span."""
    rows = [(span, place, reference) for span in spans for place, reference in enumerate(span.references)]
    return pa.table(
        {
            "trace_key": pa.array([key_of(span.trace_id) for span, _, _ in rows], _INT),
            "ref_key": pa.array([key_of(reference.ref) for _, _, reference in rows], _INT),
            "trace_id": pa.array([span.trace_id for span, _, _ in rows], _TEXT),
            "span_id": pa.array([span.span_id for span, _, _ in rows], _TEXT),
            "place": pa.array([place for _, place, _ in rows], pa.int32()),
            "kind": pa.array([reference.kind for _, _, reference in rows], _TEXT),
            "ref": pa.array([reference.ref for _, _, reference in rows], _TEXT),
            "role": pa.array([reference.role for _, _, reference in rows], _TEXT),
            "rank": pa.array([reference.rank for _, _, reference in rows], _INT),
            "score": pa.array([reference.score for _, _, reference in rows], _REAL),
        }
    )


def score_table(scores: Sequence[Score]) -> pa.Table:
    """Scores as columns."""
    arrays = {"trace_key": pa.array([key_of(score.trace_id) for score in scores], _INT)}
    arrays["digest"] = pa.array([digest_of(score) for score in scores], _INT)
    for name, kind in SCORE_FIELDS.items():
        arrays[name] = pa.array([getattr(score, name) for score in scores], kind)
    return pa.table(arrays)


def span_of(row: Sequence[Any], *, project: str, tenant: str, references: tuple[Reference, ...]) -> Span:
    """A span from a row of ``SPAN_FIELDS``, finish reasons and attributes, in that order."""
    *plain, reasons, attributes = row
    return Span(
        project=project,
        tenant=tenant,
        references=references,
        finish_reasons=_reasons.decode(reasons) if reasons else (),
        attributes=_attributes.decode(attributes) if attributes else {},
        **dict(zip(SPAN_FIELDS, plain, strict=True)),
    )


def score_of(row: Sequence[Any], *, project: str, tenant: str) -> Score:
    """A score from a row of ``SCORE_FIELDS``."""
    return Score(project=project, tenant=tenant, **dict(zip(SCORE_FIELDS, row, strict=True)))
