"""The control plane with a real ledger, a real span store and real segments; time passes by looks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.desk import POLICY, Desk, first_live, gated, open_desk, release, write_desk
from tidemill.kernel import ArtifactKind, Digest, ReleaseParts, Verdict
from tidemill.prompts import Message, Prompt, publish_prompt
from tidemill.releases import RolloutEvent, RolloutState, apply_event, create_release, live_release, load_rollout
from tidemill.server.children import Deployment, read_deployments
from tidemill.telemetry import SpanQuery


def test_the_first_release_goes_live(desk: Desk) -> None:
    desk.look()
    assert desk.snapshot().routes == ()
    one = first_live(desk.project)
    desk.look()
    (route,) = desk.snapshot().routes
    assert route.endpoint == "desk"
    assert [(target.release, target.targets[0].model, target.weight) for target in route.releases] == [
        (one.digest, "scripted", 1)
    ]
    epoch = desk.snapshot().epoch
    desk.look()
    assert desk.snapshot().epoch == epoch
    assert desk.control.status()["endpoints"] == [{"endpoint": "desk", "control": str(one.ref), "ready": True}]


def test_spans_of_segments_reach_the_store(desk: Desk) -> None:
    one = first_live(desk.project)
    trace_id = desk.session(None, one, arm="control")
    desk.look()
    (stored,) = desk.control.store.trace(trace_id)
    assert stored.content is not None
    assert stored.content.output == "Because."


def test_shadow_then_canary_then_promotion(desk: Desk) -> None:
    one, two = first_live(desk.project), release(desk.project, 2)
    desk.look()
    rollout = gated(desk.project, two, replace(POLICY, shadow_requests=40))
    desk.look()  # finds the candidate served
    desk.look()
    assert load_rollout(desk.project.ledger, rollout.rollout_id).state is RolloutState.SHADOW
    (route,) = desk.snapshot().routes
    assert route.shadow is not None
    assert route.shadow.release == two.digest
    assert len(route.releases) == 1
    state = RolloutState.SHADOW
    while state is RolloutState.SHADOW:
        assert desk.asked < 40
        desk.shadowed(rollout, one, answer="I do not know.", shadow_answer="I do not know.")
        desk.look()
        state = load_rollout(desk.project.ledger, rollout.rollout_id).state
    assert state is RolloutState.CANARY
    (route,) = desk.snapshot().routes
    assert [(target.release, target.weight) for target in route.releases] == [(one.digest, 0.5), (two.digest, 0.5)]
    assert route.rollout == rollout.rollout_id
    while state is RolloutState.CANARY:
        assert desk.asked < 200
        desk.session(rollout, one, arm="control")
        desk.session(rollout, two, arm="canary")
        desk.look()
        state = load_rollout(desk.project.ledger, rollout.rollout_id).state
    assert state is RolloutState.PROMOTED
    live = live_release(desk.project.ledger, "desk")
    assert live is not None
    assert live.digest == two.digest
    (route,) = desk.snapshot().routes
    assert [target.release for target in route.releases] == [two.digest]


def test_a_worse_release_is_rolled_back(desk: Desk) -> None:
    one, two = first_live(desk.project), release(desk.project, 2)
    rollout = gated(desk.project, two)
    desk.look()
    desk.look()
    state = RolloutState.CANARY
    while state is RolloutState.CANARY:
        assert desk.asked < 100
        desk.session(rollout, one, arm="control")
        desk.session(rollout, two, arm="canary", value=None, status="error")
        desk.session(rollout, two, arm="canary", value=0.0)
        desk.look()
        state = load_rollout(desk.project.ledger, rollout.rollout_id).state
        if desk.asked == 60:  # the failed sessions wait for feedback that never comes
            break
    # Sessions without an answer hold the sequence until their time is over: nothing is decided before.
    assert state is RolloutState.CANARY
    desk.control._rollouts._now_ns = lambda: 2**62
    desk.look()
    decided = load_rollout(desk.project.ledger, rollout.rollout_id)
    assert decided.state is RolloutState.ROLLED_BACK
    assert "worse than the baseline" in decided.last.verdict.reason
    (route,) = desk.snapshot().routes
    assert [target.release for target in route.releases] == [one.digest]


def drive(folder: Path, restarts: frozenset[int]) -> Iterator[object]:
    """A canary of forty looks, with the control plane started anew before some of them: all that was decided."""
    with ExitStack() as stack:
        desk = stack.enter_context(open_desk(write_desk(folder)))
        one, two = first_live(desk.project), release(desk.project, 2)
        rollout = gated(desk.project, two)
        for step in range(40):
            if step in restarts:
                asked = desk.asked
                stack.pop_all().close()
                desk = stack.enter_context(open_desk(folder))
                desk.asked = asked
            desk.look()
            if step > 2:
                desk.session(rollout, one, arm="control", value=float(step % 3 > 0))
                desk.session(rollout, two, arm="canary", value=float(step % 4 > 0))
        rollout = load_rollout(desk.project.ledger, rollout.rollout_id)
        yield [(d.kind, d.verdict.value, d.verdict.reason) for d in rollout.history]
        yield [
            (o.seq, o.unit, o.arm, dict(o.metrics)) for o in desk.project.ledger.observations.read(rollout.rollout_id)
        ]


def test_a_restart_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    whole = list(drive(tmp_path / "whole", frozenset()))
    broken = list(drive(tmp_path / "broken", frozenset({1, 2, 4, 9, 10, 25})))
    assert broken == whole
    assert ("rollout.promote", "promote") in [decision[:2] for decision in whole[0]]  # type: ignore[union-attr]  # a list


def test_a_session_goes_on_after_a_restart_without_holding_the_others_back(tmp_path: Path) -> None:
    folder = write_desk(tmp_path / "desk")
    with open_desk(folder) as desk:
        one, two = first_live(desk.project), release(desk.project, 2)
        rollout = gated(desk.project, two)
        desk.look()
        desk.look()
        desk.session(rollout, one, arm="control")
        desk.look()
        # the same session asks again, and nobody judges that answer
        span = desk._span(1, one, arm="control", rollout=rollout.rollout_id)
        from msgspec.structs import replace as changed

        desk.writer.finished(changed(span, trace_id="f" * 32, span_id="e" * 16), None)
        desk.look()
    with open_desk(folder) as desk:
        desk.asked = 1
        desk.session(rollout, two, arm="canary")
        desk.look()
        desk.look()
        found = desk.project.ledger.observations.read(rollout.rollout_id)
        assert [one.unit for one in found] == ["session-1", "session-2"]


def test_a_retired_release_is_served_a_little_longer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("tidemill.server.control.time.monotonic", lambda: now_s[0])
    one, two = first_live(desk.project), release(desk.project, 2)
    desk.look()
    rollout = gated(desk.project, two)
    desk.look()
    desk.look()
    rollout = load_rollout(desk.project.ledger, rollout.rollout_id)
    apply_event(desk.project.ledger, rollout, RolloutEvent.PROMOTE, Verdict("x", "y"), "me")
    desk.look()
    assert {row["release"] for row in desk.control.status()["serving"]} == {str(one.ref), str(two.ref)}
    now_s[0] += 4.9
    desk.look()
    assert len(desk.control.status()["serving"]) == 2
    now_s[0] += 0.2
    desk.look()
    assert [row["release"] for row in desk.control.status()["serving"]] == [str(two.ref)]


def application(desk: Desk) -> Digest:
    """A release with a prompt, which a process of its own serves."""
    model = release(desk.project, 1).content["model"]
    prompt = publish_prompt(desk.project.ledger, Prompt(name="answer", messages=(Message("user", "{{question}}"),)))
    return create_release(desk.project.ledger, "app", ReleaseParts(model=model, prompt=prompt.digest)).digest


def test_an_application_gets_a_process_and_a_port(desk: Desk) -> None:
    digest = application(desk)
    desk.control._serve({digest})
    (asked,) = read_deployments(desk.project.places.deployments)
    assert (asked.digest, asked.chat_model, asked.embed_model) == (digest, "scripted", None)
    desk.control._serve({digest})
    assert read_deployments(desk.project.places.deployments) == [asked]
    assert desk.control._served == {}
    desk.control._serve(set())
    assert read_deployments(desk.project.places.deployments) == []


def test_another_process_on_the_port_is_not_the_release(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def healthy(_url: str, *, release: str | None = None) -> bool:
        asked.append(release)
        return False

    monkeypatch.setattr("tidemill.server.control.is_healthy", healthy)
    digest, now_s = application(desk), [1000.0]
    monkeypatch.setattr("tidemill.server.control.time.monotonic", lambda: now_s[0])
    desk.control._serve({digest})
    desk.control._serve({digest})
    assert asked == [digest]
    (first,) = read_deployments(desk.project.places.deployments)
    now_s[0] += 121
    desk.control._serve({digest})
    (second,) = read_deployments(desk.project.places.deployments)
    assert first.port != second.port


def test_a_list_of_deployments_that_could_not_be_written_is_written_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    digest = application(desk)
    with monkeypatch.context() as disk:
        disk.setattr("tidemill.server.control.write_json", full)
        with pytest.raises(OSError, match="No space"):
            desk.control._serve({digest})
    desk.control._serve({digest})
    assert [one.digest for one in read_deployments(desk.project.places.deployments)] == [digest]


@pytest.mark.parametrize("content", ["", "{", '[{"digest": "x", "other": 1}]', "[1]"])
def test_a_list_of_deployments_of_another_version_is_not_obeyed(tmp_path: Path, content: str) -> None:
    file = tmp_path / "deployments.json"
    file.write_text(content)
    assert read_deployments(file) == []


def test_a_release_that_cannot_be_served_takes_no_other_along(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    good = first_live(desk.project)
    broken = desk.project.ledger.artifacts.publish(ArtifactKind.MODEL, "broken", {"entry": {"name": "x"}})
    bad = create_release(desk.project.ledger, "bad", ReleaseParts(model=broken.digest))
    desk.control._serve({bad.digest, good.digest})
    assert set(desk.control._served) == {good.digest}
    assert f"release {bad.digest} cannot be served" in caplog.text


def test_a_standing_route_outlives_a_restart_until_its_processes_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_desk(tmp_path / "desk")
    with open_desk(folder) as desk:
        digest = application(desk)
        version = desk.project.ledger.artifacts.by_digest(digest)
        from tidemill.releases import open_rollout

        open_rollout(desk.project.ledger, "desk", version, None, POLICY, "me")
        monkeypatch.setattr("tidemill.server.control.is_healthy", lambda *_, **__: True)
        desk.look()
        desk.look()
        assert len(desk.snapshot().routes) == 1
    now_s = [5000.0]
    monkeypatch.setattr("tidemill.server.control.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("tidemill.server.control.is_healthy", lambda *_, **__: False)
    with open_desk(folder) as desk:
        desk.look()
        assert len(desk.snapshot().routes) == 1
        now_s[0] += 16
        desk.look()
        assert desk.snapshot().routes == ()


def test_many_threads_may_drain_at_once(desk: Desk) -> None:
    """The API drains before it answers, while the loop drains too: each record is stored once, none is lost."""
    one = first_live(desk.project)
    for _ in range(200):
        desk.session(None, one, arm="control")
    threads = [threading.Thread(target=desk.control.drain) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = desk.control.store.spans(SpanQuery(limit=1000))
    assert len(stored) == 200
    assert desk.control.drained == 400  # a span and a score each


def test_the_loops_run_and_stop_with_all_drained(tmp_path: Path) -> None:
    folder = write_desk(tmp_path / "desk")
    with open_desk(folder) as desk:
        one = first_live(desk.project)
        desk.control.start()
        trace_ids = [desk.session(None, one, arm="control") for _ in range(50)]
    with open_desk(folder) as desk:
        assert all(desk.control.store.trace(trace_id) for trace_id in trace_ids)
        desk.look()
        assert json.loads(desk.project.places.deployments.read_text()) == []


def test_a_look_that_fails_is_tried_again(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    looked = threading.Event()
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("the disk is gone")
        looked.set()

    thread = threading.Thread(target=desk.control._loop, args=(look, 0.01))
    thread.start()
    assert looked.wait(5)
    desk.control._stop.set()
    thread.join()
    assert "the disk is gone" in caplog.text


def test_a_deployment_is_plain_data() -> None:
    one = Deployment(digest="sha256:1", port=1, chat_model="m", model_url="u")
    assert Deployment(**{name: getattr(one, name) for name in Deployment.__slots__}) == one
