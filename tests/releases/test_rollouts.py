"""Rollouts in a real ledger: promotion, rollback, compare-and-swap, crashes, replay."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from tidemill.kernel import (
    ArtifactKind,
    Conflict,
    FakeClock,
    InvalidInput,
    NotFound,
    ReleaseParts,
    Scope,
    Verdict,
)
from tidemill.ledger import Observation, open_ledger
from tidemill.releases import (
    RolloutEvent,
    RolloutPolicy,
    RolloutState,
    apply_event,
    assess_rollout,
    create_release,
    explain,
    list_rollouts,
    live_release,
    load_rollout,
    open_rollout,
)

E, S = RolloutEvent, RolloutState
POLICY = RolloutPolicy(margins={"success": 0.2})
YES = Verdict("yes", "because")


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(
        f"sqlite:///{tmp_path}/ledger.db", blobs="memory://", scope=Scope("desk"), clock=FakeClock()
    ) as it:
        yield it


def release(ledger, seed, name="desk"):
    model = ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"weights": seed})
    return create_release(ledger, name, ReleaseParts(model=model.digest), note=f"number {seed}")


def drive(ledger, rollout, *events, actor="tester"):
    for event in events:
        rollout = apply_event(ledger, rollout, event, YES, actor)
    return rollout


def labels(ledger, name="desk"):
    return ledger.artifacts.labels(ArtifactKind.RELEASE, name).get("production")


@pytest.fixture
def first(ledger):
    version = release(ledger, 1)
    open_rollout(ledger, "desk", version, None, POLICY, "ann")
    return version


def test_a_release_is_its_parts_and_knows_them(ledger):
    one = release(ledger, 1)
    assert release(ledger, 1) == one
    assert one.content == ReleaseParts.from_json(one.content).as_json()
    model = ledger.artifacts.get("model/m@1")
    assert model.digest in ledger.lineage.ancestors(one.digest)
    assert [d.verdict.reason for d in ledger.decisions.list(kind="release.note")] == ["number 1"]
    with pytest.raises(NotFound):
        create_release(ledger, "desk", ReleaseParts(model="sha256:" + "0" * 64))


def test_first_release_goes_live_by_a_decision_that_says_so(ledger):
    assert live_release(ledger, "desk") is None
    version = release(ledger, 1)
    rollout = open_rollout(ledger, "desk", version, None, POLICY, "ann")
    assert (rollout.state, rollout.share, rollout.active) == (S.PROMOTED, 1.0, False)
    assert [d.kind for d in rollout.history] == ["rollout.open", "rollout.promote", "rollout.settled"]
    assert "first release" in rollout.history[1].verdict.reason
    assert live_release(ledger, "desk") == version
    assert labels(ledger) == 1
    with pytest.raises(Conflict, match="serves"):
        open_rollout(ledger, "desk", release(ledger, 2), None, POLICY, "ann")


def test_promotion_moves_the_labels_and_rollback_moves_them_back(ledger, first):
    second = release(ledger, 2)
    rollout = open_rollout(ledger, "desk", second, first, POLICY, "ann")
    assert (rollout.state, rollout.share) == (S.DRAFT, 0.0)
    rollout = drive(ledger, rollout, E.GATE_PASSED, E.CANARY_STEP)
    assert (rollout.state, rollout.share) == (S.CANARY, 0.5)
    assert live_release(ledger, "desk") == first
    rollout = drive(ledger, rollout, E.PROMOTE)
    assert live_release(ledger, "desk") == second
    assert labels(ledger) == 2
    rollout = drive(ledger, rollout, E.ROLL_BACK)
    assert rollout.state is S.ROLLED_BACK
    assert live_release(ledger, "desk") == first
    assert labels(ledger) == 1
    assert ledger.audit.verify().ok


def test_rollback_of_a_canary_never_moved_anything(ledger, first):
    rollout = open_rollout(ledger, "desk", release(ledger, 2), first, POLICY, "ann")
    rollout = drive(ledger, rollout, E.GATE_OVERRIDDEN, E.CANARY_STEP, E.ROLL_BACK, actor="bob")
    assert live_release(ledger, "desk") == first
    assert [d.kind for d in rollout.history][-1] == "rollout.roll_back"
    overridden = next(d for d in rollout.history if d.kind == "rollout.gate_overridden")
    assert overridden.actor == "bob"


def test_a_promotion_whose_process_died_is_finished_on_load(ledger, first):
    second = release(ledger, 2)
    rollout = drive(ledger, open_rollout(ledger, "desk", second, first, POLICY, "a"), E.GATE_PASSED, E.CANARY_STEP)
    ledger.decisions.record("rollout.promote", rollout.rollout_id, YES, actor="a", expected=rollout.last.decision_id)
    assert live_release(ledger, "desk") == first
    assert load_rollout(ledger, rollout.rollout_id).settled
    assert live_release(ledger, "desk") == second
    assert labels(ledger) == 2
    before = len(ledger.decisions.list())
    load_rollout(ledger, rollout.rollout_id)
    assert len(ledger.decisions.list()) == before


def test_a_first_release_whose_process_died_is_finished_on_load(ledger):
    version = release(ledger, 1)
    policy = POLICY.as_json()
    content = {"endpoint": "desk", "candidate": version.digest, "candidate_ref": str(version.ref)}
    content |= {"baseline": None, "baseline_ref": None, "policy": policy}
    ledger.decisions.record("rollout.open", "rol_a", Verdict("open", "x", content), actor="a", expected=None)
    ledger.decisions.record("rollout.open", "rol_b", Verdict("open", "x", content), actor="b", expected=None)
    states = {r.rollout_id: r.state for r in list_rollouts(ledger, "desk")}
    assert states == {"rol_a": S.PROMOTED, "rol_b": S.CANCELLED}
    assert live_release(ledger, "desk") == version


def test_labels_that_a_person_moved_meanwhile_are_left_alone(ledger, first):
    second, third = release(ledger, 2), release(ledger, 3)
    rollout = drive(ledger, open_rollout(ledger, "desk", second, first, POLICY, "a"), E.GATE_PASSED, E.CANARY_STEP)
    ledger.decisions.record("rollout.promote", rollout.rollout_id, YES, actor="a", expected=rollout.last.decision_id)
    content = {"release": third.digest, "release_ref": str(third.ref)}
    other = ledger.artifacts.publish(ArtifactKind.ENDPOINT, "desk", content)
    ledger.artifacts.move_label(
        ArtifactKind.ENDPOINT, "desk", "production", other.version, expected=1, actor="ann", reason="by hand"
    )
    assert "pointed elsewhere" in load_rollout(ledger, rollout.rollout_id).last.verdict.reason
    assert live_release(ledger, "desk") == third


def test_second_rollout_waits_for_the_first_and_a_held_one_blocks_nobody(ledger, first):
    second, third = release(ledger, 2), release(ledger, 3)
    rollout = open_rollout(ledger, "desk", second, first, POLICY, "ann")
    with pytest.raises(Conflict, match="already has a rollout"):
        open_rollout(ledger, "desk", third, first, POLICY, "bob")
    held = drive(ledger, rollout, E.GATE_INSUFFICIENT)
    assert (held.state, held.share) == (S.HELD, 0.0)
    other = open_rollout(ledger, "desk", third, first, POLICY, "bob")
    with pytest.raises(Conflict, match="already has a rollout"):
        drive(ledger, held, E.RESUME)
    drive(ledger, other, E.GATE_PASSED, E.CANARY_STEP, E.PROMOTE)
    with pytest.raises(Conflict, match="serves"):
        drive(ledger, held, E.RESUME)
    assert [r.state for r in list_rollouts(ledger)] == [S.PROMOTED, S.HELD, S.PROMOTED]


def test_wrong_openings_are_refused(ledger, first):
    with pytest.raises(InvalidInput, match="nothing to roll out"):
        open_rollout(ledger, "desk", first, first, POLICY, "ann")
    with pytest.raises(InvalidInput, match="not a release"):
        open_rollout(ledger, "desk", ledger.artifacts.get("model/m"), first, POLICY, "ann")
    with pytest.raises(NotFound, match="rol_nothing"):
        load_rollout(ledger, "rol_nothing")
    rollout = load_rollout(ledger, list_rollouts(ledger)[0].rollout_id)
    with pytest.raises(Conflict, match="nothing is behind it"):
        drive(ledger, rollout, E.ROLL_BACK)


def test_of_many_movers_one_wins(ledger, first):
    rollout = drive(ledger, open_rollout(ledger, "desk", release(ledger, 2), first, POLICY, "a"), E.GATE_PASSED)
    results = []

    def move(event):
        try:
            results.append(apply_event(ledger, rollout, event, YES, "mover").state)
        except Conflict:
            results.append(None)

    threads = [threading.Thread(target=move, args=(e,)) for e in (E.CANARY_STEP, E.CANCEL, E.HOLD, E.SHADOW_STARTED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [state for state in results if state is not None]
    assert len(won) == 1
    assert load_rollout(ledger, rollout.rollout_id).state is won[0]


def put(ledger, rollout, count, success, first_unit=0):
    rng = random.Random(7)
    rows = []
    for i in range(first_unit, first_unit + count):
        canary = rng.random() < 0.5
        metrics = {"success": float(rng.random() < (success if canary else 0.8))}
        at = ledger.clock.now() + timedelta(seconds=i)
        rows.append(Observation(unit=f"s{i}", arm="canary" if canary else "control", metrics=metrics, at=at))
    ledger.observations.append(rollout.rollout_id, rows)


def test_stored_sessions_decide_the_same_whoever_looks_and_the_story_is_told(ledger, first):
    rollout = open_rollout(ledger, "desk", release(ledger, 2), first, POLICY, "ann")
    rollout = drive(ledger, rollout, E.GATE_PASSED, E.CANARY_STEP)
    put(ledger, rollout, 400, 0.3)
    verdict = assess_rollout(ledger, rollout)
    assert verdict.value == "roll_back"
    assert assess_rollout(ledger, load_rollout(ledger, rollout.rollout_id)).as_json() == verdict.as_json()
    rollout = apply_event(ledger, rollout, E.ROLL_BACK, verdict, "control plane")
    story = "\n".join(explain(rollout))
    for part in ("release/desk@2", "release/desk@1", "roll_back", "control plane", "success:", "margin 0.2"):
        assert part in story


def test_resume_after_a_hold_goes_on_where_the_sessions_were(ledger, first):
    policy = RolloutPolicy(margins={"success": 0.001}, max_sessions=30)
    rollout = open_rollout(ledger, "desk", release(ledger, 2), first, policy, "ann")
    rollout = drive(ledger, rollout, E.GATE_PASSED, E.CANARY_STEP)
    put(ledger, rollout, 100, 0.8)
    verdict = assess_rollout(ledger, rollout)
    assert verdict.value == "hold"
    rollout = apply_event(ledger, rollout, E.HOLD, verdict, "control plane")
    rollout = drive(ledger, rollout, E.RESUME)
    assert rollout.state is S.CANARY
    assert rollout.resumed_after_seq == verdict.evidence["through_seq"]
    assert assess_rollout(ledger, rollout).evidence["sessions"]["canary"] > 30


CHILD = """
import sys
from tidemill.kernel import ArtifactKind, ReleaseParts, Scope, Verdict
from tidemill.ledger import open_ledger
from tidemill.releases import *
ledger = open_ledger(sys.argv[1], blobs="memory://", scope=Scope("desk"))
E, yes = RolloutEvent, Verdict("yes", "because")
for rollout in list_rollouts(ledger, "desk"):
    if rollout.active:
        apply_event(ledger, rollout, E.CANCEL, yes, "next")
print("ready", flush=True)
number = len(ledger.artifacts.versions(ArtifactKind.MODEL, "m"))
while True:
    number += 1
    model = ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"weights": number})
    candidate = create_release(ledger, "desk", ReleaseParts(model=model.digest))
    rollout = open_rollout(ledger, "desk", candidate, live_release(ledger, "desk"), RolloutPolicy(), "child")
    if rollout.baseline is not None:
        for event in (E.GATE_PASSED, E.CANARY_STEP, E.PROMOTE):
            rollout = apply_event(ledger, rollout, event, yes, "child")
        if number % 3 == 0:
            rollout = apply_event(ledger, rollout, E.ROLL_BACK, yes, "child")
    print(rollout.rollout_id, rollout.state, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_every_rollout_is_whole(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    acknowledged = {}
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0.05, 0.6))
        os.kill(child.pid, signal.SIGKILL)
        lines = child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        acknowledged |= dict(line.split() for line in lines if len(line.split()) == 2)
    with open_ledger(url, blobs="memory://", scope=Scope("desk")) as ledger:
        rollouts = list_rollouts(ledger, "desk")
        states = {r.rollout_id: r.state.value for r in rollouts}
        assert acknowledged.items() <= states.items()
        assert all(r.settled for r in rollouts)
        live = None
        for r in rollouts:
            live = r.candidate if r.state is S.PROMOTED else live
        assert live_release(ledger, "desk") == live
        assert labels(ledger) == (live.version if live else None)
        assert ledger.audit.verify().ok


@pytest.mark.parametrize("served", [True, False])
def test_opened_at_once_by_many_one_rollout_remains(ledger, served):
    candidates = [release(ledger, seed) for seed in range(2, 6)]
    baseline = release(ledger, 1) if served else None
    if baseline:
        open_rollout(ledger, "desk", baseline, None, POLICY, "ann")
    start, lost = threading.Barrier(len(candidates)), []

    def begin(candidate):
        start.wait()
        try:
            open_rollout(ledger, "desk", candidate, baseline, POLICY, "opener")
        except Conflict:
            lost.append(candidate)

    threads = [threading.Thread(target=begin, args=(candidate,)) for candidate in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == len(candidates) - 1
    mine = [r for r in list_rollouts(ledger, "desk") if r.history[0].actor == "opener"]
    kept = [r for r in mine if r.state is not S.CANCELLED]
    assert len(kept) == 1
    assert live_release(ledger, "desk") == (baseline or kept[0].candidate)
