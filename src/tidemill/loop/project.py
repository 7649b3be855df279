"""An opened project: its settings, its ledger and the places of its state folder."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.kernel import InvalidInput, NotFound, Unavailable
from tidemill.kernel.settings import PROJECT_FILE, ModelSettings, Settings, load_settings, resolve_secret
from tidemill.ledger import S3Options, open_ledger
from tidemill.pipelines import LedgerRecipe

if TYPE_CHECKING:
    from tidemill.ledger import Ledger
    from tidemill.models import Catalogue
    from tidemill.telemetry import SpanStore

_LEAST_FREE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Places:
    """Where a project keeps what on this machine."""

    state: Path

    @property
    def segments(self) -> Path:
        """Segment logs, one folder a writer."""
        return self.state / "segments"

    @property
    def spans(self) -> Path:
        """The embedded span store."""
        return self.state / "telemetry.duckdb"

    @property
    def routing(self) -> Path:
        """The routing snapshot that gateway workers read."""
        return self.state / "routing.json"

    @property
    def run(self) -> Path:
        """Files of the running processes."""
        return self.state / "run"

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.state / "logs"

    @property
    def cache(self) -> Path:
        """What can be had again: downloads, copies of remote blobs."""
        return self.state / "cache"

    @property
    def deployments(self) -> Path:
        """Which releases should be served, written by the control plane for the supervisor."""
        return self.run / "deployments.json"

    @property
    def token(self) -> Path:
        """The local token of the REST API."""
        return self.run / "token"


@dataclass(frozen=True, slots=True)
class Project:
    """A project file with its opened ledger."""

    settings: Settings
    ledger: Ledger
    places: Places

    @property
    def recipe(self) -> LedgerRecipe:
        """How another process opens the same ledger."""
        return ledger_recipe(self.settings)

    def catalogue(self) -> Catalogue:
        """The built-in models joined by the project's own."""
        from tidemill.models import Catalogue, ModelEntry

        own = [ModelEntry.from_json(_entry(self.settings, name, one)) for name, one in self.settings.models.items()]
        return Catalogue.of(own)


def open_spans(project: Project) -> SpanStore:
    """Open a project's span store as its settings say; only one process may hold an embedded one.

    Raises:
        Unavailable: another process holds it, or its server does not answer.
    """
    from tidemill.telemetry import open_span_store

    kept = project.settings.telemetry
    cold = kept.retention.cold
    if cold is not None and "://" not in cold:
        cold = str(project.settings.folder / cold)
    return open_span_store(
        project.places.spans, project.settings.scope, url=kept.store, memory_mb=kept.memory_mb, cold=cold
    )


def find_project(start: Path) -> Path:
    """The project file in ``start`` or the nearest folder above it.

    Raises:
        NotFound: there is none.
    """
    if start.is_file():
        return start
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
    raise NotFound(
        f"There is no {PROJECT_FILE} in {start.resolve()} or above it.",
        hint="Write one with: tidemill init",
    )


@contextmanager
def open_project(path: Path) -> Iterator[Project]:
    """Open the project whose file is ``path`` or lies in or above that folder. A context manager.

    Raises:
        NotFound: no project file.
        SettingsError: a project file that cannot be understood.
        Unavailable: the state folder cannot be written, the disk is full or the ledger cannot be reached.
    """
    settings = load_settings(find_project(path))
    places = Places(settings.state)
    prepare_places(places)
    recipe = ledger_recipe(settings)
    with open_ledger(
        recipe.url, blobs=recipe.blobs, scope=recipe.scope, s3=recipe.s3, cache_dir=recipe.cache_dir
    ) as ledger:
        yield Project(settings, ledger, places)


def ledger_recipe(settings: Settings) -> LedgerRecipe:
    """How a process opens the project's ledger."""
    s3 = settings.store.s3
    options = None
    if s3 is not None:
        options = S3Options(
            endpoint=s3.endpoint,
            region=s3.region,
            allow_http=(s3.endpoint or "").startswith("http:"),
            access_key_id=resolve_secret(s3.access_key_id) if s3.access_key_id else None,
            secret_access_key=resolve_secret(s3.secret_access_key) if s3.secret_access_key else None,
        )
    return LedgerRecipe(
        url=settings.ledger_url,
        blobs=settings.blobs_url,
        scope=settings.scope,
        s3=options,
        cache_dir=settings.state / "cache",
    )


def prepare_places(places: Places) -> None:
    """Make the state folder, private to its owner, and check that it can be written.

    Raises:
        Unavailable: it cannot be made or written, or the disk is nearly full.
    """
    try:
        for folder in (places.state, places.segments, places.run, places.logs, places.cache):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=places.state) as file:
            file.write(b"\0")
    except OSError as error:
        what = "no space is left" if error.errno == errno.ENOSPC else str(error.strerror)
        raise Unavailable(f"The state folder {places.state} cannot be written: {what}.") from None
    stat = os.statvfs(places.state)
    if stat.f_bavail * stat.f_frsize < _LEAST_FREE_BYTES:
        raise Unavailable(
            f"The disk that holds {places.state} has less than {_LEAST_FREE_BYTES >> 20} MB left.",
            hint="Free some space, or point store.ledger and store.blobs elsewhere in tidemill.yaml",
        )


def _entry(settings: Settings, name: str, model: ModelSettings) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": name,
        "kind": model.kind,
        "licence": model.licence,
        "context_tokens": model.context_tokens,
        "input_usd_per_mtok": model.input_usd_per_mtok,
        "output_usd_per_mtok": model.output_usd_per_mtok,
    }
    if model.url is not None:
        source = {
            "type": "provider",
            "url": model.url,
            "model": model.upstream_model or name,
            "dialect": model.dialect,
            "options": dict(model.options),
            "secret_refs": dict(model.secrets),
        }
        return entry | {"source": source | ({"api_key_ref": model.api_key} if model.api_key else {})}
    files = _weight_files(settings, name, model)
    if model.hub is not None:
        return entry | {"source": {"type": "hub", "repository": model.hub, "revision": "main", "files": files}}
    folder = settings.folder / (model.folder or ".")
    return entry | {"source": {"type": "folder", "path": str(folder), "files": files}}


def _weight_files(settings: Settings, name: str, model: ModelSettings) -> list[dict[str, str]]:
    if model.kind == "embedding":
        roles = {"weights": "model.safetensors", "tokenizer": "tokenizer.json", "config": "config.json"}
        return [{"role": role, "path": path} for role, path in roles.items()]
    if model.hub is not None:
        return [{"role": "weights", "path": model.upstream_model or f"{name}.gguf"}]
    if model.folder is None:
        raise InvalidInput(f"models.{name}: say where it comes from: folder, hub or url")
    found = sorted((settings.folder / model.folder).glob("*.gguf"))
    if not found:
        raise NotFound(f"models.{name}: there is no .gguf file in {settings.folder / model.folder}")
    return [{"role": "weights", "path": found[0].name}]
