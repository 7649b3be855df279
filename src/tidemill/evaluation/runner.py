"""The evaluation runner: asks, keeps each answer the moment it is there, scores, reports.

Answers are cached in the ledger under a digest of question, subject and format, so a run that was killed goes on where
it stopped, and changing a scorer asks nothing anew.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidemill.evaluation.answers import Answer
from tidemill.evaluation.cases import Case, CaseSet
from tidemill.evaluation.report import CaseResult, Report, publish_report
from tidemill.evaluation.retrieval_metrics import RETRIEVAL_METRICS, RETRIEVED, score_retrieval
from tidemill.evaluation.scorers import Scorer
from tidemill.kernel import CaseId, Digest, Fault, InvalidInput, RunId, Unavailable, Verdict, digest_json

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

AnswerFunction = Callable[[str], Awaitable[Answer]]
RetrieveFunction = Callable[[str, int], Sequence[str] | Awaitable[Sequence[str]]]
Progress = Callable[[float, str], None]

# Raised when what is kept in the cache, or how it is asked for, changes its meaning.
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is evaluated. It is shown questions and never what is expected.

    Args:
        release: digest of the release (or index, or prompt) that the numbers are about; part of the cache key, so
            whatever changes an answer must change it.
        answer: asks for one answer; an exception counts as unmeasured.
        retrieve: ``(question, k)`` -> source URIs, best first; plain functions are called in a thread.
        answered: ids of the cases to answer, where asking all would take too long; ``None`` means all. Retrieval is
            always scored on all.
    """

    release: Digest
    answer: AnswerFunction | None = None
    retrieve: RetrieveFunction | None = None
    answered: Collection[CaseId] | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """One thing to ask. ``kind`` is ``answer`` or ``retrieve``."""

    kind: str
    case: Case
    key: Digest


async def run_evaluation(
    ledger: Ledger,
    *,
    subject: Subject,
    cases: CaseSet,
    scorers: Sequence[Scorer] = (),
    name: str,
    concurrency: int = 4,
    on_progress: Progress | None = None,
    made_by: RunId | None = None,
) -> Report:
    """Evaluate a subject on cases and publish the report.

    Killed at any moment, the next call asks only what had not been answered. Errors are not cached: they are
    reported as unmeasured, apart from wrong, and asked again by the next call.

    Args:
        ledger: cache of answers and home of the report.
        subject: what is evaluated.
        cases: what it is asked.
        scorers: judge the answers; retrieval has its own metrics (``recall@1``, ``recall@5``, ``mrr``).
        name: name of the report.
        concurrency: questions asked at the same time.
        on_progress: told the share done in [0, 1] and a line of text.
        made_by: the run that evaluates.

    Raises:
        InvalidInput: no case, a subject that neither answers nor retrieves, or two scorers of one name.
        Unavailable: not one question could be answered; the message names the first error.
        Fault: the subject raised one; it is not an error of a single case.
    """
    jobs = list(_jobs(subject, cases))
    _check(name, jobs, scorers)
    found = await asyncio.to_thread(ledger.results.get_many, [job.key for job in jobs])
    errors: dict[Digest, str] = {}
    missing = iter([job for job in jobs if job.key not in found])
    total, cached = len(jobs), len(found)

    async def work() -> None:
        for job in missing:
            value, error = await _ask(subject, job)
            if error is None:
                await asyncio.to_thread(ledger.results.put_many, {job.key: value})
                found[job.key] = value
            else:
                errors[job.key] = error
            if on_progress:
                done = len(found) + len(errors)
                on_progress(done / total, f"{done} of {total} asked, {cached} cached, {len(errors)} errors")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(concurrency, total - cached))):
                group.create_task(work())
    except ExceptionGroup as failed:
        # A store without space or a Fault ends all workers; callers expect it as itself.
        raise failed.exceptions[0] from failed
    if errors and len(errors) == total:
        raise Unavailable(
            f"None of the {total} questions could be answered. The first error: {next(iter(errors.values()))}",
            hint="Mend the release or its model server and evaluate again; nothing was recorded.",
        )
    results = await asyncio.to_thread(_results, subject, cases, scorers, found, errors)
    specs = [scorer.spec for scorer in scorers]
    return await asyncio.to_thread(
        lambda: publish_report(
            ledger, name, subject=subject.release, cases=cases, results=results, scorers=specs, made_by=made_by
        )
    )


def _check(name: str, jobs: Sequence[_Job], scorers: Sequence[Scorer]) -> None:
    if not jobs:
        raise InvalidInput(
            f"Report '{name}': there is nothing to ask. No case is left, or the subject can neither answer nor search."
        )
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"Report '{name}': scorer '{twice}' is given twice; one report holds one value of a metric.")


def _jobs(subject: Subject, cases: CaseSet) -> Iterable[_Job]:
    for case in cases.cases:
        if subject.retrieve and case.documents:
            yield _Job("retrieve", case, _key("retrieve", subject, case))
        if _is_answered(subject, case):
            yield _Job("answer", case, _key("answer", subject, case))


def _is_answered(subject: Subject, case: Case) -> bool:
    return subject.answer is not None and (subject.answered is None or case.case_id in subject.answered)


def _key(kind: str, subject: Subject, case: Case) -> Digest:
    asked = {"question": case.question, "subject": subject.release, "format": _FORMAT}
    return digest_json({"kind": f"evaluation/{kind}", **asked, **({"k": RETRIEVED} if kind == "retrieve" else {})})


async def _ask(subject: Subject, job: _Job) -> tuple[Any, str | None]:
    """The JSON value to keep, or why there is none."""
    try:
        if job.kind == "retrieve":
            assert subject.retrieve is not None
            return list(await _retrieve(subject.retrieve, job.case.question)), None
        assert subject.answer is not None
        answer = await subject.answer(job.case.question)
    except Fault:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one question does to the subject must not end the others
        return None, f"{type(error).__name__}: {error}"
    return answer.as_json(), answer.error


async def _retrieve(retrieve: RetrieveFunction, question: str) -> Sequence[str]:
    if inspect.iscoroutinefunction(retrieve):
        found: Sequence[str] = await retrieve(question, RETRIEVED)
        return found
    result = await asyncio.to_thread(retrieve, question, RETRIEVED)
    return await result if inspect.isawaitable(result) else result


def _results(
    subject: Subject, cases: CaseSet, scorers: Sequence[Scorer], found: dict[Digest, Any], errors: dict[Digest, str]
) -> list[CaseResult]:
    results = []
    for case in cases.cases:
        scores: dict[str, Verdict | None] = {}
        answer = retrieved = None
        if subject.retrieve and case.documents:
            retrieved = found.get(_key("retrieve", subject, case))
            scores |= dict.fromkeys(RETRIEVAL_METRICS) if retrieved is None else score_retrieval(case, retrieved)
        if _is_answered(subject, case):
            key = _key("answer", subject, case)
            answer = Answer(error=errors[key]) if key in errors else Answer.from_json(found[key])
            scores |= _judge(case, answer, scorers)
        results.append(CaseResult(case=case, answer=answer, retrieved=retrieved, scores=scores))
    return results


def _judge(case: Case, answer: Answer, scorers: Sequence[Scorer]) -> dict[str, Verdict | None]:
    if answer.error is not None:
        return {scorer.name: None for scorer in scorers}
    judged = {scorer.name: scorer(case, answer) for scorer in scorers}
    return {name: verdict for name, verdict in judged.items() if verdict is not None}
