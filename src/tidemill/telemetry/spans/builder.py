"""The questions as SQL, for both dialects: values are bound, names are looked up in ``fields``, never copied.

A statement reads spans under the alias ``s``; what stands behind it (a table, or hot rows and cold partitions together)
is the store's business.
"""

# ruff: noqa: S608 - statements are put together from constants of this package; values are bound

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tidemill.kernel import InvalidInput, Scope
from tidemill.telemetry.queries import Condition, Measure, SeriesQuery, SessionQuery
from tidemill.telemetry.spans.fields import ATTRIBUTE, COUNTED, MEASURED, SCORE, Kind, expression_of, kind_of
from tidemill.telemetry.store import FAILED_STATUSES, ScoreQuery, SpanQuery, SummaryQuery

FAILED: Final = "s.status IN (" + ", ".join(f"'{status}'" for status in FAILED_STATUSES) + ")"
_COMPARE: Final = {"=": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_SHARES: Final = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_PLAIN: Final = {"sum": "sum", "mean": "avg", "min": "min", "max": "max"}
_NAMED: Final = ("endpoint", "release", "assigned_release", "arm", "session_id", "rollout", "operation", "status")
_SUMMARY_GROUPS: Final = ("release", "assigned_release", "arm", "endpoint", "request_model", "status")
MINUTE_NS: Final = 60_000_000_000

Value = str | int | float | bool


class Dialect(Protocol):
    """What differs between DuckDB's SQL and ClickHouse's."""

    def placeholder(self, name: str, value: Any) -> str:
        """How a bound value is written."""
        ...

    def attribute(self, name: str, kind: Kind) -> str:
        """An attribute's value as text, number or flag, NULL where it is of another kind; raw JSON for ``any``.

        Args:
            name: the placeholder of the attribute's name as ``attribute_key`` gives it.
            kind: what is wanted.
        """
        ...

    def attribute_key(self, name: str) -> str:
        """What is bound for the name of an attribute."""
        ...

    def quantile(self, share: float, of: str) -> str:
        """The exact quantile, linearly interpolated; NULL over nothing."""
        ...

    def step(self, of: str, step_ns: str) -> str:
        """A whole number rounded down to a multiple of another."""
        ...

    def contains(self, text: str, part: str) -> str:
        """Whether a text contains another."""
        ...

    def matches(self, text: str, pattern: str) -> str:
        """Whether a regular expression matches anywhere in a text."""
        ...


@dataclass(slots=True)
class Statement:
    """A statement that is being put together, with its bound values."""

    dialect: Dialect
    scope: Scope
    values: dict[str, Any] = field(default_factory=dict)

    def bind(self, value: Any) -> str:
        """Bind a value; its placeholder."""
        name = f"p{len(self.values)}"
        self.values[name] = value
        return self.dialect.placeholder(name, value)

    def owned(self, alias: str = "s") -> str:
        """The condition that rows are the scope's own."""
        return f"{alias}.project = {self.bind(self.scope.project)} AND {alias}.tenant = {self.bind(self.scope.tenant)}"

    def within(self, since_ns: int | None, until_ns: int | None) -> list[str]:
        """Conditions on the start."""
        found = []
        if since_ns is not None:
            found.append(f"s.started_at_ns >= {self.bind(since_ns)}")
        if until_ns is not None:
            found.append(f"s.started_at_ns < {self.bind(until_ns)}")
        return found

    def among(self, expression: str, values: Sequence[Any]) -> str:
        """The condition that an expression is one of some values; none of them, nothing."""
        if not values:
            return "1 = 0"
        return f"{expression} IN ({', '.join(self.bind(value) for value in values)})"

    def condition(self, asked: Condition) -> str:
        """A condition of a query.

        Raises:
            InvalidInput: a field or an operator that there is not, or a value of the wrong kind.
        """
        kind = kind_of(asked.field)
        if asked.operator == "in" and not isinstance(asked.value, str | int | float | bool) and not asked.value:
            return "1 = 0"
        if asked.field.startswith(SCORE):
            return self._score(asked)
        if asked.operator == "exists":
            expression = self.expression(asked.field)
            return f"{expression} IS {'NOT ' if _flag(asked) else ''}NULL"
        valued = _kind_of_value(asked)
        if kind not in ("any", valued):
            raise InvalidInput(f"'{asked.field}' holds {_NOUN[kind]}; it cannot be compared with {asked.value!r}.")
        if asked.field.startswith(ATTRIBUTE):
            expression = self._attribute(asked.field, valued)
        else:
            expression = self.expression(asked.field)
        return self._compared(expression, asked, valued)

    def expression(self, name: str) -> str:
        """A field's value; of an attribute its raw JSON.

        Raises:
            InvalidInput: there is no such field, or it is a score, which is of a trace and no value of a span.
        """
        kind_of(name)
        if name.startswith(SCORE):
            raise InvalidInput(f"'{name}' can restrict a query, and nothing else.")
        return self._attribute(name, "any") if name.startswith(ATTRIBUTE) else expression_of(name)

    def _attribute(self, name: str, kind: Kind) -> str:
        key = self.bind(self.dialect.attribute_key(name.removeprefix(ATTRIBUTE)))
        return self.dialect.attribute(key, kind)

    def _compared(self, expression: str, asked: Condition, kind: Kind) -> str:
        if asked.operator == "in":
            return self.among(expression, _values(asked))
        if asked.operator == "contains":
            if kind != "text":
                raise InvalidInput(f"'contains' is for texts; {asked.value!r} is none.")
            return self.dialect.contains(expression, self.bind(asked.value))
        sign = _COMPARE.get(asked.operator)
        if sign is None:
            raise InvalidInput(
                f"There is no operator '{asked.operator}'.",
                hint=f"Operators are {', '.join(_COMPARE)}, in, contains and exists.",
            )
        if kind == "flag" and sign not in ("=", "<>"):
            raise InvalidInput(f"'{asked.field}' is true or false: it has no order.")
        compared = f"{expression} {sign} {self.bind(asked.value)}"
        return f"({expression} IS NULL OR {compared})" if sign == "<>" else compared

    def _score(self, asked: Condition) -> str:
        """A trace has a score of a name that meets the condition; for ``!=``, it has none that is equal."""
        name = asked.field.removeprefix(SCORE)
        conditions = [self.owned("c"), f"c.name = {self.bind(name)}"]
        inside = asked.operator != "!="
        if asked.operator == "exists":
            inside = _flag(asked)
        else:
            kind = _kind_of_value(asked)
            if kind == "flag":
                raise InvalidInput("A score is a number or a label, never true or false.")
            same = Condition(asked.field, "=", asked.value) if not inside else asked
            conditions.append(self._compared("c.label" if kind == "text" else "c.value", same, kind))
        scored = f"SELECT c.trace_id FROM scores c WHERE {' AND '.join(conditions)}"
        return f"s.trace_id {'' if inside else 'NOT '}IN ({scored})"


_NOUN: Final[dict[Kind, str]] = {"text": "text", "number": "numbers", "flag": "true or false", "any": "any value"}


def _flag(asked: Condition) -> bool:
    if not isinstance(asked.value, bool):
        raise InvalidInput(f"'exists' takes true or false, not {asked.value!r}.")
    return asked.value


def _kind_of_value(asked: Condition) -> Kind:
    many = not isinstance(asked.value, str | int | float | bool)
    if many != (asked.operator == "in"):
        raise InvalidInput(f"Operator '{asked.operator}' on '{asked.field}' does not take {asked.value!r}.")
    values = _values(asked) if many else [asked.value]
    kinds: set[Kind] = {_kind_of_one(value) for value in values}
    if len(kinds) > 1:
        raise InvalidInput(f"The values for '{asked.field}' are of several kinds: {asked.value!r}.")
    return kinds.pop() if kinds else "text"


def _values(asked: Condition) -> list[Any]:
    values: Any = asked.value  # only asked of conditions that hold several
    return list(values)


def _kind_of_one(value: object) -> Kind:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) >= 2**63:
            raise InvalidInput(f"{value!r} is not a number a span can have.")
        return "number"
    if isinstance(value, str):
        return "text"
    raise InvalidInput(f"{value!r} is neither text nor number nor true or false.")


def span_conditions(statement: Statement, query: SpanQuery) -> list[str]:
    """What a span must meet, full text apart."""
    found = [statement.owned()]
    for name in _NAMED:
        value = getattr(query, name)
        if value is not None:
            found.append(f's."{name}" = {statement.bind(value)}')
    found += statement.within(query.since_ns, query.until_ns)
    if query.after_seq:
        found.append(f"s.seq > {statement.bind(query.after_seq)}")
    if query.roots_only:
        found.append("s.is_root")
    if query.before is not None:
        start, seq = (statement.bind(one) for one in query.before)
        found.append(f"s.started_at_ns <= {start} AND (s.started_at_ns < {start} OR s.seq < {seq})")
    return found + [statement.condition(one) for one in query.where]


def series(statement: Statement, source: str, query: SeriesQuery) -> str:
    """Rows of step (if any), groups, measures; one more than the limit where there are more.

    Raises:
        InvalidInput: a field, measure or aggregate that there is not; no measure; a step that is not positive.
    """
    if not query.measures:
        raise InvalidInput("A series has at least one measure, e.g. requests.")
    heads = [statement.expression(name) for name in query.group_by]
    if query.every_s is not None:
        step_ns = round(query.every_s * 1e9) if math.isfinite(query.every_s) else 0
        if step_ns <= 0:
            raise InvalidInput(f"A series' step is a positive number of seconds, not {query.every_s}.")
        heads.insert(0, statement.dialect.step("s.started_at_ns", statement.bind(step_ns)))
    measures = [_measure(statement.dialect, measure) for measure in query.measures]
    conditions = [statement.owned(), *statement.within(query.since_ns, query.until_ns)]
    if query.roots_only:
        conditions.append("s.is_root")
    conditions += [statement.condition(one) for one in query.where]
    return _grouped(source, heads, measures, conditions) + f" LIMIT {int(query.limit) + 1}"


def _measure(dialect: Dialect, measure: Measure) -> str:
    if measure.of in COUNTED:
        if measure.aggregate is not None:
            raise InvalidInput(f"'{measure.of}' takes no aggregate.")
        counted = {
            "requests": "count(*)",
            "errors": f"coalesce(sum(CASE WHEN {FAILED} THEN 1 ELSE 0 END), 0)",
            "error_share": f"avg(CASE WHEN {FAILED} THEN 1.0 ELSE 0.0 END)",
        }
        return counted[measure.of]
    if measure.of not in MEASURED:
        raise InvalidInput(
            f"There is no measure '{measure.of}'.", hint=f"Measures are {', '.join((*COUNTED, *MEASURED))}."
        )
    of = expression_of(measure.of)
    if measure.aggregate in _SHARES:
        return dialect.quantile(_SHARES[measure.aggregate], of)
    if measure.aggregate not in _PLAIN:
        raise InvalidInput(
            f"'{measure.of}' needs an aggregate, and '{measure.aggregate}' is none.",
            hint=f"Aggregates are {', '.join((*_PLAIN, *_SHARES))}.",
        )
    return f"{_PLAIN[measure.aggregate]}({of})"


def _grouped(source: str, heads: Sequence[str], measures: Sequence[str], conditions: Sequence[str]) -> str:
    names = [f"h{place}" for place in range(len(heads))]
    head = "".join(f"{one} AS {name}, " for one, name in zip(heads, names, strict=True))
    # What nobody called in is no group: without groups an empty time has no row at all.
    tail = f"GROUP BY {', '.join(names)} " if names else ""
    order = f"ORDER BY {', '.join(f'{name} ASC NULLS LAST' for name in names)}" if names else ""
    return f"SELECT {head}{', '.join(measures)} FROM {source} s WHERE {' AND '.join(conditions)} {tail}{order}"


def summary(statement: Statement, source: str, query: SummaryQuery) -> str:
    """Rows of groups, requests, errors, three latency quantiles, first-chunk median, tokens in and out, cost.

    Raises:
        InvalidInput: spans cannot be grouped so.
    """
    heads = []
    for name in query.group_by:
        if name == "minute":
            heads.append(statement.dialect.step("s.started_at_ns", str(MINUTE_NS)))
        elif name in _SUMMARY_GROUPS:
            heads.append(f's."{name}"')
        else:
            known = ", ".join(sorted((*_SUMMARY_GROUPS, "minute")))
            raise InvalidInput(f"spans cannot be grouped by '{name}'; the groups are {known}")
    ok_s = f"(CASE WHEN {FAILED} THEN NULL ELSE (s.ended_at_ns - s.started_at_ns) / 1e9 END)"
    measures = [
        "count(*)",
        f"coalesce(sum(CASE WHEN {FAILED} THEN 1 ELSE 0 END), 0)",
        *(statement.dialect.quantile(share, ok_s) for share in (0.5, 0.95, 0.99)),
        statement.dialect.quantile(0.5, "s.time_to_first_chunk_s"),
        "coalesce(sum(s.input_tokens), 0)",
        "coalesce(sum(s.output_tokens), 0)",
        "coalesce(sum(s.cost_usd), 0)",
    ]
    conditions = [statement.owned(), *statement.within(query.since_ns, query.until_ns)]
    for column in ("endpoint", "release", "rollout", "operation"):
        value = getattr(query, column)
        if value is not None:
            conditions.append(f's."{column}" = {statement.bind(value)}')
    if query.roots_only:
        conditions.append("s.is_root")
    return _grouped(source, heads, measures, conditions)


def sessions(statement: Statement, source: str, query: SessionQuery) -> str:
    """Rows of session, first start, last end, traces, spans, errors, tokens in and out, cost."""
    conditions = [
        statement.owned(),
        "s.session_id IS NOT NULL",
        *statement.within(query.since_ns, query.until_ns),
        *(statement.condition(one) for one in query.where),
    ]
    return (
        "SELECT s.session_id AS session, min(s.started_at_ns), max(s.ended_at_ns) AS ended, "
        "sum(CASE WHEN s.is_root THEN 1 ELSE 0 END), count(*), "
        f"sum(CASE WHEN s.is_root AND {FAILED} THEN 1 ELSE 0 END), "
        "coalesce(sum(s.input_tokens), 0), coalesce(sum(s.output_tokens), 0), coalesce(sum(s.cost_usd), 0) "
        f"FROM {source} s WHERE {' AND '.join(conditions)} "
        f"GROUP BY session ORDER BY ended DESC, session LIMIT {int(query.limit)}"
    )


def values(statement: Statement, source: str, name: str, since_ns: int | None, until_ns: int | None, limit: int) -> str:
    """Rows of value and count, most frequent first."""
    expression = statement.expression(name)
    conditions = [statement.owned(), *statement.within(since_ns, until_ns), f"{expression} IS NOT NULL"]
    return (
        f"SELECT {expression} AS v, count(*) AS n FROM {source} s WHERE {' AND '.join(conditions)} "
        f"GROUP BY v ORDER BY n DESC, v LIMIT {int(limit)}"
    )


def scores(statement: Statement, columns: str, query: ScoreQuery) -> str:
    """Rows of place and the given columns, in the order of ingestion."""
    conditions = [statement.owned("c"), f"c.seq > {statement.bind(query.after_seq)}"]
    if query.trace_ids is not None:
        conditions.append(statement.among("c.trace_id", list(query.trace_ids)))
    if query.names is not None:
        conditions.append(statement.among("c.name", list(query.names)))
    return (
        f"SELECT c.seq, {columns} FROM scores c WHERE {' AND '.join(conditions)} "
        f"ORDER BY c.seq LIMIT {int(query.limit)}"
    )
