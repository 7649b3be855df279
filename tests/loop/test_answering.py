from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loop.traffic import BEGUN_NS, SECOND, fill, request, trace_id
from tidemill.kernel import InvalidInput, NotFound, Scope
from tidemill.ledger import open_ledger
from tidemill.loop.answering import Answers, ScoreBody
from tidemill.loop.asking import CompareQuestion, FollowQuestion, ListQuestion, SeriesQuestion, SessionsQuestion
from tidemill.telemetry import Batch, SpanStore, open_span_store

COUNT = 40
NOW_NS = BEGUN_NS + COUNT * 60 * SECOND


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SpanStore]:
    opened = open_span_store(tmp_path / "spans.duckdb", Scope("shop"))
    fill(opened, COUNT)
    yield opened
    opened.close()


@pytest.fixture
def answers(store: SpanStore, tmp_path: Path) -> Iterator[Answers]:
    with open_ledger(
        f"sqlite:///{tmp_path}/ledger.db", blobs=f"file://{tmp_path}/blobs", scope=Scope("shop")
    ) as ledger:
        yield Answers(ledger, store, now_ns=lambda: NOW_NS)


def numbers(found: list[dict[str, object]]) -> list[int]:
    return [int(str(one["trace_id"]), 16) - 1 for one in found]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (ListQuestion(limit=3), [39, 38, 37]),
        (ListQuestion(status="error"), [39, 29, 19, 9]),
        (ListQuestion(where=["duration_s >= 4", "request_model = large"]), [35, 23, 11]),
        (ListQuestion(where=["attributes.tool exists"], limit=3), [35, 30, 25]),
        (ListQuestion(where=["score.feedback < 1"], limit=2), [36, 28]),
        (ListQuestion(where=["user_key in user-1, user-2"], limit=4), [37, 36, 30, 29]),
        (ListQuestion(release=f"sha256:{'a' * 64}", limit=2), [38, 36]),
        (ListQuestion(where=[f"release != sha256:{'a' * 64}"], limit=2), [39, 37]),
        (ListQuestion(since="10m", until="8m"), [31, 30]),
        (ListQuestion(endpoint="other"), []),
        (ListQuestion(text="number 17"), [17]),
        (ListQuestion(text='"tyre number 17"'), [17]),
        (ListQuestion(where=["session_id = session-1"]), [9, 8, 7, 6, 5]),
    ],
)
def test_requests_by_any_condition(answers: Answers, question: ListQuestion, expected: list[int]) -> None:
    assert numbers(answers.traces(question)["traces"]) == expected


def test_spans_are_asked_for_on_purpose(answers: Answers) -> None:
    assert len(answers.traces(ListQuestion(limit=1000))["traces"]) == COUNT
    assert len(answers.traces(ListQuestion(limit=1000, spans=True))["traces"]) == 2 * COUNT
    assert len(answers.traces(ListQuestion(limit=1000, spans=True, where=["name = step"]))["traces"]) == COUNT


@pytest.mark.parametrize("limit", [1, 7, 40])
def test_pages_give_everything_once(answers: Answers, store: SpanStore, limit: int) -> None:
    # Many spans with one start, as a program with a coarse clock writes them.
    same = [request(n, started_at_ns=BEGUN_NS, ended_at_ns=BEGUN_NS) for n in range(100, 130)]
    store.commit(Batch(spans=same), {})
    found: list[str] = []
    cursor = None
    while True:
        page = answers.traces(ListQuestion(limit=limit, cursor=cursor))
        found += [one["trace_id"] for one in page["traces"]]
        cursor = page["next"]
        if cursor is None:
            break
        assert len(page["traces"]) == limit
    assert len(found) == len(set(found)) == COUNT + 30
    with pytest.raises(InvalidInput, match="no cursor"):
        answers.traces(ListQuestion(cursor="x"))


def test_following_goes_on_where_it_stopped(answers: Answers, store: SpanStore) -> None:
    first = answers.spans(FollowQuestion(limit=25))
    second = answers.spans(FollowQuestion(limit=25, after_seq=first["after_seq"]))
    assert (len(first["spans"]), first["more"], len(second["spans"]), second["more"]) == (25, True, 15, False)
    nothing = answers.spans(FollowQuestion(after_seq=second["after_seq"]))
    assert nothing == {"spans": [], "after_seq": second["after_seq"], "more": False}
    store.commit(Batch(spans=[request(99)]), {})
    assert numbers(answers.spans(FollowQuestion(after_seq=second["after_seq"]))["spans"]) == [99]


def test_a_trace_by_its_id_in_any_usual_form(answers: Answers) -> None:
    wanted = trace_id(3)
    for form in (
        wanted,
        wanted.upper(),
        f"00-{wanted}-{'1' * 16}-01",
        base64.b64encode(bytes.fromhex(wanted)).decode(),
    ):
        found = answers.trace(form)
        assert (found["trace_id"], len(found["spans"])) == (wanted, 2)
    assert found["spans"][0]["content"]["output"] == "It costs 3 euros."
    assert [one["value"] for one in answers.trace(trace_id(4))["scores"]] == [0.0]
    with pytest.raises(NotFound, match=f"no trace '{'9' * 32}'"):
        answers.trace("9" * 32)
    with pytest.raises(InvalidInput, match="no trace id"):
        answers.trace("nine")


def test_series(answers: Answers) -> None:
    found = answers.series(SeriesQuestion(by=["request_model"], measure=["requests", "max:duration_s", "sum:cost_usd"]))
    assert found["measures"] == ["requests", "max_duration_s", "sum_cost_usd"]
    rows = {row["group"]["request_model"]: row["values"] for row in found["rows"]}
    assert {model: values["requests"] for model, values in rows.items()} == {"small": 27, "large": 13}
    assert rows["large"]["sum_cost_usd"] == pytest.approx(13 * 0.003)
    steps = answers.series(SeriesQuestion(every="10m", measure=["requests", "errors"], where=["status = error"]))
    assert [row["values"]["requests"] for row in steps["rows"]] == [1, 1, 1, 1]
    assert all(row["start_ns"] % (600 * SECOND) == 0 for row in steps["rows"])
    with pytest.raises(InvalidInput, match="no measure"):
        answers.series(SeriesQuestion(measure=["latency"]))


def test_sessions(answers: Answers) -> None:
    found = answers.sessions(SessionsQuestion(limit=2))
    assert [(one["session_id"], one["traces"]) for one in found] == [("session-7", 5), ("session-6", 5)]
    one = answers.session("session-1")
    assert (one["traces"], one["errors"]) == (5, 1)
    assert numbers(one["requests"]) == [5, 6, 7, 8, 9]
    assert one["requests"][0]["content"]["output"] == "It costs 5 euros."
    assert {score["trace_id"] for score in one["scores"]} == {trace_id(8)}
    with pytest.raises(NotFound, match="no session 'x'"):
        answers.session("x")


def test_releases_side_by_side(answers: Answers) -> None:
    first, second = (f"sha256:{one * 64}" for one in "ab")
    found = answers.comparison(CompareQuestion(first=first, second=second))
    a, b = found["releases"]
    assert (a["values"]["requests"], a["values"]["errors"], b["values"]["errors"]) == (20, 0, 4)
    assert a["error_share"]["low"] == 0
    assert b["error_share"]["low"] < 0.2 < b["error_share"]["high"]
    assert b["values"]["mean_cost_usd"] == pytest.approx(0.002, rel=0.1)
    assert (a["scores"]["feedback"]["n"], a["scores"]["feedback"]["mean"]) == (10, 0.5)
    assert a["scores"]["feedback"]["low"] < 0.5 < a["scores"]["feedback"]["high"]
    assert b["scores"] == {}
    with pytest.raises(InvalidInput, match="the same release"):
        answers.comparison(CompareQuestion(first=first, second=first))
    with pytest.raises(NotFound, match="no release 'desk@9'"):
        answers.comparison(CompareQuestion(first=first, second="desk@9"))
    nothing = answers.comparison(CompareQuestion(first=first, second=second, since="1m"))
    assert [one["values"]["requests"] for one in nothing["releases"]] in ([0, 1], [0, 0])


def test_a_release_of_a_program_outside_goes_by_its_own_name(answers: Answers, store: SpanStore) -> None:
    store.commit(Batch(spans=[request(77, release="shop-2.1")]), {})
    assert numbers(answers.traces(ListQuestion(release="shop-2.1"))["traces"]) == [77]


def test_scores_are_masked_kept_once_and_read_in_order(answers: Answers) -> None:
    body = ScoreBody(trace_id=trace_id(1).upper(), name="tone", label="cold", comment="mia", score_id="mine")
    for _ in range(2):
        assert answers.score(body, lambda text: text.replace("mia", "[name]"))["score_id"] == "mine"
    (found,) = answers.scores(names=["tone"])["scores"]
    assert (found["label"], found["comment"], found["at_ns"]) == ("cold", "[name]", NOW_NS)
    first = answers.scores(names=None, limit=4)
    assert (len(first["scores"]), first["more"]) == (4, True)
    rest = answers.scores(names=None, after_seq=first["after_seq"])
    assert len(rest["scores"]) == COUNT // 4 + 1 - 4
    with pytest.raises(InvalidInput, match="says nothing"):
        answers.score(ScoreBody(trace_id=trace_id(1), name="tone"), str)
    with pytest.raises(InvalidInput, match="no trace id"):
        answers.score(ScoreBody(trace_id="x", name="tone", value=1), str)
