"""``data``: data sets of documents and cases, and their rows."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.from_traces import from_traces
from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import find_version, labels_text, list_versions, moment, run_with_bar, version_json
from tidemill.kernel import ArtifactKind

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion

_SHOWN_CHARS = 160

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Data sets: immutable versions whose rows know their source.\n\nExample: tidemill data build helpdesk",
)
app.command("from-traces")(from_traces)
RefArgument = Annotated[str, typer.Argument(help="Data set: NAME, NAME@7, dataset/NAME@label or a digest.")]


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Data set of the project file.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Build a data set of the project file: read, clean, drop duplicates, keep what was left out with its reason.

    Nothing is done when neither the documents nor the code that reads them changed.

    Example: tidemill data build helpdesk
    """
    from tidemill.loop.recipes import dataset_step
    from tidemill.pipelines import Flow

    with project_at(project) as opened:
        result = run_with_bar(Flow("data", (dataset_step(opened.settings, name),)), opened, quiet=as_json)
        outputs = result.outputs["documents"]
        version = opened.ledger.artifacts.by_digest(outputs["dataset"])
        excluded = None
        if "excluded" in outputs:
            excluded = opened.ledger.artifacts.by_digest(outputs["excluded"])
        count = opened.ledger.datasets.count(version)
        left_out = opened.ledger.datasets.count(excluded) if excluded is not None else 0
    if as_json:
        extra = {"excluded": version_json(excluded) if excluded is not None else None, "cached": bool(result.cached)}
        print_json(version_json(version) | extra)
        return
    say(f"{version.ref}: {count} documents" + (" (unchanged)" if result.cached else ""))
    if excluded is not None:
        say(f"{left_out} left out, each with its reason: tidemill data rows {excluded.ref}")


@app.command("list")
def list_datasets(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the data sets, each in its newest version.

    Example: tidemill data list --json
    """
    with project_at(project) as opened:
        list_versions(
            opened.ledger,
            ArtifactKind.DATASET,
            {"holds": _holds, "rows": lambda one: one.content["rows"]["count"]},
            as_json=as_json,
            empty="There is no data set yet. Build one of the project file: tidemill data build NAME",
        )


@app.command()
def show(ref: RefArgument, project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Show a data set version: rows, counts, where it came from, and its other versions.

    Example: tidemill data show helpdesk@1
    """
    with project_at(project) as opened:
        version = find_version(opened.ledger, ref, ArtifactKind.DATASET)
        versions = opened.ledger.artifacts.versions(ArtifactKind.DATASET, version.name)
        labels = opened.ledger.artifacts.labels(ArtifactKind.DATASET, version.name)
    if as_json:
        print_json(version_json(version) | {"labels": labels, "versions": [one.version for one in versions]})
        return
    say(f"{version.ref}  {version.digest}")
    say(f"  holds     {_holds(version)}")
    say(f"  rows      {version.content['rows']['count']}, with {', '.join(version.content['rows']['fields'])}")
    for what, count in dict(version.content.get("counts", {})).items():
        say(f"  {what:<9} {count}")
    say(f"  labels    {labels_text(labels)}")
    say(f"  made at   {moment(version.created_at)}" + (f" by {version.made_by}" if version.made_by else ""))
    say(f"  versions  {', '.join(str(one.version) for one in versions)}")


@app.command()
def rows(
    ref: RefArgument,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 20,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show the rows of a data set, or the passages of an index, in the order of their ids.

    Example: tidemill data rows helpdesk --limit 3 --json
    """
    with project_at(project) as opened:
        version = find_version(opened.ledger, ref, ArtifactKind.DATASET, ArtifactKind.INDEX)
        count = opened.ledger.datasets.count(version)
        found = list(islice(opened.ledger.datasets.read(version), limit))
    if as_json:
        print_json([{"row_id": one.row_id, "sources": list(one.sources), "value": dict(one.value)} for one in found])
        return
    lines = [(one.row_id, ", ".join(one.sources), _short(dict(one.value))) for one in found]
    print_table(("row", "from", "value"), lines, empty=f"{version.ref} has no rows.")
    if count > len(found):
        say(f"{len(found)} of {count} rows; more with --limit {count}")


def _holds(version: ArtifactVersion) -> object:
    return version.content.get("holds", "rows")


def _short(value: dict[str, object]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
