"""The canary's judgement: what it needs, what it survives, and that it can be replayed."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput, canonical_json
from tidemill.ledger import Observation
from tidemill.releases import SHARE_METRIC, RolloutPolicy, assess, assess_path, assess_shadow

START = datetime(2026, 1, 1, tzinfo=UTC)
DEMO = RolloutPolicy(margins={"success": 0.2, "ok": 0.2}, min_sessions=20, max_sessions=400)


def sessions(count, success, *, control=0.8, ok=1.0, share=0.5, seed=0, first=1, **metrics):
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        canary = rng.random() < share
        values = {"success": float(rng.random() < (success if canary else control))}
        values["ok"] = float(rng.random() < (ok if canary else 1.0))
        rows.append(
            Observation(
                unit=f"s{first + i}",
                arm="canary" if canary else "control",
                metrics=values | metrics,
                at=START + timedelta(seconds=i),
                seq=first + i,
            )
        )
    return rows


def test_no_data_is_never_a_promotion():
    assert assess(DEMO, []).value == "continue"
    unmeasured = [
        Observation(unit=f"s{i}", arm=("canary", "control")[i % 2], metrics={"success": None}, at=START, seq=i + 1)
        for i in range(200)
    ]
    verdict = assess(DEMO, unmeasured)
    assert verdict.value == "continue"
    assert verdict.evidence["metrics"]["ok"]["unmeasured"] == 200
    assert assess(DEMO, [row for row in sessions(600, 1.0) if row.arm == "control"][:8]).value == "continue"


def test_a_metric_without_data_withholds_the_promotion():
    rows = [
        Observation(unit=r.unit, arm=r.arm, metrics={"success": r.metrics["success"]}, at=r.at, seq=r.seq)
        for r in sessions(400, 0.95)
    ]
    verdict = assess(DEMO, rows)
    assert verdict.value == "continue"
    assert "ok" in verdict.reason


def test_good_is_promoted_bad_rolled_back_undecided_given_up():
    assert assess(DEMO, sessions(600, 0.85)).value == "promote"
    verdict = assess(DEMO, sessions(600, 0.3))
    assert verdict.value == "roll_back"
    assert verdict.evidence["sessions"]["canary"] < 80
    assert assess(DEMO, sessions(600, 0.8, ok=0.2)).value == "roll_back"
    tight = RolloutPolicy(margins={"success": 0.001}, max_sessions=60, on_max="hold")
    assert assess(tight, sessions(600, 0.8)).value == "hold"
    assert (
        assess(RolloutPolicy(margins={"success": 0.001}, max_sessions=60, on_max="rollback"), sessions(600, 0.8)).value
        == "roll_back"
    )


def test_first_decision_stands_whatever_comes_later_and_however_it_is_batched():
    rows = sessions(600, 0.9, seed=4)
    whole = assess(DEMO, rows)
    through = whole.evidence["through_seq"]
    assert whole.value == "promote"
    assert assess(DEMO, rows[:through]).as_json() == whole.as_json()
    assert assess(DEMO, rows[: through - 1]).value == "continue"
    assert assess(DEMO, rows[:through] + sessions(300, 0.0, first=through + 1)).as_json() == whole.as_json()
    canonical_json(whole.as_json())


def test_path_ends_at_the_decision_with_the_same_evidence():
    rows = sessions(600, 0.9, seed=4)
    verdict, path = assess(DEMO, rows), assess_path(DEMO, rows)
    assert path[-1].seq == verdict.evidence["through_seq"] == len(path)
    metrics = verdict.evidence["metrics"]
    assert path[-1].e_not_inferior == {name: metrics[name]["e_not_inferior"] for name in metrics}
    assert path[-1].average_e_inferior == verdict.evidence["average_e_inferior"]


def test_hard_guard_rolls_back_though_the_average_is_calm():
    policy = RolloutPolicy(margins={"success": 0.2, "ok": 0.2}, guards={"leak_free": 0.001}, weights={"ok": 0.0})
    rows = []
    for row in sessions(300, 0.8, seed=2):
        leak_free = 0.5 if row.arm == "canary" else 1.0
        rows.append(
            Observation(
                unit=row.unit, arm=row.arm, metrics={**row.metrics, "leak_free": leak_free}, at=row.at, seq=row.seq
            )
        )
    verdict = assess(policy, rows)
    assert verdict.value == "roll_back"
    assert "leak_free" in verdict.reason


def test_lost_sessions_of_an_arm_hold_the_rollout():
    rows = [row for i, row in enumerate(sessions(900, 0.8)) if row.arm == "control" or i % 4 == 0]
    tight = RolloutPolicy(margins={"success": 0.01}, max_sessions=5000)
    verdict = assess(tight, rows)
    assert verdict.value == "hold"
    assert "shares" in verdict.reason
    through = verdict.evidence["through_seq"]
    assert assess(tight, [r for r in rows if r.seq <= through], since_seq=through).value == "continue"


def test_recorded_shares_make_a_ramp_exact_and_promotion_waits_for_its_last_step():
    policy = RolloutPolicy(margins={"success": 0.2}, ramp=(0.1, 0.5), sessions_per_step=40)
    first = sessions(500, 0.9, share=0.1, **{SHARE_METRIC: 0.1})
    early = assess(policy, first[:300])
    assert early.value == "continue"
    assert early.evidence["step"] == 0
    later = first + sessions(400, 0.9, share=0.5, first=501, seed=1, **{SHARE_METRIC: 0.5})
    verdict = assess(policy, later)
    assert verdict.value == "promote"
    assert verdict.evidence["step"] == 1
    assert verdict.evidence["ratio"]["e_value"] < 1000


def test_resume_grants_more_sessions_and_keeps_the_evidence():
    policy = RolloutPolicy(margins={"success": 0.001}, max_sessions=60)
    rows = sessions(600, 0.8)
    through = assess(policy, rows).evidence["through_seq"]
    again = assess(policy, rows, since_seq=through)
    assert again.value == "hold"
    assert again.evidence["sessions"]["canary"] == 120


@pytest.mark.parametrize(("delta", "wrong"), [(-0.2, "promote"), (0.0, "roll_back")])
def test_error_rates_under_continuous_looking(delta, wrong):
    policy = RolloutPolicy(margins={"success": 0.2}, max_sessions=200)
    found = sum(assess(policy, sessions(400, 0.8 + delta, seed=seed)).value == wrong for seed in range(60))
    assert found <= 7  # .05 * 60 = 3; 8 or more has probability .01


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["control", "canary"]), st.one_of(st.none(), st.floats(-1, 2), st.just(float("nan")))
        ),
        max_size=60,
    )
)
def test_any_sequence_gives_the_same_verdict_twice_and_json(rows):
    observations = [
        Observation(unit=str(i), arm=arm, metrics={"success": value}, at=START, seq=i + 1)
        for i, (arm, value) in enumerate(rows)
    ]
    policy = RolloutPolicy(margins={"success": 0.3}, min_sessions=1, max_sessions=25)
    verdict = assess(policy, observations)
    assert verdict == assess(policy, observations)
    canonical_json(verdict.as_json())


def test_other_arms_are_refused():
    with pytest.raises(InvalidInput, match="shadow"):
        assess(DEMO, [Observation(unit="a", arm="shadow", metrics={}, at=START, seq=1)])


def test_shadow_is_paired_sequential_and_three_valued():
    policy = RolloutPolicy(shadow_requests=40, shadow_margin=0.2)
    assert assess_shadow(policy, []).value == "continue"
    assert assess_shadow(policy, [(1.0, 1.0)] * 40).value == "shadow_passed"
    assert assess_shadow(policy, [(0.0, 1.0)] * 40).value == "shadow_failed"
    assert assess_shadow(policy, [(0.0, 1.0), (1.0, 0.0), (0.0, 1.0)] * 20).value in {"hold", "shadow_failed"}
    undecided = assess_shadow(policy, [(0.0, 0.15)] * 40)
    assert undecided.value == "hold"
    assert undecided.evidence["pairs"] == 40
    canonical_json(undecided.as_json())


def test_policy_is_read_back_and_checked():
    policy = RolloutPolicy(margins={"success": 0.1}, ramp=(0.05, 0.5), guards={"safe": 0.01}, on_max="rollback")
    assert RolloutPolicy.from_json(policy.as_json()) == policy
    assert RolloutPolicy.from_json({}) == RolloutPolicy()
    for bad in (
        {"margins": {}},
        {"margins": {"a": 1.0}},
        {"margins": {"a": 0.1}, "weights": {"b": 1.0}},
        {"margins": {"a": 0.1}, "weights": {"a": 0.0}},
        {"ramp": []},
        {"ramp": [0.5, 0.1]},
        {"ramp": [1.0]},
        {"alpha_promote": 0},
        {"guards": {"a": 2}},
        {"on_max": "promote"},
        {"min_sessions": 9, "max_sessions": 8},
        {"margin": 0.1},
    ):
        with pytest.raises(InvalidInput):
            RolloutPolicy.from_json(bad)
