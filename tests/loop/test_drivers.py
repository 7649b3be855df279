"""The drivers of rollouts and monitors, over a real ledger and span store; time is what the test says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from tidemill.kernel import ArtifactKind, Conflict, Decoding, InvalidInput, ReleaseParts, RowId, Scope, Verdict
from tidemill.kernel.settings import RolloutSettings, parse_settings
from tidemill.ledger import ArtifactVersion, Ledger, Row, open_ledger
from tidemill.loop import rollouts as driving
from tidemill.loop.apply import apply
from tidemill.loop.feed import SpanFeed
from tidemill.loop.monitors import ALARM, MonitorDriver, monitor_of
from tidemill.loop.rollouts import RolloutDriver, rollout_policy
from tidemill.loop.shadows import ShadowPairs
from tidemill.releases import (
    Rollout,
    RolloutEvent,
    RolloutPolicy,
    RolloutState,
    apply_event,
    create_release,
    load_rollout,
    open_rollout,
)
from tidemill.telemetry import Batch, Content, Reference, Score, Span, SpanStore, StoredSpan, open_span_store

SCOPE = Scope("p", "t")
SECOND = 1_000_000_000
LATER_NS = 4_000_000_000 * SECOND  # after all that these tests record by the real clock
POLICY = RolloutPolicy(margins={"success": 0.5}, alpha_promote=0.1, alpha_rollback=0.1, min_sessions=3, max_sessions=60)


@dataclass
class World:
    """Ledger and span store, a candidate and a baseline."""

    ledger: Ledger
    store: SpanStore
    served: set[str] = field(default_factory=set)
    now_ns: int = LATER_NS
    asked: int = 0

    def driver(self) -> RolloutDriver:
        return RolloutDriver(self.ledger, self.store, lambda digest: digest in self.served, lambda: self.now_ns)

    def release(self, number: int, index: ArtifactVersion | None = None) -> ArtifactVersion:
        model = self.ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"entry": {}})
        parts = ReleaseParts(
            model=model.digest, decoding=Decoding(max_tokens=number), index=index.digest if index else None
        )
        version = create_release(self.ledger, "r", parts)
        self.served.add(version.digest)
        return version

    def canary(self, policy: RolloutPolicy = POLICY, endpoint: str = "e") -> Rollout:
        """A rollout from release 1 to release 2 past its gate."""
        one, two = self.release(1), self.release(2)
        open_rollout(self.ledger, endpoint, one, None, policy, "me")
        rollout = open_rollout(self.ledger, endpoint, two, one, policy, "me")
        return apply_event(self.ledger, rollout, RolloutEvent.GATE_PASSED, Verdict("PASS", "x"), "me")

    def session(self, rollout: Rollout, *, canary: bool, value: float | None = 1.0) -> str:
        self.asked += 1
        assert rollout.baseline is not None
        of = rollout.candidate if canary else rollout.baseline
        one = span(self.asked, of.digest, arm="canary" if canary else "control", rollout=rollout.rollout_id)
        scores = [] if value is None else [score(one, value)]
        self.store.commit(Batch([one], {}, scores), {})
        return one.trace_id


def span(number: int, release: str, *, arm: str, rollout: str | None = None, status: str = "ok") -> Span:
    started_ns = LATER_NS + number * SECOND
    return Span(
        trace_id=hashlib.sha256(str(number).encode()).hexdigest()[:32],
        span_id=hashlib.sha256(f"{number}{arm}".encode()).hexdigest()[:16],
        project="p",
        tenant="t",
        name="chat",
        operation="chat",
        started_at_ns=started_ns,
        ended_at_ns=started_ns + SECOND // 2,
        status=status,  # type: ignore[arg-type]  # tests write one of them
        endpoint="e",
        arm=arm,
        release=release,
        assigned_release=release,
        session_id=f"s{number}",
        rollout=rollout,
    )


def score(of: Span, value: float) -> Score:
    return Score(
        score_id=f"f-{of.trace_id}",
        trace_id=of.trace_id,
        name="feedback",
        source="user",
        at_ns=of.ended_at_ns,
        project="p",
        tenant="t",
        value=value,
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = open_span_store(tmp_path / "spans.duckdb", SCOPE)
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", blobs=str(tmp_path / "blobs"), scope=SCOPE) as ledger:
        yield World(ledger, store)
    store.close()


def test_a_candidate_gets_nothing_before_it_answers(world: World) -> None:
    rollout = world.canary()
    world.served.remove(rollout.candidate.digest)
    driver = world.driver()
    assert [one.state for one in driver.tick()] == [RolloutState.GATED]
    world.served.add(rollout.candidate.digest)
    assert [one.state for one in driver.tick()] == [RolloutState.CANARY]


def test_stores_sessions_with_their_share_and_decides_once(world: World) -> None:
    rollout, driver = world.canary(), world.driver()
    driver.tick()
    for number in range(120):
        world.session(rollout, canary=number % 2 == 0)
        if not driver.tick():
            break
    ended = load_rollout(world.ledger, rollout.rollout_id)
    assert ended.state is RolloutState.PROMOTED
    assert ended.history[-2].actor == driving.ACTOR
    stored = world.ledger.observations.read(rollout.rollout_id)
    assert [one.unit for one in stored] == [f"s{number + 1}" for number in range(len(stored))]
    assert {one.metrics["canary_share"] for one in stored} == {0.5}
    decisions = len(world.ledger.decisions.list())
    assert driver.tick() == []
    assert len(world.ledger.decisions.list()) == decisions


def test_a_rollout_moved_by_another_stays_in_the_list(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it left out for one look, its traffic would fall back to production and its sessions would end."""
    rollout, driver = world.canary(), world.driver()

    def lost(*_: object) -> None:
        raise Conflict("somebody else was first")

    with monkeypatch.context() as race:
        race.setattr(driving, "apply_event", lost)
        assert [one.rollout_id for one in driver.tick()] == [rollout.rollout_id]
    apply_event(
        world.ledger, load_rollout(world.ledger, rollout.rollout_id), RolloutEvent.CANCEL, Verdict("x", "y"), "me"
    )
    assert driver.tick() == []


def test_one_rollout_that_cannot_be_judged_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = world.canary(endpoint="bad"), world.canary(endpoint="e")
    driver = world.driver()
    driver.tick()
    judge = driving.assess

    def judged(policy, observations, **more):  # type: ignore[no-untyped-def]
        if any(one.unit == "s1" for one in observations):
            raise InvalidInput("a session of another arm")
        return judge(policy, observations, **more)

    monkeypatch.setattr(driving, "assess", judged)
    world.session(bad, canary=True)
    for number in range(120):
        world.session(good, canary=number % 2 == 0)
        active = driver.tick()
        if len(active) == 1:
            break
    assert [one.rollout_id for one in active] == [bad.rollout_id]
    assert load_rollout(world.ledger, good.rollout_id).state is RolloutState.PROMOTED
    assert f"rollout {bad.rollout_id} cannot be judged" in caplog.text


def test_a_look_without_news_reads_no_rollout_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.canary()
    driver = world.driver()
    driver.tick()
    driver.tick()
    listed: list[int] = []
    original = driving.list_rollouts
    monkeypatch.setattr(driving, "list_rollouts", lambda ledger: listed.append(1) or original(ledger))
    for _ in range(5):
        assert len(driver.tick()) == 1
    assert listed == []
    world.ledger.decisions.record("release.note", "r", Verdict("x", "y"), actor="me")
    driver.tick()
    assert listed == [1]


def test_feedback_that_never_comes_leaves_a_session_unmeasured(world: World) -> None:
    rollout, driver = world.canary(), world.driver()
    driver.tick()
    world.session(rollout, canary=True, value=None)
    world.session(rollout, canary=False)
    driver.tick()
    assert world.ledger.observations.read(rollout.rollout_id) == []
    world.now_ns += int((POLICY.label_timeout_s + 10) * SECOND)
    driver.tick()
    stored = world.ledger.observations.read(rollout.rollout_id)
    assert [(one.unit, one.metrics["success"]) for one in stored] == [("s1", None), ("s2", 1.0)]


def test_the_policy_is_the_project_files() -> None:
    policy = rollout_policy(RolloutSettings(canary_share=0.25, min_sessions=7, shadow_requests=9, on_max="rollback"))
    assert (policy.ramp, policy.min_sessions, policy.shadow_requests, policy.on_max) == ((0.25,), 7, 9, "rollback")
    assert set(policy.margins) == {"success", "latency_ok", "ok"}


def pair(world: World, number: int, release: str, shadow_release: str, live: str, shadow: str) -> list[StoredSpan]:
    used = (Reference("passage", "psg_1", "retrieved"),)
    from msgspec.structs import replace

    return [
        StoredSpan(replace(span(number, release, arm="control"), references=used), Content("[]", live), 1),
        StoredSpan(replace(span(number, shadow_release, arm="shadow"), references=used), Content("[]", shadow), 2),
    ]


def test_pairs_score_what_the_passages_hold(world: World) -> None:
    value = {"document_id": "doc_1", "title": "Tyres", "text": "A flat tyre costs 12 euros.", "start": 0, "end": 9}
    index = world.ledger.datasets.write("i", [Row(row_id=RowId("psg_1"), value=value)], kind=ArtifactKind.INDEX)
    one, two = world.release(1, index).digest, world.release(2, index).digest
    pairs = ShadowPairs(world.ledger)
    good, bad = "A flat tyre costs 12 euros.", "Unicorns dance upon distant rainbows."
    pairs.feed(reversed(pair(world, 3, one, two, good, bad)))
    pairs.feed(pair(world, 1, one, two, bad, good))
    pairs.feed(pair(world, 2, one, two, "I do not know.", good)[:1])  # its shadow was dropped
    pairs.feed(pair(world, 4, one, "sha256:" + "0" * 64, good, "I do not know."))
    scores = pairs.scores()
    assert len(scores) == 3
    (first, second, third) = scores
    assert first[0] == 1.0
    assert first[1] < 0.5
    assert second == (first[1], first[0])
    assert third == (1.0, 1.0)


def test_a_failed_shadow_scores_nothing_and_a_cut_one_does_not_count(world: World) -> None:
    pairs = ShadowPairs(world.ledger)
    live = StoredSpan(span(1, "r", arm="control"), Content("[]", "I do not know."), 1)
    failed = msgspec.structs.replace(span(1, "r", arm="shadow", status="error"), http_status=500)
    pairs.feed([live, StoredSpan(failed, None, 2)])
    pairs.feed([StoredSpan(span(2, "r", arm="shadow", status="interrupted"), None, 3)])
    pairs.feed([StoredSpan(span(2, "r", arm="control"), Content("[]", "x"), 4)])
    for number, http_status in ((3, None), (4, 502), (5, 503), (6, 504)):  # nobody was there to answer
        away = msgspec.structs.replace(span(number, "r", arm="shadow", status="error"), http_status=http_status)
        pairs.feed([StoredSpan(span(number, "r", arm="control"), Content("[]", "x"), number + 2)])
        pairs.feed([StoredSpan(away, None, number + 3)])
    assert pairs.scores() == [(0.0, 1.0)]


def monitored(world: World, objective: float = 0.9) -> MonitorDriver:
    monitor = {"endpoint": "e", "signal": "errors", "objective": objective}
    apply(parse_settings({"project": "p", "monitors": {"errors": monitor}}), world.ledger, actor="me")
    return MonitorDriver(world.ledger, SpanFeed(world.store))


def requests(world: World, count: int, *, status: str = "ok", arm: str = "control") -> None:
    first = world.asked + 1
    world.asked += count
    spans = [span(number, "r", arm=arm, status=status) for number in range(first, world.asked + 1)]
    world.store.commit(Batch(spans), {})


def test_an_alarm_is_raised_once_also_after_a_restart(world: World) -> None:
    driver = monitored(world)
    requests(world, 200)
    assert driver.tick() == []
    requests(world, 100, status="error")
    alarms = driver.tick()
    assert len(alarms) == 1
    assert driver.tick() == []
    (state,) = driver.states()
    assert (state["requests"], state["bad"], state["alarms"]) == (300, 100, 1)
    again = MonitorDriver(world.ledger, SpanFeed(world.store))
    assert again.tick() == []
    assert again.states() == driver.states()
    (decision,) = world.ledger.decisions.list(kind=ALARM)
    assert (decision.subject, decision.actor) == ("monitor/errors", "monitor")
    assert decision.verdict.evidence["at"] == alarms[0].at.isoformat()


def test_a_kept_state_reads_on_where_it_stood(world: World) -> None:
    driver = monitored(world)
    requests(world, 100)
    driver.tick()
    kept = json.loads(json.dumps(driver.kept()))
    read: list[int] = []

    class Counting(SpanFeed):
        def after(self, seq: int) -> Iterator[Sequence[StoredSpan]]:
            for batch in super().after(seq):
                read.append(len(batch))
                yield batch

    requests(world, 7, status="error")
    again = MonitorDriver(world.ledger, Counting(world.store), kept)
    again.tick()
    driver.tick()
    assert again.states() == driver.states()
    assert read == [7]


def test_copies_and_clients_that_left_count_for_nobody(world: World) -> None:
    driver = monitored(world)
    requests(world, 50, status="error", arm="shadow")
    requests(world, 50, status="cancelled")
    assert driver.tick() == []
    assert driver.states()[0]["requests"] == 0


def test_monitors_follow_the_applied_file(world: World) -> None:
    driver = monitored(world)
    requests(world, 10)
    driver.tick()
    assert driver.states()[0]["requests"] == 10
    changed = {"endpoint": "e", "signal": "latency", "objective": 0.5, "latency_slo_s": 0.1}
    apply(parse_settings({"project": "p", "monitors": {"errors": changed}}), world.ledger, actor="me")
    driver.tick()
    assert driver.states()[0]["bad"] == 10  # read again from the start under the new rule
    apply(parse_settings({"project": "p"}), world.ledger, actor="me")
    driver.tick()
    assert driver.states() == []


def test_a_monitor_is_what_the_file_says() -> None:
    section = parse_settings({"project": "p", "monitors": {"m": {"endpoint": "e", "signal": "errors"}}}).monitors["m"]
    monitor = monitor_of("m", section.model_dump(mode="json"))
    assert (monitor.kind, monitor.endpoint, round(monitor.max_share, 6)) == ("error_rate", "e", 0.01)
