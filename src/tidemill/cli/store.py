"""``audit``, ``doctor``, ``gc``, ``backup`` and ``restore``: keeping the store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, progress_bar, project_at, say
from tidemill.cli.views import moment

audit_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The audit chain: every decision, each entry sealed by the hash of the one before.\n\n"
    "Example: tidemill audit verify",
)


@audit_app.command()
def verify(
    head: Annotated[
        str | None, typer.Option(help="Head that you kept elsewhere, NUMBER:sha256:…; shows if entries were cut off.")
    ] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Recompute the whole chain. Exit code: 0 it fits, 1 it was tampered with.

    Keep the head it prints somewhere else: with it, even a chain that was rewritten as a whole is found out.

    Example: tidemill audit verify --head 12:sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """
    from tidemill.ledger import AuditHead

    with project_at(project) as opened:
        report = opened.ledger.audit.verify(head=AuditHead.parse(head) if head is not None else None)
    if as_json:
        print_json(asdict(report) | {"head": str(report.head)})
    elif report.ok:
        say(f"The audit chain fits: {report.entries} entries.")
        say(f"head {report.head}")
    else:
        say(f"The audit chain breaks at entry {report.first_bad_seq}: {report.reason}.")
    raise typer.Exit(0 if report.ok else 1)


@audit_app.command("list")
def list_entries(
    subject: Annotated[str | None, typer.Option(help="Only decisions on this, e.g. prompt/answer@production.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only decisions of this kind, e.g. label or gate.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List decisions, oldest first: what, who, when and why.

    Example: tidemill audit list --kind label --limit 10
    """
    with project_at(project) as opened:
        found = opened.ledger.decisions.list(subject=subject, kind=kind, limit=limit)
    if as_json:
        print_json(
            [
                {
                    "seq": one.seq,
                    "decision": one.decision_id,
                    "kind": one.kind,
                    "subject": one.subject,
                    "actor": one.actor,
                    "at": one.at.isoformat(),
                    **one.verdict.as_json(),
                }
                for one in found
            ]
        )
        return
    rows = [(one.seq, moment(one.at), one.kind, one.subject, one.actor, one.verdict.reason) for one in found]
    print_table(("entry", "at", "kind", "subject", "by", "why"), rows, empty="No decision was made yet.")


def doctor(
    mend: Annotated[bool, typer.Option("--mend", help="Put right what can be without a backup.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every blob and data set and compare digests.")] = False,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Check the store beside its users, and mend what can be mended. Exit code: 0 sound, 1 something is wrong.

    Example: tidemill doctor --mend
    """
    from tidemill.ledger import doctor as examine

    with project_at(project) as opened, progress_bar(quiet=as_json) as bar:
        bar.add_task("examining", total=None)
        findings = examine(opened.ledger, mend=mend, deep=deep)
    if as_json:
        print_json([asdict(one) for one in findings])
    else:
        rows = [("mended" if one.mended else "ok" if one.ok else "WRONG", one.check, one.what) for one in findings]
        print_table(("", "check", "found"), rows)
        if not mend and any(not one.ok for one in findings):
            say("Mend what can be mended: tidemill doctor --mend")
    raise typer.Exit(0 if all(one.ok or one.mended for one in findings) else 1)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, remove nothing.")] = False,
    grace_s: Annotated[
        float | None, typer.Option(min=0, help="Keep what is younger, in seconds; store.garbage_grace_s if not given.")
    ] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Remove blobs that nothing refers to. What a live run has stored and not yet published stays.

    Example: tidemill gc --dry-run
    """
    from tidemill.ledger import collect_garbage

    with project_at(project) as opened, progress_bar(quiet=as_json) as bar:
        bar.add_task("collecting", total=None)
        grace = opened.settings.store.garbage_grace_s if grace_s is None else grace_s
        report = collect_garbage(opened.ledger, grace_s=grace, dry_run=dry_run)
    if as_json:
        print_json(asdict(report) | {"dry_run": dry_run})
        return
    verb = "would be removed" if dry_run else "removed"
    say(f"{report.examined} blobs examined, {len(report.removed)} {verb}, {report.freed_bytes} bytes.")
    if report.kept_young:
        say(f"{report.kept_young} that nothing refers to are kept: too young, or a run that lives holds them.")


def backup(
    path: Annotated[Path, typer.Argument(help="Folder to make.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write a consistent copy of the ledger and its blobs to a new folder, also while they are in use.

    Traces are not in it: they lie in the span store, .tidemill/telemetry.duckdb.

    Example: tidemill backup ~/backups/helpdesk-monday
    """
    from tidemill.ledger import backup as write

    with project_at(project) as opened, progress_bar(quiet=as_json) as bar:
        bar.add_task("copying", total=None)
        report = write(opened.ledger, path.expanduser())
    if as_json:
        print_json(asdict(report) | {"path": str(report.path), "rows": dict(report.rows)})
        return
    say(f"{report.path}: {sum(report.rows.values())} rows, {report.blobs} blobs, {report.blob_bytes} bytes.")
    if report.missing:
        say(f"{len(report.missing)} blobs were missing in the store already; see: tidemill doctor")


def restore(
    path: Annotated[Path, typer.Argument(help="Folder that backup made.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into this project's store, which must be empty. Everything is checked before it is written.

    Example: tidemill restore ~/backups/helpdesk-monday --project ~/elsewhere
    """
    from tidemill.kernel.settings import load_settings
    from tidemill.ledger import restore as read_back
    from tidemill.loop.project import Places, find_project, ledger_recipe, prepare_places

    settings = load_settings(find_project(project))
    prepare_places(Places(settings.state))
    recipe = ledger_recipe(settings)
    with progress_bar(quiet=as_json) as bar:
        bar.add_task("restoring", total=None)
        report = read_back(
            path.expanduser(),
            url=recipe.url,
            blobs=recipe.blobs,
            scope=recipe.scope,
            s3=recipe.s3,
            cache_dir=recipe.cache_dir,
        )
    if as_json:
        print_json(asdict(report) | {"rows": dict(report.rows)})
        return
    say(
        f"{sum(report.rows.values())} rows and {report.blobs} blobs restored; "
        f"the audit chain fits: {report.audit_entries} entries."
    )
