"""Agreement against values that scikit-learn 1.9.1 and krippendorff 0.9.0 computed, published examples and laws."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.evidence import cohen_kappa, krippendorff_alpha
from tidemill.kernel import InvalidInput

RATINGS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=15)


def two_raters():
    r = random.Random(3)
    first = [r.randrange(5) for _ in range(60)]
    return first, [min(4, max(0, x + r.choice((-1, 0, 0, 0, 1, 2)))) for x in first]


def four_raters_with_holes():
    r = random.Random(4)
    rows = []
    for _ in range(40):
        true = r.randrange(1, 6)
        rows.append([None if r.random() < 0.3 else min(5, max(1, true + r.choice((-1, 0, 0, 1)))) for _ in range(4)])
    return rows


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("none", 0.4499294781382228), ("linear", 0.7111416781292985), ("quadratic", 0.8724252491694352)],
)
def test_kappa_equals_scikit_learn(weights, expected):
    found = cohen_kappa(*two_raters(), weights=weights)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.low < expected < found.high
    assert found.n == 60


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("nominal", 0.340108108108108), ("ordinal", 0.7259174119991064), ("interval", 0.773963133640553)],
)
def test_alpha_equals_the_reference_package(scale, expected):
    found = krippendorff_alpha(four_raters_with_holes(), scale=scale)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.low < expected < found.high


def test_alpha_of_krippendorffs_own_example():
    """Example C of the 2011 paper: four observers, twelve units, missing data."""
    observers = (
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )
    columns = [[None if one == "." else int(one) for one in line.split()] for line in observers]
    rows = list(zip(*columns, strict=True))
    for scale, expected in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert krippendorff_alpha(rows, scale=scale).value == pytest.approx(expected, abs=0.0006)
    assert krippendorff_alpha(rows).n == 11
    letters = [[None if one is None else "abcde"[one - 1] for one in row] for row in rows]
    assert krippendorff_alpha(letters).value == krippendorff_alpha(rows).value


def test_kappa_of_the_textbook_table():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed .7, by chance .5, kappa .4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = cohen_kappa(first, second)
    assert found.value == pytest.approx(0.4)
    assert found.observed == pytest.approx(0.7)


@settings(max_examples=30, deadline=None)
@given(RATINGS, st.randoms(use_true_random=False))
def test_kappa_is_symmetric_bounded_and_blind_to_order_and_names(pairs, shuffler):
    first, second = zip(*pairs, strict=True)
    for weights in ("none", "linear", "quadratic"):
        found = cohen_kappa(first, second, weights=weights, draws=20)
        value = found.value
        if value is None:
            assert len(set(first) | set(second)) == 1
            continue
        assert -1 <= found.low <= value <= found.high <= 1
        assert value == pytest.approx(cohen_kappa(second, first, weights=weights, draws=1).value)
        mixed = list(pairs)
        shuffler.shuffle(mixed)
        assert value == pytest.approx(cohen_kappa(*zip(*mixed, strict=True), weights=weights, draws=1).value)
    renamed = cohen_kappa(["dbca"[x] for x in first], ["dbca"[x] for x in second], draws=1)
    assert renamed.value == pytest.approx(cohen_kappa(first, second, draws=1).value)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=10))
def test_alpha_equals_a_loop_over_all_pairs(rows):
    kept = [[one for one in row if one is not None] for row in rows]
    kept = [row for row in kept if len(row) > 1]
    values = [one for row in kept for one in row]
    n = len(values)
    within = sum((x - y) ** 2 / (len(row) - 1) for row in kept for x, y in itertools.permutations(row, 2))
    overall = sum((x - y) ** 2 for x, y in itertools.permutations(values, 2)) / max(1, n - 1)
    found = krippendorff_alpha(rows, scale="interval", draws=10)
    assert found.n == len(kept)
    assert found.value == (pytest.approx(1 - within / overall) if overall else None)
    assert krippendorff_alpha([list(reversed(row)) for row in rows], scale="interval", draws=1).value == pytest.approx(
        found.value
    )


def test_full_agreement_on_few_cases_is_not_certainty():
    few, many = cohen_kappa([0, 1] * 3, [0, 1] * 3), cohen_kappa([0, 1] * 100, [0, 1] * 100)
    assert few.value == many.value == few.high == 1
    assert few.low < 0.5
    assert 0.9 < many.low < 1
    assert krippendorff_alpha([[0, 0], [1, 1]] * 3).low < 0.5


def test_what_is_undefined_says_so():
    for found in (cohen_kappa([], []), cohen_kappa([1, 1], [1, 1]), krippendorff_alpha([[1, None], [2, math.nan]])):
        assert (found.value, found.low, found.high) == (None, -1.0, 1.0)
        assert found.as_json()["value"] is None


def test_grades_that_nobody_gave_keep_their_distance():
    first, second = [1, 1, 5, 5], [1, 5, 5, 4]
    seen = cohen_kappa(first, second, weights="linear")
    named = cohen_kappa(first, second, weights="linear", categories=[1, 2, 3, 4, 5])
    assert named.value > seen.value


def test_kappa_interval_covers_the_true_value():
    r = random.Random(9)
    missed = 0
    for _ in range(100):  # two raters with independent errors of 1 in 10: kappa .64
        true = [r.random() < 0.5 for _ in range(80)]
        first, second = ([x ^ (r.random() < 0.1) for x in true] for _ in range(2))
        found = cohen_kappa(first, second, alpha=0.1, draws=200)
        missed += not found.low <= 0.64 <= found.high
    assert missed <= 20


@pytest.mark.parametrize(
    "call",
    [
        lambda: cohen_kappa([1], []),
        lambda: cohen_kappa([1], [2], categories=[1]),
        lambda: cohen_kappa([1], ["a"]),
        lambda: cohen_kappa([1], [1], weights="cubic"),
        lambda: cohen_kappa([1, 2], [1, 2], alpha=0),
        lambda: krippendorff_alpha([["a", "b"]], scale="interval"),
        lambda: krippendorff_alpha([[1, 2]], scale="ratio"),
        lambda: krippendorff_alpha([[i, i] for i in range(1001)]),
    ],
)
def test_bad_ratings_are_refused(call):
    with pytest.raises(InvalidInput):
        call()
