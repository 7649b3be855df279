"""``trace``: every request with what it used and what it cost; one at a time, live, and by session."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.erasing import erase, kept
from tidemill.cli.output import HERE, JsonOption, ProjectOption, plain, print_json, project_at, say
from tidemill.cli.tracing_export import export
from tidemill.cli.tracing_numbers import compare, stats, summary
from tidemill.cli.tracing_options import (
    EndpointOption,
    ReleaseOption,
    SinceOption,
    SpansOption,
    StatusOption,
    TextOption,
    UntilOption,
    WhereOption,
    terminal,
    which,
)
from tidemill.kernel import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.text import Text

    from tidemill.cli.traces import Telemetry
    from tidemill.loop.asking import Which

_LOOK_EVERY_S = 0.5
_FAILED = ("error", "truncated", "interrupted")

trace_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Traces: every request with what it used and what it cost.\n\n"
    "Example: tidemill trace list --since 2h --where 'duration_s > 2'",
)


@trace_app.command("list")
def list_traces(
    *,
    where: WhereOption = None,
    text: TextOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    endpoint: EndpointOption = None,
    release: ReleaseOption = None,
    status: StatusOption = None,
    spans: SpansOption = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on where a list ended; it says what to write.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List requests, newest first.

    Example: tidemill trace list --endpoint helpdesk --status error --since 2h

    Example: tidemill trace list --where 'cost_usd > 0.01' --text '"flat tyre"'

    Example: tidemill trace list --spans --where 'operation = execute_tool'
    """
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.answering import names_of
    from tidemill.loop.asking import ListQuestion

    options = which(
        where, text=text, since=since, until=until, endpoint=endpoint, release=release, status=status, spans=spans
    )
    asked = ListQuestion(**options, limit=limit, cursor=cursor)
    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        page = telemetry.traces(asked)
        names = names_of(opened.ledger, {one["release"] for one in page["traces"]})
    if as_json:
        print_json(page)
        return
    if not page["traces"]:
        say(_nothing(asked))
        return
    terminal().print(_table(page["traces"], names))
    if page["next"] is not None:
        say(f"Older ones: the same with --cursor {page['next']}")


@trace_app.command("show")
def show_trace(
    trace_id: Annotated[
        str, typer.Argument(metavar="ID", help="Trace id as list shows it, or a traceparent, UUID or base64.")
    ],
    content: Annotated[bool, typer.Option("--content", "-c", help="Show what was said, as far as it is kept.")] = False,
    span: Annotated[str | None, typer.Option(metavar="ID", help="Show one span with all that is known of it.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Draw a trace: its spans in time, tokens, cost, what was retrieved, and its scores.

    Example: tidemill trace show 0af7651916cd43dd8448eb211c80319c --content

    Example: tidemill trace show 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
    """
    from tidemill.cli.traces import telemetry_of
    from tidemill.cli.waterfall import Waterfall
    from tidemill.loop.answering import names_of

    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found = telemetry.trace(trace_id)
        digests = {one["ref"] for one in _references(found["spans"]) if one["kind"] == "artifact"}
        names = names_of(opened.ledger, digests | {one["release"] for one in found["spans"]})
    if span is not None:
        found = found | {"spans": [_only(found["spans"], span)]}
    if as_json:
        print_json(found)
        return
    console = terminal()
    console.print(Waterfall(found, names, content=content or span is not None))
    if span is not None:
        _show_facts(console, found["spans"][0])
        return
    for one in dict.fromkeys(
        f"{one['role']}: {names.get(one['ref'], one['ref'])}" for one in _references(found["spans"], "artifact")
    ):
        say(one)
    if not content and any(one["content"] for one in found["spans"]):
        say(f"What was said: tidemill trace show {found['trace_id']} --content")
    say(f"Where it came from: tidemill lineage {found['trace_id']}")


@trace_app.command()
def tail(
    *,
    where: WhereOption = None,
    endpoint: EndpointOption = None,
    release: ReleaseOption = None,
    status: StatusOption = None,
    spans: SpansOption = False,
    content: Annotated[bool, typer.Option("--content", "-c", help="Show the end of each answer too.")] = False,
    last: Annotated[int, typer.Option(min=0, max=1000, help="Begin with so many that are there already.")] = 10,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many; without, Ctrl-C stops.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Follow requests as they finish, until Ctrl-C. Needs a running control plane. With --json, one object a line.

    Example: tidemill trace tail --where 'duration_s > 2' --content
    """
    from tidemill.cli.traces import running_telemetry_of

    options = which(where, endpoint=endpoint, release=release, status=status, spans=spans)
    console = terminal()
    shown = 0
    with project_at(project) as opened, running_telemetry_of(opened) as telemetry:
        try:
            for one in _followed(telemetry, options, last=last, content=content):
                if as_json:
                    sys.stdout.write(json.dumps(one, ensure_ascii=False) + "\n")
                    sys.stdout.flush()
                else:
                    console.print(_tail_line(one, content=content, width=console.width), soft_wrap=True)
                shown += 1
                if shown == count:
                    return
        except KeyboardInterrupt:
            return  # how following ends


@trace_app.command()
def sessions(
    session: Annotated[str | None, typer.Argument(help="Show this one with its requests; without, list them.")] = None,
    *,
    where: WhereOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    endpoint: EndpointOption = None,
    release: ReleaseOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")] = 20,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List sessions, newest activity first, or show one as it went.

    Example: tidemill trace sessions --since 1d --where 'status = error'

    Example: tidemill trace sessions chat-4711
    """
    from tidemill.cli.session_views import session_lines, sessions_table
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.asking import SessionsQuestion

    options = which(where, since=since, until=until, endpoint=endpoint, release=release)
    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found: Any = (
            telemetry.sessions(SessionsQuestion(**options, limit=limit))
            if session is None
            else telemetry.session(session)
        )
    if as_json:
        print_json(found)
        return
    if session is not None:
        terminal().print(*session_lines(found), sep="\n")
    elif found:
        terminal().print(sessions_table(found))
    else:
        say("There is no session: requests name theirs with the header x-tidemill-session-id or session.id.")


def _nothing(asked: Which) -> str:
    if asked.model_dump(exclude_defaults=True, exclude={"limit", "spans"}):
        return "No trace meets that."
    return "There is no trace yet. Ask an endpoint through the gateway: tidemill status"


def _table(traces: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from tidemill.cli.charts import instant, seconds, usd

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trace", no_wrap=True, min_width=32)
    for name in ("at", "what", "release", "model", "status"):
        table.add_column(name, overflow="fold" if name == "what" else "ellipsis", no_wrap=name == "at")
    for name in ("took", "tokens", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in traces:
        release = names.get(one["release"], one["release"])
        table.add_row(
            Text(one["trace_id"], "cyan"),
            instant(one["started_at_ns"]),
            plain(one["endpoint"] or one["name"]),
            plain(release and f"{release}{_arm(one)}"),
            plain(one["response_model"] or one["request_model"]),
            Text(plain(one["status"]), _status_style(one)),
            seconds(one["duration_s"]),
            tokens_text(one),
            usd(one["cost_usd"]),
        )
    return table


def _arm(one: Mapping[str, Any]) -> str:
    return f" ({one['arm']})" if one["arm"] in ("canary", "shadow") else ""


def tokens_text(one: Mapping[str, Any]) -> str:
    """Tokens in and out of a span; a dash where it has none."""
    from tidemill.cli.charts import count

    given, made = one["input_tokens"], one["output_tokens"]
    return "-" if given is None and made is None else f"{count(given or 0)}→{count(made or 0)}"


def _status_style(one: Mapping[str, Any]) -> str:
    return "bold red" if one["status"] in _FAILED else "yellow" if one["status"] == "cancelled" else "green"


def _references(spans: Sequence[Mapping[str, Any]], kind: str | None = None) -> Iterator[Mapping[str, Any]]:
    for span in spans:
        yield from (one for one in span["references"] if kind in (None, one["kind"]))


def _only(spans: Sequence[Mapping[str, Any]], text: str) -> Mapping[str, Any]:
    from tidemill.kernel.trace_ids import parse_span_id

    wanted = parse_span_id(text)
    for one in spans:
        if one["span_id"] == wanted:
            return one
    raise InvalidInput(
        f"The trace has no span '{wanted}'.", hint="List its spans with their ids: tidemill trace show ID --json"
    )


def _show_facts(console: Console, span: Mapping[str, Any]) -> None:
    """All that is known of a span, but what was said."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    attributes = {f"attributes.{name}": value for name, value in span["attributes"].items()}
    detail = (span["content"] or {}).get("detail") or ""
    left_out = ("attributes", "references", "content", "project", "tenant")
    facts = {name: value for name, value in span.items() if name not in left_out} | attributes
    for name, value in facts.items():
        if value not in (None, "", [], ()):
            table.add_row(plain(name), plain(value))
    for one in span["references"]:
        table.add_row(plain(one["role"]), plain(one["ref"]))
    if detail:
        table.add_row("detail", plain(detail))
    console.print(table)


def _followed(
    telemetry: Telemetry, options: Mapping[str, Any], *, last: int, content: bool
) -> Iterator[Mapping[str, Any]]:
    """The newest that are there, oldest first, then what comes, in the order of storing."""
    from tidemill.loop.asking import FollowQuestion, ListQuestion

    begun = telemetry.traces(ListQuestion(**options, limit=max(1, last), content=content))
    after = begun["last_seq"]
    if last:  # what came while the list was read is shown when it is followed
        yield from (one for one in reversed(begun["traces"]) if one["ingest_seq"] <= after)
    while True:
        page = telemetry.spans(FollowQuestion(**options, after_seq=after, content=content))
        yield from page["spans"]
        after = page["after_seq"]
        if not page["more"]:
            time.sleep(_LOOK_EVERY_S)


def _tail_line(one: Mapping[str, Any], *, content: bool, width: int) -> Text:
    from rich.text import Text

    from tidemill.cli.charts import instant, seconds, usd

    line = Text().append(instant(one["ended_at_ns"], day=False) + "  ", "dim")
    line.append("✗ " if one["status"] in _FAILED else "· ", _status_style(one))
    line.append(plain(one["endpoint"] or one["name"]), "bold")
    model = one["response_model"] or one["request_model"]
    line.append(f"  {plain(model)}" if model else "", "magenta")
    line.append(f"  {seconds(one['duration_s'])}")
    line.append(f"  {tokens_text(one)}" if one["input_tokens"] is not None else "", "dim")
    line.append(f"  {usd(one['cost_usd'])}" if one["cost_usd"] else "", "green")
    if one["status"] != "ok":
        line.append(f"  {one['status']} {plain(one['error_type'] or '')}".rstrip(), "red")
    line.append(f"  {one['trace_id']}", "cyan")
    if content and one["content"]:
        said = " ".join(plain(one["content"]["output"]).split())
        room = max(20, width - 12)
        line.append("\n          " + (said if len(said) <= room else "…" + said[1 - room :]))
    return line


for _command in (stats, compare, summary, export, kept, erase):
    trace_app.command()(_command)
