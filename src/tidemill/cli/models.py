"""``models``: the catalogue, and weights brought into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, progress_bar, project_at, say
from tidemill.cli.views import moment, version_json
from tidemill.kernel import ArtifactKind, InvalidInput

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion
    from tidemill.loop.project import Project

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Models: the catalogue, and weights brought into the store by their digests.\n\nExample: tidemill models list",
)


@app.command("list")
def list_models(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the models of the catalogue: the built-in ones and the project's own.

    Example: tidemill models list
    """
    with project_at(project) as opened:
        entries = opened.catalogue().entries
        pulled = {one.name: str(one.ref) for one in opened.ledger.artifacts.list(ArtifactKind.MODEL)}
    if as_json:
        print_json([entry.as_json() | {"pulled": pulled.get(entry.name)} for entry in entries])
        return
    rows = [
        (entry.name, entry.kind, entry.licence, entry.context_tokens, _source(entry.as_json()), pulled.get(entry.name))
        for entry in entries
    ]
    print_table(("model", "kind", "licence", "context", "comes from", "pulled as"), rows)


@app.command()
def pull(
    name: Annotated[
        str | None, typer.Argument(help="Model of the catalogue; without one, those that runtime names.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder, without a network.")
    ] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Bring a model's weights into the store, checked against the pinned digests. Pulled before, nothing is done.

    Example: tidemill models pull all-minilm-l6-v2

    Example: tidemill models pull smollm2-135m-instruct --from ~/weights
    """
    with project_at(project) as opened:
        names = [name] if name is not None else _runtime_models(opened)
        if folder is not None and len(names) != 1:
            raise InvalidInput("--from gives the files of one model.", hint="Name it: tidemill models pull NAME --from")
        versions = _pull_all(opened, names, folder, quiet=as_json)
    if as_json:
        print_json([version_json(one) for one in versions])
        return
    for one in versions:
        say(f"{one.ref}  {one.digest}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Model of the catalogue.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show a model: licence, price, source, and what was pulled of it.

    Example: tidemill models show smollm2-135m-instruct
    """
    with project_at(project) as opened:
        entry = opened.catalogue().get(name)
        versions = opened.ledger.artifacts.versions(ArtifactKind.MODEL, name)
    value = entry.as_json()
    if as_json:
        print_json(value | {"pulled": [version_json(one) for one in versions]})
        return
    say(f"{entry.name}: a {entry.kind} model")
    say(f"  licence     {entry.licence}")
    say(f"  parameters  {entry.parameters or 'unknown'}")
    say(f"  context     {entry.context_tokens} tokens")
    say(f"  served as   {entry.quantization}")
    say(f"  price       {entry.input_usd_per_mtok:g} in, {entry.output_usd_per_mtok:g} out, USD a million tokens")
    say(f"  comes from  {_source(value)}")
    if entry.notes:
        say(f"  notes       {entry.notes}")
    for one in versions:
        say(f"  pulled      {one.ref} at {moment(one.created_at)}, {one.digest}")
    if not versions:
        say(f"Not pulled yet. Bring it here: tidemill models pull {entry.name}")


def _pull_all(opened: Project, names: list[str], folder: Path | None, *, quiet: bool) -> list[ArtifactVersion]:
    from tidemill.models import pull as pull_model

    entries = [opened.catalogue().get(name) for name in names]
    if folder is not None:
        entries = [entry.from_folder(folder.expanduser().resolve()) for entry in entries]
    versions = []
    with progress_bar(quiet=quiet) as bar:
        for entry in entries:
            task = bar.add_task(entry.name, total=1.0)

            def tell(share: float, note: str, task: Any = task, name: str = entry.name) -> None:
                bar.update(task, completed=share, description=f"{name}: {note}")

            versions.append(pull_model(opened.ledger, entry, cache_dir=opened.places.cache, progress=tell))
    return versions


def _runtime_models(opened: Project) -> list[str]:
    runtime = opened.settings.runtime
    names = [name for name in (runtime.chat, runtime.embedding) if name is not None]
    if not names:
        raise InvalidInput(
            "The project file names no model under 'runtime'.", hint="Name one: tidemill models pull NAME"
        )
    return names


def _source(entry: dict[str, Any]) -> str:
    source = entry["source"]
    places = {
        "wheel": "{distribution} {version}",
        "hub": "hub {repository}@{revision}",
        "folder": "folder {path}",
        "provider": "{url} as {model}",
    }
    return places[source["type"]].format(**source)
