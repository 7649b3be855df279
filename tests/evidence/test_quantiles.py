"""Quantile intervals against scipy and the exact binomial, and their coverage at once and at every look."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, quantile_test

from tidemill.evidence import quantile_interval, quantile_sequence
from tidemill.evidence.binomial import masses
from tidemill.kernel import InvalidInput

QUANTILES = st.sampled_from([0.1, 0.5, 0.9, 0.95])


def test_masses_are_the_binomials():
    for share in (0.0, 0.03, 0.5, 1.0):
        assert list(masses(20, share)) == pytest.approx(binom.pmf(range(21), 20, share), abs=1e-12)


def test_the_textbook_median():
    """Sixteen values: the median lies between the 4th and the 13th with probability .979, at level .95."""
    found = quantile_interval(list(range(1, 17)), 0.5)
    assert (found.low, found.high, found.mean) == (4, 13, 8)
    assert binom.cdf(12, 16, 0.5) - binom.cdf(3, 16, 0.5) == pytest.approx(0.979, abs=0.001)


@pytest.mark.parametrize(("n", "q"), [(1, 0.5), (7, 0.5), (59, 0.95), (200, 0.9), (200, 0.05)])
def test_limits_equal_scipys_and_the_definition(n, q):
    found = quantile_interval(list(range(1, n + 1)), q)
    lower = max((r for r in range(1, n + 1) if binom.cdf(r - 1, n, q) <= 0.025), default=None)
    upper = min((s for s in range(1, n + 1) if binom.sf(s - 1, n, q) <= 0.025), default=None)
    assert found.low == (-math.inf if lower is None else lower)
    assert found.high == (math.inf if upper is None else upper)
    if lower and upper:
        theirs = quantile_test(list(range(1, n + 1)), p=q).confidence_interval(0.95)
        assert abs(theirs.low - found.low) <= 1
        assert abs(theirs.high - found.high) <= 1


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_both_cover_also_with_ties(q):
    r = random.Random(21)
    true = {0.5: 4, 0.9: 8}[q]  # of a uniform draw from 0..9: F(4) = .5, F(8) = .9
    missed = ever = 0
    for _ in range(150):
        values = [r.randrange(10) for _ in range(80)]
        once = quantile_interval(values, q, 0.1)
        missed += not once.low <= true <= once.high
        looks = (quantile_sequence(values[:n], q, 0.1) for n in range(5, 81, 5))
        ever += any(not look.low <= true <= look.high for look in looks)
    assert missed <= 24
    assert ever <= 24


def test_a_sequence_closes_in_and_is_wider_than_one_look():
    values = [x / 1999 for x in range(2000)]
    once, always = quantile_interval(values, 0.95), quantile_sequence(values, 0.95)
    assert always.low < once.low < 0.95 < once.high < always.high
    assert always.high - always.low < 3 * (once.high - once.low)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=30), QUANTILES, st.randoms(use_true_random=False))
def test_limits_enclose_the_sample_quantile_and_ignore_order_and_scale(values, q, shuffler):
    mixed = list(values)
    shuffler.shuffle(mixed)
    for function in (quantile_interval, quantile_sequence):
        found = function(values, q, low=0.0, high=9.0)
        assert 0 <= found.low <= found.mean <= found.high <= 9
        assert found == function(mixed, q, low=0.0, high=9.0)
        doubled = function([2 * value for value in values], q, low=0.0, high=18.0)
        assert (doubled.low, doubled.high) == (2 * found.low, 2 * found.high)


def test_without_values_the_whole_range():
    for function in (quantile_interval, quantile_sequence):
        assert function([], 0.5, low=0.0, high=4.0).as_json() == {"low": 0.0, "high": 4.0, "mean": 2.0, "n": 0}
        assert function([], 0.5).high == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: quantile_interval([1.0], 1.0),
        lambda: quantile_sequence([1.0], 0.0),
        lambda: quantile_interval([1.0], 0.5, 0.0),
        lambda: quantile_sequence([math.nan], 0.5),
        lambda: quantile_interval([-1.0], 0.5, low=0.0),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(InvalidInput):
        call()
