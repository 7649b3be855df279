"""Retrieval metrics against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.retrieval import ndcg_at, recall_at, reciprocal_rank


def test_recall() -> None:
    assert recall_at(["a", "b", "c"], {"b", "z"}, 2) == 0.5
    assert recall_at(["a", "b", "c"], {"c"}, 2) == 0.0
    assert recall_at(["a"], (), 2) == 0.0


def test_reciprocal_rank() -> None:
    assert reciprocal_rank(["a", "b", "c"], {"b", "c"}) == 0.5
    assert reciprocal_rank(["a"], {"z"}) == 0.0


def test_ndcg_by_hand() -> None:
    gains = {"a": 3.0, "b": 2.0, "c": 1.0}
    ranking = ["b", "x", "a", "c"]
    expected = (2 + 3 / math.log2(4) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / math.log2(4))
    assert ndcg_at(ranking, gains, 10) == pytest.approx(expected)
    assert ndcg_at(ranking, gains, 1) == pytest.approx(2 / 3)
    assert ndcg_at(ranking, {}, 10) == 0.0


@given(st.permutations("abcdef"), st.sets(st.sampled_from("abcdef"), min_size=1), st.integers(1, 6))
def test_all_lie_in_the_unit_interval_and_are_one_for_the_best_ranking(
    ranking: list[str], relevant: set[str], k: int
) -> None:
    gains = dict.fromkeys(relevant, 1.0)
    best = sorted(ranking, key=lambda one: one not in relevant)
    for measure in (ndcg_at(ranking, gains, k), recall_at(ranking, relevant, k), reciprocal_rank(ranking, relevant)):
        assert 0 <= measure <= 1 + 1e-12
    assert ndcg_at(best, gains, k) == pytest.approx(1.0)
    assert recall_at(best, relevant, 6) == 1.0
    assert reciprocal_rank(best, relevant) == 1.0
