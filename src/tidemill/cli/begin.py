"""``init``, ``apply`` and ``settings``."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, project_at, say


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.", show_default=False)] = HERE,
    name: Annotated[str, typer.Option(help="Name of the project; the folder's when not given.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write a working example project: a project file and three documents.

    Example: tidemill init workshop && cd workshop && tidemill up
    """
    from tidemill.loop.example import write_example

    wanted = name or re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "example"
    written = write_example(folder, wanted)
    if as_json:
        print_json({"project": wanted, "written": [str(path) for path in written]})
        return
    for path in written:
        say(f"wrote {path}")
    say(
        "Next:\n"
        + (f"  cd {folder}\n" if folder != HERE else "")
        + "  tidemill models pull              the weights, once\n"
        + f"  tidemill data build {wanted}\n"
        + f"  tidemill index build {wanted}\n"
        + "  tidemill apply\n"
        + f"  tidemill release create {wanted}\n"
        + f"  tidemill rollout start {wanted} {wanted}@1\n"
        + "  tidemill keys issue me\n"
        + "  tidemill up"
    )


def apply(
    project: ProjectOption = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the prompts, endpoints and monitors of the project file into the ledger.

    Shows each change with its diff. Applied twice, the second time does nothing.

    Example: tidemill apply --dry-run
    """
    from tidemill.loop import apply as applying

    with project_at(project) as opened:
        if dry_run:
            found = applying.plan(opened.settings, opened.ledger)
        else:
            found = applying.apply(opened.settings, opened.ledger, actor=getpass.getuser())
    if as_json:
        print_json({"applied": not dry_run, "changes": [change.as_json() for change in found.changes]})
        return
    for change in found.changes:
        say(f"{change.action} {change.kind}/{change.name}")
        say("\n".join("    " + line for line in change.diff.splitlines()))
    count = len(found.changes)
    what = "change" if count == 1 else "changes"
    say(f"{count} {what} {'planned' if dry_run else 'applied'}." if count else "Nothing to change.")


def settings() -> None:
    """Print the JSON Schema of the project file: every key, its type, default and meaning.

    Example: tidemill settings > tidemill.schema.json
    """
    from tidemill.kernel.settings import settings_schema

    print_json(settings_schema())
