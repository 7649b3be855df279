"""What every back end of the ledger does alike: SQLite and PostgreSQL."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import pytest
from sqlalchemy import update

from tests.conftest import NewLedger
from tidemill.kernel import (
    ArtifactKind,
    Conflict,
    Digest,
    FakeClock,
    InvalidInput,
    NotFound,
    Outcome,
    RunId,
    Scope,
    Verdict,
    digest_json,
    key_digest,
)
from tidemill.ledger import Decision, Ledger, Observation, RunStatus, artifact_digest
from tidemill.ledger.tables import blob_pins, dataset_parts, dataset_rows, dataset_versions, decisions

T = TypeVar("T")
CODE = digest_json("code")
PROMPT = ArtifactKind.PROMPT


def together(calls: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Run the calls in threads at the same time; what each returned or raised."""
    gate = threading.Barrier(len(calls))
    results: list[T | Exception] = [RuntimeError("did not run")] * len(calls)

    def run(place: int, call: Callable[[], T]) -> None:
        gate.wait()
        try:
            results[place] = call()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def begin(ledger: Ledger, step: str = "step", **more: object) -> RunId:
    return ledger.runs.start(step, code_digest=CODE, environment_digest=CODE, **more).run_id  # type: ignore[arg-type]


# ---------------------------------------------------------------- artifacts and labels


def test_a_version_comes_back_as_it_was_published(ledger: Ledger) -> None:
    blob = digest_json("a blob")
    content = {"text": "héllo ✓\u0000", "n": 1.5, "deep": {"b": [1, None, True], "a": 2**60}}
    made = ledger.artifacts.publish(PROMPT, "answer", content, blobs={"weights": blob})
    assert made.version == 1
    assert made.digest == artifact_digest(PROMPT, content, {"weights": blob})
    for ref in ("prompt/answer", "prompt/answer@1", f"prompt/answer@{made.digest}", made.ref):
        assert ledger.artifacts.get(ref) == made
    assert ledger.artifacts.by_digest(made.digest) == made


def test_publishing_the_same_again_makes_no_version(ledger: Ledger) -> None:
    first = ledger.artifacts.publish(PROMPT, "answer", {"keys": {2: "b", 10: "a"}, "pair": (1, 2)})
    again = ledger.artifacts.publish(PROMPT, "answer", {"pair": [1, 2], "keys": {"10": "a", "2": "b"}})
    assert again == first
    other = ledger.artifacts.publish(PROMPT, "answer", {"pair": [1, 3]})
    renamed = ledger.artifacts.publish(PROMPT, "reply", {"pair": [1, 3]})
    assert (other.version, renamed.version) == (2, 1)
    assert other.digest == renamed.digest
    assert ledger.artifacts.by_digest(other.digest).name == "reply"
    assert [item.version for item in ledger.artifacts.versions(PROMPT, "answer")] == [2, 1]
    assert [str(item.ref) for item in ledger.artifacts.list()] == ["prompt/answer@2", "prompt/reply@1"]
    assert ledger.artifacts.list(ArtifactKind.MODEL) == []


def test_versions_have_no_gaps_when_many_publish_at_once(ledger: Ledger) -> None:
    calls = [lambda n=n: ledger.artifacts.publish(PROMPT, "answer", {"n": n % 4}) for n in range(12)]
    assert not [result for result in together(calls) if isinstance(result, Exception)]
    assert [item.version for item in ledger.artifacts.versions(PROMPT, "answer")] == [4, 3, 2, 1]


def test_a_reference_to_nothing_names_what_is_near(ledger: Ledger) -> None:
    ledger.artifacts.publish(PROMPT, "answer", {})
    with pytest.raises(NotFound, match="prompt/answer"):
        ledger.artifacts.get("prompt/anwser")
    with pytest.raises(NotFound, match="versions 1 to 1"):
        ledger.artifacts.get("prompt/answer@2")
    with pytest.raises(NotFound, match="labels: none"):
        ledger.artifacts.get("prompt/answer@production")
    with pytest.raises(NotFound, match="sha256"):
        ledger.artifacts.by_digest(digest_json(0))


@pytest.mark.parametrize("content", [{"x": math.nan}, {"x": object()}, {"x": "\ud800"}])
def test_what_json_cannot_say_is_refused(ledger: Ledger, content: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        ledger.artifacts.publish(PROMPT, "answer", content)
    assert ledger.artifacts.list() == []


def test_a_label_moves_only_from_where_it_is_believed_to_be(ledger: Ledger) -> None:
    for n in range(3):
        ledger.artifacts.publish(PROMPT, "answer", {"n": n})

    def move(to: int | None, expected: int | None) -> Decision:
        return ledger.artifacts.move_label(
            PROMPT, "answer", "production", to, expected=expected, actor="ann", reason="the gate passed"
        )

    decision = move(1, None)
    assert (decision.kind, decision.subject, decision.actor) == ("label", "prompt/answer@production", "ann")
    assert dict(decision.verdict.evidence) == {"from": None, "to": 1, "why": "the gate passed"}
    move(2, 1)
    assert ledger.artifacts.get("prompt/answer@production").version == 2
    for to, expected in ((3, 1), (3, None), (None, 3)):
        with pytest.raises(Conflict, match="points at version 2"):
            move(to, expected)
    with pytest.raises(NotFound):
        move(9, 2)
    assert ledger.artifacts.labels(PROMPT, "answer") == {"production": 2}
    move(None, 2)
    assert ledger.artifacts.labels(PROMPT, "answer") == {}
    with pytest.raises(Conflict, match="does not exist"):
        move(None, 2)
    assert [item.verdict.evidence["to"] for item in ledger.decisions.list()] == [1, 2, None]


def test_of_many_moves_from_one_place_one_wins(ledger: Ledger) -> None:
    for n in range(9):
        ledger.artifacts.publish(PROMPT, "answer", {"n": n})
    ledger.artifacts.move_label(PROMPT, "answer", "live", 1, expected=None, actor="a", reason="r")
    calls = [
        lambda n=n: ledger.artifacts.move_label(PROMPT, "answer", "live", n, expected=1, actor="a", reason="r")
        for n in range(2, 10)
    ]
    results = together(calls)
    won = [result for result in results if isinstance(result, Decision)]
    assert len(won) == 1
    assert [type(result) for result in results if isinstance(result, Exception)] == [Conflict] * 7
    assert ledger.artifacts.labels(PROMPT, "answer") == {"live": won[0].verdict.evidence["to"]}
    assert ledger.audit.verify().entries == 2


def test_scopes_do_not_see_each_other(new_ledger: NewLedger, ledger_scope: Scope) -> None:
    mine = new_ledger()
    theirs = new_ledger(scope=Scope(ledger_scope.project, "other"))
    mine.artifacts.publish(PROMPT, "answer", {})
    mine.decisions.record("gate", "s", Verdict(True, "r"), actor="a")
    mine.results.put_many({digest_json(1): 1})
    run = begin(mine)
    assert theirs.artifacts.list() == []
    assert theirs.decisions.list() == []
    assert theirs.results.get_many([digest_json(1)]) == {}
    assert theirs.audit.verify().entries == 0
    assert theirs.audit.head() != mine.audit.head()
    assert theirs.leases.acquire("leader", "b", 5.0) is not None
    assert mine.leases.acquire("leader", "a", 5.0) is not None
    with pytest.raises(NotFound):
        theirs.runs.get(run)


# ---------------------------------------------------------------- runs


def test_a_run_keeps_what_it_was_given_and_what_it_made(ledger: Ledger) -> None:
    source, key, made = digest_json("in"), digest_json("key"), digest_json("out")
    parent = begin(ledger, "flow")
    run = ledger.runs.start(
        "embed", params={"k": [1]}, inputs={"a": source, "b": source}, code_digest=CODE,
        environment_digest=digest_json("env"), key=key, parent=parent,
    )  # fmt: skip
    assert run.status is RunStatus.RUNNING
    assert ledger.runs.find_ok(key) is None
    ended = ledger.runs.finish(run.run_id, RunStatus.OK, outputs={"x": made})
    assert ended == ledger.runs.get(run.run_id) == ledger.runs.find_ok(key)
    assert (ended.inputs, ended.outputs) == ({"a": source, "b": source}, {"x": made})
    assert (ended.params, ended.parent, ended.environment_digest) == ({"k": [1]}, parent, digest_json("env"))
    assert [item.run_id for item in ledger.runs.list()] == [run.run_id, parent]
    assert ledger.runs.list(step="nothing") == []
    with pytest.raises(Conflict, match="ended already"):
        ledger.runs.finish(run.run_id, RunStatus.FAILED)


def test_a_silent_run_loses_its_lease(new_ledger: NewLedger) -> None:
    clock = FakeClock()
    ledger = new_ledger(clock=clock)
    run, other = begin(ledger, lease_s=10.0), begin(ledger, lease_s=30.0)
    clock.advance(9)
    assert ledger.runs.heartbeat(run).lease_until == clock.now() + timedelta(seconds=10)
    clock.advance(9)
    assert ledger.runs.expire() == []
    clock.advance(1)
    with pytest.raises(Conflict, match="lost its lease"):
        ledger.runs.heartbeat(run)
    with pytest.raises(Conflict, match="lost its lease"):
        ledger.runs.finish(run, RunStatus.OK, outputs={"x": CODE})
    assert [item.run_id for item in ledger.runs.expire()] == [run]
    assert ledger.runs.get(run).status is RunStatus.ABANDONED
    assert ledger.runs.get(run).outputs == {}
    with pytest.raises(Conflict, match="abandoned"):
        ledger.runs.heartbeat(run)
    assert ledger.runs.get(other).status is RunStatus.RUNNING


def test_a_run_ends_with_an_end(ledger: Ledger) -> None:
    run = begin(ledger)
    with pytest.raises(InvalidInput, match="cannot end as 'running'"):
        ledger.runs.finish(run, RunStatus.RUNNING)
    with pytest.raises(NotFound):
        ledger.runs.heartbeat(RunId("run_nothing"))


def test_the_end_of_a_run_frees_its_pins(ledger: Ledger) -> None:
    run = begin(ledger)
    with ledger.database.write() as connection:
        row = ledger.database.row(digest=CODE, run_id=run, created_at=ledger.clock.now())
        ledger.database.put(connection, blob_pins, [row])
    ledger.runs.finish(run, RunStatus.OK)
    with ledger.database.read() as connection:
        assert connection.execute(blob_pins.select().where(ledger.database.mine(blob_pins))).all() == []


def test_metrics_are_series(ledger: Ledger) -> None:
    run = begin(ledger)
    for step in (2, 0, 1):
        ledger.runs.log_metric(run, "loss", 1.0 / (step + 1), step)
    ledger.runs.log_metrics(run, [("loss", 1, math.nan), ("rate", -3, math.inf), ("rate", 2**40, -0.5)])
    series = ledger.runs.metrics(run)
    assert [(point.step, point.value) for point in series["rate"]] == [(-3, math.inf), (2**40, -0.5)]
    assert [point.step for point in series["loss"]] == [0, 1, 2]
    assert math.isnan(series["loss"][1].value)
    with pytest.raises(NotFound):
        ledger.runs.log_metric(RunId("run_nothing"), "loss", 1.0)


# ---------------------------------------------------------------- decisions and the chain


def test_decisions_follow_each_other_on_their_subject(ledger: Ledger) -> None:
    verdict = Verdict(Outcome.PASS, "better", {"n": 3, "delta": 0.1})
    first = ledger.decisions.record("gate", "release/desk", verdict, actor="ann", expected=None)
    with pytest.raises(Conflict, match=first.decision_id):
        ledger.decisions.record("gate", "release/desk", verdict, actor="ben", expected=None)
    second = ledger.decisions.record("rollout", "release/desk", verdict, actor="ben", expected=first.decision_id)
    other = ledger.decisions.record("gate", "release/bench", verdict, actor="ben")
    assert (first.previous, second.previous, other.previous) == (None, first.decision_id, None)
    assert [item.seq for item in ledger.decisions.list()] == [1, 2, 3]
    assert ledger.decisions.list(subject="release/desk") == [first, second]
    assert ledger.decisions.list(kind="gate") == [first, other]
    assert ledger.decisions.list(kind="gate", limit=1) == [other]
    assert ledger.decisions.last("release/desk") == second
    assert ledger.decisions.last("nothing") is None
    assert ledger.decisions.subjects("gate") == ["release/bench", "release/desk"]
    assert second.verdict == Verdict("PASS", "better", {"n": 3, "delta": 0.1})


def test_a_lost_lease_fences_its_holder_off(new_ledger: NewLedger) -> None:
    clock = FakeClock()
    ledger = new_ledger(clock=clock)
    verdict = Verdict(True, "r")
    old = ledger.leases.acquire("leader", "a", 10.0)
    assert old is not None
    ledger.decisions.record("rollout", "s", verdict, actor="a", fence=old)
    clock.advance(11)
    with pytest.raises(Conflict, match="nobody"):
        ledger.decisions.record("rollout", "s", verdict, actor="a", fence=old)
    new = ledger.leases.acquire("leader", "b", 10.0)
    assert new is not None
    with pytest.raises(Conflict, match="'b'"):
        ledger.decisions.record("rollout", "s", verdict, actor="a", fence=old)
    ledger.decisions.record("rollout", "s", verdict, actor="b", fence=new)
    assert [item.actor for item in ledger.decisions.list()] == ["a", "b"]


def test_many_writers_make_one_chain(ledger: Ledger) -> None:
    def write(writer: int) -> None:
        for n in range(5):
            ledger.decisions.record("gate", f"s{writer % 2}", Verdict(n, "r"), actor=str(writer))

    results = together([lambda writer=writer: write(writer) for writer in range(6)])
    assert results == [None] * 6
    assert [item.seq for item in ledger.decisions.list()] == list(range(1, 31))
    report = ledger.audit.verify(head=ledger.audit.head())
    assert (report.entries, report.ok) == (30, True)
    for subject in ("s0", "s1"):
        listed = ledger.decisions.list(subject=subject)
        assert [item.previous for item in listed] == [None, *(item.decision_id for item in listed[:-1])]


def test_an_edited_entry_is_found(ledger: Ledger) -> None:
    for n in range(4):
        ledger.decisions.record("gate", "s", Verdict(n, "r"), actor="ann")
    with ledger.database.write() as connection:
        third = ledger.database.mine(decisions) & (decisions.c.seq == 3)
        connection.execute(update(decisions).where(third).values(actor="ben"))
    report = ledger.audit.verify()
    assert (report.ok, report.first_bad_seq, report.entries) == (False, 3, 2)
    assert "changed" in report.reason


def test_the_chain_is_readable_from_any_place(ledger: Ledger) -> None:
    made = [ledger.decisions.record("gate", "s", Verdict(n, "r"), actor="ann") for n in range(4)]
    entries = ledger.audit.entries(after_seq=1, limit=2)
    assert [entry.decision for entry in entries] == made[1:3]
    assert entries[1].previous_hash == entries[0].hash


# ---------------------------------------------------------------- lineage


def test_lineage_goes_up_and_down_through_runs(ledger: Ledger) -> None:
    documents = ledger.artifacts.publish(ArtifactKind.DATASET, "docs", {"n": 1})
    ingest = begin(ledger, "index", inputs={"documents": documents.digest})
    index = ledger.artifacts.publish(ArtifactKind.INDEX, "docs", {"n": 2}, made_by=ingest)
    ledger.runs.finish(ingest, RunStatus.OK, outputs={"index": index.digest})
    prompt = ledger.artifacts.publish(PROMPT, "answer", {"n": 3})
    release = ledger.artifacts.publish(ArtifactKind.RELEASE, "desk", {}, parents=[index.digest, prompt.digest])
    up = ledger.lineage.ancestors(release.digest)
    assert {node.label for node in up.nodes} == {
        "release/desk@1", "prompt/answer@1", "index/docs@1", "index", "dataset/docs@1",
    }  # fmt: skip
    assert (ingest, documents.digest, "documents") in up.edges
    assert (index.digest, ingest, "index") in up.edges
    assert documents.digest in up
    near = ledger.lineage.ancestors(release.digest, depth=1)
    assert {node.label for node in near.nodes} == {"release/desk@1", "prompt/answer@1", "index/docs@1"}
    assert ledger.lineage.ancestors(release.digest, depth=0).edges == ()
    down = ledger.lineage.descendants(documents.digest)
    assert {node.kind for node in down.nodes} == {"dataset", "run", "index", "release"}
    assert set(ledger.lineage.descendants(documents.digest, depth=99).edges) == set(down.edges)
    assert [node.kind for node in ledger.lineage.ancestors(digest_json("unknown")).nodes] == ["blob"]


def test_a_circle_ends_the_walk(ledger: Ledger) -> None:
    one = ledger.artifacts.publish(PROMPT, "one", {"n": 1})
    two = ledger.artifacts.publish(PROMPT, "two", {"n": 2}, parents=[one.digest])
    ledger.artifacts.publish(PROMPT, "one", {"n": 1}, parents=[two.digest])
    assert len(ledger.lineage.ancestors(one.digest).edges) == 2
    assert len(ledger.lineage.descendants(one.digest, depth=7).edges) == 2


def test_rows_know_their_sources(ledger: Ledger) -> None:
    pairs = [("psg_1", "doc_1"), ("psg_2", "doc_1"), ("psg_3", "doc_2"), ("doc_1", "python:x"), ("doc_2", "file:y.md")]
    ledger.lineage.link_rows(pairs)
    ledger.lineage.link_rows(pairs[:2])
    up = ledger.lineage.row_ancestors(["psg_1", "psg_3"])
    assert {node.node_id: node.kind for node in up.nodes} == {
        "psg_1": "row", "psg_3": "row", "doc_1": "row", "doc_2": "row", "python:x": "source", "file:y.md": "source",
    }  # fmt: skip
    down = ledger.lineage.row_descendants("python:x")
    assert {node.node_id for node in down.nodes} == {"python:x", "doc_1", "psg_1", "psg_2"}
    assert ("psg_2", "doc_1", "row") in down.edges


def test_long_chains_and_many_starts_are_walked(ledger: Ledger) -> None:
    ledger.lineage.link_rows((f"row_{n + 1}", f"row_{n}") for n in range(3000))
    assert len(ledger.lineage.row_descendants("row_0").edges) == 3000
    assert len(ledger.lineage.row_ancestors(f"row_{n}" for n in range(2000, 3001)).edges) == 3000


def test_versions_holding_a_row_follow_its_parts(ledger: Ledger) -> None:
    digests = [ledger.artifacts.publish(ArtifactKind.DATASET, "cases", {"n": n}).digest for n in range(3)]
    db = ledger.database
    parts = [(1, "base"), (2, "delta"), (3, "delete")]
    with db.write() as connection:
        db.put(connection, dataset_parts, [db.row(part=part, object=digest_json(what)) for part, what in parts])
        listed = [(0, [1]), (1, [1, 3]), (2, [1, 3, 2])]
        for version, ordered in listed:
            rows = [db.row(version=digests[version], ordinal=n, part=part) for n, part in enumerate(ordered)]
            db.put(connection, dataset_versions, rows)
        held = [("a", 1, True), ("b", 1, True), ("a", 3, False), ("a", 2, True), ("c", 2, True)]
        db.put(connection, dataset_rows, [db.row(row_id=r, part=p, present=here) for r, p, here in held])
    holding = {row: [item.version for item in ledger.lineage.versions_holding(row)] for row in "abcd"}
    assert holding == {"a": [1, 3], "b": [1, 2, 3], "c": [3], "d": []}


# ---------------------------------------------------------------- observations, results, keys, leases


def observed(ledger: Ledger, *units: str) -> list[Observation]:
    now = ledger.clock.now()
    return [Observation(unit=unit, arm="canary", metrics={"ok": 1.0, "cost": None}, at=now) for unit in units]


def test_observations_keep_their_order_and_each_unit_once(ledger: Ledger) -> None:
    assert ledger.observations.append("rollout", []) == 0
    assert ledger.observations.append("rollout", observed(ledger, "b", "a", "b")) == 2
    assert ledger.observations.append("rollout", observed(ledger, "a", "c")) == 3
    assert ledger.observations.append("other", observed(ledger, "a")) == 1
    rows = ledger.observations.read("rollout")
    assert [(row.unit, row.seq) for row in rows] == [("b", 1), ("a", 2), ("c", 3)]
    assert rows[0].metrics == {"ok": 1.0, "cost": None}
    assert ledger.observations.read("rollout", after_seq=2) == rows[2:]


def test_observations_have_no_gaps_when_many_append(ledger: Ledger) -> None:
    calls = [
        lambda writer=writer: [
            ledger.observations.append("rollout", observed(ledger, f"{writer % 3}-{n}", f"{writer}-{n}"))
            for n in range(8)
        ]
        for writer in range(6)
    ]
    assert not [result for result in together(calls) if isinstance(result, Exception)]
    rows = ledger.observations.read("rollout")
    assert [row.seq for row in rows] == list(range(1, 49))
    assert len({row.unit for row in rows}) == 48


def test_results_are_kept_by_key(ledger: Ledger) -> None:
    values = {digest_json(n): {"score": n, "text": None} for n in range(1200)}
    ledger.results.put_many(values)
    ledger.results.put_many({digest_json(0): None})
    found = ledger.results.get_many([*values, digest_json("unknown")])
    assert found == values | {digest_json(0): None}
    ledger.results.put_many({})
    assert ledger.results.get_many([]) == {}


def test_results_written_at_once_in_any_order_do_not_lock_each_other_up(ledger: Ledger) -> None:
    keys = [digest_json(n) for n in range(100)]

    def put(writer: int) -> None:
        ordered = keys if writer % 2 else keys[::-1]
        ledger.results.put_many(dict.fromkeys(ordered, writer))

    assert together([lambda writer=writer: put(writer) for writer in range(6)]) == [None] * 6
    assert len(set(map(str, ledger.results.get_many(keys).values()))) == 1


def test_api_keys_come_and_go(new_ledger: NewLedger, ledger_scope: Scope) -> None:
    ledger = new_ledger()
    digest = key_digest(f"secret {ledger_scope.project}")
    ledger.api_keys.add(digest, "laptop")
    with pytest.raises(Conflict):
        ledger.api_keys.add(key_digest("another"), "laptop")
    elsewhere = new_ledger(scope=Scope(ledger_scope.project, "other"))
    with pytest.raises(Conflict):
        elsewhere.api_keys.add(digest, "mine")
    decision = ledger.api_keys.revoke("laptop", actor="ann", reason="lost")
    assert (decision.kind, decision.subject, decision.verdict.reason) == ("api_key", "api_key/laptop", "lost")
    with pytest.raises(NotFound):
        ledger.api_keys.revoke("laptop", actor="ann", reason="again")
    ledger.api_keys.add(key_digest(f"new {ledger_scope.project}"), "laptop")
    listed = ledger.api_keys.list()
    assert [record.revoked_at is None for record in listed] == [False, True]
    assert listed[0].digest == digest


def test_a_lease_has_one_holder_and_a_growing_epoch(new_ledger: NewLedger) -> None:
    clock = FakeClock()
    ledger = new_ledger(clock=clock)
    first = ledger.leases.acquire("leader", "a", 10.0)
    assert first is not None
    assert first.epoch == 1
    assert ledger.leases.acquire("leader", "b", 10.0) is None
    clock.advance(9)
    first = ledger.leases.renew(first, 10.0)
    clock.advance(9)
    assert ledger.leases.acquire("leader", "b", 10.0) is None
    clock.advance(1)
    with pytest.raises(Conflict):
        ledger.leases.renew(first, 10.0)
    second = ledger.leases.acquire("leader", "b", 10.0)
    assert second is not None
    assert second.epoch == 2
    ledger.leases.release(first)
    assert ledger.leases.acquire("leader", "a", 10.0) is None
    ledger.leases.release(second)
    third = ledger.leases.acquire("leader", "a", 10.0)
    assert third is not None
    assert third.epoch == 3
    again = ledger.leases.acquire("leader", "a", 10.0)
    assert again is not None
    assert again.epoch == 4
    with pytest.raises(Conflict):
        ledger.leases.renew(third, 10.0)
    with pytest.raises(InvalidInput):
        ledger.leases.acquire("leader", "a", 0.0)


def test_of_many_who_ask_one_gets_the_lease(ledger: Ledger) -> None:
    results = together([lambda n=n: ledger.leases.acquire("leader", f"h{n}", 60.0) for n in range(8)])
    assert sorted(result is None for result in results) == [False] + [True] * 7


def test_reads_see_one_state(ledger: Ledger) -> None:
    ledger.decisions.record("gate", "s", Verdict(1, "r"), actor="a")
    with ledger.database.read() as connection:
        query = decisions.select().where(ledger.database.mine(decisions))
        before = len(connection.execute(query).all())
        writer = threading.Thread(
            target=ledger.decisions.record, args=("gate", "s", Verdict(2, "r")), kwargs={"actor": "a"}
        )
        writer.start()
        writer.join()
        assert len(connection.execute(query).all()) == before
    assert len(ledger.decisions.list()) == 2


def test_digests_are_checked_at_the_border(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput):
        ledger.artifacts.publish(PROMPT, "answer", {}, parents=[Digest("latest")])
    with pytest.raises(InvalidInput):
        ledger.artifacts.publish(PROMPT, "answer", {}, blobs={"x": Digest("sha256:12")})
    with pytest.raises(InvalidInput):
        begin(ledger, inputs={"x": Digest("x")})
