"""``monitor``, ``trace`` and ``lineage``: what happens in production, and where an answer came from."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import moment
from tidemill.kernel import ArtifactKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidemill.ledger import Ledger

monitor_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Monitors: what an endpoint promised, and alarms when it is not kept.\n\nExample: tidemill monitor list",
)
trace_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Traces: every request with what it used and what it cost.\n\nExample: tidemill trace list --limit 5",
)


class Group(StrEnum):
    """What requests can be counted by."""

    RELEASE = "release"
    ARM = "arm"
    ENDPOINT = "endpoint"
    MINUTE = "minute"
    REQUEST_MODEL = "request_model"


class SpanStatus(StrEnum):
    """How a request can have ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    TRUNCATED = "truncated"
    INTERRUPTED = "interrupted"


@monitor_app.command("list")
def list_monitors(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the applied monitors, and what each has seen while the control plane runs.

    Example: tidemill monitor list
    """
    from tidemill.cli.traces import control_of
    from tidemill.loop.apply import applied
    from tidemill.loop.monitors import monitor_of

    with project_at(project) as opened:
        client = control_of(opened)
        if client is not None:
            states = client.get("/api/v1/monitors")
        else:
            found = applied(opened.ledger, ArtifactKind.MONITOR)
            states = [{"monitor": monitor_of(one.name, one.content).as_json(), "firing": None} for one in found]
    if as_json:
        print_json(states)
        return
    rows = [
        (
            one["monitor"]["name"],
            one["monitor"]["endpoint"],
            one["monitor"]["kind"],
            f"{1 - one['monitor']['max_share']:.4g}",
            {None: "not running", True: "FIRING", False: "quiet"}[one["firing"]],
            one.get("requests"),
            one.get("bad"),
        )
        for one in states
    ]
    headers = ("monitor", "endpoint", "watches", "objective", "state", "requests", "bad")
    print_table(headers, rows, empty="There is no monitor yet. Add one under 'monitors:', then: tidemill apply")


@monitor_app.command()
def alarms(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List the alarms that monitors raised, with the evidence of each.

    Example: tidemill monitor alarms --json
    """
    from tidemill.loop.monitors import ALARM

    with project_at(project) as opened:
        found = opened.ledger.decisions.list(kind=ALARM, limit=limit)
    if as_json:
        print_json([{"monitor": one.subject, "at": one.at.isoformat(), **one.verdict.as_json()} for one in found])
        return
    rows = [(moment(one.at), one.subject, one.verdict.value, one.verdict.reason) for one in found]
    print_table(("recorded at", "monitor", "alarm", "why"), rows, empty="No monitor has raised an alarm.")


@trace_app.command("list")
def list_traces(
    endpoint: Annotated[str | None, typer.Option(help="Only requests to this endpoint.")] = None,
    release: Annotated[str | None, typer.Option(help="Only answers of this release: NAME@7 or a digest.")] = None,
    status: Annotated[SpanStatus | None, typer.Option(help="Only requests that ended so.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List the newest requests.

    Example: tidemill trace list --endpoint helpdesk --status error
    """
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.asking import ListQuestion

    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        asked = ListQuestion(endpoint=endpoint, release=release, status=status, limit=limit)
        found = telemetry.traces(asked)["traces"]
        names = _release_names(opened.ledger, {one["release"] for one in found})
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one["trace_id"],
            _started(one),
            one["endpoint"],
            names.get(one["release"], one["release"]),
            one["arm"],
            one["status"],
            f"{one['duration_s']:.3f}",
            _tokens(one),
        )
        for one in found
    ]
    headers = ("trace", "at", "endpoint", "release", "arm", "status", "seconds", "tokens")
    print_table(headers, rows, empty="There is no trace yet. Ask an endpoint through the gateway: tidemill status")


@trace_app.command("show")
def show_trace(
    trace_id: Annotated[str, typer.Argument(metavar="ID", help="Trace id, as list shows it.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show a trace: its spans, what was said (as it was kept), what it used, and its scores.

    Example: tidemill trace show 0af7651916cd43dd8448eb211c80319c
    """
    from tidemill.cli.traces import telemetry_of

    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found = telemetry.trace(trace_id.removeprefix("trace:"))
        digests = {one["ref"] for span in found["spans"] for one in span["references"] if one["kind"] == "artifact"}
        names = _release_names(opened.ledger, digests)
    if as_json:
        print_json(found)
        return
    say(f"trace {found['trace_id']}")
    depths: dict[str, int] = {}
    for span in found["spans"]:
        depth = depths[span["span_id"]] = depths.get(span["parent_span_id"], -1) + 1
        _show_span(span, "  " * depth, names)
    for score in found["scores"]:
        value = score["label"] if score["value"] is None else f"{score['value']:g}"
        more = "".join(f", {what}: {score[what]}" for what in ("comment", "correction") if score[what])
        say(f"score {score['name']}: {value} by {score['source']}{more}")
    say(f"Where it came from: tidemill lineage {found['trace_id']}")


@trace_app.command()
def summary(
    by: Annotated[list[Group] | None, typer.Option(help="Group by this; repeat it.", show_default=False)] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Sum up requests: errors, latency, tokens and cost, by group.

    Example: tidemill trace summary --by endpoint --by release
    """
    from tidemill.cli.traces import telemetry_of

    groups = [one.value for one in by or ()]
    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found = telemetry.summary(groups)
        names = _release_names(opened.ledger, {one["group"].get("release") for one in found})
    if as_json:
        print_json(found)
        return
    rows = [
        (
            *(_group(group, one["group"][group], names) for group in groups),
            one["requests"],
            one["errors"],
            one["p50_s"],
            one["p95_s"],
            one["input_tokens"],
            one["output_tokens"],
            one["cost_usd"],
        )
        for one in found
        if one["requests"]
    ]
    headers = (*groups, "requests", "errors", "p50 s", "p95 s", "tokens in", "tokens out", "USD")
    print_table(headers, rows, empty="There is no trace yet. Ask an endpoint through the gateway: tidemill status")


def lineage(
    ref: Annotated[str, typer.Argument(help="Trace id, artifact, digest, row id or source.")],
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid graph.")] = False,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Follow something up to what it came from, and down to what came from it, answers included.

    Example: tidemill lineage 0af7651916cd43dd8448eb211c80319c

    Example: tidemill lineage file:documents/repairs.md --mermaid
    """
    from tidemill.cli.traces import telemetry_of
    from tidemill.cli.trees import mermaid, tree_lines

    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found = telemetry.lineage(ref)
    if as_json:
        print_json(found)
        return
    if as_mermaid:
        say(mermaid(found))
        return
    for line in tree_lines(found):
        say(line)
    if found["kind"] != "trace":
        shown = found["traces"][:10]
        more = found["trace_count"] - len(shown)
        say(f"used by {found['trace_count']} answers" + (":" if shown else "."))
        for trace in shown:
            say(f"  {trace}")
        if more > 0:
            say(f"  and {more} more; all of them with --json")


def _show_span(span: Mapping[str, Any], indent: str, names: Mapping[str, str]) -> None:
    ended = f"{span['status']} {span['error_type'] or ''}".strip()
    tokens = "" if _tokens(span) == "-" else f", {_tokens(span)} tokens"
    say(f"{indent}{span['name']}: {ended}, {span['duration_s']:.3f} s{tokens}")
    content = span["content"]
    if content is not None:
        say(f"{indent}  in:  {content['input']}")
        say(f"{indent}  out: {content['output']}")
    for one in span["references"]:
        score = "" if one["score"] is None else f", score {one['score']:.3g}"
        say(f"{indent}  {one['role']}: {names.get(one['ref'], one['ref'])}{score}")


def _release_names(ledger: Ledger, digests: set[Any]) -> dict[str, str]:
    wanted = [digest for digest in digests if digest]
    return {digest: str(one.ref) for digest, one in ledger.artifacts.named_by(wanted).items()}


def _group(group: str, value: Any, names: Mapping[str, str]) -> object:
    if group == "minute" and value is not None:
        return moment(datetime.fromtimestamp(value / 1e9, UTC))
    return names.get(value, value)


def _started(span: Mapping[str, Any]) -> str:
    return moment(datetime.fromtimestamp(span["started_at_ns"] / 1e9, UTC))


def _tokens(span: Mapping[str, Any]) -> str:
    given, made = span["input_tokens"], span["output_tokens"]
    return "-" if given is None and made is None else f"{given or 0}+{made or 0}"
