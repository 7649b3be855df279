from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.loop.sampling import Allocation, Sample, Unit, draw_by_size, draw_stratified, uncertainty

populations = st.lists(
    st.tuples(st.sampled_from("abc"), st.floats(0.01, 100), st.floats(-1000, 1000)), min_size=1, max_size=40
).map(lambda rows: [(Unit(f"u{n}", stratum, size), value) for n, (stratum, size, value) in enumerate(rows)])
sizes = st.integers(3, 45)
allocations: st.SearchStrategy[Allocation] = st.sampled_from(["equal", "proportional"])


def shuffled(units: Sequence[Unit], seed: int) -> list[Unit]:
    return random.Random(seed).sample(list(units), len(units))


@given(populations, sizes, st.integers(0, 2**32), allocations)
def test_a_stratified_sample_is_complete_and_the_same_again(
    population: list[tuple[Unit, float]], size: int, seed: int, allocation: Allocation
) -> None:
    units = [unit for unit, _ in population]
    sample = draw_stratified(units, size, seed=seed, allocation=allocation)
    assert draw_stratified(shuffled(units, seed), size, seed=seed, allocation=allocation) == sample
    assert len(sample.drawn) == min(size, len(units))
    assert {one.stratum for one in sample.drawn} == {unit.stratum for unit in units}
    assert all(0 < one.probability <= 1 for one in sample.drawn)
    # Weights of a stratum add up to its size, whatever was drawn: counts are estimated without any error.
    for stratum, count in sample.strata.items():
        assert math.isclose(sum(one.weight for one in sample.drawn if one.stratum == stratum), count)


@given(populations, sizes, st.integers(0, 2**32))
def test_a_sample_by_size_has_its_size_and_is_the_same_again(
    population: list[tuple[Unit, float]], size: int, seed: int
) -> None:
    units = [unit for unit, _ in population]
    sample = draw_by_size(units, size, seed=seed)
    assert draw_by_size(shuffled(units, seed), size, seed=seed) == sample
    assert len(sample.drawn) == min(size, len(units))
    assert len({one.key for one in sample.drawn}) == len(sample.drawn)
    assert all(0 < one.probability <= 1 for one in sample.drawn)
    assert sample.population == len(units)
    # Sizes are what the chances are proportional to, so their total is estimated without any error, too.
    by_key = {unit.key: unit.size for unit in units}
    total = sum(one.weight * by_key[one.key] for one in sample.drawn)
    assert math.isclose(total, sum(by_key.values()), rel_tol=1e-9)


def _draws(sample: Callable[[int], Sample], values: dict[str, float], count: int) -> tuple[float, float]:
    """Mean and standard error of the Horvitz-Thompson total over so many seeds."""
    totals = [sum(one.weight * values[one.key] for one in sample(seed).drawn) for seed in range(count)]
    mean = sum(totals) / count
    variance = sum((one - mean) ** 2 for one in totals) / (count - 1)
    return mean, math.sqrt(variance / count)


@settings(max_examples=12, deadline=None)
@given(populations, st.sampled_from(["equal", "proportional", "size"]))
def test_the_horvitz_thompson_total_is_unbiased(population: list[tuple[Unit, float]], how: str) -> None:
    units = [unit for unit, _ in population]
    values = {unit.key: value for unit, value in population}
    size = max(3, len(units) // 3)

    def sample(seed: int) -> Sample:
        if how == "size":
            return draw_by_size(units, size, seed=seed)
        return draw_stratified(units, size, seed=seed, allocation="equal" if how == "equal" else "proportional")

    mean, error = _draws(sample, values, 600)
    # Six standard errors: a biased weight is found, chance alone is not (2e-9 an example).
    assert abs(mean - sum(values.values())) <= 6 * error + 1e-6


@pytest.mark.parametrize("how", ["uniform", "equal", "size"])
def test_units_come_in_as_often_as_their_probability_says(how: str) -> None:
    units = [Unit(f"u{n}", "a" if n < 4 else "b", 1 + n % 5) for n in range(20)]
    draws = 4000
    seen: dict[str, int] = {}
    chance: dict[str, float] = {}
    for seed in range(draws):
        if how == "size":
            sample = draw_by_size(units, 6, seed=seed)
        else:
            plain = [unit._replace(stratum="") for unit in units]
            sample = draw_stratified(plain if how == "uniform" else units, 6, seed=seed, allocation="equal")
        for one in sample.drawn:
            seen[one.key] = seen.get(one.key, 0) + 1
            assert chance.setdefault(one.key, one.probability) == one.probability
    assert math.isclose(sum(chance.values()), 6)
    for key, probability in chance.items():
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(seen[key] - draws * probability) <= 6 * spread + 1e-9


def test_equal_shares_go_to_small_strata_first_and_the_rest_to_large_ones() -> None:
    units = [Unit(f"a{n}", "a") for n in range(2)] + [Unit(f"b{n}", "b") for n in range(100)]
    drawn = draw_stratified(units, 10, seed=1, allocation="equal").drawn
    assert sum(one.stratum == "a" for one in drawn) == 2
    drawn = draw_stratified(units, 10, seed=1).drawn
    assert sum(one.stratum == "a" for one in drawn) == 1


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(InvalidInput, match="from 3 strata"):
        draw_stratified([Unit(one, one) for one in "abc"], 2, seed=0)
    with pytest.raises(InvalidInput, match="above zero"):
        draw_by_size([Unit("a", size=0.0)], 1, seed=0)
    for draw in (draw_stratified, draw_by_size):
        with pytest.raises(InvalidInput, match="one is the least"):
            draw([], 0, seed=0)
        assert draw([], 1, seed=0) == Sample((), {})


def test_uncertainty_is_greatest_in_the_middle_and_never_nothing() -> None:
    assert uncertainty(0.5) == 1
    assert uncertainty(0) == uncertainty(1) == 0.05
    assert uncertainty(0.2) == pytest.approx(uncertainty(0.8))
    with pytest.raises(InvalidInput, match="out of range"):
        uncertainty(1.5)
