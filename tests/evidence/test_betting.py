"""E-processes and block bets against exact enumeration."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.evidence import LAMBDAS, BlockBetting, EProcess, RatioGuard, average_e, merge
from tidemill.kernel import InvalidInput

units = st.floats(-1, 1, allow_nan=False)
nulls = st.floats(-0.99, 1, allow_nan=False)


def tree(process, probability, depth):
    """Every Bernoulli path on {-1, 1}: (probability, process states along it)."""
    for path in itertools.product((-1, 1), repeat=depth):
        weight = math.prod(probability if z == 1 else 1 - probability for z in path)
        states = [process]
        for z in path:
            states.append(states[-1].update(z))
        yield weight, states


@pytest.mark.parametrize("null_mean", [-0.9, -0.2, 0.0, 0.35, 1.0])
def test_expected_e_value_is_exactly_one_at_the_null_and_less_inside(null_mean):
    edge = (1 + null_mean) / 2
    process = EProcess.start(null_mean)
    at_edge = sum(weight * states[-1].e_value for weight, states in tree(process, edge, 10))
    assert at_edge == pytest.approx(1.0, abs=1e-9)
    inside = sum(weight * states[-1].e_value for weight, states in tree(process, edge * 0.8, 10))
    assert inside <= 1 + 1e-12


@pytest.mark.parametrize("null_mean", [-0.5, 0.0, 0.4])
@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.05])
def test_chance_of_ever_crossing_is_at_most_alpha_on_the_exact_tree(null_mean, alpha):
    crossing = sum(
        weight
        for weight, states in tree(EProcess.start(null_mean), (1 + null_mean) / 2, 12)
        if max(state.e_value for state in states) >= 1 / alpha
    )
    assert crossing <= alpha


@given(st.lists(units, max_size=30), st.lists(units, max_size=30), nulls)
def test_merge_is_what_one_process_would_have_seen(first, second, null_mean):
    def fold(values):
        process = EProcess.start(null_mean)
        for z in values:
            process = process.update(z)
        return process

    merged, whole = merge(fold(first), fold(second)), fold(first + second)
    assert merged.count == whole.count
    assert merged.log_wealth == pytest.approx(whole.log_wealth, abs=1e-9)
    assert merge(fold(second), fold(first)).log_wealth == pytest.approx(merged.log_wealth, abs=1e-9)


def test_formula_is_the_mean_over_stakes():
    process = EProcess.start(-0.1).update(0.5).update(-1.0)
    expected = sum((1 + s * 0.6 / 0.9) * (1 - s) for s in LAMBDAS) / len(LAMBDAS)
    assert process.e_value == pytest.approx(expected)


def test_e_value_does_not_overflow():
    process = EProcess(0.0, (5000.0,) * len(LAMBDAS), 9000)
    assert process.log_e == pytest.approx(5000)
    assert math.isfinite(process.e_value)


@pytest.mark.parametrize("z", [1.0001, -1.0001, math.nan])
def test_values_out_of_range_are_refused(z):
    with pytest.raises(InvalidInput):
        EProcess.start(0).update(z)


def test_nulls_and_margins_out_of_range_are_refused():
    for bad in (-1.0, 1.5, math.nan):
        with pytest.raises(InvalidInput):
            EProcess.start(bad)
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(InvalidInput):
            BlockBetting.start(bad)
    with pytest.raises(InvalidInput):
        BlockBetting.start(0.1).observe("shadow", 1)
    with pytest.raises(InvalidInput):
        BlockBetting.start(0.1).observe("canary", 1.1)
    with pytest.raises(InvalidInput):
        merge(EProcess.start(0), EProcess.start(0.1))


def test_json_round_trip():
    process = EProcess.start(-0.1).update(0.5)
    assert EProcess.from_json(process.as_json()) == process


def bets(arms, values, margin=0.1):
    state, made = BlockBetting.start(margin), []
    for arm, value in zip(arms, values, strict=True):
        state, z = state.step({"x": "canary", "c": "control"}[arm], value)
        made += [] if z is None else [z]
    return state, made


def test_blocks_are_those_of_the_definition():
    assert bets("ccxcx", [1, 0, 1, 0, 0])[1] == [0.5, 0.0]  # mean of the controls since the previous canary
    assert bets("xxc", [1, 0, 0])[1] == [1.0]  # the oldest waits for a control, the second goes on waiting
    assert bets("xxcc", [1, 0, 0, 1])[1] == [1.0, -1.0]
    assert bets("xxxxxc", [1, 0, 0, 0, 0, 0])[1] == [0.5]  # five wait: the oldest two are averaged
    state, _ = bets("xxcccx", [1, 0, 0, 1, 1, 0])
    assert (state.waiting, state.control_count, state.canaries, state.controls, state.bets) == ((), 0, 3, 3, 3)
    assert state.delta == pytest.approx((1 - 1 - 1) / 3)


@settings(max_examples=60)
@given(st.text("xc", max_size=60), st.data())
def test_blocks_depend_on_the_arms_alone_and_use_each_session_once(arms, data):
    values = data.draw(st.lists(st.floats(0, 1), min_size=len(arms), max_size=len(arms)))
    state, made = bets(arms, values)
    other, also = bets(arms, [0.5] * len(arms))
    assert len(made) == len(also)
    assert len(state.waiting) == len(other.waiting)
    assert state.control_count == other.control_count
    assert not (state.waiting and state.control_count)
    assert also == [0.0] * len(also)
    assert state.bets == len(made)
    assert (state.canaries, state.controls) == (arms.count("x"), arms.count("c"))
    assert state.delta == (pytest.approx(sum(made) / len(made)) if made else None)


def test_few_canaries_wait_even_when_they_have_most_of_the_traffic():
    state, _ = bets(("x" * 9 + "c") * 100, [0.0] * 1000)
    assert len(state.waiting) < 45


@pytest.mark.parametrize("arms", ["cx" * 4, "ccxxcxxc", "xxxxccxc", "xcccxxcx", "xxxxxxcc"])
def test_block_bets_are_exact_under_both_nulls_for_every_order_of_arms(arms):
    margin, control = 0.25, 0.75
    for canary, pick in ((control - margin, "e_not_inferior"), (control, "e_inferior")):
        expected = crossing = 0.0
        for values in itertools.product((0, 1), repeat=len(arms)):
            weight, state, top = 1.0, BlockBetting.start(margin), 1.0
            for arm, value in zip(arms, values, strict=True):
                p = canary if arm == "x" else control
                weight *= p if value else 1 - p
                state = state.observe("canary" if arm == "x" else "control", value)
                top = max(top, getattr(state, pick))
            expected += weight * getattr(state, pick)
            crossing += weight * (top >= 2)
        assert expected == pytest.approx(1.0, abs=1e-9)
        assert crossing <= 0.5


def test_average_is_weighted_and_checks_its_weights():
    assert average_e({"a": 1.0, "b": 3.0}) == 2.0
    assert average_e({"a": 1.0, "b": 3.0}, {"b": 3.0}) == 2.5
    for weights in ({"a": 0.0}, {"a": -1.0}):
        with pytest.raises(InvalidInput):
            average_e({"a": 1.0}, weights)
    with pytest.raises(InvalidInput):
        average_e({})


def test_ratio_guard_is_exact_under_changing_shares_and_finds_a_lost_arm():
    shares = [0.05, 0.05, 0.5, 0.5, 0.9, 0.9, 0.25, 1.0]
    expected = 0.0
    for path in itertools.product((False, True), repeat=len(shares)):
        weight, guard = 1.0, RatioGuard.start()
        for canary, share in zip(path, shares, strict=True):
            weight *= share if canary else 1 - share
            if weight:
                guard = guard.observe(canary=canary, share=share)
        expected += weight * guard.e_value
    assert expected == pytest.approx(1.0, abs=1e-9)
    guard = RatioGuard.start()
    for i in range(200):
        guard = guard.observe(canary=i % 4 == 0, share=0.5)
    assert guard.e_value > 1000
    assert (guard.controls, guard.canaries, guard.expected_canaries) == (150, 50, 100)
    with pytest.raises(InvalidInput):
        guard.observe(canary=True, share=1.2)
