"""``index``: search indexes over data sets."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, project_at, say
from tidemill.cli.views import find_version, list_versions, run_with_bar, version_json
from tidemill.kernel import ArtifactKind, Digest, InvalidInput, NotFound

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion
    from tidemill.loop.project import Project

_SHOWN_CHARS = 240

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help='Search indexes: BM25, vectors, or both.\n\nExample: tidemill index search helpdesk "flat tyre"',
)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Index of the project file.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Build an index of the project file, and before it the data set it is over, where they are not there yet.

    Example: tidemill index build helpdesk
    """
    from tidemill.loop.recipes import index_flow, note_built

    with project_at(project) as opened:
        flow = index_flow(opened.settings, name, embedder=_embedder(opened, name))
        result = run_with_bar(flow, opened, quiet=as_json)
        version = opened.ledger.artifacts.by_digest(result.outputs["index"]["index"])
        note_built(opened.ledger, version, actor=getpass.getuser())
    if as_json:
        print_json(version_json(version) | {"cached": list(result.cached)})
        return
    content = version.content
    unchanged = " (unchanged)" if "index" in result.cached else ""
    say(f"{version.ref}: {content['passages']} passages, mode {content['mode']}{unchanged}")
    say(f'Try it: tidemill index search {version.name} "a question"')


@app.command("list")
def list_indexes(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the indexes, each in its newest version.

    Example: tidemill index list
    """
    with project_at(project) as opened:
        list_versions(
            opened.ledger,
            ArtifactKind.INDEX,
            {"mode": lambda one: one.content["mode"], "passages": lambda one: one.content["passages"]},
            as_json=as_json,
            empty="There is no index yet. Build one of the project file: tidemill index build NAME",
        )


@app.command()
def search(
    ref: Annotated[str, typer.Argument(help="Index: NAME, NAME@7, index/NAME@label or a digest.")],
    query: Annotated[str, typer.Argument(help="The question.")],
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="At most so many passages.")] = 5,
    mode: Annotated[str | None, typer.Option(help="bm25, dense or hybrid; as it was built when not given.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Search an index as a release would. The question's vector is computed in this process.

    Example: tidemill index search helpdesk "what does a flat tyre cost" --top-k 3
    """
    from tidemill.retrieval import load_index

    with project_at(project) as opened:
        version = find_version(opened.ledger, ref, ArtifactKind.INDEX)
        chosen: Any = mode or version.content["mode"]
        index = load_index(opened.ledger, version)
        vector = None if chosen == "bm25" or index.dimension is None else _vector(opened, version, query)
        hits = index.search(query, top_k=top_k, mode=chosen, query_vector=vector)
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    if not hits:
        say(f"{version.ref} has no passage with a word of the question.")
    for hit in hits:
        say(f"{hit.rank}. {hit.score:.3f}  {hit.source}  {hit.title}")
        text = " ".join(hit.text.split())
        say("   " + (text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"))


def _embedder(opened: Project, name: str) -> Digest | None:
    """The embedding model that the project file names, if the index needs one."""
    index = opened.settings.indexes.get(name)
    if index is None or index.mode == "bm25":
        return None
    model = opened.settings.runtime.embedding
    if model is None:
        raise InvalidInput(
            f"index '{name}' in mode '{index.mode}' needs an embedding model, and runtime.embedding names none.",
            hint="Name one in tidemill.yaml, or set the index's mode to bm25",
        )
    try:
        return opened.ledger.artifacts.get(f"{ArtifactKind.MODEL}/{model}").digest
    except NotFound:
        raise NotFound(
            f"index '{name}' in mode '{index.mode}' needs the embedding model '{model}', which is not here yet.",
            hint=f"Bring it here: tidemill models pull {model}",
        ) from None


def _vector(opened: Project, version: ArtifactVersion, query: str) -> Any:
    from tidemill.loop.recipes import local_embedder

    return local_embedder(opened.ledger, Digest(version.content["embedder"])).embed([query])[0]
