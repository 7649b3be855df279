"""``eval`` and ``gate``: what a release is worth, and whether it may go on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, progress_bar, project_at, say
from tidemill.cli.views import actor, find_version, list_versions, moment, version_json
from tidemill.kernel import ArtifactKind, InvalidInput, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidemill.evaluation import CaseSet, GateRule, Report
    from tidemill.ledger import ArtifactVersion, Ledger
    from tidemill.loop.project import Project

_DEFAULT_MARGIN = 0.05

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Evaluations: a release asked on cases, scored with intervals.\n\n"
    "Example: tidemill eval run helpdesk --file questions.jsonl",
)
RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        help="metric:kind:number, e.g. token_f1:non_inferior:0.05, mrr:superior or exact:at_least:0.6; repeat it. "
        f"Without: each metric of both reports may lose less than {_DEFAULT_MARGIN}.",
    ),
]
MinimumOption = Annotated[int, typer.Option(min=1, help="Measured cases below which a rule is INSUFFICIENT.")]


@app.command("run")
def run_(
    release: Annotated[str, typer.Argument(help="Release: NAME, NAME@7 or release/NAME@label.")],
    cases: Annotated[
        str | None, typer.Argument(help="Data set of cases; with --file the name to publish them under.")
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option(help="Question file, one JSON object a line; published as a data set first.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the cases of this split: dev or heldout.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Answer only so many cases, drawn by tags; search is scored on all.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the report; the release's when not given.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Questions asked at once.")] = 4,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Ask a release every case in this process and publish a report with intervals.

    Answers are kept as they come: killed, the next call goes on where this one stopped.

    Example: tidemill eval run helpdesk@2 --file questions.jsonl

    Example: tidemill eval run helpdesk questions@1 --split heldout --sample 50
    """
    from tidemill.loop.evaluating import evaluate_release

    with project_at(project) as opened:
        version = find_version(opened.ledger, release, ArtifactKind.RELEASE)
        chosen = _cases(opened, cases, file).select(split=split)
        answered = None if sample is None else frozenset(one.case_id for one in chosen.sample(sample).cases)
        with progress_bar(quiet=as_json) as bar:
            task = bar.add_task("evaluating", total=1.0)
            report = evaluate_release(
                opened,
                version,
                chosen,
                name=name or version.name,
                answered=answered,
                concurrency=concurrency,
                on_progress=lambda share, note: bar.update(task, completed=share, description=note),
            )
    if as_json:
        print_json(version_json(report.version))
        return
    _show(report.version, str(version.ref))


@app.command("list")
def list_reports(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the reports, each in its newest version.

    Example: tidemill eval list
    """
    with project_at(project) as opened:
        reports = opened.ledger.artifacts.list(ArtifactKind.REPORT)
        names = opened.ledger.artifacts.named_by([one.content["subject"] for one in reports])
        list_versions(
            opened.ledger,
            ArtifactKind.REPORT,
            {
                "of": lambda one: _name(names, one.content["subject"]),
                "cases": lambda one: one.content["case_count"],
                "scores": lambda one: _means(one.content["metrics"]),
            },
            as_json=as_json,
            empty="There is no report yet. Make one: tidemill eval run RELEASE --file questions.jsonl",
        )


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="Report: NAME, NAME@7, report/NAME@label or a digest.")],
    rows: Annotated[bool, typer.Option("--rows", help="Show every case with its answer and scores.")] = False,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show a report: each metric with its 95 % interval, by slice, and what it cost.

    Example: tidemill eval show helpdesk@1 --rows
    """
    from tidemill.evaluation import report_rows

    with project_at(project) as opened:
        version = find_version(opened.ledger, ref, ArtifactKind.REPORT)
        names = opened.ledger.artifacts.named_by([version.content["subject"]])
        found = report_rows(opened.ledger, version) if rows else []
    if as_json:
        print_json(version_json(version) | ({"rows": found} if rows else {}))
        return
    _show(version, _name(names, version.content["subject"]))
    for row in found:
        _show_row(row)


def gate(
    candidate: Annotated[str, typer.Argument(help="Report of the release that wants to go on.")],
    baseline: Annotated[str | None, typer.Argument(help="Report of the release it would replace.")] = None,
    rule: RuleOption = None,
    minimum: MinimumOption = 30,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Error rate of each answer.")] = 0.05,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Compare two reports, in pairs on the cases they share. Exit code: 0 PASS, 1 FAIL, 4 INSUFFICIENT.

    No data is never a pass. The verdict is kept in the audit chain with the evidence it rests on.

    Example: tidemill gate helpdesk@2 helpdesk@1 --rule mrr:superior --rule token_f1:non_inferior:0.1
    """
    with project_at(project) as opened:
        verdict = judge(opened.ledger, candidate, baseline, rule or (), minimum=minimum, alpha=alpha)
        version = find_version(opened.ledger, candidate, ArtifactKind.REPORT)
        opened.ledger.decisions.record("gate", str(version.ref), verdict, actor=actor())
    if as_json:
        print_json(verdict.as_json())
    else:
        show_verdict(verdict)
    raise typer.Exit(Outcome(str(verdict.value)).exit_code)


def judge(
    ledger: Ledger,
    candidate: str,
    baseline: str | None,
    rules: Sequence[str],
    *,
    minimum: int,
    alpha: float = 0.05,
) -> Verdict:
    """The gate's verdict over reports that a person named, by rules as they are typed."""
    from tidemill.evaluation import gate as judge_reports
    from tidemill.evaluation import load_report

    reports = [
        load_report(ledger, find_version(ledger, ref, ArtifactKind.REPORT).ref) if ref is not None else None
        for ref in (candidate, baseline)
    ]
    assert reports[0] is not None
    return judge_reports(reports[0], reports[1], _rules(rules, reports, minimum), alpha=alpha)


def show_verdict(verdict: Verdict) -> None:
    """Print a gate's verdict, rule by rule."""
    say(f"{verdict.value}: {verdict.reason}")
    for one in verdict.evidence["rules"]:
        say(f"  {one['verdict']['value']:<13} {one['kind']:<13} {one['verdict']['reason']}")


def parse_rule(text: str, minimum: int) -> GateRule:
    """Read ``metric:kind:number``.

    Raises:
        InvalidInput: not such a rule.
    """
    from tidemill.evaluation import GateRule, RuleKind

    metric, _, rest = text.partition(":")
    kind, _, number = rest.partition(":")
    form = f"A rule is metric:kind:number with one of the kinds {', '.join(RuleKind)}, e.g. token_f1:non_inferior:0.05"
    if not metric or kind not in list(RuleKind) or (kind == RuleKind.SUPERIOR and number):
        raise InvalidInput(f"'{text}' is not a gate rule.", hint=form)
    try:
        value = float(number) if number else None
    except ValueError:
        raise InvalidInput(f"'{text}' is not a gate rule: '{number}' is no number.", hint=form) from None
    if value is None:
        return GateRule(metric, RuleKind(kind), minimum=minimum)
    which = "floor" if kind == RuleKind.AT_LEAST else "margin"
    return GateRule(metric, RuleKind(kind), minimum=minimum, **{which: value})


def _rules(texts: Sequence[str], reports: Sequence[Report | None], minimum: int) -> list[GateRule]:
    candidate, baseline = reports
    assert candidate is not None
    if texts:
        rules = [parse_rule(text, minimum) for text in texts]
        unknown = [rule.metric for rule in rules if rule.metric not in candidate.scores]
        if unknown:
            known = ", ".join(sorted(candidate.scores))
            raise InvalidInput(f"{candidate.version.ref} has no metric '{unknown[0]}'.", hint=f"It has: {known}.")
        return rules
    shared = sorted(set(candidate.scores) & set(baseline.scores if baseline is not None else ()))
    if not shared:
        raise InvalidInput(
            "There is no metric to compare: the reports share none, or there is only one report.",
            hint="Say what is asked: --rule token_f1:at_least:0.5",
        )
    return [parse_rule(f"{metric}:non_inferior:{_DEFAULT_MARGIN}", minimum) for metric in shared]


def _cases(opened: Project, ref: str | None, file: Path | None) -> CaseSet:
    from tidemill.evaluation import load_cases, publish_cases
    from tidemill.loop.evaluating import read_cases

    if file is not None:
        name = ref or re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-") or "cases"
        version = publish_cases(opened.ledger, name, read_cases(file))
        return load_cases(opened.ledger, version.ref)
    if ref is None:
        raise InvalidInput("Say which cases to ask.", hint="Name a data set, or give --file questions.jsonl")
    return load_cases(opened.ledger, find_version(opened.ledger, ref, ArtifactKind.DATASET).ref)


def _show(version: ArtifactVersion, subject: str) -> None:
    content = version.content
    say(f"{version.ref}: {subject} on {content['case_count']} cases, {moment(version.created_at)}")
    lines = [("all", name, *_cells(metric)) for name, metric in content["metrics"].items()]
    for tag, metrics in content["slices"].items():
        lines += [(tag, name, *_cells(metric)) for name, metric in metrics.items()]
    print_table(("cases", "metric", "mean", "95 % interval", "n", "unmeasured"), lines, empty="Nothing was scored.")
    answers = content["answers"]
    say(
        f"{answers['answered']} answers, {answers['errors']} errors, median {_seconds(answers['latency_p50_s'])}, "
        f"{answers['input_tokens']} tokens in, {answers['output_tokens']} out, {answers['cost_usd']:.4g} USD"
    )
    if answers["errors"]:
        say(f"Why they failed: tidemill eval show {version.ref} --rows. The next run asks them again.")


def _show_row(row: Mapping[str, Any]) -> None:
    say(f"\n{row['case_id']}: {row['question']}")
    answer = row["answer"]
    if answer is not None:
        say(f"  answer: {answer['text']}" if answer["error"] is None else f"  error: {answer['error']}")
    if row["retrieved"] is not None:
        say(f"  found: {', '.join(row['retrieved']) or 'nothing'}")
    for metric, verdict in row["scores"].items():
        say(f"  {metric}: " + ("not measured" if verdict is None else f"{verdict['value']:.3g}, {verdict['reason']}"))


def _cells(metric: Mapping[str, Any]) -> tuple[object, ...]:
    interval = f"{metric['low']:.3f} to {metric['high']:.3f}"
    mean = None if metric["mean"] is None else f"{metric['mean']:.3f}"
    return mean, interval if metric["n"] else None, metric["n"], metric["unmeasured"]


def _means(metrics: Mapping[str, Any]) -> str:
    measured = {name: one["mean"] for name, one in metrics.items() if one["mean"] is not None}
    return ", ".join(f"{name} {mean:.2f}" for name, mean in measured.items()) or "-"


def _name(names: Mapping[str, ArtifactVersion], digest: str) -> str:
    return str(names[digest].ref) if digest in names else digest


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
