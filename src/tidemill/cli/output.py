"""What every command shares: its common options, and output for people or, with ``--json``, for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from tidemill.loop.project import Project

ProjectOption = Annotated[
    Path, typer.Option("--project", "-p", help="Project file, or a folder in or below the project.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
HERE = Path()
_PIPE_COLUMNS = 100_000

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@contextmanager
def project_at(path: Path) -> Iterator[Project]:
    """The opened project of a command."""
    from tidemill.loop.project import open_project

    with open_project(path) as project:
        yield project


def print_json(value: Any) -> None:
    """Print a JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "Nothing yet.") -> None:
    """Print rows under headers; ``empty`` when there are none. What a model wrote cannot move the cursor."""
    from rich.console import Console
    from rich.table import Table

    lines = [[plain(cell) for cell in row] for row in rows]
    if not lines:
        print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for line in lines:
        table.add_row(*line)
    # A pipe has no width: what is folded there, grep does not find.
    columns = None if sys.stdout.isatty() else _PIPE_COLUMNS
    Console(markup=False, highlight=False, width=columns).print(table)


def plain(value: object) -> str:
    """A value as text without control characters."""
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def say(text: str) -> None:
    """Print a line for people. Control characters are shown, not obeyed."""
    print("\n".join(plain(line) for line in text.split("\n")))


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress]:
    """A progress bar on standard error; hidden with ``--json`` or when nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=False) as progress:
        yield progress
