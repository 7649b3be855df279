"""Paired tests and intervals against scipy, full enumeration and exact coverage."""

import itertools
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tidemill.evidence import (
    compare_paired,
    confidence_sequence,
    mcnemar_exact,
    mean_interval,
    minimal_detectable_effect,
    paired_bootstrap,
    paired_permutation,
    sign_test,
    wilson_interval,
)
from tidemill.kernel import InvalidInput, Outcome


@pytest.mark.parametrize(("wins", "losses"), [(0, 1), (3, 0), (7, 7), (12, 30), (40, 11), (600, 520), (2000, 2100)])
def test_sign_and_mcnemar_agree_with_scipy(wins, losses):
    n = wins + losses
    for alternative in ("greater", "less", "two-sided"):
        expected = binomtest(wins, n, 0.5, alternative=alternative).pvalue
        assert sign_test(wins, losses, alternative=alternative) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(wins, losses) == pytest.approx(binomtest(wins, n, 0.5).pvalue, rel=1e-9)
    assert mcnemar_exact(0, 0) == 1.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_permutation_equals_full_enumeration(pairs):
    a, b = [x / 4 for x, _ in pairs], [y / 4 for _, y in pairs]
    differences = [x - y for x, y in pairs]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(pairs))
    ]
    observed = sum(differences)
    assert paired_permutation(a, b, alternative="greater") == pytest.approx(
        sum(s >= observed for s in sums) / len(sums)
    )
    assert paired_permutation(a, b, alternative="less") == pytest.approx(sum(s <= observed for s in sums) / len(sums))
    assert paired_permutation(a, b) == pytest.approx(sum(abs(s) >= abs(observed) for s in sums) / len(sums))


def test_drawn_permutation_is_near_the_exact_sign_test_and_repeatable():
    a, b = [1.0] * 20 + [0.0] * 10, [0.0] * 20 + [1.0] * 10
    drawn = paired_permutation(a, b, alternative="greater")
    assert drawn == pytest.approx(sign_test(20, 10), abs=0.01)
    assert drawn == paired_permutation(a, b, alternative="greater")


def test_clusters_are_flipped_and_drawn_together():
    a, b = [1.0] * 40, [0.0] * 40
    clusters = [i // 10 for i in range(40)]
    assert paired_permutation(a, b, alternative="greater", clusters=clusters) == pytest.approx(1 / 16)
    rng = random.Random(1)
    cluster_values = [rng.random() for _ in range(8)]
    a = [cluster_values[i // 25] for i in range(200)]
    alone, together = (
        paired_bootstrap(a, [0.5] * 200),
        paired_bootstrap(a, [0.5] * 200, clusters=[i // 25 for i in range(200)]),
    )
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert (alone.n, together.n) == (200, 8)
    assert together.low < together.mean < together.high


def test_detectable_effect_solves_the_sample_size_formula():
    for n, discordance, effect in ((150, 0.2, 0.10), (307, 0.1, 0.05), (621, 0.2, 0.05), (1737, 0.2, 0.03)):
        assert minimal_detectable_effect(n, discordance) == pytest.approx(effect, rel=0.01)
    assert minimal_detectable_effect(0, 0.5) == 1.0


def test_no_data_is_never_a_pass():
    for margin in (0.0, 0.2, 0.9):
        for size in (0, 1, 29):
            verdict = compare_paired([1.0] * size, [0.0] * size, margin=margin)
            assert verdict.value is Outcome.INSUFFICIENT
        assert compare_paired([], [], margin=margin, minimum=0).value is Outcome.INSUFFICIENT
        assert compare_paired([None] * 99, [None] * 99, margin=margin).value is Outcome.INSUFFICIENT
    assert compare_paired([1.0, 1.0], [0.0, 0.0], minimum=0).value is Outcome.INSUFFICIENT


def test_unmeasured_cases_count_against_a_pass_and_against_a_fail():
    ones, zeros = [1.0] * 40, [0.0] * 40
    assert compare_paired(ones, zeros).value is Outcome.PASS
    assert compare_paired(zeros, ones).value is Outcome.FAIL
    holes = [None] * 40
    better = compare_paired(ones + holes, zeros + [0.5] * 40, margin=0.05)
    assert better.value is not Outcome.FAIL
    assert better.evidence["unmeasured"] == 40
    assert compare_paired(ones + [None] * 60, ones + [1.0] * 60, margin=0.2).value is Outcome.INSUFFICIENT
    assert compare_paired([*zeros, math.nan], [*ones, 1.0]).evidence["unmeasured"] == 1


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_gate_error_rates_stay_below_alpha_at_the_edges(margin):
    rng = random.Random(5)
    passes = fails = 0
    repeats = 250
    for _ in range(repeats):
        baseline = [float(rng.random() < 0.8) for _ in range(60)]
        candidate = [float(rng.random() < 0.8 - margin) for _ in range(60)]
        outcome = compare_paired(candidate, baseline, margin=margin).value
        passes += outcome is Outcome.PASS
        fails += outcome is Outcome.FAIL
    assert passes / repeats <= 0.09
    assert fails / repeats <= 0.09


def test_margin_test_is_not_fooled_by_rare_total_losses():
    """The case on which flipping signs of ``difference + margin`` passes in .95**30 = 21 % of all suites."""
    chance = sum(
        math.comb(40, losses) * 0.05**losses * 0.95 ** (40 - losses)
        for losses in range(41)
        if compare_paired([0.0] * losses + [1.0] * (40 - losses), [1.0] * 40, margin=0.05).value is Outcome.PASS
    )
    assert chance <= 0.05


def test_clustered_gate_needs_clusters_not_rows():
    rows = [1.0] * 60, [0.5] * 60
    assert compare_paired(*rows, margin=0.05).value is Outcome.PASS
    verdict = compare_paired(*rows, margin=0.05, clusters=[i // 30 for i in range(60)])
    assert verdict.value is Outcome.INSUFFICIENT
    assert verdict.evidence["clusters"] == 2


def test_evidence_is_json():
    from tidemill.kernel import canonical_json

    canonical_json(compare_paired([1.0] * 50, [0.5] * 50, margin=0.1).as_json())
    canonical_json(compare_paired([], []).as_json())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_intervals_cover_at_least_as_often_as_promised(p):
    rng = random.Random(11)
    missed = anytime = 0
    for _ in range(100):
        values = [rng.betavariate(4 * p, 4 * (1 - p)) for _ in range(60)]
        interval = mean_interval(values, 0.1)
        missed += not interval.low <= p <= interval.high
        sequence = confidence_sequence(values, 0.1)
        anytime += not sequence.low <= p <= sequence.high
        assert sequence.low <= interval.mean <= sequence.high
    assert missed <= 18
    assert anytime <= 18


def test_wilson_is_the_textbook_value():
    interval = wilson_interval(8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert mean_interval([1.0] * 8 + [0.0] * 2) == interval


def test_empty_and_extreme_samples():
    assert mean_interval([]) == wilson_interval(0, 0)
    assert confidence_sequence([], low=-1).low == -1
    assert paired_bootstrap([], []).n == 0
    half = mean_interval([0.5] * 40)
    assert half.low < 0.5 < half.high
    assert confidence_sequence([0.0] * 30).low == 0.0
    assert confidence_sequence([1.0] * 30).high == 1.0
    wide = mean_interval([-0.5] * 40, low=-1.0)
    assert -1 < wide.low < -0.5 < wide.high < 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: sign_test(-1, 2),
        lambda: wilson_interval(3, 2),
        lambda: mean_interval([1.5]),
        lambda: confidence_sequence([0.5], low=1, high=1),
        lambda: paired_permutation([1.0], []),
        lambda: paired_bootstrap([1.0], [0.0], clusters=[]),
        lambda: minimal_detectable_effect(10, 2),
        lambda: compare_paired([1.0], [0.0, 1.0]),
        lambda: compare_paired([2.0], [0.0]),
        lambda: compare_paired([1.0], [0.0], margin=1),
        lambda: compare_paired([1.0], [0.0], clusters=["a", "b"]),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(InvalidInput):
        call()


def test_import_is_light():
    code = "import sys, tidemill.evidence; print([m for m in ('numpy', 'scipy', 'statistics') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
