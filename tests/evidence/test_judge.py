"""Judge correction against ppi-python 0.2.3, known cases, exact enumeration and seeded coverage."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from tidemill.evidence import (
    LAMBDAS,
    EProcess,
    JudgeCalibration,
    JudgedProcess,
    prediction_powered_mean,
    rogan_gladen,
    wilson_interval,
)
from tidemill.kernel import InvalidInput, canonical_json

UNIT = st.floats(0, 1)


def calibration(tp, fn, tn, fp):
    return JudgeCalibration(true_positive=tp, false_negative=fn, true_negative=tn, false_positive=fp)


def test_calibration_counts_labels_and_verdicts():
    labels, verdicts = [True] * 10 + [False] * 5, [True] * 9 + [False] * 5 + [True]
    found = JudgeCalibration.of(labels, verdicts)
    assert found == calibration(9, 1, 4, 1)
    assert found.sensitivity() == wilson_interval(9, 10)
    assert found.specificity() == wilson_interval(4, 5)
    informed = found.informedness()
    assert informed.mean == pytest.approx(0.7)
    assert informed.low < 0.7 < informed.high <= 1
    canonical_json(found.as_json())


def test_a_drop_of_twenty_points_that_the_judge_shows_as_twelve():
    judge = calibration(90, 10, 70, 30)
    for seen, true in ((780, 0.8), (660, 0.6)):
        found = rogan_gladen(seen, 1000, judge)
        assert found.interval.mean == pytest.approx(true)
        assert found.interval.low < true < found.interval.high
        assert found.useful
        # the error of the calibration is counted in
        assert found.interval.high - found.interval.low > 2 * (found.raw.high - found.raw.low)


def test_a_useless_judge_is_named():
    for judge in (calibration(50, 50, 50, 50), calibration(10, 90, 20, 80)):
        found = rogan_gladen(900, 1000, judge)
        assert not found.useful
        assert (found.interval.low, found.interval.high) == (0.0, 1.0)
        assert "at most 1" in found.reason
    unproven = rogan_gladen(900, 1000, calibration(6, 4, 6, 4))
    assert not unproven.useful
    assert "label more" in unproven.reason
    for nothing in (rogan_gladen(0, 0, calibration(9, 1, 9, 1)), rogan_gladen(9, 10, calibration(9, 1, 0, 0))):
        assert not nothing.useful
    canonical_json(unproven.as_json())


def test_a_flawless_judge_changes_little():
    found = rogan_gladen(800, 1000, calibration(5000, 0, 5000, 0))
    assert found.interval.mean == pytest.approx(0.8)
    assert found.interval.low == pytest.approx(found.raw.low, abs=0.002)
    assert found.interval.high == pytest.approx(found.raw.high, abs=0.002)
    few = rogan_gladen(800, 1000, calibration(20, 0, 20, 0))
    assert few.interval.high - few.interval.low > 2 * (found.interval.high - found.interval.low)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4), st.integers(0, 60), st.integers(0, 60))
def test_corrected_shares_stay_in_bounds_and_mirror(counts, positives, negatives):
    tp, fn, tn, fp = counts
    found = rogan_gladen(positives, positives + negatives, calibration(tp, fn, tn, fp))
    assert 0 <= found.interval.low <= found.interval.mean <= found.interval.high <= 1
    mirrored = rogan_gladen(negatives, positives + negatives, calibration(tn, fp, tp, fn))
    assert mirrored.useful == found.useful
    assert mirrored.interval.low == pytest.approx(1 - found.interval.high, abs=1e-9)


@pytest.mark.parametrize(
    ("share", "se", "sp", "n", "good", "bad"),
    [(0.8, 0.9, 0.7, 400, 100, 60), (0.95, 0.95, 0.8, 300, 60, 40), (0.5, 0.8, 0.8, 1000, 40, 40)],
)
def test_corrected_shares_cover(share, se, sp, n, good, bad):
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(600):
        tp, tn = int(rng.binomial(good, se)), int(rng.binomial(bad, sp))
        seen = int(rng.binomial(n, share * se + (1 - share) * (1 - sp)))
        interval = rogan_gladen(seen, n, calibration(tp, good - tp, tn, bad - tn)).interval
        missed += not interval.low <= share <= interval.high
    assert missed / 600 <= 0.08


def judged_scores():
    r = random.Random(8)
    truth = [r.betavariate(3, 1.5) for _ in range(400)]
    judge = [min(1.0, max(0.0, t + r.gauss(0.05, 0.12))) for t in truth]
    return truth[:80], judge[:80], judge[80:]


@pytest.mark.parametrize(
    ("trust", "mean", "low", "high"),
    [(1.0, 0.6519888, 0.6178788, 0.6860988), (None, 0.67149934, 0.64200874, 0.70098995)],
)
def test_powered_means_equal_ppi_python(trust, mean, low, high):
    found = prediction_powered_mean(*judged_scores(), trust=trust)
    assert found.interval.mean == pytest.approx(mean, abs=1e-7)
    # the reference divides sums of squares by n, not by n - 1, and has normal limits, not Student's
    wider = t.ppf(0.975, 79) / norm.ppf(0.975)
    assert (found.interval.high - found.interval.low) / (high - low) == pytest.approx(wider, rel=1 / 79)
    assert found.interval.high - found.interval.low > wider * (high - low)
    assert found.interval.high - found.interval.low < found.classical.high - found.classical.low


def test_trust_is_zero_for_noise_and_for_silence():
    r = random.Random(1)
    labels = [r.random() for _ in range(50)]
    silent = prediction_powered_mean(labels, [0.5] * 50, [0.5] * 200)
    assert silent.trust == 0
    assert silent.interval == silent.classical
    liar = prediction_powered_mean(labels, [1 - label for label in labels], [r.random() for _ in range(200)])
    assert liar.trust == 0
    assert prediction_powered_mean(labels, labels, []).interval == silent.classical
    for few in ([], [0.5]):
        whole = prediction_powered_mean(few, few, [0.5] * 9).interval
        assert (whole.low, whole.high) == (0.0, 1.0)
    canonical_json(silent.as_json())


def test_powered_means_cover():
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(300):
        truth = rng.random(240) < 0.7
        judge = np.where(rng.random(240) < 0.85, truth, ~truth) * 0.8 + 0.1
        interval = prediction_powered_mean(
            truth[:60].astype(float).tolist(), judge[:60].tolist(), judge[60:].tolist()
        ).interval
        missed += not interval.low <= 0.7 <= interval.high
    assert missed / 300 <= 0.09


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(UNIT, UNIT), min_size=2, max_size=12),
    st.lists(UNIT, min_size=2, max_size=12),
    st.randoms(use_true_random=False),
)
def test_powered_means_are_blind_to_order_and_bounded(pairs, others, shuffler):
    found = prediction_powered_mean(*zip(*pairs, strict=True), others)
    assert 0 <= found.interval.low <= found.interval.mean <= found.interval.high <= 1
    assert 0 <= found.trust <= 1
    mixed = list(pairs)
    shuffler.shuffle(mixed)
    again = prediction_powered_mean(*zip(*mixed, strict=True), others[::-1])
    assert again.interval.mean == pytest.approx(found.interval.mean, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(UNIT, UNIT, st.floats(0.05, 0.95), UNIT, st.floats(0.05, 0.95))
def test_each_bet_is_fair_and_never_loses_more_than_the_stake(judged, label, share, trust, null_mean):
    start = JudgedProcess.start(null_mean, trust)
    asked = start.update(judged, label_share=share, label=label)
    unasked = start.update(judged, label_share=share)
    scale = null_mean + trust * (1 - share) / share
    for stake, a, u in zip(LAMBDAS, asked.log_wealth, unasked.log_wealth, strict=True):
        expected = share * math.exp(a) + (1 - share) * math.exp(u)
        assert expected == pytest.approx(1 + stake * (label - null_mean) / scale)  # the label's own bet, on average
        assert min(math.exp(a), math.exp(u)) >= 1 - stake - 1e-9


def test_with_every_label_the_judge_plays_no_part():
    values = [0.0, 1.0, 0.25, 0.9]
    judged = JudgedProcess.start(0.5)
    plain = EProcess.start(0.0)  # on 2x - 1 in [-1, 1] the same bets
    for value in values:
        judged = judged.update(1 - value, label_share=1.0, label=value)
        plain = plain.update(2 * value - 1)
    assert judged.log_wealth == pytest.approx(plain.log_wealth)
    assert judged.mean == pytest.approx(sum(values) / 4)


@pytest.mark.parametrize("accuracy", [0.9, 0.5])
def test_false_alarms_are_rare_at_every_look_for_any_judge(accuracy):
    r = random.Random(12)
    alarms = 0
    for _ in range(100):
        process = JudgedProcess.start(0.7)
        for _ in range(150):
            label = float(r.random() < 0.7)
            judged = label if r.random() < accuracy else 1 - label
            process = process.update(judged, label_share=0.2, label=label if r.random() < 0.2 else None)
            if process.e_value >= 10:
                alarms += 1
                break
    assert alarms <= 18


def test_a_good_judge_finds_what_the_labels_alone_do_not():
    r = random.Random(3)
    powered, alone = JudgedProcess.start(0.6), JudgedProcess.start(0.6, trust=0.0)
    for _ in range(600):
        label = float(r.random() < 0.75)
        judged = label if r.random() < 0.97 else 1 - label
        given_label = label if r.random() < 0.2 else None
        powered = powered.update(judged, label_share=0.2, label=given_label)
        alone = alone.update(judged, label_share=0.2, label=given_label)
    assert powered.e_value > 20 > alone.e_value
    assert powered.mean == pytest.approx(0.75, abs=0.05)


def test_judged_evidence_is_additive_and_stored():
    first = JudgedProcess.start(0.5).update(0.9, label_share=0.3, label=1.0)
    second = JudgedProcess.start(0.5).update(0.2, label_share=0.3)
    both = first.update(0.2, label_share=0.3)
    assert first.absorb(second).log_wealth == pytest.approx(both.log_wealth)
    assert (both.labelled, both.unlabelled) == (1, 1)
    assert JudgedProcess.from_json(both.as_json()) == both
    canonical_json(both.as_json())
    assert JudgedProcess.start(0.5).e_value == 1
    assert JudgedProcess.start(0.5).mean is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: calibration(-1, 0, 0, 0),
        lambda: JudgeCalibration.of([True], []),
        lambda: rogan_gladen(3, 2, calibration(1, 1, 1, 1)),
        lambda: prediction_powered_mean([1.0], [], []),
        lambda: prediction_powered_mean([2.0], [1.0], []),
        lambda: prediction_powered_mean([1.0], [math.nan], []),
        lambda: prediction_powered_mean([1.0], [1.0], [], trust=2),
        lambda: JudgedProcess.start(1.0),
        lambda: JudgedProcess.start(0.5, trust=-1),
        lambda: JudgedProcess.start(0.5).update(1.5, label_share=0.5),
        lambda: JudgedProcess.start(0.5).update(0.5, label_share=0.5, label=-1),
        lambda: JudgedProcess.start(0.5).update(0.5, label_share=0.0),
        lambda: JudgedProcess.start(0.5).update(0.5, label_share=1.0),
        lambda: JudgedProcess.start(0.5).absorb(JudgedProcess.start(0.6)),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(InvalidInput):
        call()
