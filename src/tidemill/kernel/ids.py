"""Typed identifiers: plain strings at run time, distinct types for the checker.

Fresh ids sort by the time they were made, so that tables keyed by them grow at one end and listings need no
second column.
"""

from __future__ import annotations

import os
import time
from typing import NewType

ArtifactId = NewType("ArtifactId", str)
RunId = NewType("RunId", str)
DecisionId = NewType("DecisionId", str)
RolloutId = NewType("RolloutId", str)
TraceId = NewType("TraceId", str)
SpanId = NewType("SpanId", str)
SessionId = NewType("SessionId", str)
CaseId = NewType("CaseId", str)
RowId = NewType("RowId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def fresh_id(prefix: str) -> str:
    """Make a new id ``prefix_`` + 26 characters that sorts by creation time.

    Args:
        prefix: a short word for the kind of thing, e.g. ``run``.

    Returns:
        48 bits of milliseconds since 1970 and 80 random bits in Crockford's base 32 (the layout of the ULID spec).
    """
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return prefix + "_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def fresh_trace_id() -> TraceId:
    """Make a W3C trace id: 32 lower-case hexadecimal digits, not all zero."""
    return TraceId(os.urandom(16).hex())


def fresh_span_id() -> SpanId:
    """Make a W3C span id: 16 lower-case hexadecimal digits, not all zero."""
    return SpanId(os.urandom(8).hex())
