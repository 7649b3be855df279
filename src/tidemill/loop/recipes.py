"""Recipes: the steps that turn a project file's data sets, indexes and releases into artifacts.

Each is a pipeline step, so it runs once per key and its run records what went in and what came out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import ArtifactKind, Decoding, Digest, InvalidInput, NotFound, ReleaseParts
from tidemill.kernel.settings import DatasetSettings, IndexSettings, ReleaseSettings, Settings
from tidemill.loop.apply import APPLIED
from tidemill.loop.targets import router_content
from tidemill.pipelines import Flow, Step, StepContext

if TYPE_CHECKING:
    from tidemill.data import Skipped
    from tidemill.ledger import ArtifactVersion, Ledger
    from tidemill.retrieval import Embedder


BUILT: Final = "built"


def build_documents(context: StepContext) -> Mapping[str, Digest]:
    """Step: read a source, clean it, drop duplicates, write a data set version and what was left out."""
    from tidemill.data import build_dataset, read_folder, read_python_reference

    params = context.params
    context.progress(0.0, "reading")
    skipped: Sequence[Skipped] = ()
    if params["source"] == "python":
        documents = list(read_python_reference())
    else:
        reading = read_folder(Path(params["path"]))
        documents, skipped = list(reading.documents), reading.skipped
    context.progress(0.3, f"{len(documents)} documents")
    built = build_dataset(context.ledger, params["name"], documents, skipped=skipped, made_by=context.run_id)
    outputs = {"dataset": built.version.digest}
    if built.excluded is not None:
        outputs["excluded"] = built.excluded.digest
    return outputs


def build_search_index(context: StepContext) -> Mapping[str, Digest]:
    """Step: cut a data set into passages, embed them if the mode needs it, publish the index."""
    from tidemill.retrieval import IndexOptions, SplitOptions, build_index

    params = context.params
    dataset = context.ledger.artifacts.by_digest(context.inputs["dataset"])
    embedder = None
    if "embedder" in context.inputs:
        embedder = local_embedder(context.ledger, context.inputs["embedder"], threads=os.cpu_count() or 1)
    options = IndexOptions(split=SplitOptions(passage_tokens=int(params["passage_tokens"])))
    version = build_index(
        context.ledger,
        params["name"],
        dataset,
        mode=params["mode"],
        embedder=embedder,
        options=options,
        made_by=context.run_id,
        progress=context.progress,
    )
    return {"index": version.digest}


def local_embedder(ledger: Ledger, model: Digest, *, threads: int = 1) -> Embedder:
    """An embedding model of the ledger, run in this process."""
    from tidemill.models import LocalEmbedder, model_files
    from tidemill.retrieval import Embedder

    files = model_files(ledger, ledger.artifacts.by_digest(model))
    return Embedder(LocalEmbedder(files["weights"], files["tokenizer"], threads=threads), model)


def dataset_step(settings: Settings, name: str) -> Step:
    """The step that builds a data set of the project file.

    Raises:
        NotFound: the project file has no data set of that name, or its folder does not exist.
        InvalidInput: a folder source without a path.
    """
    dataset = _section(settings.datasets, name, "datasets")
    params: dict[str, Any] = {"name": name, "source": dataset.source}
    if dataset.source == "folder":
        folder = _folder(settings, name, dataset)
        params |= {"path": str(folder), "fingerprint": fingerprint(folder)}
    return Step(name="documents", function=build_documents, params=params, helpers=_data_sources())


def index_flow(settings: Settings, name: str, *, embedder: Digest | None) -> Flow:
    """The flow that builds an index of the project file, and its data set before it.

    Args:
        settings: the project file.
        name: the index.
        embedder: digest of the embedding model, for ``dense`` and ``hybrid``.
    """
    index: IndexSettings = _section(settings.indexes, name, "indexes")
    documents = dataset_step(settings, index.dataset)
    return Flow("index", (documents, index_step(name, index, source="documents.dataset", embedder=embedder)))


def index_step(name: str, index: IndexSettings, *, source: str, embedder: Digest | None, step: str = "index") -> Step:
    """The step that builds one index.

    Args:
        name: the index's name.
        index: how it is built.
        source: a data set's digest or ``step.output``.
        embedder: digest of the embedding model.
        step: name of the step in its flow.

    Raises:
        InvalidInput: a mode that needs an embedder, and none given.
    """
    inputs: dict[str, str | Digest] = {"dataset": source}
    if index.mode != "bm25":
        if embedder is None:
            raise InvalidInput(
                f"index '{name}' in mode '{index.mode}' needs an embedding model",
                hint="Pull one: tidemill models pull all-minilm-l6-v2",
            )
        inputs["embedder"] = embedder
    params = {"name": name, "mode": index.mode, "passage_tokens": index.passage_tokens}
    return Step(name=step, function=build_search_index, params=params, inputs=inputs, libraries=("bm25s",))


def release_parts(settings: Settings, ledger: Ledger, name: str) -> ReleaseParts:
    """The parts of a release of the project file: the applied prompt, the index built last, the newest model.

    Raises:
        NotFound: something it is made of is not in the ledger yet; the hint says how to make it.
    """
    release: ReleaseSettings = _section(settings.releases, name, "releases")
    model = _newest(ledger, ArtifactKind.MODEL, release.model, f"tidemill models pull {release.model}")
    prompt = index = None
    if release.prompt is not None:
        prompt = _labelled(ledger, ArtifactKind.PROMPT, release.prompt, APPLIED, "tidemill apply").digest
    if release.index is not None:
        command = f"tidemill index build {release.index}"
        index = _labelled(ledger, ArtifactKind.INDEX, release.index, BUILT, command).digest
    decoding = release.decoding
    retrieval = {key: value for key, value in release.retrieval.model_dump().items() if value is not None}
    return ReleaseParts(
        model=model.digest,
        prompt=prompt,
        index=index,
        decoding=Decoding(
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed,
            stop=decoding.stop,
        ),
        retrieval=retrieval if index is not None else {},
        router=_router(ledger, name, release),
    )


def _router(ledger: Ledger, name: str, release: ReleaseSettings) -> dict[str, Any]:
    router = release.router
    if router is None:
        return {}
    if release.prompt is not None or release.index is not None:
        raise InvalidInput(
            f"releases.{name} has a router and a prompt or an index",
            hint="Give the router to a release that is a bare model; an application's model is called by itself.",
        )
    names = (release.model, *router.models)
    unknown = [rule.model for rule in router.rules if rule.model not in names]
    if unknown or len(set(names)) < len(names):
        what = f"a rule names '{unknown[0]}'" if unknown else "a model stands twice"
        raise InvalidInput(f"releases.{name}.router: {what}; its models are {', '.join(names)}")
    models = {one: _newest(ledger, ArtifactKind.MODEL, one, f"tidemill models pull {one}").digest for one in names}
    return router_content(router, models)


def fingerprint(folder: Path) -> str:
    """A digest over the paths and contents of a folder's files, so that a step sees when they change."""
    hasher = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hasher.update(str(path.relative_to(folder)).encode() + b"\0")
        try:
            with path.open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            hasher.update(b"unreadable")  # it becomes an exclusion when it is read
    return hasher.hexdigest()


def _folder(settings: Settings, name: str, dataset: DatasetSettings) -> Path:
    if dataset.path is None:
        raise InvalidInput(f"datasets.{name}: a folder source needs a path", hint="Add path: FOLDER")
    folder = settings.folder / dataset.path
    if not folder.is_dir():
        raise NotFound(
            f"There is no folder {folder}, which datasets.{name} reads.",
            hint="Make it, or change the path in tidemill.yaml",
        )
    return folder


def _data_sources() -> tuple[Any, ...]:
    """The functions whose change should build data sets again."""
    from tidemill.data import build_dataset, clean, read_python_reference

    return (build_dataset, clean, read_python_reference)


def _section(sections: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in sections:
        known = ", ".join(sections) or "none"
        raise NotFound(
            f"The project file has no '{key}.{name}'; there is: {known}.",
            hint=f"Add it under '{key}:' in tidemill.yaml",
        )
    return sections[name]


def note_built(ledger: Ledger, version: ArtifactVersion, *, actor: str) -> None:
    """Label the version that the last build gave, which is not the newest when documents were put back.

    Raises:
        Conflict: somebody else built the same thing at the same time; build again.
    """
    before = ledger.artifacts.labels(version.kind, version.name).get(BUILT)
    if before != version.version:
        ledger.artifacts.move_label(
            version.kind, version.name, BUILT, version.version, expected=before, actor=actor, reason="the last build"
        )


def _labelled(ledger: Ledger, kind: ArtifactKind, name: str, label: str, command: str) -> ArtifactVersion:
    """The version under a label, or the newest where nobody has moved the label yet."""
    version = ledger.artifacts.labels(kind, name).get(label)
    return _named(ledger, f"{kind}/{name}" + (f"@{version}" if version is not None else ""), command)


def _newest(ledger: Ledger, kind: ArtifactKind, name: str, command: str) -> ArtifactVersion:
    return _named(ledger, f"{kind}/{name}", command)


def _named(ledger: Ledger, ref: str, command: str) -> ArtifactVersion:
    try:
        return ledger.artifacts.get(ref)
    except NotFound as error:
        raise NotFound(f"There is no {ref} yet.", hint=f"Make it: {command}") from error
