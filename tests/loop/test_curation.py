from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loop.traffic import BEGUN_NS, SECOND, fill, request, trace_id
from tidemill.kernel import ArtifactKind, Decoding, InvalidInput, ReleaseParts, Scope
from tidemill.ledger import Ledger, open_ledger
from tidemill.loop.answering import Answers
from tidemill.loop.asking import FollowQuestion
from tidemill.loop.curation import Curated, SamplePlan, curate, horvitz_thompson_total
from tidemill.loop.following import follow
from tidemill.releases import create_release
from tidemill.telemetry import Batch, Score, SpanStore, open_span_store

COUNT = 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SpanStore]:
    opened = open_span_store(tmp_path / "spans.duckdb", Scope("shop"))
    fill(opened, COUNT)
    yield opened
    opened.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db", blobs=f"{tmp_path}/blobs", scope=Scope("shop")) as opened:
        yield opened


@pytest.fixture
def answers(store: SpanStore, ledger: Ledger) -> Answers:
    return Answers(ledger, store, now_ns=lambda: BEGUN_NS + COUNT * 60 * SECOND)


def values(ledger: Ledger, made: Curated) -> list[dict[str, object]]:
    return [dict(row.value) for row in ledger.datasets.read(made.version)]


def test_rows_know_where_they_came_from(answers: Answers, ledger: Ledger, store: SpanStore) -> None:
    made = curate(ledger, answers, FollowQuestion(where=["status = ok"]), SamplePlan(size=12, seed=3), "november")
    rows = list(ledger.datasets.read(made.version))
    assert len(rows) == 12
    assert made.counts == {"rows": 12, "without_content": 0, "population": 54, "left_out": 0}
    for row in rows:
        value = row.value
        (span, *_) = store.trace(value["trace_id"])
        assert span.span.span_id == value["span_id"]
        assert span.span.status == value["status"] == "ok"
        assert value["input"][0]["content"].startswith("What costs tyre")
        assert value["output"].startswith("It costs")
        assert value["inclusion_probability"] == pytest.approx(12 / 54)
        assert value["sampling_weight"] == pytest.approx(54 / 12)
        assert row.sources == (f"trace:{value['trace_id']}", span.span.references[0].ref)
        assert row.subject_hash == span.span.user_key
    assert horvitz_thompson_total([row.value for row in rows], lambda _: 1.0) == pytest.approx(54)
    sampling = made.version.content["sampling"]
    assert (sampling["method"], sampling["seed"], sampling["query"]) == ("uniform", 3, {"where": ["status = ok"]})
    assert made.version.content["rows"]["count"] == 12


def test_the_same_plan_gives_the_same_version_and_another_seed_another(answers: Answers, ledger: Ledger) -> None:
    plans = [SamplePlan(size=10, seed=seed) for seed in (1, 1, 2)]
    digests = [curate(ledger, answers, FollowQuestion(), plan, "x").version.digest for plan in plans]
    assert digests[0] == digests[1] != digests[2]


def test_strata_have_their_shares(answers: Answers, ledger: Ledger) -> None:
    plan = SamplePlan(method="stratified", by="request_model", size=20, allocation="equal")
    rows = values(ledger, curate(ledger, answers, FollowQuestion(), plan, "by-model"))
    models = [row["model"] for row in rows]
    assert (models.count("small"), models.count("large")) == (10, 10)
    assert {row["stratum"]: row["sampling_weight"] for row in rows} == {"small": 4.0, "large": 2.0}
    plan = SamplePlan(method="stratified", by="attributes.tool", size=20)
    made = curate(ledger, answers, FollowQuestion(), plan, "by-tool")
    assert made.version.content["sampling"]["strata"] == {"-": 48, "search": 12}


def test_feedback_bad_good_and_none_alike(answers: Answers, ledger: Ledger, store: SpanStore) -> None:
    label = Score(
        score_id="l", trace_id=trace_id(1), name="feedback", source="user", at_ns=1, project="shop", tenant="default",
        label="meh",
    )  # fmt: skip
    store.commit(Batch(scores=[label]), {})
    made = curate(ledger, answers, FollowQuestion(), SamplePlan(method="feedback", size=16), "feedback")
    assert made.version.content["sampling"]["strata"] == {"bad": 7, "good": 8, "label meh": 1, "none": 44}
    rows = values(ledger, made)
    strata = [row["stratum"] for row in rows]
    assert {one: strata.count(one) for one in set(strata)} == {"bad": 5, "good": 5, "label meh": 1, "none": 5}
    assert horvitz_thompson_total(rows, lambda _: 1.0) == pytest.approx(COUNT)
    assert {row["stratum"] for row in rows if row["scores"]} == {"bad", "good", "label meh"}


def test_the_uncertain_come_in_more_often_and_weigh_less(answers: Answers, ledger: Ledger, store: SpanStore) -> None:
    scores = [
        Score(
            score_id=f"g{number}", trace_id=trace_id(number), name="groundedness", source="judge", at_ns=1,
            project="shop", tenant="default", value=0.5 if number < 10 else 0.99,
        )
        for number in range(50)
    ]  # fmt: skip
    store.commit(Batch(scores=scores), {})
    plan = SamplePlan(method="uncertainty", score="groundedness", size=15)
    made = curate(ledger, answers, FollowQuestion(), plan, "uncertain")
    rows = values(ledger, made)
    assert (len(rows), made.counts["population"], made.counts["left_out"]) == (15, 50, 10)
    sure = [row["sampling_weight"] for row in rows if row["trace_id"] >= trace_id(10)]  # type: ignore[operator]
    unsure = [row["sampling_weight"] for row in rows if row["trace_id"] < trace_id(10)]  # type: ignore[operator]
    assert len(unsure) > len(sure) / 2
    assert max(unsure) < min(sure)  # type: ignore[type-var]


def test_lineage_leads_from_the_row_to_its_trace_and_back(answers: Answers, ledger: Ledger, store: SpanStore) -> None:
    model = ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"entry": {}})
    release = create_release(ledger, "desk", ReleaseParts(model=model.digest, decoding=Decoding()))
    store.commit(Batch(spans=[request(70, release=release.digest, endpoint="canary")]), {})
    made = curate(ledger, answers, FollowQuestion(endpoint="canary"), SamplePlan(), "one")
    (row,) = ledger.datasets.read(made.version)
    up = follow(ledger, store, row.row_id)
    assert {f"trace:{trace_id(70)}", "psg_2"} <= {node["id"] for node in up["nodes"]}
    down = follow(ledger, store, trace_id(70))
    assert str(made.version.ref) in {node["label"] for node in down["nodes"]}
    assert (row.row_id, trace_id(70), "row") in {(one["child"], one["parent"], one["role"]) for one in down["edges"]}
    of_version = follow(ledger, store, str(made.version.ref))
    assert str(release.ref) in {node["label"] for node in of_version["nodes"]}
    assert made.version.digest in {node.node_id for node in ledger.lineage.descendants(release.digest).nodes}


def test_what_cannot_be_drawn_gets_a_sentence(answers: Answers, ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="no request to draw from"):
        curate(ledger, answers, FollowQuestion(endpoint="other"), SamplePlan(), "x")
    with pytest.raises(InvalidInput, match="no request to draw from"):
        curate(ledger, answers, FollowQuestion(), SamplePlan(method="uncertainty", score="tone"), "x")
    with pytest.raises(InvalidInput, match="from 60 strata"):
        curate(ledger, answers, FollowQuestion(), SamplePlan(method="stratified", by="trace_id", size=5), "x")
    assert ledger.artifacts.list(ArtifactKind.DATASET) == []
    for plan in (
        {"method": "stratified"},
        {"by": "status"},
        {"method": "uncertainty"},
        {"score": "feedback"},
        {"allocation": "equal"},
        {"size": 0},
        {"method": "stratified", "by": "colour"},
    ):
        with pytest.raises(InvalidInput):
            SamplePlan(**plan)  # type: ignore[arg-type]


def test_content_that_is_not_kept_is_counted(answers: Answers, ledger: Ledger, store: SpanStore) -> None:
    store.commit(Batch(spans=[request(80, endpoint="quiet", user_key=None)]), {})
    made = curate(ledger, answers, FollowQuestion(endpoint="quiet"), SamplePlan(), "quiet")
    assert made.counts["without_content"] == 1
    (value,) = values(ledger, made)
    assert value["input"] is None
