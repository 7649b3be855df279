"""The cluster bootstrap: Student's quantiles against scipy, and coverage with few clusters."""

import numpy as np
import pytest
from scipy.stats import norm, t

from tidemill.evidence import paired_bootstrap
from tidemill.evidence.bootstrap import cluster_bootstrap, expanded_tail, student_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 199, 200, 201, 5000])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.995])
def test_student_quantiles_equal_scipys(freedom, probability):
    assert student_quantile(probability, freedom) == pytest.approx(t.ppf(probability, freedom), rel=2e-5, abs=1e-9)


def test_tails_shrink_with_few_clusters():
    assert expanded_tail(1, 0.05) == 0
    assert expanded_tail(8, 0.05) == pytest.approx(norm.sf((8 / 7) ** 0.5 * t.ppf(0.975, 7)))
    assert expanded_tail(8, 0.05) < expanded_tail(80, 0.05) < expanded_tail(10**6, 0.05) < 0.025


@pytest.mark.parametrize("clusters", [8, 30])
def test_coverage_with_few_clusters_of_uneven_size(clusters):
    rng = np.random.default_rng(6)
    missed = 0
    for seed in range(250):
        sizes = rng.integers(1, 20, clusters)
        sums = sizes * rng.normal(0, 0.2, clusters) + rng.normal(0, 0.1, clusters) * np.sqrt(sizes)
        interval = cluster_bootstrap(sums.tolist(), sizes.tolist(), alpha=0.1, draws=400, seed=seed)
        missed += not interval.low <= 0 <= interval.high
    assert missed / 250 <= 0.17


def test_the_interval_is_repeatable_mirrored_and_within_the_data():
    a, b = [1.0, 0.5, 0.0, 1.0, 0.25, 0.75], [0.0, 0.5, 0.5, 0.25, 0.25, 0.0]
    found = paired_bootstrap(a, b)
    assert found == paired_bootstrap(a, b)
    mirrored = paired_bootstrap(b, a)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    assert -0.5 <= found.low < found.mean < found.high <= 1
    alone = paired_bootstrap(a, b, clusters=["one"] * 6)
    assert (alone.low, alone.high, alone.n) == (alone.mean, alone.mean, 1)
