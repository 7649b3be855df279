from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import ApiKey, Arm, InvalidInput, ReleaseRoute, Route, RoutingSnapshot, Target, assign


def route(share: float) -> Route:
    control = ReleaseRoute("sha256:a", "release/r@1", (Target("http://127.0.0.1:1/v1"),), weight=1 - share)
    targets = (Target("http://127.0.0.1:2/v1", options={"region": "x"}),)
    canary = ReleaseRoute("sha256:b", "release/r@2", targets, arm=Arm.CANARY, weight=share)
    return Route("helpdesk", "default", (control, canary), salt="s")


def test_snapshot_survives_its_encoding() -> None:
    snapshot = RoutingSnapshot("p", 3, 1.5, 60.0, (route(0.25),), (ApiKey("d", "n", "default"),))
    assert RoutingSnapshot.decode(snapshot.encode()) == snapshot


@given(st.integers(0, 400))
def test_a_flipped_byte_is_found(place: int) -> None:
    data = bytearray(RoutingSnapshot("p", 3, 1.5, 60.0, (route(0.25),)).encode())
    place %= len(data)
    data[place] ^= 1
    try:
        decoded = RoutingSnapshot.decode(bytes(data))
    except InvalidInput:
        return
    assert decoded == RoutingSnapshot.decode(RoutingSnapshot("p", 3, 1.5, 60.0, (route(0.25),)).encode())


def test_another_format_is_refused() -> None:
    document = json.loads(RoutingSnapshot("p", 3, 1.5, 60.0).encode()) | {"format": 99}
    with pytest.raises(InvalidInput, match="format 99"):
        RoutingSnapshot.decode(json.dumps(document).encode())


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_raising_the_share_never_takes_a_session_from_the_canary(session: str, one: float, two: float) -> None:
    low, high = sorted((one, two))
    if assign(route(low), session).arm is Arm.CANARY:
        assert assign(route(high), session).arm is Arm.CANARY


def test_share_is_respected() -> None:
    hits = sum(assign(route(0.25), f"session {n}").arm is Arm.CANARY for n in range(20_000))
    assert abs(hits / 20_000 - 0.25) < 0.02
