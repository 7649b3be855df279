"""``trace stats``, ``trace compare`` and ``trace summary``: numbers over many requests."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, plain, print_json, print_table, project_at, say
from tidemill.cli.tracing_options import (
    EndpointOption,
    ReleaseOption,
    SinceOption,
    SpansOption,
    UntilOption,
    WhereOption,
    terminal,
    which,
)

_EMPTY = "No trace meets that."
_NOTHING = "There is no trace yet. Ask an endpoint through the gateway: tidemill status"


class Group(StrEnum):
    """What a summary can count by."""

    RELEASE = "release"
    ARM = "arm"
    ENDPOINT = "endpoint"
    MINUTE = "minute"
    REQUEST_MODEL = "request_model"


def stats(
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            "-m",
            help="requests, errors, error_share, or AGGREGATE:NUMBER as p95:duration_s, sum:cost_usd, "
            "mean:output_tokens; repeat it. Aggregates: sum mean min max p50 p75 p90 p95 p99.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", "-b", help="Group by this field; repeat it.", show_default=False),
    ] = None,
    every: Annotated[str | None, typer.Option(help="Over time, in steps of this length: 5m, 1h, 1d.")] = None,
    *,
    where: WhereOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    endpoint: EndpointOption = None,
    release: ReleaseOption = None,
    spans: SpansOption = False,
    table: Annotated[bool, typer.Option("--table", help="Print the numbers of each step, not charts.")] = False,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Any measure, grouped by any field, over time: counts, sums, means and exact percentiles, drawn as small charts.

    Example: tidemill trace stats --measure p95:duration_s --by request_model --every 1h --since 1d

    Example: tidemill trace stats --by endpoint --by status --since 7d

    Example: tidemill trace stats --spans --measure sum:cost_usd --by service --where 'operation = chat'
    """
    from tidemill.cli.series_views import over_time, side_by_side, step_table
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.answering import names_of
    from tidemill.loop.asking import SeriesQuestion

    options = which(where, since=since, until=until, endpoint=endpoint, release=release, spans=spans)
    asked = SeriesQuestion(**options, measure=list(measure or ()), by=list(by or ()), every=every, limit=10_000)
    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found = telemetry.series(asked)
        names = names_of(opened.ledger, {value for row in found["rows"] for value in row["group"].values()})
    if as_json:
        print_json(found)
        return
    if not any(any(value for value in row["values"].values()) for row in found["rows"]):
        say(_EMPTY)
        return
    console = terminal()
    if every is None:
        console.print(side_by_side(found, names, width=console.width))
    elif table:
        console.print(step_table(found, names))
    else:
        console.print(over_time(found, names, width=console.width, ascii_only=console.options.ascii_only))
    if found["more"]:
        say("There are more rows than are shown: choose a shorter time, longer steps or fewer groups.")


def compare(
    first: Annotated[str, typer.Argument(help="Release: NAME@7 or a digest.")],
    second: Annotated[str, typer.Argument(help="Release that it is compared with.")],
    *,
    where: WhereOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    endpoint: EndpointOption = None,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.49, help="Error rate of each interval.")] = 0.05,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Set two releases side by side: requests, errors, times, tokens, cost and scores, with intervals where they hold.

    Traffic is not shared out at random here: a difference may come from who asked. What promotes is a rollout.

    Example: tidemill trace compare helpdesk@3 helpdesk@4 --since 7d
    """
    from tidemill.cli.series_views import comparison_table
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.answering import names_of
    from tidemill.loop.asking import CompareQuestion

    options = which(where, since=since, until=until, endpoint=endpoint)
    asked = CompareQuestion(**options, first=first, second=second, alpha=alpha)
    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found = telemetry.comparison(asked)
        names = names_of(opened.ledger, {one["release"] for one in found["releases"]})
    if as_json:
        print_json(found)
        return
    if not any(one["values"]["requests"] for one in found["releases"]):
        say(_EMPTY)
        return
    terminal().print(comparison_table(found, names))
    say(f"In brackets: intervals that miss the truth with a chance of at most {alpha:g} each.")
    if any(one["scored_requests"] < one["values"]["requests"] for one in found["releases"]):
        counts = ", ".join(f"{one['scored_requests']:,}" for one in found["releases"])
        say(f"Scores are those of the newest requests: {counts}.")


def summary(
    by: Annotated[list[Group] | None, typer.Option(help="Group by this; repeat it.", show_default=False)] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Sum up requests: errors, latency, tokens and cost, by group.

    Example: tidemill trace summary --by endpoint --by release
    """
    from tidemill.cli.charts import instant
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.answering import names_of

    groups = [one.value for one in by or ()]
    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        found = telemetry.summary(groups)
        names = names_of(opened.ledger, {one["group"].get("release") for one in found})
    if as_json:
        print_json(found)
        return
    rows = [
        (
            *(
                instant(one["group"][group]) if group == "minute" else _named(one["group"], group, names)
                for group in groups
            ),
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
    print_table(headers, rows, empty=_NOTHING)


def _named(group: Mapping[str, Any], name: str, names: Mapping[str, str]) -> str:
    return plain(names.get(group[name], group[name]))
