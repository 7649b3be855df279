"""``data from-traces``: a sample of requests as a data set version."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, progress_bar, project_at, say
from tidemill.cli.tracing_options import (
    EndpointOption,
    ReleaseOption,
    SinceOption,
    SpansOption,
    StatusOption,
    TextOption,
    UntilOption,
    WhereOption,
    which,
)
from tidemill.cli.views import version_json

if TYPE_CHECKING:
    from tidemill.loop.curation import Curated, SamplePlan
    from tidemill.loop.sampling import Allocation


class Method(StrEnum):
    """How requests are drawn."""

    UNIFORM = "uniform"
    STRATIFIED = "stratified"
    UNCERTAINTY = "uncertainty"
    FEEDBACK = "feedback"


class Share(StrEnum):
    """How strata share the rows."""

    EQUAL = "equal"
    PROPORTIONAL = "proportional"


def from_traces(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    *,
    size: Annotated[int, typer.Option("--size", "-n", min=1, help="Rows to draw; all where there are fewer.")] = 500,
    sample: Annotated[
        Method,
        typer.Option(
            help="uniform; stratified by a field; by the uncertainty of a score; or by feedback: bad, good and none."
        ),
    ] = Method.UNIFORM,
    by: Annotated[str | None, typer.Option(help="Field of the strata, e.g. request_model.")] = None,
    score: Annotated[
        str | None, typer.Option(help="Score whose uncertainty counts, from 0 to 1; or the name of the feedback.")
    ] = None,
    share: Annotated[
        Share | None, typer.Option(help="How strata share the rows: proportional, or equal (by feedback).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the sample: the same again over the same requests.")] = 0,
    where: WhereOption = None,
    text: TextOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    endpoint: EndpointOption = None,
    release: ReleaseOption = None,
    status: StatusOption = None,
    spans: SpansOption = False,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Draw a sample of requests into a data set version. Rows keep trace id, span id and sampling weight.

    The weight is the inverse of the chance with which a row came in: sums over the rows, each times its weight, are
    unbiased for all requests that the query chose. Lineage leads from a row to its trace and its sources, and back.

    Example: tidemill data from-traces november --since 2026-11-01 --until 2026-12-01 --size 1000

    Example: tidemill data from-traces to-label --sample uncertainty --score groundedness --since 7d --size 200

    Example: tidemill data from-traces by-model --sample stratified --by request_model --share equal
    """
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.asking import FollowQuestion, fixed
    from tidemill.loop.curation import SamplePlan, curate

    allocation: Allocation | None = None if share is None else share.value
    plan = SamplePlan(method=sample.value, size=size, seed=seed, by=by, score=score, allocation=allocation)
    options = which(
        where, text=text, since=since, until=until, endpoint=endpoint, release=release, status=status, spans=spans
    )
    asked = fixed(FollowQuestion(**options), now_ns=time.time_ns())
    with project_at(project) as opened, telemetry_of(opened) as telemetry, progress_bar(quiet=as_json) as bar:
        task = bar.add_task("choosing", total=None)
        made = curate(
            opened.ledger,
            telemetry,
            asked,
            plan,
            name,
            on_progress=lambda what, count: bar.update(task, description=what, completed=count),
        )
        bar.update(task, completed=1, total=1)
    if as_json:
        print_json(version_json(made.version))
        return
    _say(made, plan)


def _say(made: Curated, plan: SamplePlan) -> None:
    counts, strata = made.counts, made.version.content["sampling"]["strata"]
    how = f"{plan.method}, seed {plan.seed}"
    say(f"{made.version.ref}: {counts['rows']:,} rows of {counts['population']:,} requests, {how}")
    if len(strata) > 1:
        say("  " + ", ".join(f"{stratum}: {count:,}" for stratum, count in strata.items()))
    if counts["left_out"]:
        say(f"  {counts['left_out']:,} requests without the score '{plan.score}' took no part")
    if counts["without_content"]:
        say(f"  of {counts['without_content']:,} rows what was said is not kept")
    say(f"Look at them: tidemill data rows {made.version.name}@{made.version.version}")
