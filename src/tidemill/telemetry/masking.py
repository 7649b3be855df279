"""Applies a masking function to records: to the texts inside JSON, not to its syntax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tidemill.telemetry.records import Content, Score, Span
from tidemill.telemetry.sealing import hashed

Mask = Callable[[str], str]

_PLAIN_KEYS = frozenset(("content", "role", "type", "text", "name", "id"))
_LONG_NUMBER = 10_000_000


def masked_json(text: str, mask: Mask) -> str:
    """Mask a text that may be JSON: its strings, keys and long numbers; anything else is masked as plain text.

    Masking the encoded form would miss escaped characters and could leave text that is JSON no more.
    """
    if text[:1] not in ("[", "{", '"'):
        return mask(text)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return mask(text)
    return msgspec.json.encode(masked_value(value, mask)).decode()


def masked_value(value: Any, mask: Mask) -> Any:
    """Mask the strings, keys and long numbers of a decoded JSON value."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [masked_value(item, mask) for item in value]
    if isinstance(value, dict):
        return {masked_key(key, mask): masked_entry(key, item, mask) for key, item in value.items()}
    if isinstance(value, int) and abs(value) >= _LONG_NUMBER:
        digits = str(value)
        masked = mask(digits)
        return value if masked == digits else masked
    return value


def masked_key(key: str, mask: Mask) -> str:
    """Mask a name, unless it is a plain identifier."""
    return key if key.isidentifier() else mask(key)


def masked_entry(key: str, value: Any, mask: Mask) -> Any:
    """Mask what stands under a name; the name may say what it is."""
    if not isinstance(value, str) or key in _PLAIN_KEYS:
        return masked_value(value, mask)
    # The key may say what its value is: {"password": "…"}.
    label = f"{key}: "
    masked = mask(label + value)
    return masked.removeprefix(label) if masked.startswith(label) else mask(value)


def masked_content(content: Content, mask: Mask) -> Content:
    """Mask both sides of what was said, and what else came."""
    detail = masked_json(content.detail, mask) if content.detail else ""
    return Content(masked_json(content.input, mask), masked_json(content.output, mask), detail)


def masked_span(span: Span, mask: Mask, session_key: bytes) -> Span:
    """Mask a span's name and text attributes; no content belongs there, but callers err.

    A session id that is an e-mail address, as many clients send for ``user``, becomes its keyed hash: a placeholder
    would make one session of all.

    Args:
        span: as its writer gave it.
        mask: takes personal data out of a text.
        session_key: key of the hash, the same for all spans of a store.
    """
    name = mask(span.name)
    attributes = {key: mask(value) if isinstance(value, str) else value for key, value in span.attributes.items()}
    session_id = span.session_id
    if session_id and "@" in session_id and mask(session_id) != session_id:
        session_id = hashed(session_id, session_key)
    if name == span.name and attributes == span.attributes and session_id == span.session_id:
        return span
    return msgspec.structs.replace(span, name=name, attributes=attributes, session_id=session_id)


def masked_score(score: Score, mask: Mask) -> Score:
    """Mask a score's free texts; the correction may be JSON."""
    if score.comment is None and score.correction is None:
        return score
    comment = mask(score.comment) if score.comment is not None else None
    correction = masked_json(score.correction, mask) if score.correction is not None else None
    return msgspec.structs.replace(score, comment=comment, correction=correction)
