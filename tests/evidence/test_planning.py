"""Planning against published sample sizes, its own inverses and exact enumeration."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from tidemill.evidence import (
    design_effect,
    minimal_detectable_effect,
    paired_power,
    required_pairs,
    required_pairs_mean,
    required_per_arm,
    required_per_arm_mean,
    sign_test,
    sign_test_power,
    unpaired_power,
)
from tidemill.kernel import InvalidInput


@pytest.mark.parametrize(
    ("effect", "discordance", "pairs"),
    [(0.1, 0.2, 150), (0.05, 0.1, 307), (0.05, 0.2, 621), (0.03, 0.2, 1737), (0.01, 0.1, 7842)],
)
def test_required_pairs_invert_the_detectable_effect(effect, discordance, pairs):
    assert required_pairs(effect, discordance) == pytest.approx(pairs, abs=1)
    assert required_pairs(-effect, discordance) == required_pairs(effect, discordance)
    n = required_pairs(effect, discordance)
    assert minimal_detectable_effect(n, discordance) <= effect < minimal_detectable_effect(n - 1, discordance)
    assert paired_power(n, effect, discordance) >= 0.8 > paired_power(n - 1, effect, discordance) - 1e-6


def test_published_sizes():
    # in R's help: power.prop.test(p1 = .50, p2 = .75, power = .90) and power.t.test(delta = 1, power = .90)
    assert required_per_arm(0.5, 0.75, power=0.9) == 77
    assert required_per_arm_mean(1.0, 1.0, power=0.9) == pytest.approx(22.02, abs=0.5)
    # statsmodels 0.15.0: TTestIndPower with effect .5 needs 85.03; TTestPower with effect .25 needs 127.5
    assert required_per_arm_mean(0.5, 1.0, power=0.9) == pytest.approx(85.03, abs=1)
    assert required_pairs_mean(0.25, 1.0) == pytest.approx(127.5, abs=2.5)
    assert unpaired_power(905, 0.8, 0.85) == pytest.approx(0.8, abs=0.005)


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.sampled_from([0.5, 0.8, 0.95]))
def test_unpaired_sizes_and_power_are_inverse(p, q, power):
    if abs(p - q) < 0.01:
        return
    n = required_per_arm(p, q, power=power)
    assert n == required_per_arm(q, p, power=power)
    assert unpaired_power(n, p, q) >= power - 1e-9
    assert n == 1 or unpaired_power(n - 1, p, q) < power


@pytest.mark.parametrize(("n", "wins", "losses"), [(12, 0.4, 0.1), (12, 0.7, 0.3), (12, 0.2, 0.0), (9, 1.0, 0.0)])
def test_sign_test_power_equals_full_enumeration(n, wins, losses):
    exact = math.fsum(
        binom.pmf(m, n, wins + losses) * binom.pmf(k, m, wins / (wins + losses))
        for m in range(n + 1)
        for k in range(m + 1)
        if sign_test(k, m - k) <= 0.05
    )
    assert sign_test_power(n, wins, losses) == pytest.approx(exact, rel=1e-9)


def test_sign_test_power_keeps_its_level_and_nears_the_formula():
    assert sign_test_power(200, 0.1, 0.1) <= 0.05
    n = required_pairs(0.1, 0.2, alpha=0.1)
    assert 0.74 < sign_test_power(n, 0.15, 0.05) < 0.8  # the exact test has less than the formula promises
    assert sign_test_power(0, 0.5, 0.1) == sign_test_power(50, 0.0, 0.5) == 0.0


def test_dependent_cases_count_for_less():
    assert design_effect(1, 1) == 1
    assert design_effect(10, 0.7) == pytest.approx(7.3)


def test_edges():
    assert paired_power(0, 0.1, 0.2) < 0.05
    assert paired_power(5, 1.0, 1.0) == 1.0
    assert unpaired_power(5, 0.0, 1.0) == 1.0
    assert required_pairs(1.0, 1.0) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: required_pairs(0.0, 0.2),
        lambda: required_pairs(0.5, 0.2),
        lambda: required_pairs(0.1, 0.2, power=1.0),
        lambda: required_pairs(0.1, 0.2, alpha=0.0),
        lambda: required_pairs_mean(1.0, -1.0),
        lambda: required_per_arm(0.5, 0.5),
        lambda: required_per_arm(0.5, 1.5),
        lambda: required_per_arm_mean(0.0, 1.0),
        lambda: paired_power(-1, 0.1, 0.2),
        lambda: sign_test_power(5, 0.8, 0.3),
        lambda: design_effect(0.5, 0.1),
    ],
)
def test_what_cannot_be_planned_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
