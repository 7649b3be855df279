"""The REST API over a real control plane, asked as programs ask it, and the client of the command line."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from tests.server.desk import Desk, first_live, gated, release
from tidemill.kernel import Conflict, InvalidInput, NotFound, RowId, Unavailable
from tidemill.ledger import Row
from tidemill.server.api import create_app
from tidemill.server.client import ControlClient
from tidemill.server.process import local_token
from tidemill.server.supervisor import free_port, listening_socket

TOKEN = "the-local-token"


@dataclass
class Api:
    desk: Desk
    url: str
    token_file: Path

    def get(self, path: str, **headers: str | bytes) -> httpx2.Response:
        given = {"Authorization": f"Bearer {TOKEN}", **headers}
        return httpx2.get(self.url + path, headers=given, trust_env=False)

    def post(self, path: str, body: Any) -> httpx2.Response:
        given = {"Authorization": f"Bearer {TOKEN}"}
        return httpx2.post(self.url + path, json=body, headers=given, trust_env=False)

    @property
    def client(self) -> ControlClient:
        return ControlClient(self.url, self.token_file)


@pytest.fixture
def api(desk: Desk, tmp_path: Path) -> Iterator[Api]:
    listener = listening_socket("127.0.0.1", 0, "server")
    server = uvicorn.Server(uvicorn.Config(create_app(desk.control, token=TOKEN), log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    while not server.started:
        time.sleep(0.01)
    yield Api(desk, f"http://127.0.0.1:{listener.getsockname()[1]}", token_file)
    server.should_exit = True
    thread.join(10)


def problem(answer: httpx2.Response) -> tuple[int, str]:
    document = answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "hint"}
    return answer.status_code, document["error"]["message"]


def test_only_the_health_page_is_open(api: Api) -> None:
    assert api.get("/health", Authorization="").json() == {"status": "ok"}
    for path in ("/api/v1/status", "/openapi.json", "/docs", "/api/v1/traces", "/nothing"):
        assert problem(api.get(path, Authorization=""))[0] == 401
        assert problem(api.get(path, Authorization="Bearer wrong"))[0] == 401
        assert problem(api.get(path, Authorization="Bearer wröng".encode()))[0] == 401


def test_pages_in_a_browser_are_kept_out(api: Api) -> None:
    assert problem(api.get("/health", Host="attacker.example"))[0] == 403
    assert problem(api.get("/api/v1/status", Host="attacker.example:8400"))[0] == 403
    assert problem(api.get("/api/v1/status", Origin="http://attacker.example"))[0] == 403
    assert problem(api.get("/api/v1/status", Origin="null"))[0] == 403
    assert api.get("/api/v1/status", Host="localhost:8400").status_code == 200


def test_serves_its_own_description(api: Api) -> None:
    document = api.get("/openapi.json").json()
    assert document["info"]["title"] == "Tidemill"
    assert {"/api/v1/status", "/api/v1/traces/{trace_id}", "/api/v1/lineage/{ref}"} <= set(document["paths"])
    assert all(one.get("summary") for path in document["paths"].values() for one in path.values())


def test_tells_what_is_served_and_what_moves(api: Api) -> None:
    one, two = first_live(api.desk.project), release(api.desk.project, 2)
    rollout = gated(api.desk.project, two)
    api.desk.look()
    status = api.get("/api/v1/status").json()
    assert status["endpoints"] == [{"endpoint": "desk", "control": str(one.ref), "ready": True}]
    (moving,) = status["rollouts"]
    assert (moving["rollout"], moving["to"]) == (rollout.rollout_id, str(two.ref))
    found = api.get("/api/v1/rollouts?endpoint=desk").json()
    assert [(row["candidate"], row["state"]) for row in found] == [(str(one.ref), "promoted"), (str(two.ref), "gated")]
    assert api.get("/api/v1/rollouts?endpoint=other").json() == []
    assert api.get("/api/v1/monitors").json() == []


def test_a_rollout_is_moved_by_hand_once(api: Api) -> None:
    first_live(api.desk.project)
    rollout = gated(api.desk.project, release(api.desk.project, 2))
    path = f"/api/v1/rollouts/{rollout.rollout_id}"
    why = {"actor": "mia", "reason": "the owner asked"}
    assert api.post(f"{path}/hold", why).json()["state"] == "held"
    code, message = problem(api.post(f"{path}/promote", why))
    assert code == 409
    assert "held" in message
    shown = api.get(path).json()
    assert shown["decisions"][-1]["actor"] == "mia"
    assert any("the owner asked" in line for line in shown["story"])


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/api/v1/rollouts/rol_none/hold", {"actor": "mia", "reason": "x"}, 404),
        ("/api/v1/rollouts/rol_none/dance", {"actor": "mia", "reason": "x"}, 422),
        ("/api/v1/rollouts/rol_none/hold", {"actor": "", "reason": "x"}, 422),
        ("/api/v1/rollouts/rol_none/hold", {"actor": "mia", "reason": "x", "force": True}, 422),
        ("/api/v1/rollouts/rol_none/hold", [], 422),
        ("/api/v1/nothing", {}, 404),
    ],
)
def test_what_cannot_be_done_is_told_in_one_shape(api: Api, path: str, body: Any, code: int) -> None:
    assert problem(api.post(path, body))[0] == code


def test_shows_a_trace_with_its_scores_at_once(api: Api) -> None:
    one = first_live(api.desk.project)
    trace_id = api.desk.session(None, one, arm="control")
    found = api.get(f"/api/v1/traces/{trace_id}").json()
    (span,) = found["spans"]
    assert span["release"] == one.digest
    assert span["duration_s"] == 0.0005
    assert span["content"]["output"] == "Because."
    assert [score["value"] for score in found["scores"]] == [1.0]
    (row,) = api.get("/api/v1/traces?endpoint=desk&limit=10").json()["traces"]
    assert row["trace_id"] == trace_id
    assert row["content"] is None
    assert problem(api.get("/api/v1/traces/" + "1" * 32))[0] == 404
    assert problem(api.get("/api/v1/traces/" + "0" * 32))[0] == 400
    assert problem(api.get("/api/v1/traces?limit=0"))[0] == 422
    (group,) = api.get("/api/v1/summary?group_by=release&group_by=arm").json()
    assert (group["group"], group["requests"], group["errors"]) == ({"release": one.digest, "arm": "control"}, 1, 0)
    assert problem(api.get("/api/v1/summary?group_by=colour"))[0] == 422


def test_follows_an_answer_up_and_a_document_down(api: Api) -> None:
    from msgspec.structs import replace

    from tidemill.telemetry import Reference

    ledger = api.desk.project.ledger
    document = Row(row_id=RowId("doc_1"), value={"title": "a"}, sources=("file:a.md",))
    dataset = ledger.datasets.write("papers", [document])
    passage = Row(row_id=RowId("psg_1"), value={"text": "a"}, sources=("doc_1",))
    ledger.datasets.write("passages", [passage], parents=[dataset.digest])
    one = first_live(api.desk.project)
    span = api.desk._span(1, one, arm="control", rollout=None)
    used = Reference("passage", "psg_1", "retrieved")
    api.desk.writer.finished(replace(span, references=(*span.references, used)), None)

    up = api.get(f"/api/v1/lineage/trace:{span.trace_id}").json()
    assert up["kind"] == "trace"
    assert {"psg_1", "doc_1", "file:a.md", one.digest} <= {node["id"] for node in up["nodes"]}
    for ref in ("file:a.md", "doc_1"):
        down = api.get(f"/api/v1/lineage/{ref}").json()
        assert down["traces"] == [span.trace_id]
        assert dataset.digest in {node["id"] for node in down["nodes"]}
    for ref in ("model/scripted", "model/scripted@1", str(one.ref), one.digest):
        found = api.get(f"/api/v1/lineage/{ref}").json()
        assert found["kind"] == "artifact"
        assert found["trace_count"] == 1
    for ref in ("trace:" + "0" * 32, "model/nobody", "doc_none", "sha256:" + "0" * 64, "file:none.md"):
        assert problem(api.get(f"/api/v1/lineage/{ref}"))[0] == 404


def test_the_client_speaks_in_results_and_error_families(api: Api, tmp_path: Path) -> None:
    client = api.client
    one = first_live(api.desk.project)
    trace_id = api.desk.session(None, one, arm="control")
    assert client.get("/api/v1/traces", endpoint="desk", release=None, limit=5)["traces"][0]["trace_id"] == trace_id
    assert len(client.get("/api/v1/summary", group_by=["release", "arm"])) == 1
    assert client.get(f"/api/v1/lineage/{one.ref}")["kind"] == "artifact"
    assert client.get_path("/api/v1/summary?group_by=release")[0]["requests"] == 1
    rollout = gated(api.desk.project, release(api.desk.project, 2))
    assert client.post(f"/api/v1/rollouts/{rollout.rollout_id}/hold", {"actor": "me", "reason": "x"})["state"] == "held"
    with pytest.raises(NotFound, match="There is no trace") as unknown:
        client.get("/api/v1/traces/" + "1" * 32)
    assert unknown.value.hint == "List the newest: tidemill trace list"
    with pytest.raises(Conflict):
        client.post(f"/api/v1/rollouts/{rollout.rollout_id}/promote", {"actor": "me", "reason": "x"})
    with pytest.raises(InvalidInput, match="limit"):
        client.get("/api/v1/traces", limit=0)
    (tmp_path / "wrong").write_text("wrong")
    with pytest.raises(InvalidInput, match="local token"):
        ControlClient(api.url, tmp_path / "wrong").get("/api/v1/status")


def test_the_client_passes_any_proxy_by(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert api.client.get("/health") == {"status": "ok"}


@pytest.mark.parametrize("answer", [None, b"", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"])
def test_no_control_plane_is_a_sentence(tmp_path: Path, answer: bytes | None) -> None:
    (tmp_path / "token").write_text("x")
    if answer is None:
        client = ControlClient(f"http://127.0.0.1:{free_port()}", tmp_path / "token")
        with pytest.raises(Unavailable, match="No control plane answers"):
            client.get("/health")
        return
    with listening_socket("127.0.0.1", 0, "server") as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2000)
                connection.sendall(answer)

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(Unavailable, match="No control plane answers") as refused:
            ControlClient(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "token").get("/health")
        thread.join()
    assert refused.value.hint == "Start it: tidemill up"


def test_the_token_is_made_once_and_is_its_owners(desk: Desk) -> None:
    places = desk.project.places
    token = local_token(places)
    assert local_token(places) == token
    assert len(token) >= 32
    assert places.token.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in places.run.iterdir()] == ["token"]
