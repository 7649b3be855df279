"""Which names a query may use, and what each is: a span's column, a number derived from columns, an attribute, a score.

Names come from outside and become part of a statement, so they are looked up here and never copied into it.
"""

from __future__ import annotations

from typing import Final, Literal

from tidemill.kernel import InvalidInput

Kind = Literal["text", "number", "flag", "any"]

ATTRIBUTE: Final = "attributes."
SCORE: Final = "score."

TEXT_COLUMNS: Final = (
    "trace_id", "span_id", "parent_span_id", "name", "operation", "status", "error_type", "endpoint", "release",
    "assigned_release", "arm", "session_id", "user_key", "provider", "request_model", "response_model", "rollout",
    "prompt", "service",
)  # fmt: skip
NUMBER_COLUMNS: Final = (
    "ingest_seq", "started_at_ns", "ended_at_ns", "http_status", "input_tokens", "output_tokens", "cached_input_tokens",
    "reasoning_output_tokens", "cost_usd", "time_to_first_chunk_s",
)  # fmt: skip
FLAG_COLUMNS: Final = ("stream", "is_root")

_DURATION: Final = (
    # Nobody knows when a call ended whose writer died.
    "(CASE WHEN s.status = 'interrupted' THEN NULL ELSE (s.ended_at_ns - s.started_at_ns) / 1e9 END)"
)
DERIVED: Final = {
    "duration_s": _DURATION,
    "between_tokens_s": (
        f"(CASE WHEN s.output_tokens > 1 THEN ({_DURATION} - s.time_to_first_chunk_s) / (s.output_tokens - 1) END)"
    ),
    "total_tokens": (
        "(CASE WHEN s.input_tokens IS NULL AND s.output_tokens IS NULL THEN NULL "
        "ELSE coalesce(s.input_tokens, 0) + coalesce(s.output_tokens, 0) END)"
    ),
}
"""Numbers computed from columns, as SQL both dialects read."""

MEASURED: Final = (
    "duration_s", "time_to_first_chunk_s", "between_tokens_s", "input_tokens", "output_tokens", "cached_input_tokens",
    "reasoning_output_tokens", "total_tokens", "cost_usd",
)  # fmt: skip
COUNTED: Final = ("requests", "errors", "error_share")
MEASURES: Final = (*COUNTED, *MEASURED)
"""What a series may measure; the first three take no aggregate."""
FIELDS: Final = (*TEXT_COLUMNS, *NUMBER_COLUMNS, *FLAG_COLUMNS, *DERIVED)
"""Every name but those of attributes and scores."""


def kind_of(field: str) -> Kind:
    """What a field's values are.

    Raises:
        InvalidInput: there is no such field.
    """
    if field in TEXT_COLUMNS:
        return "text"
    if field in NUMBER_COLUMNS or field in DERIVED:
        return "number"
    if field in FLAG_COLUMNS:
        return "flag"
    for prefix in (ATTRIBUTE, SCORE):
        if field.startswith(prefix) and len(field) > len(prefix):
            return "any"
    raise InvalidInput(
        f"Spans have no field '{field}'.",
        hint=f"Fields are {', '.join(FIELDS)}, attributes.NAME and score.NAME.",
    )


def expression_of(field: str) -> str:
    """The SQL of a column or a derived number; ``kind_of`` has been asked before."""
    return DERIVED.get(field) or ("s.seq" if field == "ingest_seq" else f's."{field}"')
