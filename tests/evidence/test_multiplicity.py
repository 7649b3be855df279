"""Multiplicity against values of statsmodels 0.15.0, the definitions read off directly, and laws."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.evidence import average_e, benjamini_hochberg, e_bh, holm
from tidemill.kernel import InvalidInput

NAMES = "abcdefghijkl"
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(lambda ps: dict(zip(NAMES, ps, strict=False)))
E_VALUES = st.lists(st.floats(0, 1e4), min_size=1, max_size=8).map(lambda es: dict(zip(NAMES, es, strict=False)))
ALPHA = st.sampled_from([0.01, 0.05, 0.1, 0.3])


def test_levels_equal_statsmodels():
    r = random.Random(6)
    p_values = {name: r.random() ** 3 for name in NAMES}
    assert list(holm(p_values).values()) == pytest.approx(
        [
            *(1, 1, 0.831932698598623, 0.19697580964384284, 1.106049214144963e-09, 1, 0.831932698598623, 1),
            *(0.4676587470242664, 1, 0.20278987507320892, 1),
        ]
    )
    assert list(benjamini_hochberg(p_values).values()) == pytest.approx(
        [
            *(0.555319094600649, 0.555319094600649, 0.2282171256197851, 0.08111595002928357, 1.1060492141449633e-09),
            *(0.4991915144151982, 0.2282171256197851, 0.555319094600649, 0.1558862490080888, 0.555319094600649),
            *(0.08111595002928357, 0.555319094600649),
        ]
    )


def test_the_example_of_benjamini_and_hochberg():
    """Their fifteen p-values of 1995: the procedure rejects four at .05, Bonferroni's and Holm's three."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528]
    p_values = {str(place): one for place, one in enumerate([*p, 0.759, 1.0])}
    assert sum(level <= 0.05 for level in benjamini_hochberg(p_values).values()) == 4
    assert sum(level <= 0.05 for level in holm(p_values).values()) == 3


@given(P_VALUES, ALPHA)
def test_rejections_are_those_of_the_step_procedures(p_values, alpha):
    order = sorted(p_values.values())
    k = len(order)
    down = next((i for i, p in enumerate(order) if (k - i) * p > alpha), k)
    assert sum(level <= alpha for level in holm(p_values).values()) == down
    up = max((i for i, p in enumerate(order, 1) if k * p / i <= alpha), default=0)
    assert sum(level <= alpha for level in benjamini_hochberg(p_values).values()) == up


@given(E_VALUES, ALPHA)
def test_e_bh_rejects_as_defined(e_values, alpha):
    order = sorted(e_values.values(), reverse=True)
    k = len(order)
    kept = max((i for i, e in enumerate(order, 1) if e and k / (i * e) <= alpha), default=0)
    assert sum(level <= alpha for level in e_bh(e_values).values()) == kept


@given(P_VALUES, st.randoms(use_true_random=False))
def test_levels_are_blind_to_order_and_keep_that_of_the_p_values(p_values, shuffler):
    mixed = list(p_values.items())
    shuffler.shuffle(mixed)
    for procedure in (holm, benjamini_hochberg):
        levels = procedure(p_values)
        assert procedure(dict(mixed)) == levels
        assert list(levels) == list(p_values)
        assert all(p_values[name] <= levels[name] * (1 + 1e-9) <= 1 + 1e-9 for name in levels)
        by_p = sorted(levels, key=lambda name: p_values[name])
        assert [levels[name] for name in by_p] == sorted(levels.values())
    assert all(benjamini_hochberg(p_values)[name] <= holm(p_values)[name] + 1e-12 for name in p_values)


def test_e_bh_takes_weights_and_infinite_evidence():
    e_values = {"a": math.inf, "b": 30.0, "c": 1.0}
    assert e_bh(e_values) == {"a": 0.0, "b": pytest.approx(0.05), "c": 1.0}
    assert e_bh(e_values, {"a": 0.0})["a"] == 1.0
    assert e_bh({"a": 20.0, "b": 1.0}, {"a": 3.0})["a"] == pytest.approx(1 / 15)
    assert (holm({}), benjamini_hochberg({}), e_bh({})) == ({}, {}, {})


def test_any_of_these_is_stronger_by_the_mean_than_one_by_one():
    e_values = dict.fromkeys("abcd", 20.0)
    assert average_e(e_values) == 20
    assert max(e_bh(e_values).values()) == pytest.approx(0.05)


def test_the_share_of_false_finds_stays_below_alpha():
    r = random.Random(7)
    share = 0.0
    for _ in range(400):
        # eight nulls that all see the same data, two that are false; wealth is 40 with probability 1/40
        common = 40.0 if r.random() < 1 / 40 else 0.0
        found = e_bh({**{f"n{i}": common for i in range(8)}, "x": 200.0, "y": 60.0})
        rejected = [name for name, level in found.items() if level <= 0.1]
        share += sum(name[0] == "n" for name in rejected) / max(1, len(rejected)) / 400
    assert share <= 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda: holm({"a": 1.5}),
        lambda: benjamini_hochberg({"a": math.nan}),
        lambda: e_bh({"a": -1.0}),
        lambda: e_bh({"a": 1.0}, {"a": 0.0}),
        lambda: e_bh({"a": 1.0, "b": 1.0}, {"a": -1.0}),
    ],
)
def test_bad_values_are_refused(call):
    with pytest.raises(InvalidInput):
        call()
