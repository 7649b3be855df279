"""Questions about telemetry as people and programs write them: text and query parameters in, a store's queries out.

The REST API and the command line ask the same questions in the same words; both are read here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import Any, Final, TypeVar, get_args

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from tidemill.kernel import InvalidInput
from tidemill.telemetry import FIELDS, MEASURES, Condition, Measure, SeriesQuery, SessionQuery, Span, SpanQuery
from tidemill.telemetry.queries import Aggregate, Operator

COUNTS: Final = ("requests", "errors", "error_share")
"""Measures that take no aggregate."""

NUMBERS: Final = tuple(one for one in MEASURES if one not in COUNTS)
"""Numbers of a span that are aggregated."""

AGGREGATES: Final[tuple[str, ...]] = get_args(Aggregate)

_TEXTS: Final = frozenset(
    one.name for one in msgspec.structs.fields(Span) if one.type is str or set(get_args(one.type)) == {str, NoneType}
) | {"status"}
_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_CONDITION: Final = re.compile(
    r"\s*(?P<field>[^\s=!<>]+)\s*(?P<operator>==|!=|<=|>=|=|<|>|\s(?:in|contains|exists|missing)\b)\s*(?P<value>.*)",
    re.DOTALL,
)
_NS: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_ROWS: Final = 10_000
_LEAST_STEP_S: Final = 1.0
#: Digits of a Unix time in seconds, milliseconds, microseconds and nanoseconds, for this and the next two centuries.
_UNIX_DIGITS: Final = {9: _NS, 10: _NS, 13: 1_000_000, 16: 1000, 19: 1}


class Which(BaseModel):
    """Which requests, or spans."""

    model_config = ConfigDict(extra="forbid")

    where: list[str] = Field([], description="Conditions 'field operator value'; all must hold.")
    text: str | None = Field(None, description='Words that input or output holds; "in quotes" in that order.')
    since: str | None = Field(None, description="From here on: 2h (ago), 7d, 2026-11-24, 2026-11-24T10:00.")
    until: str | None = Field(None, description="Up to here; written like since.")
    endpoint: str | None = Field(None, description="Only requests to this endpoint.")
    release: str | None = Field(None, description="Only answers of this release: NAME@7 or a digest.")
    status: str | None = Field(None, description="Only requests that ended so.")
    spans: bool = Field(False, description="All spans, not only those that stand for a whole request.")


_Question = TypeVar("_Question", bound=Which)


class ListQuestion(Which):
    """The newest requests, a page at a time."""

    limit: int = Field(50, ge=1, le=1000, description="At most so many.")
    cursor: str | None = Field(None, description="What the page before gave as 'next'.")
    content: bool = Field(False, description="Bring along what was said.")


class FollowQuestion(Which):
    """Spans in the order in which they were stored: everything, or what came since."""

    after_seq: int = Field(0, ge=0, description="Only what was stored after this place.")
    limit: int = Field(1000, ge=1, le=5000, description="At most so many.")
    content: bool = Field(False, description="Bring along what was said.")


class SeriesQuestion(Which):
    """Measures, over time and by group."""

    measure: list[str] = Field([], description="requests, errors, error_share, or AGGREGATE:NUMBER as p95:duration_s.")
    by: list[str] = Field([], description="Group by these fields.")
    every: str | None = Field(None, description="Length of a step: 5m, 1h, 1d. Empty: one row a group.")
    limit: int = Field(2000, ge=1, le=_MOST_ROWS, description="At most so many rows.")


class SessionsQuestion(Which):
    """Sessions, newest activity first."""

    limit: int = Field(50, ge=1, le=1000, description="At most so many.")


class CompareQuestion(Which):
    """Two releases side by side."""

    first: str = Field(description="A release: NAME@7 or a digest.")
    second: str = Field(description="The release that it is compared with.")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Error rate of each interval.")


def parameters(question: Which) -> dict[str, Any]:
    """A question as the parameters of a URL: what differs from the defaults."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in question.model_dump(exclude_defaults=True).items()
        if value is not None
    }


def parse_condition(text: str, *, now_ns: int) -> Condition:
    """Read ``field operator value``.

    Args:
        text: e.g. ``duration_s > 2``, ``status = error``, ``request_model in small, large``, ``name contains refund``,
            ``attributes.tool exists``, ``user_key missing``, ``duration_s >= 500ms``, ``started_at_ns >= 2h``. Text in
            quotes stays text.
        now_ns: what moments are counted back from, nanoseconds since 1970.

    Raises:
        InvalidInput: not such a text, or a field that there is not.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise InvalidInput(
            f"The condition '{text}' cannot be read.",
            hint="Write 'field operator value', e.g. 'duration_s > 2'. "
            "Operators: = != < <= > >= in contains exists missing",
        )
    field = check_field(found["field"])
    operator, value = found["operator"].strip(), found["value"].strip()
    if operator in ("exists", "missing"):
        if value:
            raise InvalidInput(f"The condition '{text}' says too much: nothing follows '{operator}'.")
        return Condition(field, "exists", operator == "exists")
    if not value:
        raise InvalidInput(f"The condition '{text}' has no value to compare with.")
    checked: Operator = "=" if operator == "==" else operator  # type: ignore[assignment]  # the pattern allows no other
    if checked == "in":
        parts = [part for part in _split(value.strip("()[]")) if part]
        if not parts:
            raise InvalidInput(f"The condition '{text}' has no value to compare with.")
        return Condition(field, checked, tuple(_value(field, part, now_ns) for part in parts))
    if checked == "contains":
        return Condition(field, checked, _unquoted(value))
    return Condition(field, checked, _value(field, value, now_ns))


def check_field(name: str) -> str:
    """The field of that name.

    Raises:
        InvalidInput: there is none; the message says which there are.
    """
    head, dot, rest = name.partition(".")
    if name in FIELDS or (head in ("attributes", "score") and dot and rest):
        return name
    raise InvalidInput(
        f"There is no field '{name}'{_near(name, FIELDS)}.",
        hint=f"Fields: {', '.join(FIELDS)}, attributes.NAME, score.NAME",
    )


def parse_measure(text: str) -> Measure:
    """Read a measure: ``requests``, ``errors``, ``error_share``, ``p95:duration_s`` or ``p95_duration_s``.

    A number without an aggregate is summed up when it counts something and is a time's 95th percentile otherwise.

    Raises:
        InvalidInput: it is none of these; the message says which there are.
    """
    name = text.strip()
    if name in COUNTS:
        return Measure(name)
    aggregate, _, number = name.partition(":") if ":" in name else name.partition("_")
    if aggregate not in AGGREGATES:
        aggregate, number = "p95" if name.endswith("_s") else "sum", name
    if number in NUMBERS:
        return Measure(number, aggregate)  # type: ignore[arg-type]  # checked just before
    raise InvalidInput(
        f"There is no measure '{name}'{_near(number, (*COUNTS, *NUMBERS))}.",
        hint=f"Measures: {', '.join(COUNTS)}; or AGGREGATE:NUMBER with {', '.join(AGGREGATES)} "
        f"and {', '.join(NUMBERS)}",
    )


def parse_duration_s(text: str) -> float:
    """Read a duration: ``90s``, ``5m``, ``2h``, ``7d``, ``1h30m``, ``250ms``; seconds.

    Raises:
        InvalidInput: it is none, or not above zero.
    """
    bare = text.strip().replace(" ", "")
    parts = _DURATION.findall(bare)
    if not parts or "".join(number + unit for number, unit in parts) != bare:
        raise InvalidInput(f"'{text}' is no duration: write e.g. 90s, 5m, 2h, 7d or 1h30m.")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise InvalidInput(f"'{text}' is no duration: it must be above zero.")
    return seconds


def parse_moment(text: str, *, now_ns: int) -> int:
    """Read a moment, nanoseconds since 1970.

    Args:
        text: a duration (so long ago), ``now``, ``today``, ``yesterday``, an ISO date or time (UTC where it names no
            other zone), or Unix time in seconds, milliseconds, microseconds or nanoseconds.
        now_ns: the present.

    Raises:
        InvalidInput: it is none of these.
    """
    bare = text.strip()
    today = datetime.fromtimestamp(now_ns // _NS, UTC).replace(hour=0, minute=0, second=0)
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    if bare == "now":
        return now_ns
    if bare.isascii() and bare.isdigit():
        if len(bare) in _UNIX_DIGITS:
            return int(bare) * _UNIX_DIGITS[len(bare)]
        at = None
    elif _DURATION.match(bare) and not re.match(r"\d{4}-", bare):
        return now_ns - int(parse_duration_s(bare) * _NS)
    else:
        at = named.get(bare) or _iso(bare)
    if at is None:
        raise InvalidInput(
            f"'{text}' is no moment: write how long ago (30m, 2h, 7d) or a date (2026-11-24, 2026-11-24T10:00)."
        )
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


def conditions(question: Which, *, now_ns: int) -> tuple[Condition, ...]:
    """All conditions of a question but its time, text and release."""
    found = [parse_condition(one, now_ns=now_ns) for one in question.where]
    if question.endpoint is not None:
        found.append(Condition("endpoint", "=", question.endpoint))
    if question.status is not None:
        found.append(Condition("status", "=", question.status))
    return tuple(found)


def span_query(question: ListQuestion | FollowQuestion, where: Sequence[Condition], *, now_ns: int) -> SpanQuery:
    """The store's query behind a question; ``where`` is what ``conditions`` gave, with releases found."""
    since_ns, until_ns = times(question, now_ns=now_ns)
    newest = isinstance(question, ListQuestion)
    return SpanQuery(
        where=tuple(where),
        text=question.text,
        since_ns=since_ns,
        until_ns=until_ns,
        limit=question.limit,
        newest_first=newest,
        after_seq=0 if isinstance(question, ListQuestion) else question.after_seq,
        roots_only=not question.spans,
        with_references=isinstance(question, FollowQuestion),
        with_content=question.content,
    )


def series_query(question: SeriesQuestion, where: Sequence[Condition], *, now_ns: int) -> SeriesQuery:
    """The store's query behind a series."""
    if question.text is not None:
        raise InvalidInput("A series cannot be limited by text: text is searched in lists, exports and samples.")
    since_ns, until_ns = times(question, now_ns=now_ns)
    every_s = None if question.every is None else parse_duration_s(question.every)
    if every_s is not None and every_s < _LEAST_STEP_S:
        raise InvalidInput(f"A step of '{question.every}' is too short: the least is one second.")
    measures = question.measure or ["requests", "error_share", "p50:duration_s", "p95:duration_s", "sum:cost_usd"]
    return SeriesQuery(
        measures=tuple(dict.fromkeys(parse_measure(one) for one in measures)),
        group_by=tuple(dict.fromkeys(check_group(one) for one in question.by)),
        every_s=every_s,
        since_ns=since_ns,
        until_ns=until_ns,
        where=tuple(where),
        roots_only=not question.spans,
        limit=question.limit,
    )


def session_query(question: SessionsQuestion, where: Sequence[Condition], *, now_ns: int) -> SessionQuery:
    """The store's query behind a list of sessions."""
    if question.text is not None:
        raise InvalidInput("Sessions cannot be limited by text: search it in a list of traces.")
    since_ns, until_ns = times(question, now_ns=now_ns)
    return SessionQuery(since_ns=since_ns, until_ns=until_ns, where=tuple(where), limit=question.limit)


def check_group(name: str) -> str:
    """A field that a series may be grouped by.

    Raises:
        InvalidInput: there is none of that name, or it is a score.
    """
    if name.startswith("score."):
        raise InvalidInput(f"A series cannot be grouped by '{name}': scores can be conditions.")
    return check_field(name)


def times(question: Which, *, now_ns: int) -> tuple[int | None, int | None]:
    """Since and until of a question, nanoseconds since 1970.

    Raises:
        InvalidInput: one cannot be read, or nothing lies between them.
    """
    since_ns = None if question.since is None else parse_moment(question.since, now_ns=now_ns)
    until_ns = None if question.until is None else parse_moment(question.until, now_ns=now_ns)
    if since_ns is not None and until_ns is not None and since_ns >= until_ns:
        raise InvalidInput(f"Nothing lies between '{question.since}' and '{question.until}': turn them round.")
    return since_ns, until_ns


def fixed(question: _Question, *, now_ns: int) -> _Question:
    """The question with its times as dates: asked page by page, ``2h`` would mean another moment at each."""
    since_ns, until_ns = times(question, now_ns=now_ns)
    return question.model_copy(update={"since": _date(since_ns), "until": _date(until_ns)})


def write_cursor(started_at_ns: int, ingest_seq: int) -> str:
    """The place of a span in the order of a list."""
    return f"{started_at_ns}.{ingest_seq}"


def read_cursor(text: str) -> tuple[int, int]:
    """The place that ``write_cursor`` wrote: start, nanoseconds since 1970, and place in the order of storing.

    Raises:
        InvalidInput: it did not.
    """
    started, _, seq = text.partition(".")
    if not (re.fullmatch(r"-?[0-9]{1,20}", started) and re.fullmatch(r"[0-9]{1,20}", seq)):
        raise InvalidInput(f"'{text[:80]}' is no cursor: give the 'next' of the page before.")
    return int(started), int(seq)


def _date(at_ns: int | None) -> str | None:
    return None if at_ns is None else (_EPOCH + timedelta(microseconds=at_ns // 1000)).isoformat()


def _iso(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _split(text: str) -> list[str]:
    """Values between commas; a comma within quotes is part of its value."""
    return [part.strip() for part in re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]+)\s*(?:,|$)""", text)]


def _unquoted(text: str) -> str:
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _value(field: str, text: str, now_ns: int) -> str | int | float | bool:
    bare = _unquoted(text)
    if bare != text or field in _TEXTS:
        return bare
    if field.endswith("_at_ns"):
        return parse_moment(bare, now_ns=now_ns)
    if bare in ("true", "false"):
        return bare == "true"
    for read in (int, float):
        try:
            number = read(bare)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    if field.endswith("_s"):
        return parse_duration_s(bare)
    if field in FIELDS:
        raise InvalidInput(f"The field '{field}' is a number, and '{bare}' is none.")
    return bare
