"""``slo`` and ``dashboards``: objectives, their error budgets, what is to be expected, and files for other tools."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.kernel import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidemill.loop.project import Project
    from tidemill.monitoring import Slo

slo_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Objectives: error budgets, alarms, forecasts.\n\nExample: tidemill slo status",
)
dashboards_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Dashboards and alert rules for Grafana and Prometheus.\n\nExample: tidemill dashboards export monitoring",
)

_NONE_YET: Final = "There is no objective yet. Add one under 'slos:' in the project file."
_BAR: Final = 20
_DAY_S: Final = 86_400.0
NameArgument = Annotated[str | None, typer.Argument(metavar="NAME", help="Only this objective.", show_default=False)]


class ExportFormat(StrEnum):
    """What an objective can be written as."""

    PROMETHEUS = "prometheus"
    SLOTH = "sloth"
    OPENSLO = "openslo"


@slo_app.command("list")
def list_slos(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the objectives of the project file.

    Example: tidemill slo list
    """
    with project_at(project) as opened:
        slos = _slos(opened, None)
    if as_json:
        print_json([one.as_json() for one in slos])
        return
    rows = [
        (one.name, one.endpoint or "all", one.promise, f"{one.window_days:g} d", f"{one.false_alarm_days:g} d")
        for one in slos
    ]
    print_table(("objective", "endpoint", "promise", "window", "false alarm every"), rows, empty=_NONE_YET)


@slo_app.command()
def status(name: NameArgument = None, project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Show what is left of each error budget, how fast it burns, and which alarms are on.

    Example: tidemill slo status
    """
    with project_at(project) as opened:
        states = _states(opened, [one.name for one in _slos(opened, name)])
    if as_json:
        print_json(states)
        return
    if not states:
        say(_NONE_YET)
    for one in states:
        for line in status_lines(one):
            say(line)


@slo_app.command()
def export(
    to: Annotated[ExportFormat, typer.Option("--to", help="The format.")],
    name: NameArgument = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Print objectives as rules for Prometheus, or as YAML for Sloth or OpenSLO.

    Example: tidemill slo export --to prometheus > tidemill-slos.yml
    """
    import yaml

    from tidemill.monitoring import export as formats

    with project_at(project) as opened:
        slos, service = _slos(opened, name), opened.settings.project
    documents: list[dict[str, Any]]
    if to is ExportFormat.OPENSLO:
        documents = formats.openslo(slos, service=service)
    elif to is ExportFormat.SLOTH:
        documents = [formats.sloth(slos, service=service)]
    else:
        documents = [formats.prometheus_rules(slos, service=service)]
    if as_json:
        print_json(documents if to is ExportFormat.OPENSLO else documents[0])
        return
    yaml.safe_dump_all(documents, sys.stdout, sort_keys=False, width=1000)


@slo_app.command()
def forecast(
    endpoint: Annotated[str | None, typer.Argument(metavar="ENDPOINT", help="Only this.", show_default=False)] = None,
    days: Annotated[float, typer.Option(min=0.1, max=365, help="How far ahead.")] = 14.0,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Forecast requests, tokens, cost and calls at once of each endpoint, and when a limit is reached.

    Example: tidemill slo forecast --days 30
    """
    with project_at(project) as opened:
        found = _forecasts(opened, endpoint, days)
    if as_json:
        print_json(found)
        return
    if not found:
        say("There is no traffic yet to forecast from.")
    for one in found:
        say(one["endpoint"])
        for part in one["forecasts"]:
            for line in forecast_lines(part):
                say(f"  {line}")


@dashboards_app.callback()
def _dashboards() -> None:
    """Dashboards and alert rules for Grafana and Prometheus.

    Example: tidemill dashboards export monitoring
    """  # a group of one command: without this Typer would take the command for the group


@dashboards_app.command("export")
def export_dashboards(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files are written.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write dashboards for Grafana, and rules and a scrape configuration for Prometheus.

    Example: tidemill dashboards export monitoring
    """
    from tidemill.cli.monitoring_files import monitoring_files

    with project_at(project) as opened:
        files = monitoring_files(opened.settings, token_file=str(opened.places.token), slos=_slos(opened, None))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if as_json:
        print_json([str(folder / name) for name in files])
        return
    for name in files:
        say(f"wrote {folder / name}")


def status_lines(state: Mapping[str, Any]) -> list[str]:
    """An objective's state for people: its promise, the budget as a bar, burns, days and alarms."""
    from tidemill.cli.charts import bar, seconds, sparkline

    slo, budget = state["slo"], state["budget"]
    lines = [f"{slo['name']}: {state['promise']}"]
    left = budget["left"]
    if left is None:
        return [*lines, "  no events yet"]
    spent = f"{budget['bad']} of {budget['good'] + budget['bad']} events bad, {budget['allowed_bad']:.4g} allowed"
    lines.append(f"  budget  [{bar(max(0.0, left), most=1.0, columns=_BAR)}] {left:.0%} left, {spent}")
    burns = "  ".join(f"{window} {burn:.2g}x" for window, burn in budget["burn"].items() if burn is not None)
    lines.append(f"  burn    {burns or '-'}")
    shares = [bad / (good + bad) if good + bad else None for good, bad in state["days"]]
    most = max([share for share in shares if share is not None], default=0.0)
    lines.append(f"  days    {sparkline(shares, most=most, columns=60)} bad events a day, most {most:.2%}")
    if budget["spent_in_s"] is not None:
        lines.append(f"  spent   in {seconds(budget['spent_in_s'])} at this pace" if left > 0 else "  spent")
    for severity, alarm in state["alarms"].items():
        on = "ON" if alarm["firing"] else "quiet"
        part = min(1.0, alarm["statistic"] / alarm["horizon_bins"])
        lines.append(f"  {severity:<7} {on}, statistic at {part:.1%} of its horizon, {alarm['count']} so far")
    return lines


def forecast_lines(part: Mapping[str, Any]) -> list[str]:
    """One forecast for people: its days as a picture, growth, and limits."""
    from tidemill.cli.charts import sparkline

    if not part["known"]:
        return [f"{part['measure']}: {part['reason']}"]
    points = part["points"]
    days = [points[first : first + 24] for first in range(0, len(points), 24)]
    expected = [max(point[2] for point in day) for day in days]
    high = [max(point[3] for point in day) for day in days]
    most = max(high)
    growth = f", {part['growth_a_week']:+.0%} in a week" if part["growth_a_week"] is not None else ""
    lines = [
        f"{part['measure']}, the highest hour of each day ({part['unit']}){growth}",
        f"  expected {sparkline(expected, most=most, columns=60)} up to {max(expected):.4g}",
        f"  possible {sparkline(high, most=most, columns=60)} up to {most:.4g}",
        f"  {part['reason']}",
    ]
    for one in part["crossings"]:
        when = f"expected {_day(one['expected_at_s'])}, possible {_day(one['possible_at_s'])}"
        lines.append(f"  reaches {one['limit']} ({one['amount']:.4g} {part['unit']}): {when}")
    return lines


def _day(at_s: float | None) -> str:
    from datetime import UTC, datetime

    return "not in this time" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:00")


def _slos(project: Project, name: str | None) -> list[Slo]:
    from tidemill.loop.slos import slo_of

    found = [slo_of(known, section) for known, section in project.settings.slos.items()]
    if name is None:
        return found
    chosen = [one for one in found if one.name == name]
    if not chosen:
        raise NotFound(f"There is no objective '{name}'.", hint="List them: tidemill slo list")
    return chosen


def _states(project: Project, names: Sequence[str]) -> list[dict[str, Any]]:
    """From the control plane if one runs, else as it was when one last did."""
    from tidemill.cli.traces import control_of

    client = control_of(project)
    if client is not None:
        found = client.get("/api/v1/slos")
    else:
        from tidemill.kernel import SystemClock
        from tidemill.loop.feed import kept_anywhere
        from tidemill.loop.slos import kept_state, shown
        from tidemill.monitoring import SloState

        kept = kept_anywhere(project.places.state).get("slos", {})
        now_s = SystemClock().now().timestamp()
        found = [shown(one, kept_state(one, kept) or SloState.start(one), now_s) for one in _slos(project, None)]
    return [one for one in found if one["slo"]["name"] in names]


def _forecasts(project: Project, endpoint: str | None, days: float) -> list[dict[str, Any]]:
    from tidemill.cli.traces import control_of

    client = control_of(project)
    if client is not None:
        found: list[dict[str, Any]] = client.get("/api/v1/forecast", endpoint=endpoint, days=str(days))
        return found
    from tidemill.kernel import SystemClock
    from tidemill.loop.forecasting import forecast_endpoints
    from tidemill.loop.project import open_spans

    store = open_spans(project)
    try:
        now_s = SystemClock().now().timestamp()
        return forecast_endpoints(project.settings, store, now_s=now_s, endpoint=endpoint, days=days)
    finally:
        store.close()
