"""Why an attempt failed, and what it means: tables, without IO.

What may be asked again is decided like the official clients decide it: no answer at all, 408, 409, 429 and 5xx, unless
the upstream's ``x-should-retry`` says otherwise. A mistake of the request itself is told to the client at once. Once
the client has seen content nothing is asked again, whatever the failure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from tidemill.gateway.answers import error_body
from tidemill.gateway.routing import FAILURE, Again, AttemptResult, Reading, reading_of, retry_after_of
from tidemill.kernel import UserError
from tidemill.models.providers import UnsupportedField


class Cause(StrEnum):
    """What went wrong. The words of the transport's failures are the first four."""

    CONNECT = "connect"  # no connection; nothing was sent
    LOST = "lost"  # it broke before the answer was complete
    TIMEOUT = "timeout"  # no head, no first token, or no further piece in time
    MALFORMED = "malformed"  # not HTTP, not JSON, or an answer without an answer
    STATUS = "status"  # a complete answer with an error status
    EVENT = "event"  # an error inside a stream or a body whose status was good
    UNSUPPORTED = "unsupported"  # the target's provider cannot serve the request
    DEADLINE = "deadline"  # the request's own time is over
    UNAVAILABLE = "unavailable"  # every target is left alone for a while
    FAULT = "fault"  # a mistake of the gateway's own


class Failed(NamedTuple):
    """A failed attempt.

    Args:
        cause: what went wrong.
        status: the HTTP status a client is told if this is the last attempt.
        error_type: the class word of spans.
        detail: what happened, for the operator.
        body: the error to tell as OpenAI's JSON; empty lets the gateway word it.
        passed: header lines of the upstream's answer that clients read.
        retry_after_s: how long the upstream asked to be left alone.
        should_retry: the upstream's own word on whether to ask again.
        head_status: the upstream's HTTP status, if one came.
    """

    cause: Cause
    status: int
    error_type: str
    detail: str
    body: bytes = b""
    passed: bytes = b""
    retry_after_s: float | None = None
    should_retry: bool | None = None
    head_status: int | None = None


def malformed(detail: str, head_status: int, cause: Cause = Cause.MALFORMED) -> Failed:
    """An answer that is not what its format allows."""
    return Failed(cause, 502, f"upstream_{cause}", detail, head_status=head_status or None)


def unsupported(error: UserError) -> Failed:
    """A request that the target's provider cannot serve."""
    field = error.field if isinstance(error, UnsupportedField) else None
    body = error_body(400, str(error), "unsupported_field" if field else "unsupported", field)
    return Failed(Cause.UNSUPPORTED, 400, "unsupported", str(error), body)


def too_deep() -> Failed:
    """A request nested so deeply that a step after its reader cannot follow it."""
    text = "The request body is nested too deeply."
    return Failed(Cause.UNSUPPORTED, 400, "too_deep", text, error_body(400, text, "invalid_json"))


def fault() -> Failed:
    """A mistake of the gateway's own."""
    text = "The gateway made a mistake of its own; its log says which. Try again, and please report it."
    return Failed(Cause.FAULT, 500, "gateway_fault", text, error_body(500, text, "internal_error"))


_READINGS: Final[Mapping[Cause, Reading]] = MappingProxyType(
    {
        Cause.CONNECT: FAILURE,
        Cause.LOST: FAILURE,
        Cause.TIMEOUT: FAILURE,
        Cause.MALFORMED: FAILURE,
        Cause.UNSUPPORTED: Reading(AttemptResult.ANSWERED, Again.ELSEWHERE),
        Cause.DEADLINE: Reading(AttemptResult.FAILED, Again.NOWHERE),
        Cause.UNAVAILABLE: Reading(AttemptResult.ABANDONED, Again.NOWHERE),
        Cause.FAULT: Reading(AttemptResult.ABANDONED, Again.NOWHERE),
    }
)


def reading(failed: Failed) -> Reading:
    """What a failure means for its target, and for the request as long as the client has seen nothing of an answer.

    Of statuses, and of errors inside an answer, the status decides, unless the upstream says itself whether to ask
    again.
    """
    found = _READINGS.get(failed.cause)
    if found is not None:
        return found
    found = reading_of(failed.status)
    if failed.should_retry is None:
        return found
    if failed.should_retry:
        return Reading(found.result, Again.ANYWHERE)
    return Reading(found.result, Again.ELSEWHERE if found.again is not Again.NOWHERE else Again.NOWHERE)


_WORDS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "rate_limit_exceeded": 429,
        "rate_limit_error": 429,
        "insufficient_quota": 429,
        "too_many_requests": 429,
        "overloaded": 503,
        "overloaded_error": 503,
        "service_unavailable": 503,
        "timeout": 504,
        "timeout_error": 504,
        "server_error": 500,
        "api_error": 500,
        "internal_server_error": 500,
        "invalid_request_error": 400,
        "context_length_exceeded": 400,
        "content_filter": 400,
        "authentication_error": 401,
        "permission_error": 403,
        "not_found_error": 404,
    }
)


class _Said(NamedTuple):
    status: int
    word: str


def error_said(error: bytes) -> _Said:
    """Status and class word of an error that came with a good status.

    Args:
        error: the JSON under ``error``: an object, or text.
    """
    try:
        found: Any = msgspec.json.decode(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Said(502, "error")
    if not isinstance(found, dict):
        return _Said(502, "error")
    word = "error"
    for name in ("code", "type", "status"):
        value = found.get(name)
        if isinstance(value, str) and value and word == "error":
            word = value[:64]
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) == 3 else value
        if isinstance(number, int) and 400 <= number <= 599:
            return _Said(number, word if word != "error" else str(number))
    for name in ("code", "type"):
        status = _WORDS.get(str(found.get(name)).lower())
        if status is not None:
            return _Said(status, word)
    return _Said(502, word)


def event_failure(error: bytes) -> Failed:
    """The failure that an error inside a stream, or inside a body with a good status, is.

    Args:
        error: the JSON under ``error``.
    """
    status, word = error_said(error)
    body = b'{"error":%b}' % error if error.startswith(b"{") else error_body(status, "The model failed.", word)
    return Failed(Cause.EVENT, status, word, "the answer reports an error", body)


_LINE: Final = re.compile(rb"(?im)^(retry-after-ms|retry-after|x-should-retry):[ \t]*([^\r\n]*)")


def retry_facts(passed: bytes, now_s: float) -> tuple[float | None, bool | None]:
    """How long to wait and whether to ask again, as an upstream's header lines say.

    Args:
        passed: header lines.
        now_s: Unix time, for dates.

    Returns:
        seconds or ``None``, and the value of ``x-should-retry`` or ``None``.
    """
    if not passed:
        return None, None
    lines = {line[1].lower(): line[2].strip() for line in _LINE.finditer(passed)}
    wait_s = retry_after_of(lines.get(b"retry-after"), lines.get(b"retry-after-ms"), now_s)
    return wait_s, {b"true": True, b"false": False}.get(lines.get(b"x-should-retry", b"").lower())
