from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tidemill.evaluation import (
    Answer,
    Case,
    CaseSet,
    Report,
    Scorer,
    Subject,
    exact,
    load_cases,
    load_report,
    publish_cases,
    report_rows,
    run_evaluation,
    token_f1,
)
from tidemill.kernel import Digest, Fault, InvalidInput, Scope, Unavailable
from tidemill.ledger import Ledger, open_ledger

RELEASE = Digest("sha256:" + "1" * 64)
OTHER = Digest("sha256:" + "2" * 64)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db", blobs=str(tmp_path / "blobs"), scope=Scope("demo")) as opened:
        yield opened


@pytest.fixture
def cases(ledger: Ledger) -> CaseSet:
    made = [
        Case(
            question=f"q{number}",
            answers=(f"q{number}",),
            documents=(f"doc:{number}",),
            tags=("even", "odd")[number % 2 :][:1],
        )
        for number in range(20)
    ]
    publish_cases(ledger, "questions", made)
    return load_cases(ledger, "dataset/questions")


class Echo:
    """Answers with the question, fails on some, and counts what it is asked."""

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.failing = set(failing)
        self.asked: Counter[str] = Counter()
        self.running = self.most_running = 0

    async def __call__(self, question: str) -> Answer:
        self.asked[question] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if question in self.failing:
            raise OSError("the model server went away")
        return Answer(text=question, latency_s=0.5, input_tokens=10, output_tokens=2)


def evaluate(ledger: Ledger, cases: CaseSet, subject: Subject, scorers: Sequence[Scorer] = (exact(),)) -> Report:
    return asyncio.run(run_evaluation(ledger, subject=subject, cases=cases, scorers=scorers, name="first"))


def test_a_report_holds_means_with_intervals_slices_and_costs(ledger: Ledger, cases: CaseSet) -> None:
    report = evaluate(ledger, cases, Subject(release=RELEASE, answer=Echo()))
    metric = report.metrics["exact"]
    assert (metric.mean, metric.high, metric.n, metric.unmeasured) == (1.0, 1.0, 20, 0)
    assert 0.7 < metric.low < 1
    assert report.subject == RELEASE
    assert {tag: slice_["exact"].n for tag, slice_ in report.slices.items()} == {"even": 10, "odd": 10}
    assert report.version.content["answers"]["input_tokens"] == 200
    assert report.version.content["answers"]["latency_p50_s"] == 0.5
    loaded = load_report(ledger, report.version.ref)
    assert loaded == report
    assert RELEASE in ledger.lineage.ancestors(report.version.digest)
    assert cases.version in ledger.lineage.ancestors(report.version.digest)


def test_a_second_call_asks_nothing_and_gives_the_same_report(ledger: Ledger, cases: CaseSet) -> None:
    first = evaluate(ledger, cases, Subject(release=RELEASE, answer=Echo()))
    again = Echo()
    second = evaluate(ledger, cases, Subject(release=RELEASE, answer=again))
    assert not again.asked
    assert second.version.version == first.version.version
    other_scorer = evaluate(ledger, cases, Subject(release=RELEASE, answer=again), [token_f1()])
    assert not again.asked
    assert other_scorer.metrics["token_f1"].mean == 1.0
    evaluate(ledger, cases, Subject(release=OTHER, answer=again))
    assert sum(again.asked.values()) == 20


def test_errors_are_unmeasured_not_wrong_and_asked_again(ledger: Ledger, cases: CaseSet) -> None:
    report = evaluate(ledger, cases, Subject(release=RELEASE, answer=Echo(failing=["q3", "q4"])))
    metric = report.metrics["exact"]
    assert (metric.mean, metric.n, metric.unmeasured) == (1.0, 18, 2)
    rows = {row["question"]: row for row in report_rows(ledger, report.version)}
    assert rows["q3"]["answer"]["error"] == "OSError: the model server went away"
    assert rows["q3"]["scores"] == {"exact": None}
    mended = Echo()
    assert evaluate(ledger, cases, Subject(release=RELEASE, answer=mended)).metrics["exact"].n == 20
    assert mended.asked == {"q3": 1, "q4": 1}


def test_nothing_answered_at_all_is_an_error_and_no_report(ledger: Ledger, cases: CaseSet) -> None:
    failing = Echo(failing=[case.question for case in cases.cases])
    with pytest.raises(Unavailable, match="model server went away"):
        evaluate(ledger, cases, Subject(release=RELEASE, answer=failing))


def test_a_fault_of_ours_is_not_hidden_as_unmeasured(ledger: Ledger, cases: CaseSet) -> None:
    async def broken(question: str) -> Answer:
        raise Fault("broken")

    with pytest.raises(Fault, match="broken"):
        evaluate(ledger, cases, Subject(release=RELEASE, answer=broken))


def test_retrieval_is_scored_on_all_and_answers_on_a_sample(ledger: Ledger, cases: CaseSet) -> None:
    def retrieve(question: str, k: int) -> list[str]:
        number = int(question[1:])
        return [f"doc:{number + 1}", f"doc:{number}"] if number < 5 else [f"doc:{number}"]

    sample = frozenset(case.case_id for case in cases.sample(6).cases)
    subject = Subject(release=RELEASE, answer=Echo(), retrieve=retrieve, answered=sample)
    report = evaluate(ledger, cases, subject)
    assert report.metrics["exact"].n == 6
    assert (report.metrics["recall@1"].n, report.metrics["recall@1"].mean) == (20, 0.75)
    assert report.metrics["mrr"].mean == pytest.approx((15 + 5 * 0.5) / 20)

    async def retrieve_later(question: str, k: int) -> list[str]:
        return retrieve(question, k)

    later = evaluate(ledger, cases, Subject(release=OTHER, retrieve=retrieve_later))
    assert later.metrics["recall@5"].mean == 1.0


def test_progress_and_concurrency(ledger: Ledger, cases: CaseSet) -> None:
    seen: list[float] = []
    echo = Echo()
    subject = Subject(release=RELEASE, answer=echo)
    asyncio.run(
        run_evaluation(
            ledger,
            subject=subject,
            cases=cases,
            name="r",
            concurrency=3,
            on_progress=lambda share, _: seen.append(share),
        )
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert 1 <= echo.most_running <= 3


def test_nothing_to_ask_and_a_scorer_twice_are_refused(ledger: Ledger, cases: CaseSet) -> None:
    with pytest.raises(InvalidInput, match="nothing to ask"):
        evaluate(ledger, cases, Subject(release=RELEASE))
    with pytest.raises(InvalidInput, match="given twice"):
        evaluate(ledger, cases, Subject(release=RELEASE, answer=Echo()), [exact(), exact(split_punctuation=True)])


def test_killed_at_any_moment_it_goes_on_where_it_stopped(ledger: Ledger, cases: CaseSet, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    command = [sys.executable, str(Path(__file__).with_name("runner_child.py")), str(tmp_path), str(asked)]
    for _ in range(3):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before = asked.stat().st_size if asked.exists() else 0
        deadline = time.monotonic() + 30
        while not (asked.exists() and asked.stat().st_size > before) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.04))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "20"
    times = Counter(asked.read_text(encoding="utf-8").split())
    assert set(times) == {case.question for case in cases.cases}
    # Only what was in flight at one of the three kills (four at a time) is asked again.
    assert sum(times.values()) <= 20 + 3 * 4
