"""``tidemill demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import progress_bar, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tidemill.loop.project import Project

_DEFAULT = Path(".tidemill-demo")


def demo(
    docs: Annotated[
        Path | None, typer.Option(help="Your own documents instead of Python's reference.", show_default=False)
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = _DEFAULT,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the processes running at the end.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.", show_default=False)
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write the page here; FOLDER/demo.html when not given.")
    ] = None,
) -> None:
    """Run the whole life cycle on this machine: offline after the first download, without a key.

    Real text becomes a data set, an index, a prompt and a release; the release is evaluated, deployed and asked
    through the official openai client; a better one passes gate, shadow and canary and is promoted; a poisoned one is
    rolled back by itself; one answer is followed back to its documents. Killed, the next call goes on from there.

    Example: tidemill demo --docs ~/notes --json result.json
    """
    from tidemill.cli.demo_page import show
    from tidemill.loop.demo.page import write_page
    from tidemill.loop.demo.running import DemoOptions, run_demo
    from tidemill.server.supervisor import free_port

    with progress_bar(quiet=False) as bar:
        options = DemoOptions(folder=folder, docs=docs, keep=keep)
        result = run_demo(options, _Teller(bar), free_port=free_port, telemetry=_ask)
    page = html_file or folder / "demo.html"
    write_page(page, result)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result, page=page, kept=keep)


class _Teller:
    """Narrates on the terminal: a bar for the running stage, a line for each result."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._title = ""

    def stage(self, title: str) -> None:
        """A new stage begins."""
        if self._task is not None:
            self._bar.update(self._task, completed=1.0, visible=False)
        self._title = title
        self._task = self._bar.add_task(title, total=1.0)
        say(f"\n{title}")

    def progress(self, share: float, note: str) -> None:
        """The stage has come so far."""
        if self._task is not None:
            self._bar.update(self._task, completed=min(1.0, share), description=f"{note}"[:60])

    def line(self, text: str) -> None:
        """A result worth a line."""
        say(f"  {text}")


def _ask(project: Project) -> Any:
    from tidemill.server.client import ControlClient

    server = project.settings.server
    return ControlClient(f"http://{server.host}:{server.port}", project.places.token).get_path
