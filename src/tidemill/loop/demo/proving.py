"""Evaluates the demo's releases and holds the second and third against the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidemill.evaluation import RETRIEVAL_METRICS, CaseSet, GateRule, Report, RuleKind, gate
from tidemill.loop.evaluating import evaluate_release

if TYPE_CHECKING:
    from tidemill.kernel import Verdict
    from tidemill.ledger import ArtifactVersion
    from tidemill.loop.project import Project

RULES: Final = (
    GateRule("recall@5", RuleKind.SUPERIOR),
    GateRule("mrr", RuleKind.SUPERIOR),
    GateRule("citation_correct", RuleKind.NON_INFERIOR, margin=0.2, minimum=20),
    GateRule("token_f1", RuleKind.NON_INFERIOR, margin=0.2, minimum=20),
)


@dataclass(frozen=True, slots=True)
class Proof:
    """Two reports on the same answers: over all questions, and over the held-out ones alone, for the gate."""

    everything: Report
    heldout: Report

    @property
    def complete(self) -> bool:
        """Whether every question was asked and answered, rightly or wrongly."""
        searched = (self.everything.metrics[name] for name in RETRIEVAL_METRICS if name in self.everything.metrics)
        errors = int(self.heldout.version.content["answers"]["errors"])
        return not errors and not any(metric.unmeasured for metric in searched)


def prove(
    project: Project,
    release: ArtifactVersion,
    cases: CaseSet,
    *,
    answered: int,
    name: str,
    concurrency: int,
    on_progress: Callable[[float, str], None] | None = None,
) -> Proof:
    """Score a release: its search on all cases, its answers on a stratified sample of the held-out ones.

    Args:
        project: the demo's project; its model server answers.
        release: the release artifact.
        cases: all cases.
        answered: size of the sample.
        name: beginning of the reports' names.
        concurrency: questions asked at once.
        on_progress: told the share done and a note.

    Raises:
        Unavailable: the model server does not answer.
    """
    heldout = cases.select(split="heldout")
    sample = frozenset(case.case_id for case in heldout.sample(answered).cases)

    def report(suffix: str, chosen: CaseSet) -> Report:
        return evaluate_release(
            project,
            release,
            chosen,
            name=f"{name}-{suffix}",
            answered=sample,
            concurrency=concurrency,
            on_progress=on_progress,
        )

    # The second finds every result of the first in the cache: it is the gate's view of the same answers.
    return Proof(report("all", cases), report("heldout", heldout))


def hold_against(candidate: Proof, baseline: Proof) -> Verdict:
    """The demo's gate, on the held-out cases alone."""
    return gate(candidate.heldout, baseline.heldout, RULES, alpha=0.05)
