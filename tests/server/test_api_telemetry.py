"""Telemetry over REST, asked as programs ask it; what is answered is tested in ``tests/loop/test_answering.py``."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.loop.traffic import fill, trace_id
from tests.server.desk import Desk
from tidemill.server.api import create_app

TOKEN = "the-local-token"


@pytest.fixture
def client(desk: Desk) -> TestClient:
    fill(desk.control.store, 40, project="desk")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return TestClient(create_app(desk.control, token=TOKEN), base_url="http://127.0.0.1", headers=headers)


def ids(found: list[dict[str, Any]]) -> list[int]:
    return [int(one["trace_id"], 16) - 1 for one in found]


def test_requests_by_condition_and_page(client: TestClient) -> None:
    asked = {"where": ["status = error", "duration_s >= 1"], "limit": 3}
    first = client.get("/api/v1/traces", params=asked).json()
    assert ids(first["traces"]) == [39, 29, 19]
    second = client.get("/api/v1/traces", params={**asked, "cursor": first["next"]}).json()
    assert (ids(second["traces"]), second["next"]) == ([9], None)
    assert ids(client.get("/api/v1/traces", params={"text": "number 17"}).json()["traces"]) == [17]


def test_everything_from_a_place_on(client: TestClient) -> None:
    page = client.get("/api/v1/spans", params={"spans": "true", "limit": 50, "content": "true"}).json()
    rest = client.get("/api/v1/spans", params={"spans": "true", "after_seq": page["after_seq"]}).json()
    assert (len(page["spans"]), page["more"], len(rest["spans"]), rest["more"]) == (50, True, 30, False)
    assert page["spans"][0]["content"]["output"] == "It costs 0 euros."


def test_sums(client: TestClient) -> None:
    found = client.get("/api/v1/series", params={"measure": ["requests"], "by": ["status"]}).json()
    assert [row["values"]["requests"] for row in found["rows"]] == [4, 36]
    assert [one["session_id"] for one in client.get("/api/v1/sessions", params={"limit": 1}).json()] == ["session-7"]
    assert client.get("/api/v1/sessions/session-1").json()["traces"] == 5
    releases = {"first": f"sha256:{'a' * 64}", "second": f"sha256:{'b' * 64}"}
    found = client.get("/api/v1/comparison", params=releases).json()
    assert [one["values"]["errors"] for one in found["releases"]] == [0, 4]


def test_a_score_is_there_at_once(client: TestClient) -> None:
    body = {"trace_id": trace_id(3).upper(), "name": "tone", "value": 0.5, "source": "judge"}
    stored = client.post("/api/v1/scores", json=body).json()
    assert stored["trace_id"] == trace_id(3)
    (one,) = client.get("/api/v1/scores", params={"name": "tone"}).json()["scores"]
    assert (one["score_id"], one["value"]) == (stored["score_id"], 0.5)
    assert [one["name"] for one in client.get(f"/api/v1/traces/{trace_id(3)}").json()["scores"]] == ["tone"]


@pytest.mark.parametrize(
    ("path", "params", "code", "said"),
    [
        ("traces", {"where": "colour = red"}, 400, "no field 'colour'"),
        ("traces", {"since": "whenever"}, 400, "no moment"),
        ("traces", {"colour": "red"}, 422, "colour"),
        ("traces", {"limit": 0}, 422, "limit"),
        ("traces", {"cursor": "x"}, 400, "no cursor"),
        ("traces/nine", {}, 400, "no trace id"),
        (f"traces/{'9' * 32}", {}, 404, "no trace '9"),
        ("series", {"measure": "latency"}, 400, "no measure"),
        ("series", {"every": "10ms"}, 400, "too short"),
        ("sessions/x", {}, 404, "no session 'x'"),
        ("comparison", {"first": "a@1"}, 422, "second"),
        ("comparison", {"first": "a@1", "second": "a@2"}, 404, "no release 'a@1'"),
    ],
)
def test_what_cannot_be_answered_is_told_in_one_shape(
    client: TestClient, path: str, params: dict[str, Any], code: int, said: str
) -> None:
    answer = client.get(f"/api/v1/{path}", params=params)
    assert (answer.status_code, set(answer.json())) == (code, {"error"})
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"trace_id": "x", "name": "tone", "value": 1}, 400),
        ({"trace_id": trace_id(1), "name": "tone"}, 400),
        ({"trace_id": trace_id(1), "name": "", "value": 1}, 422),
        ({"trace_id": trace_id(1), "name": "tone", "value": "1"}, 422),
        ({"trace_id": trace_id(1), "name": "tone", "value": 1, "colour": "red"}, 422),
        ({"trace_id": trace_id(1), "name": "tone", "value": 1, "span_id": "x"}, 400),
        ([], 422),
    ],
)
def test_scores_that_are_none(client: TestClient, body: Any, code: int) -> None:
    assert client.post("/api/v1/scores", json=body).status_code == code
