"""Trace ids as people and programs write them."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from tidemill.kernel.errors import InvalidInput
from tidemill.kernel.ids import SpanId, TraceId

_PARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_XRAY: Final = re.compile(r"1-([0-9a-f]{8})-([0-9a-f]{24})")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DIGITS: Final = re.compile(r"[0-9a-f]+")
_BYTES: Final = 16
_SHOWN_CHARS: Final = 80


def parse_trace_id(text: str) -> TraceId:
    """Read a trace id.

    Args:
        text: 32 hexadecimal digits in either case, with or without ``0x``, ``trace:`` or the dashes of a UUID; 16
            digits of an older tracer, which are padded as W3C says; a ``traceparent``; base64 of the 16 bytes, as
            some writers of OTLP JSON have it; AWS X-Ray's ``1-…-…``, also behind ``Root=``.

    Returns:
        32 lower-case hexadecimal digits, not all zero.

    Raises:
        InvalidInput: it is none of these.
    """
    bare = text.strip().removeprefix("trace:").strip()
    digits = _digits(bare.lower()) or _base64(bare)
    if digits is None or not digits.strip("0"):
        shown = bare if len(bare) <= _SHOWN_CHARS else bare[: _SHOWN_CHARS - 1] + "…"
        raise InvalidInput(
            f"'{shown}' is no trace id: expected 32 hexadecimal digits, a traceparent, a UUID or base64 of 16 bytes.",
            hint="List the newest traces: tidemill trace list",
        )
    return TraceId(digits)


def parse_span_id(text: str) -> SpanId:
    """Read a span id: 16 hexadecimal digits in either case, with or without ``0x``, or a ``traceparent``.

    Raises:
        InvalidInput: it is neither.
    """
    bare = text.strip().lower()
    parent = _PARENT.fullmatch(bare)
    digits = parent[2] if parent else bare.removeprefix("0x")
    if len(digits) != _BYTES or not _DIGITS.fullmatch(digits) or not digits.strip("0"):
        raise InvalidInput(f"'{bare[:_SHOWN_CHARS]}' is no span id: expected 16 hexadecimal digits.")
    return SpanId(digits)


def _digits(lower: str) -> str | None:
    parent = _PARENT.fullmatch(lower)
    if parent:
        return parent[1]
    xray = _XRAY.fullmatch(lower.removeprefix("root=").partition(";")[0])
    if xray:
        return xray[1] + xray[2]
    bare = lower.replace("-", "") if _UUID.fullmatch(lower) else lower.removeprefix("0x")
    if len(bare) in (_BYTES, 2 * _BYTES) and _DIGITS.fullmatch(bare):
        return bare.zfill(2 * _BYTES)
    return None


def _base64(text: str) -> str | None:
    try:
        data = base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_" if set(text) & {"-", "_"} else None, validate=True
        )
    except (binascii.Error, ValueError):
        return None
    return data.hex() if len(data) == _BYTES else None
