from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.cli.charts import bar, count, instant, number, seconds, share, sparkline, step_name, usd

numbers = st.floats(0, 1e9)


@given(st.lists(st.none() | numbers, max_size=300), st.integers(1, 120), st.booleans())
def test_a_line_has_one_column_a_value_as_far_as_there_is_room(
    values: list[float | None], columns: int, ascii_only: bool
) -> None:
    most = max((value for value in values if value is not None), default=0.0)
    line = sparkline(values, most=most, columns=columns, ascii_only=ascii_only)
    assert len(line) == min(len(values), columns)
    assert line.isascii() or not ascii_only
    if most > 0:
        assert ("@" if ascii_only else "█") in line
    if len(values) <= columns:
        assert [mark == " " for mark in line] == [value is None for value in values]


def test_each_column_shows_the_greatest_of_its_share() -> None:
    assert sparkline([0, 0, 8, None, None, None], most=8, columns=3) == "▁█ "
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], most=8, columns=8) == "▁▂▃▄▅▆▇█"


@given(st.none() | st.floats(-10, 1e9), numbers, st.integers(1, 40))
def test_a_bar_has_its_width(value: float | None, most: float, columns: int) -> None:
    assert len(bar(value, most=most, columns=columns)) == columns
    assert len(bar(value, most=most, columns=columns, ascii_only=True)) == columns


def test_bars_are_an_eighth_exact() -> None:
    assert bar(5, most=8, columns=2) == "█▎"
    assert bar(8, most=8, columns=2) == "██"
    assert bar(0, most=8, columns=2) == "  "


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        ("p95_duration_s", 0.00002, "20 µs"),
        ("p95_duration_s", 0.0123, "12.3 ms"),
        ("p95_duration_s", 0.25, "250 ms"),
        ("p95_duration_s", 1.254, "1.25 s"),
        ("p95_duration_s", 200, "3 min 20 s"),
        ("p95_duration_s", 7200, "2.0 h"),
        ("p95_duration_s", 864_000, "10.0 d"),
        ("sum_cost_usd", 0, "$0"),
        ("sum_cost_usd", 0.00231, "$0.0023"),
        ("sum_cost_usd", 0.00001, "$1.0e-05"),
        ("sum_cost_usd", 0.25, "$0.2500"),
        ("sum_cost_usd", 1234.5, "$1,234.50"),
        ("error_share", 0.01234, "1.23 %"),
        ("requests", 12345, "12,345"),
        ("sum_input_tokens", 1_234_567, "1.23 M"),
        ("mean_output_tokens", 21.456, "21.5"),
        ("mean_score.tone", 0.12345, "0.1235"),
        ("mean_score.tone", None, "-"),
    ],
)
def test_numbers_are_written_by_what_they_are(measure: str, value: float | None, text: str) -> None:
    assert number(measure, value) == text


def test_what_is_not_there_is_a_dash() -> None:
    assert {show(None) for show in (seconds, usd, share, count, instant)} == {"-"}


def test_moments() -> None:
    at_ns = 1_790_000_000 * 10**9
    assert instant(at_ns) == "2026-09-21 14:13:20"
    assert instant(at_ns, day=False) == "14:13:20"
    assert instant(10**25) == str(10**25)
    assert [step_name(at_ns, every) for every in (5, 300, 86_400)] == [
        "2026-09-21 14:13:20",
        "2026-09-21 14:13",
        "2026-09-21",
    ]
