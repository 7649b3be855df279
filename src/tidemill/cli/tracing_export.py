"""``trace export``: spans as a file of their own."""

from __future__ import annotations

import time
from pathlib import Path
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
from tidemill.kernel import InvalidInput

if TYPE_CHECKING:
    from tidemill.cli.traces import Telemetry
    from tidemill.loop.asking import FollowQuestion


def export(
    file: Annotated[Path, typer.Argument(help="File to write: NAME.parquet or NAME.jsonl.")],
    *,
    where: WhereOption = None,
    text: TextOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    endpoint: EndpointOption = None,
    release: ReleaseOption = None,
    status: StatusOption = None,
    spans: SpansOption = False,
    content: Annotated[bool, typer.Option("--content", "-c", help="Bring along what was said.")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Bring along the scores of each trace.")] = False,
    as_format: Annotated[
        str | None, typer.Option("--format", help="parquet or jsonl, where the file's ending does not say it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that is there.")] = False,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write traces to a Parquet or JSONL file. It appears when it is complete: interrupted, there is none.

    Example: tidemill trace export november.parquet --since 2026-11-01 --until 2026-12-01

    Example: tidemill trace export slow.jsonl --spans --content --where 'duration_s > 5'
    """
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.asking import FollowQuestion, fixed
    from tidemill.loop.exporting import export_spans, format_of

    kind = format_of(file, as_format)
    if file.exists() and not force:
        raise InvalidInput(f"{file} is there already.", hint="Replace it with --force, or choose another name.")
    options = which(
        where, text=text, since=since, until=until, endpoint=endpoint, release=release, status=status, spans=spans
    )
    asked = fixed(FollowQuestion(**options, content=content), now_ns=time.time_ns())
    with (
        project_at(project) as opened,
        telemetry_of(opened) as telemetry,
        progress_bar(quiet=as_json) as bar,
    ):
        task = bar.add_task("exporting", total=_expected(telemetry, asked))
        written = export_spans(
            telemetry,
            asked,
            file,
            kind=kind,
            with_scores=scores,
            on_progress=lambda done: bar.update(task, completed=done),
        )
        bar.update(task, completed=written, total=written)
    size_bytes = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "format": kind, "spans": written, "bytes": size_bytes})
        return
    say(f"{file}: {written:,} {'spans' if spans else 'requests'}, {size_bytes:,} bytes")


def _expected(telemetry: Telemetry, asked: FollowQuestion) -> float | None:
    """How many spans there are to write; unknown for a search of text."""
    from tidemill.loop.asking import SeriesQuestion

    if asked.text is not None:
        return None
    kept = asked.model_dump(exclude={"after_seq", "limit", "content"})
    rows = telemetry.series(SeriesQuestion(**kept, measure=["requests"]))["rows"]
    return float(sum(row["values"]["requests"] or 0 for row in rows))
