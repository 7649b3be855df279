"""Opening a project: each thing in the way is a sentence, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.kernel import InvalidInput, NotFound, SettingsError, Unavailable
from tidemill.kernel.settings import parse_settings
from tidemill.loop.example import write_example
from tidemill.loop.project import Places, find_project, ledger_recipe, open_project, prepare_places


def write(folder: Path, text: str = "project: desk\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tidemill.yaml").write_text(text)
    return folder


def test_opens_from_any_folder_below(tmp_path: Path) -> None:
    below = write(tmp_path) / "documents" / "deep"
    below.mkdir(parents=True)
    with open_project(below) as project:
        assert project.settings.project == "desk"
        assert project.places.state == tmp_path / ".tidemill"
        assert project.ledger.scope.project == "desk"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / ".tidemill").iterdir() if path.is_dir()}
    assert {modes[name] for name in ("segments", "run", "logs", "cache")} == {0o700}


def test_no_project_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        find_project(tmp_path)
    assert str(tmp_path) in missing.value.message
    assert missing.value.hint == "Write one with: tidemill init"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("project: desk\nendpoint: {}\n", ["'endpoint'", "did you mean 'endpoints'?"]),
        ("project: desk\ngateway: {prot: 1}\n", ["'gateway.prot'", "did you mean 'port'?"]),
        ("project: desk\ngateway: {port: high}\n", ["'gateway.port'", "'high'"]),
        ("gateway: {}\n", ["'project' is missing"]),
        ("project: [\n", ["is not YAML"]),
        ("", ["holds no settings"]),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as wrong, open_project(write(tmp_path, text)):
        pass
    assert "tidemill.yaml" in wrong.value.message
    assert all(word in wrong.value.message for word in words), wrong.value.message
    assert not (tmp_path / ".tidemill").exists()


def test_a_state_folder_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / ".tidemill").write_text("")
    with (
        pytest.raises(Unavailable, match=r"folder .*\.tidemill cannot be written: File exists"),
        open_project(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path)
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(Unavailable, match="cannot be written: Permission denied"), open_project(tmp_path):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB: mounting one takes rights that not every machine gives."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_nearly_full_is_told_before_anything_is_begun(tiny_disk: Path) -> None:
    project = write(tiny_disk / "project")
    with open_project(project) as opened:
        opened.ledger.artifacts.publish("prompt", "kept", {"a": 1})  # type: ignore[arg-type]  # a kind by its name
    filler = tiny_disk / "filler"
    filler.write_bytes(b"\0" * (30 << 20))
    with pytest.raises(Unavailable) as refused, open_project(project):
        pass
    assert "has less than 64 MB left" in refused.value.message
    assert "Free some space" in str(refused.value.hint)
    with pytest.raises(OSError, match="No space"):
        (tiny_disk / "rest").write_bytes(b"\0" * (80 << 20))
    with pytest.raises(Unavailable, match=r"no space is left|less than 64 MB"):
        prepare_places(Places(project / ".tidemill"))
    for path in (filler, tiny_disk / "rest"):
        path.unlink()
    with open_project(project) as opened:  # nothing was lost
        assert opened.ledger.artifacts.get("prompt/kept").version == 1


def test_an_object_store_is_reached_by_secret_references(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    s3 = {"endpoint": "http://127.0.0.1:1", "access_key_id": f"file:{key}", "secret_access_key": f"file:{key}"}
    settings = parse_settings({"project": "desk", "store": {"blobs": "s3://bucket/desk", "s3": s3}})
    recipe = ledger_recipe(settings)
    assert recipe.blobs == "s3://bucket/desk"
    assert recipe.s3 is not None
    assert (recipe.s3.allow_http, recipe.s3.access_key_id, recipe.s3.secret_access_key) == (True, "secret", "secret")
    plain = parse_settings({"project": "desk", "store": {"s3": s3 | {"secret_access_key": "hunter2"}}})
    with pytest.raises(SettingsError, match="written in place") as refused:
        ledger_recipe(plain)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ({}, InvalidInput, "say where it comes from"),
        ({"folder": "weights"}, NotFound, r"there is no \.gguf file"),
    ],
)
def test_a_model_of_ones_own_must_be_somewhere(tmp_path: Path, model: dict[str, str], error: type, words: str) -> None:
    write(tmp_path, f"project: desk\nmodels:\n  own: {model}\n")
    with open_project(tmp_path) as project, pytest.raises(error, match=words):
        project.catalogue()


def test_a_provider_and_a_folder_join_the_catalogue(tmp_path: Path) -> None:
    write(tmp_path, "project: desk\nmodels:\n  far: {url: 'http://127.0.0.1:1/v1'}\n  near: {folder: weights}\n")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "near.gguf").write_bytes(b"")
    with open_project(tmp_path) as project:
        catalogue = project.catalogue()
        assert not catalogue.get("far").has_weights
        assert catalogue.get("near").has_weights
        assert catalogue.get("smollm2-135m-instruct").has_weights


def test_the_example_is_written_once_and_opens(tmp_path: Path) -> None:
    written = write_example(tmp_path / "shop", "shop")
    assert len(written) == 4
    with open_project(tmp_path / "shop") as project:
        assert set(project.settings.endpoints) == {"shop"}
    from tidemill.kernel import Conflict

    before = written[0].read_text()
    written[0].write_text(before + "# mine\n")
    with pytest.raises(Conflict, match="There is a project file already"):
        write_example(tmp_path / "shop", "shop")
    assert written[0].read_text().endswith("# mine\n")
    with pytest.raises(InvalidInput):
        write_example(tmp_path / "other", "No Name!")
    assert not (tmp_path / "other").exists()
