"""``monitor`` and ``lineage``: what an endpoint promised, and where an answer came from."""

from __future__ import annotations

from typing import Annotated

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import moment
from tidemill.kernel import ArtifactKind

monitor_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Monitors: what an endpoint promised, and alarms when it is not kept.\n\nExample: tidemill monitor list",
)


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
