"""The driver of objectives, over a real ledger and span store; time is what the test says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tidemill.kernel import ArtifactKind, Decoding, FakeClock, InvalidInput, ReleaseParts, Scope, Unavailable, Verdict
from tidemill.kernel.settings import parse_settings
from tidemill.ledger import Ledger, open_ledger
from tidemill.loop.feed import SpanFeed, load_state, state_document, store_identity
from tidemill.loop.slos import ALARM, CLEARED, SloDriver, slo_of
from tidemill.monitoring import Slo
from tidemill.releases import RolloutPolicy, create_release, open_rollout
from tidemill.telemetry import Batch, Score, Span, SpanStore, StoredSpan, open_span_store

SCOPE = Scope("p", "t")
START = datetime(2026, 3, 1, tzinfo=UTC)
SECOND = 1_000_000_000


@dataclass
class World:
    ledger: Ledger
    store: SpanStore
    clock: FakeClock = field(default_factory=lambda: FakeClock(START))
    asked: int = 0

    def now_ns(self) -> int:
        return int(self.clock.now().timestamp() * 1e9)

    def requests(self, count: int, *, every_s: float = 10.0, **changes: object) -> list[Span]:
        """Requests one after the other; the clock moves along."""
        made = []
        for _ in range(count):
            self.clock.advance(every_s)
            self.asked += 1
            made.append(span(self.asked, self.now_ns(), **changes))
        self.store.commit(Batch(made), {})
        return made

    def driver(self, *slos: Slo, kept: dict[str, object] | None = None, feed: SpanFeed | None = None) -> SloDriver:
        return SloDriver(slos, self.ledger, self.store, feed or SpanFeed(self.store), self.clock, kept)


def span(number: int, ended_ns: int, **changes: object) -> Span:
    fields: dict[str, object] = {
        "trace_id": hashlib.sha256(str(number).encode()).hexdigest()[:32],
        "span_id": hashlib.sha256(f"s{number}".encode()).hexdigest()[:16],
        "project": "p",
        "tenant": "t",
        "name": "chat",
        "operation": "chat",
        "started_at_ns": ended_ns - SECOND,
        "ended_at_ns": ended_ns,
        "endpoint": "e",
        "arm": "control",
    }
    return Span(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = open_span_store(tmp_path / "spans.duckdb", SCOPE)
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", blobs=str(tmp_path / "blobs"), scope=SCOPE) as ledger:
        yield World(ledger, store)
    store.close()


AVAILABLE = Slo(name="up", indicator="availability", endpoint="e", objective=0.95)


def test_an_outage_is_recorded_when_it_begins_and_when_it_ends_and_not_again(world: World) -> None:
    driver = world.driver(AVAILABLE)
    world.requests(200)
    assert driver.tick() == []
    world.requests(20, status="error", http_status=500)
    turns = driver.tick()
    assert {turn.severity for turn in turns if turn.fired} == {"ticket", "page"}
    (state,) = driver.states()
    assert state["alarms"]["page"]["firing"]
    assert state["budget"]["bad"] == 20
    assert state["budget"]["left"] == pytest.approx(1 - 20 / (220 * 0.05))
    world.requests(600)
    assert {turn.fired for turn in driver.tick()} == {False}
    decisions = world.ledger.decisions.list(subject="slo/up")
    assert [one.kind for one in decisions] == [ALARM, ALARM, CLEARED, CLEARED]
    assert {one.actor for one in decisions} == {"slo"}
    assert all(one.verdict.evidence["lasted_s"] > 0 for one in decisions if one.kind == CLEARED)
    again = world.driver(AVAILABLE)  # without a kept state: everything is replayed, and nothing recorded twice
    assert again.tick() == []
    assert again.states() == driver.states()
    assert len(world.ledger.decisions.list(subject="slo/up")) == 4


def test_a_restart_reads_on_from_the_kept_state(world: World, tmp_path: Path) -> None:
    driver = world.driver(AVAILABLE)
    world.requests(300)
    driver.tick()
    identity = store_identity(tmp_path / "spans.duckdb")
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state_document({"slos": driver.kept()}, identity=identity)))
    world.requests(5, status="error")
    read: list[int] = []

    class Counting(SpanFeed):
        def after(self, seq: int) -> Iterator[Sequence[object]]:  # type: ignore[override]
            for batch in super().after(seq):
                read.append(len(batch))
                yield batch

    kept = load_state(path, identity=identity)["slos"]
    again = world.driver(AVAILABLE, kept=kept, feed=Counting(world.store))
    again.tick()
    driver.tick()
    assert read == [5]
    assert again.states() == driver.states()
    assert load_state(path, identity="another store") == {}
    path.write_text("{")
    assert load_state(path, identity=identity) == {}
    assert load_state(tmp_path / "none", identity=identity) == {}


def test_a_changed_objective_reads_its_window_anew_and_nothing_older(world: World) -> None:
    world.requests(50, status="error")
    world.clock.advance(40 * 86_400)
    world.requests(50)
    driver = world.driver(AVAILABLE)
    driver.tick()
    assert driver.states()[0]["events"] == 50
    wider = Slo(name="up", indicator="availability", endpoint="e", objective=0.95, window_days=60)
    changed = world.driver(wider, kept=driver.kept())
    changed.tick()
    assert changed.states()[0]["events"] == 100


def test_old_spans_alone_are_no_events(world: World) -> None:
    world.requests(50, status="error")
    world.clock.advance(40 * 86_400)
    driver = world.driver(AVAILABLE)
    driver.tick()
    assert driver.tick() == []
    assert driver.states()[0]["events"] == 0


def test_copies_leavers_other_endpoints_and_inner_spans_count_for_nobody(world: World) -> None:
    driver = world.driver(AVAILABLE)
    world.requests(20, status="error", arm="shadow")
    world.requests(20, status="cancelled")
    world.requests(20, status="error", endpoint="other")
    world.requests(20, status="error", parent_span_id="00f067aa0ba902b7")
    driver.tick()
    assert driver.states()[0]["events"] == 0
    world.requests(3, arm=None)  # what other programs send has no arm
    driver.tick()
    assert driver.states()[0]["events"] == 3


def test_a_clock_that_runs_ahead_does_not_move_time_on(world: World) -> None:
    driver = world.driver(AVAILABLE)
    world.store.commit(Batch([span(10_000, world.now_ns() + 10**18)]), {})
    world.requests(10)
    driver.tick()
    assert driver.states()[0]["budget"]["good"] == 11


def test_groundedness_follows_scores(world: World) -> None:
    slo = Slo(name="true", indicator="groundedness", endpoint="e", objective=0.8, threshold=0.5)
    driver = world.driver(slo)
    answered = world.requests(30)
    elsewhere = world.requests(1, endpoint="other")
    scores = [
        Score(
            score_id=f"g{place}",
            trace_id=of.trace_id,
            name=name,
            source="judge",
            at_ns=of.ended_at_ns,
            project="p",
            tenant="t",
            value=value,
        )
        for place, (of, name, value) in enumerate(
            [(one, "groundedness", float(place >= 10)) for place, one in enumerate(answered)]
            + [(elsewhere[0], "groundedness", 0.0), (answered[0], "feedback", 0.0)]
        )
    ]
    world.store.commit(Batch([], {}, scores), {})
    driver.tick()
    assert (driver.states()[0]["events"], driver.states()[0]["bad"]) == (30, 10)
    again = world.driver(slo, kept=driver.kept())
    again.tick()
    assert again.states()[0]["events"] == 30


def test_freshness_is_looked_at_once_a_bin_while_there_is_an_index(world: World) -> None:
    slo = Slo(name="fresh", indicator="data_freshness", endpoint="e", objective=0.9, threshold=86_400)
    driver = world.driver(slo)
    driver.tick()
    assert driver.states()[0]["events"] == 0
    index = world.ledger.artifacts.publish(ArtifactKind.INDEX, "i", {"x": 1})
    model = world.ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"entry": {}})
    parts = ReleaseParts(model=model.digest, decoding=Decoding(max_tokens=1), index=index.digest)
    release = create_release(world.ledger, "r", parts)
    open_rollout(world.ledger, "e", release, None, RolloutPolicy(margins={"success": 0.5}), "me")
    made = index.created_at.timestamp()
    driver_clock = FakeClock(datetime.fromtimestamp(made + 3600, UTC))
    driver = SloDriver([slo], world.ledger, world.store, SpanFeed(world.store), driver_clock)
    for _ in range(3):
        driver.tick()
    assert (driver.states()[0]["events"], driver.states()[0]["bad"]) == (1, 0)
    driver_clock.advance(2 * 86_400)
    driver.tick()
    assert (driver.states()[0]["events"], driver.states()[0]["bad"]) == (2, 1)


def test_recovery_counts_each_incident_once(world: World) -> None:
    slo = Slo(name="mended", indicator="recovery_time", endpoint="e", objective=0.5, threshold=3600)
    driver = world.driver(AVAILABLE, slo)
    world.requests(200)
    world.requests(20, status="error")
    driver.tick()
    assert driver.states()[1]["events"] == 0  # under way
    world.requests(100, every_s=1)
    world.clock.advance(60)
    driver.tick()
    driver.tick()
    ended = [one.verdict.evidence["severity"] for one in world.ledger.decisions.list(kind=CLEARED)]
    state = driver.states()[1]
    assert (state["events"], state["bad"]) == (len(ended), 0)
    world.clock.advance(7200)
    driver.tick()
    state = driver.states()[1]
    assert (state["events"], state["bad"]) == (2, 2 - len(ended))


def test_an_alarm_that_cannot_be_recorded_waits_and_an_unreadable_store_loses_no_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(SpanFeed):
        broken = False

        def after(self, seq: int) -> Iterator[Sequence[StoredSpan]]:
            for place, batch in enumerate(super().after(seq)):
                if self.broken and place == 1:
                    raise Unavailable("the store is away")
                yield batch

    feed = Breaking(world.store, batch=10)
    driver = world.driver(AVAILABLE, feed=feed)
    driver.tick()
    world.requests(40)
    feed.broken = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            driver.tick()
    feed.broken = False
    driver.tick()
    assert driver.states()[0]["events"] == 40
    world.requests(30, status="error")
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise Unavailable("the ledger is away")

        patch.setattr(world.ledger.decisions, "record", refuse)
        with pytest.raises(Unavailable):
            driver.tick()
        assert driver.behind
    driver.tick()
    assert not driver.behind
    assert {one.verdict.value for one in world.ledger.decisions.list(kind=ALARM)} == {"ticket", "page"}
    assert driver.states()[0]["events"] == 70


def test_an_objective_is_what_the_file_says() -> None:
    document = {"project": "p", "slos": {"fast": {"indicator": "total_time", "endpoint": "e", "threshold": 3}}}
    slo = slo_of("fast", parse_settings(document).slos["fast"])
    assert (slo.threshold, slo.objective, slo.promise) == (3, 0.99, "total time <= 3 s for 0.99 of the events of e")
    for wrong in ({"indicator": "total_time"}, {"indicator": "availability", "objective": 1.0}):
        with pytest.raises(InvalidInput):
            slo_of("x", parse_settings({"project": "p", "slos": {"x": wrong}}).slos["x"])


def test_verdicts_are_plain_json(world: World) -> None:
    driver = world.driver(AVAILABLE)
    world.requests(30, status="error")
    for turn in driver.tick():
        assert Verdict.from_json(json.loads(json.dumps(turn.verdict.as_json()))) == turn.verdict
