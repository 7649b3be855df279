"""Any conditions choose the spans that plain Python chooses, whatever values spans and conditions hold."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.telemetry.making import SECOND, span
from tidemill.kernel import Scope
from tidemill.telemetry import Batch, Condition, Measure, SeriesQuery, Span, SpanQuery
from tidemill.telemetry.spans.embedded import DuckDBSpanStore

ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
TEXTS = st.sampled_from(["", "a", "A", "ab", "it's", 'q"uote', "naïve", "100%", "a_b", "退款", "true", "1"])
WHOLE = st.integers(-3, 3) | st.sampled_from([2**53 - 1, -(2**40)])
REALS = st.sampled_from([0.0, 0.5, -1.5, 1e-7, 1e18, 2.0])
NUMBERS = WHOLE | REALS
FLAGS = st.booleans()
NAMES = ("plan", "a.b", "a/b", "a~b", "naïve")
VALUES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "endpoint": TEXTS, "service": TEXTS, "input_tokens": WHOLE, "cost_usd": NUMBERS, "stream": FLAGS,
    "total_tokens": WHOLE, "duration_s": st.integers(0, 4) | REALS,
}  # fmt: skip
ATTRIBUTES = st.dictionaries(st.sampled_from(NAMES), TEXTS | NUMBERS | FLAGS, max_size=3)
SPANS: Final[st.SearchStrategy[dict[str, Any]]] = st.builds(
    dict,
    endpoint=st.none() | TEXTS,
    service=st.none() | TEXTS,
    input_tokens=st.none() | st.integers(0, 3),
    output_tokens=st.none() | st.integers(0, 3),
    cost_usd=st.none() | REALS,
    stream=st.none() | FLAGS,
    attributes=ATTRIBUTES,
    status=st.sampled_from(["ok", "error", "interrupted"]),
    seconds=st.integers(0, 4),
)


def alike(one: st.SearchStrategy[Any], *, ordered: bool = True, text: bool = False) -> st.SearchStrategy[Any]:
    """Operators with values of one kind."""
    signs = ["=", "!=", *(("<", "<=", ">", ">=") if ordered else ()), *(("contains",) if text else ())]
    plain = st.tuples(st.sampled_from(signs), one)
    return plain | st.tuples(st.just("in"), st.lists(one, max_size=3).map(tuple)) | st.tuples(st.just("exists"), FLAGS)


KINDS = {"text": alike(TEXTS, text=True), "number": alike(NUMBERS), "flag": alike(FLAGS, ordered=False)}


def kind_of(values: st.SearchStrategy[Any]) -> str:
    return {id(TEXTS): "text", id(FLAGS): "flag"}.get(id(values), "number")


CONDITIONS = st.lists(
    st.one_of(
        *(
            st.tuples(st.just(name), KINDS[kind_of(values)]).map(lambda one: Condition(one[0], one[1][0], one[1][1]))
            for name, values in VALUES.items()
        ),
        st.tuples(st.sampled_from(NAMES), st.one_of(*KINDS.values())).map(
            lambda one: Condition(f"attributes.{one[0]}", one[1][0], one[1][1])
        ),
    ),
    min_size=1,
    max_size=3,
)


def value_of(one: Span, field: str) -> Any:
    if field.startswith("attributes."):
        return one.attributes.get(field.removeprefix("attributes."))
    if field == "duration_s":
        return None if one.status == "interrupted" else (one.ended_at_ns - one.started_at_ns) / 1e9
    if field == "total_tokens":
        parts = [part for part in (one.input_tokens, one.output_tokens) if part is not None]
        return sum(parts) if parts else None
    return getattr(one, field)


def sort_of(value: Any) -> str:
    return "flag" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def meets(one: Span, asked: Condition) -> bool:
    """What the documentation of conditions says, as Python."""
    held: Any = value_of(one, asked.field)
    wanted: Any = asked.value
    if asked.operator == "exists":
        return bool((held is not None) == wanted)
    if held is not None and wanted != () and sort_of(held) != sort_of(wanted[0] if asked.operator == "in" else wanted):
        held = None  # a value of another kind is none that could be compared
    if asked.operator == "!=":
        return bool(held is None or held != wanted)
    if held is None:
        return False
    if asked.operator == "in":
        return held in wanted
    if asked.operator == "contains":
        return wanted in held
    return ORDERS[asked.operator](held, wanted)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBSpanStore]:
    with DuckDBSpanStore(tmp_path_factory.mktemp("store") / "t.duckdb", Scope("shop")) as opened:
        yield opened


_numbers = itertools.count(1)
_sessions = itertools.count(1)


def made(drawn: Sequence[dict[str, Any]], session_id: str) -> list[Span]:
    found = []
    for fields in drawn:
        plain, number = dict(fields), next(_numbers)
        start = 1_700_000_000 * SECOND + number
        ended = start + plain.pop("seconds") * SECOND
        found.append(span(number, started_at_ns=start, ended_at_ns=ended, session_id=session_id, **plain))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.lists(SPANS, min_size=1, max_size=12), asked=st.lists(CONDITIONS, min_size=1, max_size=4))
def test_conditions_choose_what_python_chooses(
    store: DuckDBSpanStore, drawn: list[dict[str, Any]], asked: list[list[Condition]]
) -> None:
    session = Condition("session_id", "=", f"s{next(_sessions)}")
    spans = made(drawn, str(session.value))
    store.commit(Batch(spans), {})
    for conditions in asked:
        expected = [one for one in spans if all(meets(one, condition) for condition in conditions)]
        where = (session, *conditions)
        assert [one.span for one in store.spans(SpanQuery(where=where))] == expected
        (row,) = store.series(SeriesQuery(measures=(Measure("requests"),), where=where)).rows
        assert row.values == {"requests": len(expected)}
