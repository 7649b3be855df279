"""Recipes through the real runner, ledger and retrieval: run once, cached while nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.kernel import ArtifactKind, InvalidInput, NotFound, UserError
from tidemill.loop.apply import apply
from tidemill.loop.project import Project, open_project
from tidemill.loop.recipes import dataset_step, fingerprint, index_flow, note_built, release_parts
from tidemill.pipelines import Flow, run_flow
from tidemill.retrieval import load_index

FILE = """\
project: desk
datasets:
  papers: {path: documents}
  nowhere: {path: missing}
  pathless: {}
indexes:
  papers: {dataset: papers, mode: bm25, passage_tokens: 60}
  vectors: {dataset: papers, mode: hybrid}
prompts:
  answer: {messages: [{role: user, content: "ANSWER {{question}}"}]}
releases:
  desk: {model: scripted, prompt: answer, index: papers}
  bare: {model: scripted}
models:
  scripted: {url: 'http://127.0.0.1:1/v1'}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "tidemill.yaml").write_text(FILE)
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "tyres.md").write_text("# Tyres\n\nA flat tyre is mended while you wait and costs 12 euros.\n")
    (documents / "brakes.md").write_text("# Brakes\n\nA brake service takes two days and costs 45 euros.\n")
    (documents / "copy.md").write_text("# Brakes\n\nA brake service takes two days and costs 45 euros.\n")
    with open_project(tmp_path) as opened:
        yield opened


def documents(project: Project) -> Path:
    return project.settings.folder / "documents"


def test_builds_documents_and_an_index_that_finds_them(project: Project) -> None:
    result = run_flow(index_flow(project.settings, "papers", embedder=None), project.ledger)
    assert result.ran == ("documents", "index")
    ledger = project.ledger
    dataset = ledger.artifacts.by_digest(result.outputs["documents"]["dataset"])
    assert ledger.datasets.count(dataset) == 2
    excluded = ledger.artifacts.by_digest(result.outputs["documents"]["excluded"])
    assert ledger.datasets.count(excluded) == 1  # the copy, with its verdict
    index = load_index(ledger, ledger.artifacts.by_digest(result.outputs["index"]["index"]))
    assert index.search("What does a flat tyre cost?", top_k=1)[0].source.endswith("tyres.md")
    ancestors = {node.node_id for node in ledger.lineage.ancestors(result.outputs["index"]["index"]).nodes}
    assert dataset.digest in ancestors


def test_unchanged_is_cached_and_a_changed_document_is_not(project: Project) -> None:
    flow = index_flow(project.settings, "papers", embedder=None)
    first = run_flow(flow, project.ledger)
    again = run_flow(index_flow(project.settings, "papers", embedder=None), project.ledger)
    assert (again.ran, again.cached) == ((), ("documents", "index"))
    assert again.outputs == first.outputs
    (documents(project) / "tyres.md").write_text("# Tyres\n\nA flat tyre now costs 14 euros and takes an hour.\n")
    changed = run_flow(index_flow(project.settings, "papers", embedder=None), project.ledger)
    assert changed.ran == ("documents", "index")
    assert changed.outputs["index"] != first.outputs["index"]
    new = load_index(project.ledger, project.ledger.artifacts.by_digest(changed.outputs["index"]["index"]))
    assert "14 euros" in new.search("flat tyre", top_k=1)[0].text
    old = load_index(project.ledger, project.ledger.artifacts.by_digest(first.outputs["index"]["index"]))
    assert "12 euros" in old.search("flat tyre", top_k=1)[0].text


def test_pythons_own_reference_is_a_source(project: Project) -> None:
    settings = project.settings.model_copy(
        update={"datasets": {"python": project.settings.datasets["papers"].model_copy(update={"source": "python"})}}
    )
    result = run_flow(Flow("data", (dataset_step(settings, "python"),)), project.ledger)
    version = project.ledger.artifacts.by_digest(result.outputs["documents"]["dataset"])
    assert project.ledger.datasets.count(version) >= 400


def test_what_is_missing_is_named_before_anything_runs(project: Project) -> None:
    settings = project.settings
    with pytest.raises(NotFound, match=r"no 'datasets\.other'; there is: papers, nowhere, pathless"):
        dataset_step(settings, "other")
    with pytest.raises(NotFound, match=r"There is no folder .*missing, which datasets\.nowhere reads"):
        dataset_step(settings, "nowhere")
    with pytest.raises(InvalidInput, match=r"datasets\.pathless: a folder source needs a path"):
        dataset_step(settings, "pathless")
    with pytest.raises(InvalidInput, match="needs an embedding model") as needs:
        index_flow(settings, "vectors", embedder=None)
    assert "tidemill models pull" in str(needs.value.hint)
    assert project.ledger.runs.list() == []


def test_an_empty_folder_is_a_sentence(project: Project) -> None:
    for path in documents(project).iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no files") as empty:
        run_flow(Flow("data", (dataset_step(project.settings, "papers"),)), project.ledger)
    assert str(documents(project)) in str(empty.value)


def test_a_release_names_exact_parts_and_what_it_lacks(project: Project) -> None:
    settings, ledger = project.settings, project.ledger
    with pytest.raises(NotFound) as lacking:
        release_parts(settings, ledger, "desk")
    assert lacking.value.hint == "Make it: tidemill models pull scripted"
    entry = project.catalogue().get("scripted")
    model = ledger.artifacts.publish(ArtifactKind.MODEL, "scripted", {"entry": entry.as_json()})
    with pytest.raises(NotFound) as lacking:
        release_parts(settings, ledger, "desk")
    assert lacking.value.hint == "Make it: tidemill apply"
    apply(settings, ledger, actor="me")
    with pytest.raises(NotFound) as lacking:
        release_parts(settings, ledger, "desk")
    assert lacking.value.hint == "Make it: tidemill index build papers"
    result = run_flow(index_flow(settings, "papers", embedder=None), ledger)
    parts = release_parts(settings, ledger, "desk")
    assert (parts.model, parts.index) == (model.digest, result.outputs["index"]["index"])
    assert parts.retrieval["top_k"] == 1
    bare = release_parts(settings, ledger, "bare")
    assert (bare.prompt, bare.index, dict(bare.retrieval)) == (None, None, {})


def test_a_prompt_put_back_to_what_it_was_is_what_is_released(project: Project, tmp_path: Path) -> None:
    entry = project.catalogue().get("scripted")
    project.ledger.artifacts.publish(ArtifactKind.MODEL, "scripted", {"entry": entry.as_json()})
    run_flow(index_flow(project.settings, "papers", embedder=None), project.ledger)
    prompts = []
    from tidemill.kernel.settings import load_settings

    for word in ("ANSWER", "REPLY", "ANSWER"):
        (tmp_path / "tidemill.yaml").write_text(FILE.replace("ANSWER", word))
        settings = load_settings(tmp_path)
        apply(settings, project.ledger, actor="me")
        prompts.append(release_parts(settings, project.ledger, "desk").prompt)
    assert prompts[0] == prompts[2] != prompts[1]


def test_a_fingerprint_sees_names_and_contents(tmp_path: Path) -> None:
    found = [fingerprint(tmp_path)]
    for name, text in (("a.md", "one"), ("a.md", "two"), ("b.md", "two")):
        (tmp_path / name).write_text(text)
        found.append(fingerprint(tmp_path))
    (tmp_path / "b.md").rename(tmp_path / "c.md")
    found.append(fingerprint(tmp_path))
    assert len(set(found)) == len(found)
    (tmp_path / "c.md").rename(tmp_path / "b.md")
    assert fingerprint(tmp_path) == found[3]


def test_a_release_takes_the_index_that_was_built_last(project: Project) -> None:
    """Documents put back give the older version again, and that is what a release must take."""
    ledger = project.ledger
    first, second = (ledger.artifacts.publish(ArtifactKind.INDEX, "papers", {"passages": n}) for n in (1, 2))
    ledger.artifacts.publish(ArtifactKind.MODEL, "scripted", {"entry": {}})
    apply(project.settings, ledger, actor="me")
    assert release_parts(project.settings, ledger, "desk").index == second.digest
    note_built(ledger, first, actor="me")
    assert release_parts(project.settings, ledger, "desk").index == first.digest
