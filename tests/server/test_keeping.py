"""Moving and erasing by age by a clock that tests move, and forgetting persons: real stores, files and ledger."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from tests.gateway.conftest import RunningGateway, snapshot_of, target
from tests.gateway.wire import Wire, ask
from tests.loop.traffic import request
from tests.server.desk import free_port
from tests.telemetry.otlp.making import traces, wire_span
from tidemill.gateway import Limits
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import FakeClock, Route, UserError
from tidemill.loop.erasing import ERASURE, ErasureOrder
from tidemill.loop.project import open_project, open_spans
from tidemill.server.api import create_app
from tidemill.server.control import ControlPlane
from tidemill.server.keeping import ACTOR, DAY_NS, Keeping
from tidemill.telemetry import Batch, Content, Erasure, SpanQuery

NOON = datetime(2026, 9, 11, 12, tzinfo=UTC)
TODAY = int(NOON.timestamp()) * 10**9 // DAY_NS
ADA = "ada.lovelace.4711"
SAID = "What I said was: "
"""Common to all texts: a column's statistics keep the first twelve bytes of its least and greatest text."""


@contextmanager
def opened(folder: Path, **retention: Any) -> Iterator[tuple[ControlPlane, FakeClock]]:
    """A control plane whose keeping goes by a clock of the test's own."""
    folder.mkdir(exist_ok=True)
    document = {"project": "demo", "server": {"port": free_port()}, "telemetry": {"retention": retention}}
    (folder / "tidemill.yaml").write_text(yaml.safe_dump(document))
    clock = FakeClock(NOON)
    with open_project(folder) as project:
        control = ControlPlane(project, open_spans(project))
        control.keeping = Keeping(project, control.store, control.drain, clock)
        try:
            yield control, clock
        finally:
            control.stop()


def marker(days_ago: int) -> str:
    return f"the secret of day {days_ago} is quixotry{days_ago}zebra"


def fill_days(control: ControlPlane, days_ago: range) -> None:
    starts = {number: (TODAY - number) * DAY_NS for number in days_ago}
    spans = [
        request(number, project="demo", started_at_ns=start, ended_at_ns=start + 9) for number, start in starts.items()
    ]
    contents = {(one.trace_id, one.span_id): Content("[]", marker(n)) for n, one in zip(days_ago, spans, strict=True)}
    control.store.commit(Batch(spans, contents), {})


def days_of(control: ControlPlane) -> list[int]:
    """How many days ago the spans began that can be asked for."""
    return sorted(TODAY - one.span.started_at_ns // DAY_NS for one in control.store.spans(SpanQuery()))


def bytes_of(folder: Path) -> bytes:
    """Everything that stands in any file of a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_days_move_when_they_are_old_enough_and_go_when_they_are_too_old(tmp_path: Path) -> None:
    with opened(tmp_path / "demo", hot_days=2, days=5) as (control, clock):
        fill_days(control, range(10))
        clock.advance(14)
        control.keeping.look()
        assert control.keeping.kept()["last_turn"]["at"] is None  # the start has not settled
        clock.advance(1)
        control.keeping.look()
        assert days_of(control) == [0, 1, 2, 3, 4, 5]
        found = control.keeping.kept()
        assert (found["spans"], found["retention"]["days"]) == (6, 5)
        assert (found["last_turn"]["error"], found["last_turn"]["compacted"]["spans"]) == (None, 3)
        assert found["tiers"]["cold"]["bytes"] == found["last_turn"]["compacted"]["bytes"]
        assert found["last_turn"]["erased"]["spans"] == 4
        for _ in range(3):  # the same day: nothing to do, nothing is written anew
            clock.advance(600)
            control.keeping.look()
        assert [one.verdict.value for one in control.project.ledger.decisions.list(kind=ERASURE)] == ["asked", "erased"]
        clock.advance(86_400)
        control.keeping.look()
        assert days_of(control) == [0, 1, 2, 3, 4]
        found = control.keeping.kept()["last_turn"]
        assert (found["compacted"]["spans"], found["erased"]["partitions_dropped"]) == (1, 1)
        decisions = control.project.ledger.decisions.list(kind=ERASURE)
        assert {one.actor for one in decisions} == {ACTOR}
        assert decisions[-1].verdict.evidence["traces"] == 1
        assert control.project.ledger.audit.verify().ok
        left = [one.content.output for one in control.store.spans(SpanQuery(with_content=True)) if one.content]
        assert sorted(left) == [marker(number) for number in range(5)]
        control.store.close()
        everything = bytes_of(tmp_path)
        assert not [number for number in range(5, 10) if f"quixotry{number}zebra".encode() in everything]


def test_without_a_bound_nothing_is_erased(tmp_path: Path) -> None:
    with opened(tmp_path / "demo", hot_days=1) as (control, _):
        fill_days(control, range(4))
        control.keeping.turn()
        assert days_of(control) == [0, 1, 2, 3]
        assert control.keeping.kept()["last_turn"]["compacted"]["partitions"] == 2
        assert control.project.ledger.decisions.list(kind=ERASURE) == []


def test_a_turn_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    with opened(tmp_path / "demo", hot_days=1, days=3, cold=str(cold)) as (control, clock):
        fill_days(control, range(5))
        shutil.rmtree(cold, ignore_errors=True)
        cold.write_text("a file where the folder should be")
        clock.advance(15)
        with pytest.raises((OSError, UserError)):
            control.keeping.look()
        assert control.keeping.kept()["last_turn"]["error"] is not None
        cold.unlink()
        control.keeping.look()  # not yet
        assert control.keeping.kept()["last_turn"]["error"] is not None
        clock.advance(600)
        control.keeping.look()
        assert control.keeping.kept()["last_turn"]["error"] is None
        assert days_of(control) == [0, 1, 2, 3]
        assert list(cold.rglob("*.parquet"))


def test_while_an_erasure_holds_the_store_nobody_drains(tmp_path: Path) -> None:
    with opened(tmp_path / "demo") as (control, _):
        taken = traces(wire_span(7, {"input.value": "hi"})).SerializeToString()
        control.receiving.receiver.receive("traces", "protobuf", taken)[1].result(30)
        control.keeping.erasing = True
        control.drain()
        assert control.store.trace(f"{7:032x}") == []
        control.keeping.erasing = False
        control.drain()
        assert len(control.store.trace(f"{7:032x}")) == 1


@contextmanager
def talking(control: ControlPlane) -> Iterator[TestClient]:
    headers = {"Authorization": "Bearer token"}
    with TestClient(create_app(control, token="token"), base_url="http://127.0.0.1", headers=headers) as client:
        yield client


def test_a_person_is_forgotten_however_the_spans_came(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with opened(folder, hot_days=1) as (control, _), ScriptedUpstream(words=("quixotry",)) as upstream:
        gateway = RunningGateway(control.project.places.state, Limits())
        try:
            gateway.route(snapshot_of(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))))
            for user, said in ((ADA, "quagmire"), ("bob", "buttercup")):
                with Wire(gateway.port) as wire:
                    wire.send(ask(user=user, messages=[{"role": "user", "content": said}]))
                    assert wire.answer()[0] == 200
        finally:
            gateway.close()
        old_ns = (TODAY - 30) * DAY_NS
        for number, user, said in ((1, ADA, "quicksand"), (2, "bob", "bluebell")):
            one = wire_span(
                number,
                {"user.id": user, "input.value": SAID + said, "output.value": SAID + said * 40},
                start_time_unix_nano=old_ns,
                end_time_unix_nano=old_ns + 10**9,
            )
            body = traces(one).SerializeToString()
            control.receiving.receiver.receive("traces", "protobuf", body)[1].result(30)
            control.drain()
            control.keeping.turn()  # one partition holds both persons, another one of them
            control.keeping._moved_ns = None
        undrained = wire_span(3, {"user.id": ADA, "input.value": f"{SAID}quandary"})
        control.receiving.receiver.receive("traces", "protobuf", traces(undrained).SerializeToString())[1].result(30)
        with talking(control) as client:
            keys = {one.span.user_key for one in control.store.spans(SpanQuery()) if one.span.user_key}
            assert len(keys) == 2  # the gateway and OTLP say the same of a person
            assert client.get("/api/v1/telemetry").json()["tiers"]["cold"]["bytes"] > 0
            body = {"users": [ADA], "actor": "me", "reason": "Asked by letter."}
            answer = client.post("/api/v1/erasures", json=body)
            assert answer.status_code == 200, answer.text
            assert (answer.json()["traces"], answer.json()["asked"]) == (3, 1)
            again = client.post("/api/v1/erasures", json=body).json()
            assert (again["traces"], again["spans"]) == (0, 0)
        left = {one.content.input for one in control.store.spans(SpanQuery(with_content=True)) if one.content}
        assert len(left) == 2
        assert all("buttercup" in one or "bluebell" in one for one in left)
        ledger = control.project.ledger
        asked, erased = ledger.decisions.list(kind=ERASURE)[:2]
        assert (asked.verdict.value, erased.verdict.evidence["traces"], asked.actor) == ("asked", 3, "me")
        assert ledger.audit.verify().ok
        control.store.close()
        everything = bytes_of(folder)
        for gone in (ADA, "quagmire", "quicksand", "quandary"):
            assert gone.encode() not in everything


def many(control: ControlPlane, count: int) -> None:
    spans = [request(number, project="demo") for number in range(count)]
    contents = {(one.trace_id, one.span_id): Content("[]", f"Number {n}. " * 30) for n, one in enumerate(spans)}
    control.store.commit(Batch(spans, contents), {})


def send(control: ControlPlane, number: int) -> None:
    body = traces(wire_span(1_000_000 + number)).SerializeToString()
    control.receiving.receiver.receive("traces", "protobuf", body)[1].result(30)


def test_questions_are_answered_and_spans_taken_while_days_move(tmp_path: Path) -> None:
    with opened(tmp_path / "demo", hot_days=1) as (control, _):
        many(control, 3000)
        with talking(control) as client, ThreadPoolExecutor() as threads:
            running = threads.submit(control.keeping.turn)
            sent = 0
            while not running.done():
                sent += 1
                send(control, sent)
                answer = client.get("/api/v1/traces", params={"limit": 5})
                assert (answer.status_code, len(answer.json()["traces"])) == (200, 5), answer.text
            running.result()
        control.drain()
        assert len(control.store.spans(SpanQuery(limit=10_000, with_references=False))) == 3000 + sent


def test_an_erasure_and_a_move_take_turns_while_spans_are_taken(tmp_path: Path) -> None:
    with opened(tmp_path / "demo", hot_days=1) as (control, _):
        many(control, 3000)
        asked = ErasureOrder(
            erasure=Erasure(user_keys=("user-3",)), by="user", asked=1, actor="me", reason="A test of many at once."
        )
        with ThreadPoolExecutor() as threads:
            turn, erased = threads.submit(control.keeping.turn), threads.submit(control.keeping.erase, asked)
            sent = 0
            while not (turn.done() and erased.done()):
                sent += 1
                send(control, sent)
                control.drain()
            turn.result()
            gone = erased.result()["traces"]
        control.drain()
        assert gone == len(range(3, 3000, 7))
        left = control.store.spans(SpanQuery(limit=10_000, with_references=False))
        assert len(left) == 3000 - gone + sent
        assert not [one for one in left if one.span.user_key == "user-3"]


def test_the_control_plane_keeps_by_itself(tmp_path: Path) -> None:
    with opened(tmp_path / "demo", hot_days=1) as (control, clock):
        fill_days(control, range(4))
        control.start()
        clock.advance(15)
        limit_s = time.monotonic() + 30
        while control.keeping.kept()["last_turn"]["compacted"] is None:
            assert time.monotonic() < limit_s
            time.sleep(0.05)
        assert control.keeping.kept()["last_turn"]["compacted"]["spans"] == 2


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({}, 400, "exactly one"),
        ({"users": ["ada"], "before": "2026-01-01"}, 400, "exactly one"),
        ({"users": [""]}, 400, "empty"),
        ({"users": ["ada"], "reason": "ada wrote"}, 400, "names the person"),
        ({"trace_ids": ["nine"]}, 400, "no trace id"),
        ({"before": "2999-01-01"}, 400, "still to come"),
        ({"before": "whenever"}, 400, "no moment"),
        ({"users": "ada"}, 422, "users"),
        ({"users": ["ada"], "actor": ""}, 422, "actor"),
        ({"users": ["ada"], "colour": "red"}, 422, "colour"),
    ],
)
def test_what_cannot_be_erased_is_told_and_nothing_is_written(
    tmp_path: Path, body: dict[str, Any], code: int, said: str
) -> None:
    with opened(tmp_path / "demo") as (control, _), talking(control) as client:
        answer = client.post("/api/v1/erasures", json={"actor": "me", "reason": "A test.", **body})
        assert (answer.status_code, said in answer.json()["error"]["message"]) == (code, True), answer.text
        assert control.project.ledger.decisions.list(kind=ERASURE) == []
