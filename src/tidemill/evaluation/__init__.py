"""Cases, scorers, the runner and the gate: what a release is worth, and whether it may be promoted."""

from tidemill.evaluation.answers import Answer, Passage, abstained
from tidemill.evaluation.cases import Case, CaseSet, load_cases, publish_cases
from tidemill.evaluation.gate import GateRule, RuleKind, gate
from tidemill.evaluation.report import CaseResult, Metric, Report, load_report, publish_report, report_rows
from tidemill.evaluation.retrieval_metrics import RETRIEVAL_METRICS, score_retrieval
from tidemill.evaluation.runner import Subject, run_evaluation
from tidemill.evaluation.scorers import (
    RegisteredScorer,
    Scorer,
    build_scorer,
    citation_correct,
    exact,
    groundedness,
    normalise,
    scorer,
    token_f1,
)

__all__ = [
    "RETRIEVAL_METRICS",
    "Answer",
    "Case",
    "CaseResult",
    "CaseSet",
    "GateRule",
    "Metric",
    "Passage",
    "RegisteredScorer",
    "Report",
    "RuleKind",
    "Scorer",
    "Subject",
    "abstained",
    "build_scorer",
    "citation_correct",
    "exact",
    "gate",
    "groundedness",
    "load_cases",
    "load_report",
    "normalise",
    "publish_cases",
    "publish_report",
    "report_rows",
    "run_evaluation",
    "score_retrieval",
    "scorer",
    "token_f1",
]
