"""From traces to data: a sample of requests becomes a data set version whose rows know where they came from.

Each row keeps its trace id, its span id and its sampling weight, so that figures over the rows speak for all requests
that the query chose; lineage leads from a row to its trace, the passages it used and the releases that answered.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tidemill.kernel import ArtifactKind, Digest, InvalidInput, RowId, digest_bytes, digest_json
from tidemill.loop import sampling
from tidemill.loop.asking import FollowQuestion, check_group
from tidemill.loop.exporting import SpanSource, pages
from tidemill.loop.sampling import Allocation, Drawn, Sample, Unit, draw_by_size, draw_stratified, uncertainty

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger, Row

Method = Literal["uniform", "stratified", "uncertainty", "feedback"]

STEP: Final = "from-traces"
HOLDS: Final = "traced requests"
_TRACES_A_TIME: Final = 100
_NO_VALUE: Final = "-"
_LEASE_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan:
    """How requests are drawn.

    Args:
        method: ``uniform``; ``stratified`` by a field; ``uncertainty`` of a score, the nearer to one half the more
            likely; ``feedback``: from those with bad, with good and without feedback alike.
        size: rows to draw; all where there are fewer.
        seed: chooses the sample: the same again over the same requests.
        by: field of the strata.
        score: name of the score; for ``feedback`` the name of the feedback.
        allocation: how strata share the rows; for ``feedback`` they are equal unless said otherwise.
    """

    method: Method = "uniform"
    size: int = 500
    seed: int = 0
    by: str | None = None
    score: str | None = None
    allocation: Allocation | None = None

    def __post_init__(self) -> None:
        if (self.method == "stratified") != (self.by is not None):
            raise InvalidInput("Give the field of the strata with a stratified sample, and with no other.")
        if self.method == "uncertainty" and self.score is None:
            raise InvalidInput("Say whose uncertainty is meant: the name of a score from 0 to 1.")
        if self.method in ("uniform", "stratified") and self.score is not None:
            raise InvalidInput(f"A {self.method} sample has no use for a score.")
        if self.method in ("uniform", "uncertainty") and self.allocation is not None:
            raise InvalidInput(f"In a sample by {self.method} there is nothing to allocate.")
        if self.size < 1:
            raise InvalidInput(f"{self.size} rows cannot be drawn: one is the least.")
        if self.by is not None:
            check_group(self.by)


@dataclass(frozen=True, slots=True)
class Curated:
    """A data set version drawn from traces, and the counts that tell how."""

    version: ArtifactVersion
    counts: Mapping[str, int]


def curate(
    ledger: Ledger,
    source: SpanSource,
    question: FollowQuestion,
    plan: SamplePlan,
    name: str,
    *,
    on_progress: Callable[[str, int], None] | None = None,
) -> Curated:
    """Draw requests and write them as a data set version.

    The same requests, plan and seed give the same version. What is stored while it runs may or may not take part;
    give ``until`` for a population that stands still.

    Args:
        ledger: where the version goes.
        source: where spans and scores are read from.
        question: the population.
        plan: how it is sampled.
        name: name of the data set.
        on_progress: called with what is being done and how many are read.

    Raises:
        InvalidInput: nothing to draw from, or a plan that cannot be met.
    """
    told = on_progress or _quiet
    sample, left_out = _drawn(source, question, plan, told)
    if not sample.drawn:
        raise InvalidInput(
            "There is no request to draw from.",
            hint="Widen the query; of samples by uncertainty only requests with that score are drawn.",
        )
    spans = list(_fetched(source, question, sample.drawn, told))
    rows, counts = _rows(source, sample.drawn, spans)
    counts |= {"population": sample.population, "left_out": left_out}
    content = {
        "holds": HOLDS,
        "counts": counts,
        "sampling": {
            "method": plan.method,
            "size": plan.size,
            "seed": plan.seed,
            "by": plan.by,
            "score": _score_name(plan),
            "allocation": _allocation(plan),
            "strata": dict(sample.strata),
            "query": question.model_dump(exclude_defaults=True, exclude={"after_seq", "limit", "content"}),
        },
    }
    return Curated(_written(ledger, name, rows, content, spans), counts)


def _quiet(what: str, count: int) -> None:
    """Nobody watches."""


def horvitz_thompson_total(rows: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> float:
    """The total over the population, estimated without bias from the rows of a sample.

    Args:
        rows: values of the rows of a data set that ``curate`` wrote.
        value: what is added up, of one row.
    """
    return math.fsum(row["sampling_weight"] * value(row) for row in rows)


def _drawn(
    source: SpanSource, question: FollowQuestion, plan: SamplePlan, told: Callable[[str, int], None]
) -> tuple[Sample, int]:
    """The sample, and how many requests could not take part for want of a score."""
    values = _score_values(source, _score_name(plan))
    left_out = 0

    def units() -> Iterator[Unit]:
        nonlocal left_out
        read = 0
        for page in pages(source, question.model_copy(update={"content": False})):
            for span in page:
                unit = _unit(span, plan, values)
                if unit is None:
                    left_out += 1
                else:
                    yield unit
            read += len(page)
            told("choosing", read)

    if plan.method == "uncertainty":
        return draw_by_size(units(), plan.size, seed=plan.seed), left_out
    sample = draw_stratified(units(), plan.size, seed=plan.seed, allocation=_allocation(plan))
    return sample, left_out


def _unit(span: Mapping[str, Any], plan: SamplePlan, values: Mapping[str, Sequence[float | str]]) -> Unit | None:
    key = f"{span['trace_id']}:{span['span_id']}"
    if plan.method == "uniform":
        return Unit(key)
    if plan.method == "stratified":
        return Unit(key, _field(span, str(plan.by)))
    found = values.get(span["trace_id"], ())
    numbers = [one for one in found if isinstance(one, float)]
    if plan.method == "uncertainty":
        return Unit(key, size=uncertainty(sum(numbers) / len(numbers))) if numbers else None
    if numbers:
        return Unit(key, "bad" if sum(numbers) / len(numbers) < 0.5 else "good")
    labels = [one for one in found if isinstance(one, str)]
    return Unit(key, f"label {labels[-1]}" if labels else "none")


def _field(span: Mapping[str, Any], name: str) -> str:
    head, _, attribute = name.partition(".")
    value = span["attributes"].get(attribute) if head == "attributes" and attribute else span.get(name)
    return _NO_VALUE if value is None else str(value)


def _score_name(plan: SamplePlan) -> str | None:
    return (plan.score or "feedback") if plan.method == "feedback" else plan.score


def _allocation(plan: SamplePlan) -> Allocation:
    return plan.allocation or ("equal" if plan.method == "feedback" else "proportional")


def _score_values(source: SpanSource, name: str | None) -> dict[str, list[float | str]]:
    """Values, or labels where there is none, of a score by trace."""
    found: dict[str, list[float | str]] = {}
    for one in _scores(source, None if name is None else [name]) if name is not None else ():
        value = one["value"] if one["value"] is not None else one["label"]
        if value is not None:
            found.setdefault(one["trace_id"], []).append(value if isinstance(value, str) else float(value))
    return found


def _scores(source: SpanSource, names: list[str] | None) -> Iterator[Mapping[str, Any]]:
    after = 0
    while True:
        found = source.scores(names=names, after_seq=after)
        yield from found["scores"]
        after = found["after_seq"]
        if not found["more"]:
            return


def _fetched(
    source: SpanSource, question: FollowQuestion, drawn: Sequence[Drawn], told: Callable[[str, int], None]
) -> Iterator[Mapping[str, Any]]:
    """The spans that were drawn, with what was said, in the order of their keys."""
    wanted = {one.key for one in drawn}
    trace_ids = sorted({one.key.partition(":")[0] for one in drawn})
    for first in range(0, len(trace_ids), _TRACES_A_TIME):
        some = trace_ids[first : first + _TRACES_A_TIME]
        asked = FollowQuestion(where=[f"trace_id in {', '.join(some)}"], spans=question.spans, content=True)
        found = [one for page in pages(source, asked) for one in page]
        told("reading", first + len(some))
        yield from sorted(
            (one for one in found if f"{one['trace_id']}:{one['span_id']}" in wanted),
            key=lambda one: (one["trace_id"], one["span_id"]),
        )


def _rows(
    source: SpanSource, drawn: Sequence[Drawn], spans: Sequence[Mapping[str, Any]]
) -> tuple[list[Row], dict[str, int]]:
    from tidemill.ledger import Row

    by_key = {one.key: one for one in drawn}
    trace_ids = {one["trace_id"] for one in spans}
    scores: dict[str, list[Mapping[str, Any]]] = {}
    for score in _scores(source, None):
        if score["trace_id"] in trace_ids:
            scores.setdefault(score["trace_id"], []).append(score)
    rows = []
    for span in spans:
        one = by_key[f"{span['trace_id']}:{span['span_id']}"]
        passages = [ref["ref"] for ref in span["references"] if ref["kind"] == "passage"]
        rows.append(
            Row(
                row_id=RowId(f"req_{span['trace_id'][:16]}{span['span_id']}"),
                value=_value(span, one, scores.get(span["trace_id"], ())),
                sources=(f"trace:{span['trace_id']}", *dict.fromkeys(passages)),
                subject_hash=span["user_key"],
            )
        )
    without = sum(span["content"] is None for span in spans)
    return rows, {"rows": len(rows), "without_content": without}


def _value(span: Mapping[str, Any], drawn: Drawn, scores: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    content = span["content"] or {}
    kept = ("endpoint", "release", "arm", "session_id", "prompt", "service", "status", "started_at_ns", "duration_s")
    value = {
        "trace_id": span["trace_id"],
        "span_id": span["span_id"],
        "input": _parsed(content.get("input")),
        "output": _parsed(content.get("output")),
        **{name: span[name] for name in kept if span[name] is not None},
        "scores": [
            {
                name: score[name]
                for name in ("name", "value", "label", "comment", "correction", "source")
                if score[name] is not None
            }
            for score in scores
        ],
        "inclusion_probability": drawn.probability,
        "sampling_weight": drawn.weight,
    }
    model = span["response_model"] or span["request_model"]
    return value | ({"model": model} if model else {}) | ({"stratum": drawn.stratum} if drawn.stratum else {})


def _parsed(text: str | None) -> Any:
    """Messages as the list they are; anything else as its text."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, list | dict) else text


def _written(
    ledger: Ledger, name: str, rows: Sequence[Row], content: Mapping[str, Any], spans: Sequence[Mapping[str, Any]]
) -> ArtifactVersion:
    """The version, made by a run that read the releases which answered."""
    from tidemill.ledger import RunStatus

    digests = {one["release"] for one in spans if str(one["release"]).startswith("sha256:")}
    known = sorted(ledger.artifacts.named_by([Digest(one) for one in digests]))
    code = [digest_bytes(Path(file).read_bytes()) for file in (__file__, sampling.__file__)]
    run = ledger.runs.start(
        STEP,
        params={"name": name, **content["sampling"]},
        inputs={f"release {number}": Digest(digest) for number, digest in enumerate(known, 1)},
        code_digest=digest_json(code),
        environment_digest=digest_json({"python": platform.python_version()}),
        lease_s=_LEASE_S,
    )
    try:
        version = ledger.datasets.write(
            name,
            rows,
            kind=ArtifactKind.DATASET,
            content=content,
            made_by=run.run_id,
            parents=[Digest(one) for one in known],
        )
    except BaseException as error:
        ledger.runs.finish(run.run_id, RunStatus.FAILED, error=str(error))
        raise
    ledger.runs.finish(run.run_id, RunStatus.OK, outputs={"dataset": version.digest})
    return version
