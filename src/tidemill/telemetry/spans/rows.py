"""How records become rows and rows become records, for stores with columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final
from zlib import crc32

import msgspec
import pyarrow as pa

from tidemill.telemetry.records import Content, Reference, Score, Span
from tidemill.telemetry.spans.text import BETWEEN
from tidemill.telemetry.store import ENTRY_ATTRIBUTE

_TEXT: Final = pa.string()
_INT: Final = pa.int64()
_REAL: Final = pa.float64()
_FLAG: Final = pa.bool_()
_KEY: Final = pa.int32()
_BIG: Final = 2**63

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
    "prompt": _TEXT,
    "service": _TEXT,
    "cached_input_tokens": _INT,
    "reasoning_output_tokens": _INT,
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
    """A 32-bit key of an id: ten million of them are scanned in milliseconds, the ids themselves take ten times that.

    Several ids may share a key; whoever looks by key compares the id too.
    """
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()[4:], "big", signed=True
    )


def digest_of(record: Span | Score) -> int:
    """32 bits that tell whether two records with the same ids are the same."""
    number = crc32(_packed.encode(record))
    return number - (1 << 32) if number >> 31 else number


def storable(span: Span) -> Span:
    """A span without whole numbers beyond 64 bits, which no column and no MessagePack holds: they become text."""
    if all(type(value) is not int or -_BIG <= value < _BIG for value in span.attributes.values()):
        return span
    plain = {
        name: value if type(value) is not int or -_BIG <= value < _BIG else str(value)
        for name, value in span.attributes.items()
    }
    return msgspec.structs.replace(span, attributes=plain)


def span_table(spans: Sequence[Span], digests: Sequence[int], seqs: Sequence[int]) -> pa.Table:
    """Spans as columns: places in the order of commits, keys, the fields, JSON text for what is not plain."""
    arrays = {"seq": pa.array(seqs, _INT)}
    arrays["trace_key"] = pa.array([key_of(span.trace_id) for span in spans], _KEY)
    arrays["digest"] = pa.array(digests, _KEY)
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


def content_table(contents: Sequence[tuple[int, Content]]) -> pa.Table:
    """Contents by their spans' places: input and output as one text, for together they compress better."""
    return pa.table(
        {
            "seq": pa.array([seq for seq, _ in contents], _INT),
            "input_chars": pa.array([len(content.input) for _, content in contents], pa.int32()),
            "said": pa.array([_plain(content.input + BETWEEN + content.output) for _, content in contents], _TEXT),
            "detail": pa.array([_plain(content.detail) or None for _, content in contents], _TEXT),
        }
    )


def _plain(text: str) -> str:
    """Without halves of surrogate pairs, which no UTF-8 holds."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def content_of(input_chars: int, said: str, detail: str | None) -> Content:
    """A content from its columns."""
    return Content(said[:input_chars], said[input_chars + 1 :], detail or "")


def reference_table(spans: Sequence[Span], seqs: Sequence[int]) -> pa.Table:
    """References as columns, one row each, ``place`` giving their order within the span."""
    rows = [
        (seq, span.trace_id, place, reference)
        for seq, span in zip(seqs, spans, strict=True)
        for place, reference in enumerate(span.references)
    ]
    return pa.table(
        {
            "seq": pa.array([seq for seq, *_ in rows], _INT),
            "ref_key": pa.array([key_of(reference.ref) for *_, reference in rows], _KEY),
            "trace_id": pa.array([trace_id for _, trace_id, *_ in rows], _TEXT),
            "place": pa.array([place for _, _, place, _ in rows], pa.int32()),
            "kind": pa.array([reference.kind for *_, reference in rows], _TEXT),
            "ref": pa.array([reference.ref for *_, reference in rows], _TEXT),
            "role": pa.array([reference.role for *_, reference in rows], _TEXT),
            "rank": pa.array([reference.rank for *_, reference in rows], _INT),
            "score": pa.array([reference.score for *_, reference in rows], _REAL),
        }
    )


def score_table(scores: Sequence[Score], digests: Sequence[int], seqs: Sequence[int]) -> pa.Table:
    """Scores as columns."""
    arrays = {"seq": pa.array(seqs, _INT)}
    arrays["trace_key"] = pa.array([key_of(score.trace_id) for score in scores], _KEY)
    arrays["digest"] = pa.array(digests, _KEY)
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
