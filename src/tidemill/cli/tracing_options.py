"""What the commands of ``trace`` share: the options that choose requests, and the terminal they draw on."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_COLUMNS = 120


class SpanStatus(StrEnum):
    """How a request can have ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    TRUNCATED = "truncated"
    INTERRUPTED = "interrupted"


WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="CONDITION",
        help="'field operator value', e.g. 'duration_s > 2', 'request_model in a, b', 'attributes.tool exists', "
        "'score.feedback < 1'; repeat it. Operators: = != < <= > >= in contains exists missing.",
        show_default=False,
    ),
]
TextOption = Annotated[
    str | None, typer.Option("--text", "-t", help='Words that input or output holds; "in quotes" in that order.')
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="From here on: 30m, 2h or 7d ago, today, 2026-11-24, 2026-11-24T10:00.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Up to here; written like --since.")]
EndpointOption = Annotated[str | None, typer.Option(help="Only requests to this endpoint.")]
ReleaseOption = Annotated[str | None, typer.Option(help="Only answers of this release: NAME@7 or a digest.")]
StatusOption = Annotated[SpanStatus | None, typer.Option(help="Only requests that ended so.")]
SpansOption = Annotated[bool, typer.Option("--spans", help="All spans, not only those that stand for a whole request.")]


def which(
    where: list[str] | None,
    *,
    text: str | None = None,
    since: str | None = None,
    until: str | None = None,
    endpoint: str | None = None,
    release: str | None = None,
    status: SpanStatus | None = None,
    spans: bool = False,
) -> dict[str, Any]:
    """The common options as fields of a question."""
    return {
        "where": list(where or ()),
        "text": text,
        "since": since,
        "until": until,
        "endpoint": endpoint,
        "release": release,
        "status": None if status is None else status.value,
        "spans": spans,
    }


def terminal() -> Console:
    """Standard output as wide as the terminal; a pipe has a fixed width and no colour."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    return Console(markup=False, highlight=False, emoji=False, width=width)
