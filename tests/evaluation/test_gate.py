from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tidemill.evaluation import GateRule, Report, RuleKind, gate
from tidemill.kernel import ArtifactId, ArtifactKind, Digest, InvalidInput, Outcome, Verdict
from tidemill.ledger import ArtifactVersion

Scores = dict[str, list[float | None]]


def make_report(scores: Scores, subject: str = "1") -> Report:
    version = ArtifactVersion(
        artifact_id=ArtifactId("art_1"),
        kind=ArtifactKind.REPORT,
        name="r",
        version=1,
        digest=Digest("sha256:" + "0" * 64),
        content={"subject": "sha256:" + subject * 64},
        blobs={},
        made_by=None,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    by_case = {metric: {f"case_{i:04}": value for i, value in enumerate(values)} for metric, values in scores.items()}
    return Report(version, {}, by_case)


def judge(candidate: Scores, baseline: Scores | None, *rules: GateRule) -> Verdict:
    return gate(make_report(candidate), make_report(baseline, "2") if baseline else None, rules)


def ones(count: int, of: int) -> list[float | None]:
    return [1.0] * count + [0.0] * (of - count)


SUPERIOR = GateRule("f1", RuleKind.SUPERIOR)


def test_clearly_better_passes_and_clearly_worse_fails() -> None:
    good, bad = {"f1": ones(150, 200)}, {"f1": ones(90, 200)}
    assert judge(good, bad, SUPERIOR).value is Outcome.PASS
    assert judge(bad, good, SUPERIOR).value is Outcome.FAIL
    assert judge(good, good, SUPERIOR).value is Outcome.INSUFFICIENT
    assert judge(good, good, GateRule("f1", margin=0.05)).value is Outcome.PASS
    assert judge(bad, good, GateRule("f1", margin=0.05)).value is Outcome.FAIL


def test_no_data_and_no_baseline_are_never_a_pass() -> None:
    some: Scores = {"f1": ones(20, 20)}
    assert judge(some, some, GateRule("f1")).value is Outcome.INSUFFICIENT
    assert judge(some, None, GateRule("f1")).value is Outcome.INSUFFICIENT
    assert judge(some, some, GateRule("absent")).value is Outcome.INSUFFICIENT
    assert judge(some, None, GateRule("absent", RuleKind.AT_LEAST, floor=0.1)).value is Outcome.INSUFFICIENT


def test_a_floor_needs_the_whole_interval() -> None:
    def outcome(count: int) -> object:
        return judge({"f1": ones(count, 100)}, None, GateRule("f1", RuleKind.AT_LEAST, floor=0.5)).value

    assert [outcome(count) for count in (20, 52, 80)] == [Outcome.FAIL, Outcome.INSUFFICIENT, Outcome.PASS]


def test_unmeasured_cases_count_against_every_answer() -> None:
    baseline: Scores = {"f1": ones(90, 200)}
    assert judge({"f1": ones(120, 200)}, baseline, SUPERIOR).value is Outcome.PASS
    holes: Scores = {"f1": [*ones(120, 120), *[None] * 40, *[0.0] * 40]}
    assert judge(holes, {"f1": [*ones(90, 120), *[1.0] * 40, *[0.0] * 40]}, SUPERIOR).value is not Outcome.PASS
    floor = GateRule("f1", RuleKind.AT_LEAST, floor=0.5)
    assert judge({"f1": [*ones(50, 50), *[None] * 60]}, None, floor).value is Outcome.INSUFFICIENT


def test_the_worst_rule_wins_and_each_keeps_its_evidence() -> None:
    candidate: Scores = {"f1": ones(150, 200), "cited": ones(90, 200)}
    baseline: Scores = {"f1": ones(90, 200), "cited": ones(150, 200)}
    verdict = judge(candidate, baseline, SUPERIOR, GateRule("cited", margin=0.05))
    assert verdict.value is Outcome.FAIL
    assert "cited" in verdict.reason
    rules = verdict.evidence["rules"]
    assert [rule["verdict"]["value"] for rule in rules] == ["PASS", "FAIL"]
    assert all(0 < rule["verdict"]["evidence"]["mde"] < 0.5 for rule in rules)
    assert verdict.evidence["candidate"] != verdict.evidence["baseline"]
    assert Verdict.from_json(verdict.as_json()).evidence["rules"] == rules


def test_only_shared_cases_are_compared() -> None:
    verdict = judge({"f1": ones(150, 150)}, {"f1": ones(60, 200)}, SUPERIOR)
    assert verdict.evidence["rules"][0]["verdict"]["evidence"]["n"] == 150


def test_several_superiority_rules_share_the_error_rate_by_holm() -> None:
    # 6 wins of 6 have p = 1/64: below .05, above .05 / 4.
    candidate, baseline = [1.0] * 6 + [0.0] * 94, [0.0] * 100
    names = ["a", "b", "c", "d"]

    def outcomes(better: list[str]) -> list[str]:
        ours: Scores = {name: list(candidate if name in better else baseline) for name in names}
        theirs: Scores = {name: list(baseline) for name in names}
        verdict = judge(ours, theirs, *[GateRule(name, RuleKind.SUPERIOR) for name in names])
        return [rule["verdict"]["value"] for rule in verdict.evidence["rules"]]

    alone = judge({"a": list(candidate)}, {"a": list(baseline)}, GateRule("a", RuleKind.SUPERIOR))
    assert alone.value is Outcome.PASS
    assert outcomes(names) == ["INSUFFICIENT"] * 4


def test_holm_goes_on_after_a_clear_rejection_and_stops_at_the_first_doubt() -> None:
    zeros = [0.0] * 100
    wins = {"a": 12, "b": 6, "c": 5}  # p = 2^-12, 2^-6 = .0156 (<= .05/2), 2^-5 = .031 (<= .05/1)
    rules = [GateRule(name, RuleKind.SUPERIOR) for name in wins]
    verdict = judge(
        {name: ones(count, 100) for name, count in wins.items()}, {name: list(zeros) for name in wins}, *rules
    )
    assert [rule["verdict"]["value"] for rule in verdict.evidence["rules"]] == ["PASS", "PASS", "PASS"]
    wins = {"a": 12, "b": 5, "c": 5}  # .031 > .05/2: b stops, and c must not pass at .05/1
    verdict = judge(
        {name: ones(count, 100) for name, count in wins.items()}, {name: list(zeros) for name in wins}, *rules
    )
    assert [rule["verdict"]["value"] for rule in verdict.evidence["rules"]] == ["PASS", "INSUFFICIENT", "INSUFFICIENT"]


def test_rules_that_ask_nothing_are_refused() -> None:
    with pytest.raises(InvalidInput, match="without rules"):
        judge({"f1": ones(1, 1)}, None)
    with pytest.raises(InvalidInput, match="margin"):
        GateRule("f1", margin=0)
    with pytest.raises(InvalidInput, match="floor"):
        GateRule("f1", RuleKind.AT_LEAST)
    with pytest.raises(InvalidInput, match="best"):
        GateRule("f1", "best")  # type: ignore[arg-type]
