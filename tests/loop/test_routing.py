from __future__ import annotations

from dataclasses import replace

from tidemill.kernel import Arm, Route, Target
from tidemill.loop.routing import EndpointPlan, ServedRelease, compile_route, next_snapshot

ONE = ServedRelease(digest="sha256:1", ref="release/r@1", targets=(Target("http://127.0.0.1:1/v1"),))
TWO = ServedRelease(digest="sha256:2", ref="release/r@2", targets=(Target("http://127.0.0.1:2/v1"),))
PLAN = EndpointPlan(endpoint="helpdesk", tenant="default", control="sha256:1")


def test_nothing_is_routed_before_production_is_ready() -> None:
    assert compile_route(PLAN, {}) is None


def test_a_canary_gets_its_share_once_it_is_ready() -> None:
    plan = replace(PLAN, canary="sha256:2", canary_share=0.25, rollout="rollout_x")
    waiting = compile_route(plan, {"sha256:1": ONE})
    assert waiting is not None
    assert [target.weight for target in waiting.releases] == [1.0]
    assert waiting.rollout is None
    ready = compile_route(plan, {"sha256:1": ONE, "sha256:2": TWO})
    assert ready is not None
    assert [(target.arm, target.weight) for target in ready.releases] == [(Arm.CONTROL, 0.75), (Arm.CANARY, 0.25)]
    assert ready.rollout == ready.salt == "rollout_x"


def test_a_shadow_answers_nobody() -> None:
    route = compile_route(replace(PLAN, shadow="sha256:2", rollout="rollout_x"), {"sha256:1": ONE, "sha256:2": TWO})
    assert route is not None
    assert route.shadow is not None
    assert route.shadow.arm is Arm.SHADOW
    assert len(route.releases) == 1
    assert route.rollout == route.salt == "rollout_x/shadow"


def test_an_unchanged_snapshot_is_not_written_again_until_it_ages() -> None:
    route = compile_route(PLAN, {"sha256:1": ONE})
    assert isinstance(route, Route)

    def snapshot(current: bytes | None, now_s: float, routes: tuple[Route, ...] = (route,)):  # type: ignore[no-untyped-def]
        return next_snapshot(
            current, project="p", routes=routes, keys=(), capture="masked", lifetime_s=300.0, now_s=now_s
        )

    first = snapshot(None, 0.0)
    assert first.epoch == 1
    assert snapshot(first.encode(), 50.0) is None
    assert snapshot(first.encode(), 101.0).epoch == 2
    assert snapshot(first.encode(), 50.0, ()).epoch == 2
    assert snapshot(b"torn", 0.0).epoch == 1
