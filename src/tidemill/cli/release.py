"""``release``: exact versions of everything that answers requests, under one digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import find_version, labels_text, moment, version_json
from tidemill.kernel import ArtifactKind, ReleaseParts

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Releases: one digest over model, prompt, index and decoding.\n\nExample: tidemill release create helpdesk",
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Release of the project file.")],
    note: Annotated[str, typer.Option(help="Why it is made; kept in the audit chain.")] = "",
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make a release of the project file from the newest versions of its parts.

    The same parts give the same version again. Nothing is deployed: that is what a rollout does.

    Example: tidemill release create helpdesk --note "hybrid search"
    """
    from tidemill.loop.recipes import release_parts
    from tidemill.releases import create_release

    with project_at(project) as opened:
        known = {one.digest for one in opened.ledger.artifacts.versions(ArtifactKind.RELEASE, name)}
        version = create_release(opened.ledger, name, release_parts(opened.settings, opened.ledger, name), note=note)
        endpoints = [one for one, settings in opened.settings.endpoints.items() if settings.release == name]
        parts = _parts(opened.ledger, version)
    if as_json:
        print_json(version_json(version) | {"parts": parts, "new": version.digest not in known})
        return
    say(f"{version.ref}  {version.digest}" + (" (unchanged)" if version.digest in known else ""))
    for role, ref in parts.items():
        say(f"  {role:<7} {ref}")
    for endpoint in endpoints:
        say(f"Deploy it: tidemill rollout start {endpoint} {name}@{version.version}")


@app.command("list")
def list_releases(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List all versions of all releases, newest first, with the endpoints they serve.

    Example: tidemill release list
    """
    with project_at(project) as opened:
        ledger = opened.ledger
        names = [one.name for one in ledger.artifacts.list(ArtifactKind.RELEASE)]
        found = [one for name in names for one in ledger.artifacts.versions(ArtifactKind.RELEASE, name)]
        labels = {name: ledger.artifacts.labels(ArtifactKind.RELEASE, name) for name in names}
        serves = _serves(ledger)
    pointed = {
        one.digest: {label: version for label, version in labels[one.name].items() if version == one.version}
        for one in found
    }
    if as_json:
        more = {
            one.digest: {"labels": sorted(pointed[one.digest]), "serves": serves.get(one.digest, [])} for one in found
        }
        print_json([version_json(one) | more[one.digest] for one in found])
        return
    rows = [
        (
            one.ref,
            ", ".join(sorted(pointed[one.digest])) or None,
            ", ".join(serves.get(one.digest, [])) or None,
            one.digest[:19],
            moment(one.created_at),
        )
        for one in found
    ]
    empty = "There is no release yet. Make one of the project file: tidemill release create NAME"
    print_table(("release", "labels", "serves", "digest", "made at"), rows, empty=empty)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="Release: NAME, NAME@7, release/NAME@label or a digest.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show a release: its parts by name and digest, its notes, and which endpoints it serves.

    Example: tidemill release show helpdesk@production
    """
    with project_at(project) as opened:
        version = find_version(opened.ledger, ref, ArtifactKind.RELEASE)
        labels = opened.ledger.artifacts.labels(ArtifactKind.RELEASE, version.name)
        parts = _parts(opened.ledger, version)
        notes = opened.ledger.decisions.list(subject=str(version.ref), kind="release.note")
        serves = _serves(opened.ledger).get(version.digest, [])
    if as_json:
        more = {"parts": parts, "labels": labels, "serves": serves, "notes": [one.verdict.reason for one in notes]}
        print_json(version_json(version) | more)
        return
    decoding = ReleaseParts.from_json(version.content).decoding
    say(f"{version.ref}  {version.digest}")
    say(f"  made at   {moment(version.created_at)}, labels {labels_text(labels)}")
    for role, part in parts.items():
        say(f"  {role:<9} {part}")
    say(f"  decoding  {decoding.max_tokens} tokens, temperature {decoding.temperature:g}, seed {decoding.seed}")
    for key, value in dict(version.content["retrieval"]).items():
        say(f"  retrieval {key} {value}")
    for one in notes:
        say(f"  note      {one.verdict.reason}")
    say(f"  serves    {', '.join(serves) or 'nothing'}")


def _parts(ledger: Ledger, version: ArtifactVersion) -> dict[str, str]:
    digests = ReleaseParts.from_json(version.content).artifacts()
    named = ledger.artifacts.named_by(digests.values())
    return {role: str(named[digest].ref) if digest in named else digest for role, digest in digests.items()}


def _serves(ledger: Ledger) -> dict[str, list[str]]:
    """Release digest -> the endpoints that serve it."""
    from tidemill.releases import live_release

    found: dict[str, list[str]] = {}
    for endpoint in ledger.artifacts.list(ArtifactKind.ENDPOINT):
        live = live_release(ledger, endpoint.name)
        if live is not None:
            found.setdefault(live.digest, []).append(endpoint.name)
    return found
