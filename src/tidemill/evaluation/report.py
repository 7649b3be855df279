"""Evaluation reports: what a release scored, with intervals and every case's score. Artifacts of kind ``report``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidemill.evaluation.answers import Answer
from tidemill.evaluation.cases import Case, CaseSet
from tidemill.evidence import mean_interval
from tidemill.kernel import ArtifactKind, ArtifactRef, Digest, RunId, Verdict, parse_digest
from tidemill.ledger import ArtifactVersion

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

SCORES_ROLE = "scores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The mean of one metric over the cases it was measured on.

    Args:
        mean: in [0, 1]; ``None`` when nothing was measured.
        low, high: 95 % interval of the mean over cases like these.
        n: cases measured.
        unmeasured: cases it applies to whose answer failed with an error; they are not in the mean.
    """

    mean: float | None
    low: float
    high: float
    n: int
    unmeasured: int = 0

    def as_json(self) -> dict[str, Any]:
        """The metric as a plain JSON object."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n, "unmeasured": self.unmeasured}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case with what the subject returned and how it was judged.

    Args:
        answer: ``None`` where the case was only retrieved for.
        retrieved: sources found for it, best first; ``None`` where no search was scored.
        scores: metric -> verdict; ``None`` where the metric applies and could not be measured.
    """

    case: Case
    answer: Answer | None
    retrieved: Sequence[str] | None
    scores: Mapping[str, Verdict | None]

    def as_json(self) -> dict[str, Any]:
        """One line of the report's score file; passages by source alone, their texts are the index's."""
        answer = self.answer.as_json() if self.answer else None
        if answer:
            answer["passages"] = [passage["source"] for passage in answer["passages"]]
        return {
            "case_id": self.case.case_id,
            "question": self.case.question,
            "tags": list(self.case.tags),
            "answer": answer,
            "retrieved": None if self.retrieved is None else list(self.retrieved),
            "scores": {name: verdict and verdict.as_json() for name, verdict in self.scores.items()},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A published report.

    Args:
        version: the artifact.
        metrics: metric -> mean with interval.
        scores: metric -> case id -> score; ``None`` where it was not measured.
    """

    version: ArtifactVersion
    metrics: Mapping[str, Metric]
    scores: Mapping[str, Mapping[str, float | None]]

    @property
    def subject(self) -> Digest:
        """Digest of the release that was evaluated."""
        return parse_digest(self.version.content["subject"])

    @property
    def slices(self) -> Mapping[str, Mapping[str, Metric]]:
        """Tag -> metric -> mean over the cases that carry the tag."""
        return {tag: _metrics_from_json(metrics) for tag, metrics in self.version.content["slices"].items()}


def publish_report(
    ledger: Ledger,
    name: str,
    *,
    subject: Digest,
    cases: CaseSet,
    results: Sequence[CaseResult],
    scorers: Sequence[Mapping[str, Any]],
    made_by: RunId | None = None,
) -> Report:
    """Summarise results and publish them; equal results give the same version.

    Args:
        ledger: where to.
        name: name of the report.
        subject: digest of what was evaluated; a parent of the report, as are the cases.
        cases: what it was evaluated on.
        results: one for each case, in any order.
        scorers: the scorers' specs, from which the numbers can be computed again.
        made_by: the run that evaluates.
    """
    ordered = sorted(results, key=lambda result: result.case.case_id)
    tags = sorted({tag for result in ordered for tag in result.case.tags})
    metrics = _summary(ordered)
    content = {
        "subject": subject,
        "cases": cases.version,
        "case_count": len(ordered),
        "scorers": [dict(spec) for spec in scorers],
        "metrics": metrics,
        "slices": {tag: _summary([result for result in ordered if tag in result.case.tags]) for tag in tags},
        "answers": _costs([result.answer for result in ordered if result.answer]),
    }
    lines = (json.dumps(result.as_json(), ensure_ascii=False, sort_keys=True).encode() + b"\n" for result in ordered)
    blob = ledger.blobs.put(lines, run_id=made_by)
    parents = sorted({subject, cases.version})
    version = ledger.artifacts.publish(
        ArtifactKind.REPORT, name, content, blobs={SCORES_ROLE: blob}, made_by=made_by, parents=parents
    )
    return Report(version, _metrics_from_json(metrics), _scores([result.as_json() for result in ordered]))


def load_report(ledger: Ledger, ref: ArtifactRef | str) -> Report:
    """Read a report and its cases' scores.

    Raises:
        NotFound: there is no such report.
    """
    version = ledger.artifacts.get(ref)
    return Report(version, _metrics_from_json(version.content["metrics"]), _scores(report_rows(ledger, version)))


def report_rows(ledger: Ledger, version: ArtifactVersion) -> list[dict[str, Any]]:
    """The report's cases as JSON rows: question, tags, answer, retrieved sources and verdicts."""
    data = ledger.blobs.read(version.blobs[SCORES_ROLE])
    return [json.loads(line) for line in data.decode().splitlines()]


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    scores: dict[str, dict[str, float | None]] = {}
    for row in rows:
        for metric, verdict in row["scores"].items():
            scores.setdefault(metric, {})[row["case_id"]] = None if verdict is None else float(verdict["value"])
    return scores


def _summary(results: Sequence[CaseResult]) -> dict[str, dict[str, Any]]:
    scores: dict[str, list[float | None]] = {}
    for result in results:
        for name, verdict in result.scores.items():
            scores.setdefault(name, []).append(None if verdict is None else float(verdict.value))
    return {name: _metric(values).as_json() for name, values in sorted(scores.items())}


def _metric(values: Sequence[float | None]) -> Metric:
    measured = [value for value in values if value is not None]
    interval = mean_interval(measured)
    return Metric(
        mean=interval.mean if measured else None,
        low=interval.low,
        high=interval.high,
        n=len(measured),
        unmeasured=len(values) - len(measured),
    )


def _metrics_from_json(value: Mapping[str, Any]) -> dict[str, Metric]:
    return {name: Metric(**metric) for name, metric in value.items()}


def _costs(answers: Sequence[Answer]) -> dict[str, Any]:
    good = [answer for answer in answers if answer.error is None]
    latencies = sorted(answer.latency_s for answer in good)
    return {
        "answered": len(good),
        "errors": len(answers) - len(good),
        "latency_p50_s": latencies[len(latencies) // 2] if latencies else None,
        "latency_p95_s": latencies[min(len(latencies) - 1, int(len(latencies) * 0.95))] if latencies else None,
        "input_tokens": sum(answer.input_tokens for answer in good),
        "output_tokens": sum(answer.output_tokens for answer in good),
        "cost_usd": sum(answer.cost_usd for answer in good),
    }
