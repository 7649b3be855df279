"""Backup and restore of one scope, in a form that is the same for every database and every store of blobs.

A backup is a folder: ``manifest.json``, ``tables/NAME.jsonl.gz`` with the rows as one transaction saw them, and
``blobs/`` with everything those rows refer to. Writers go on meanwhile; only the collection of garbage is kept out. The
folder gets its name when it is complete. What a SQLite ledger wrote can be restored into PostgreSQL and back.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Float,
    Integer,
    Table,
    Text,
    column,
    insert,
    select,
    table,
    type_coerce,
)
from sqlalchemy.types import TypeEngine

from tidemill.kernel import (
    Clock,
    Conflict,
    Digest,
    InvalidInput,
    NotFound,
    Scope,
    SystemClock,
    Unavailable,
    digest_file,
    fresh_id,
    parse_digest,
)
from tidemill.ledger.blob_folder import Folder
from tidemill.ledger.columns import Moment
from tidemill.ledger.garbage import StorageLease, references_within, storage_lease
from tidemill.ledger.records import S3Options
from tidemill.ledger.tables import (
    SCHEMA_VERSION,
    artifact_blobs,
    blob_pins,
    chain_heads,
    dataset_parts,
    leases,
    limit_leases,
    limit_requests,
    metadata,
)

if TYPE_CHECKING:
    from tidemill.ledger.database import Database
    from tidemill.ledger.ledger import Ledger

_FORMAT: Final = 1
_BATCH_ROWS: Final = 2000
# Pins and leases speak of processes of this machine; a restored run that was running is found abandoned. What limits
# have spent is restored, for a budget goes on; which segments are settled belongs to the machine that drains them.
_LEFT_OUT: Final = (blob_pins, leases, limit_leases, limit_requests)
_TABLES: Final = [one for one in metadata.sorted_tables if one not in _LEFT_OUT]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup holds.

    Args:
        path: its folder.
        rows: rows by table.
        blobs: how many blobs, and ``blob_bytes`` their size.
        missing: blobs that rows refer to and that the store does not have.
        audit_head: number of the newest entry of the audit chain.
    """

    path: Path
    rows: Mapping[str, int]
    blobs: int
    blob_bytes: int
    missing: tuple[Digest, ...]
    audit_head: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What was restored: rows by table, blobs and their size, entries of the audit chain that verify."""

    rows: Mapping[str, int]
    blobs: int
    blob_bytes: int
    audit_entries: int


def backup(ledger: Ledger, path: Path) -> BackupReport:
    """Write the ledger's scope to a new folder while others write. All that was acknowledged before is in it.

    Args:
        ledger: whose rows and blobs.
        path: the folder to make.

    Raises:
        InvalidInput: there is something at the path.
        Conflict: another backup or a collection of garbage is under way.
        Unavailable: no space is left, or the store or database does not answer. Nothing is left at the path.
    """
    if path.exists():
        raise InvalidInput(f"There is something at {path} already.", hint="Name a new folder for the backup.")
    partial = path.with_name(f".{path.name}.{fresh_id('partial')}")
    try:
        with _writing(path):
            partial.mkdir(mode=0o700, parents=True)
            (partial / "tables").mkdir(mode=0o700)
        with storage_lease(ledger) as lease:
            created_at = ledger.clock.now()
            with ledger.database.read() as connection, _writing(path):
                files = {one.name: _dump(connection, ledger.database, one, partial, lease) for one in _TABLES}
                referenced = set(references_within(connection, ledger.database))
                needed = _needed(connection, ledger.database)
                head = connection.execute(select(chain_heads.c.seq).where(ledger.database.mine(chain_heads)))
                audit_head = head.scalar_one_or_none() or 0
            blobs = _copy_blobs(ledger, partial, referenced, needed, lease)
        with _writing(path):
            manifest = {
                "format": _FORMAT,
                "schema": SCHEMA_VERSION,
                "project": ledger.scope.project,
                "tenant": ledger.scope.tenant,
                "created_at": created_at.isoformat(),
                "audit_head": audit_head,
                "tables": files,
                "blobs": blobs,
            }
            _write_json(partial / "manifest.json", manifest)
            _sync(partial / "tables", partial)
            partial.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return BackupReport(
        path=path,
        rows={name: one["rows"] for name, one in files.items()},
        blobs=len(blobs),
        blob_bytes=sum(blobs.values()),
        missing=tuple(Digest(digest) for digest in sorted(needed - set(blobs))),
        audit_head=audit_head,
        created_at=created_at,
    )


def restore(
    path: Path,
    *,
    url: str,
    blobs: str,
    scope: Scope,
    s3: S3Options | None = None,
    cache_dir: Path | None = None,
    clock: Clock = SystemClock(),  # noqa: B008 - it has no state
) -> RestoreReport:
    """Put a backup into an empty ledger, of the same or another kind. Everything is checked before anything is written.

    Args:
        path: the backup's folder.
        url: the database; made where there is none.
        blobs: where blobs shall lie.
        scope: whose ledger it is; the backup's own.
        s3: how to reach an S3-compatible store.
        cache_dir: where blobs of a remote store are spooled.
        clock: where times come from.

    Raises:
        NotFound: there is no backup at the path.
        InvalidInput: it is of another scope or format, or was changed since it was made.
        Conflict: the ledger holds something already.
        Unavailable: the store or database does not answer, or there is no space. Rows are restored all or none.
    """
    from tidemill.ledger.ledger import open_ledger

    manifest = _read_manifest(path, scope)
    _verify(path, manifest, scope)
    with open_ledger(url, blobs=blobs, scope=scope, clock=clock, s3=s3, cache_dir=cache_dir) as ledger:
        _refuse_filled(ledger, manifest)
        with storage_lease(ledger) as lease:
            source = Folder(path / "blobs", scope)
            for digest in manifest["blobs"]:
                lease.keep()
                staged = ledger.blobs.store.stage(source.path(parse_digest(digest)))
                try:
                    ledger.blobs.store.admit(staged)
                finally:
                    staged.discard()
            with ledger.database.write() as connection:
                _refuse_rows(connection, ledger.database)
                for one in _TABLES:
                    _load(connection, ledger.database, one, _table_file(path, one.name))
        audit = ledger.audit.verify()
        if not audit.ok or audit.entries != manifest["audit_head"]:
            raise Unavailable(
                f"The backup is restored, but its audit chain does not verify: {audit.reason or 'it is too short'}.",
                hint="The ledger was damaged before the backup was made; look for an older one.",
            )
    return RestoreReport(
        rows={name: one["rows"] for name, one in manifest["tables"].items()},
        blobs=len(manifest["blobs"]),
        blob_bytes=sum(manifest["blobs"].values()),
        audit_entries=audit.entries,
    )


def _dump(connection: Connection, database: Database, one: Table, folder: Path, lease: StorageLease) -> dict[str, Any]:
    """Write a table's rows of the scope, without project and tenant, which the manifest names."""
    plain = _plain(one)
    query = select(*(type_coerce(one.c[name], kind) for name, kind in plain.items())).where(database.mine(one))
    path = _table_file(folder, one.name)
    count = 0
    with _private(path) as raw, gzip.GzipFile("", "wb", 1, raw, 0) as file:
        file.write(json.dumps(list(plain)).encode() + b"\n")
        found = connection.execute(query.execution_options(yield_per=_BATCH_ROWS))
        for rows in found.partitions():
            lease.keep()
            count += len(rows)
            file.write(b"".join(json.dumps(list(row)).encode() + b"\n" for row in rows))
    return {"rows": count, "digest": digest_file(path)}


def _load(connection: Connection, database: Database, one: Table, path: Path) -> None:
    plain = _plain(one)
    target = table(
        one.name, *(column(name, kind) for name, kind in {"project": Text(), "tenant": Text(), **plain}.items())
    )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        names = json.loads(next(file))
        rows = (database.row(**dict(zip(names, json.loads(line), strict=True))) for line in file)
        while batch := list(islice(rows, _BATCH_ROWS)):
            connection.execute(insert(target), batch)


def _plain(one: Table) -> dict[str, TypeEngine[Any]]:
    """Column -> the type its values are kept as, which both databases and JSON can write."""
    kinds: dict[str, TypeEngine[Any]] = {}
    for each in one.columns:
        if each.name in ("project", "tenant"):
            continue
        if isinstance(each.type, Boolean | Float):
            kinds[each.name] = each.type
        else:
            kinds[each.name] = BigInteger() if isinstance(each.type, Integer | Moment) else Text()
    return kinds


def _needed(connection: Connection, database: Database) -> set[str]:
    """The blobs without which the rows are of no use."""
    blobs = select(artifact_blobs.c.blob).where(database.mine(artifact_blobs))
    parts = select(dataset_parts.c.object).where(database.mine(dataset_parts))
    return {*connection.execute(blobs).scalars(), *connection.execute(parts).scalars()}


def _copy_blobs(
    ledger: Ledger, folder: Path, referenced: set[str], needed: set[str], lease: StorageLease
) -> dict[str, int]:
    """Copy the referenced blobs, each checked against its digest; digest -> size in bytes."""
    target = Folder(folder / "blobs", ledger.scope)
    copied: dict[str, int] = {}

    def copy(digest: Digest, size: int) -> None:
        staged = target.stage(_kept(ledger.blobs.stream(digest), lease))
        try:
            target.admit(staged)
        finally:
            staged.discard()
        copied[digest] = size

    # Listed after the snapshot was taken: what its rows refer to was stored before it, and nothing is collected.
    for digest, size, _ in ledger.blobs.list():
        lease.keep()
        if digest in referenced:
            copy(digest, size)
    # A folder that is written to while it is listed may leave out what it holds (readdir promises no more).
    for digest in map(parse_digest, sorted(needed - set(copied))):
        if ledger.blobs.exists(digest):
            copy(digest, ledger.blobs.size(digest))
    return copied


def _kept(chunks: Iterable[bytes], lease: StorageLease) -> Iterator[bytes]:
    for chunk in chunks:
        lease.keep()
        yield chunk


def _read_manifest(path: Path, scope: Scope) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        where = manifest["project"], manifest["tenant"]
        versions = manifest["format"], manifest["schema"]
    except FileNotFoundError as error:
        raise NotFound(f"There is no backup at {path}: it has no manifest.json.") from error
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path}/manifest.json cannot be read: {error}.", hint="Use another backup.") from error
    if where != (scope.project, scope.tenant):
        raise InvalidInput(
            f"The backup at {path} is of project '{where[0]}', tenant '{where[1]}', not of '{scope.project}', "
            f"'{scope.tenant}'.",
            hint="Restore it into a project of the same name.",
        )
    if versions != (_FORMAT, SCHEMA_VERSION):
        raise InvalidInput(
            f"The backup at {path} has format {versions[0]}, schema {versions[1]}; this version of Tidemill reads "
            f"format {_FORMAT}, schema {SCHEMA_VERSION}.",
            hint="Restore it with the version that made it, then upgrade.",
        )
    return manifest


def _verify(path: Path, manifest: Mapping[str, Any], scope: Scope) -> None:
    """Check every file of a backup against the manifest."""
    folder = Folder(path / "blobs", scope)
    wanted = {_table_file(path, one.name): manifest["tables"][one.name]["digest"] for one in _TABLES}
    wanted |= {folder.path(parse_digest(digest)): digest for digest in manifest["blobs"]}
    for file, digest in wanted.items():
        try:
            found = digest_file(file)
        except OSError as error:
            raise InvalidInput(f"The backup lacks {file}: {error.strerror}.", hint="Use another backup.") from error
        if found != digest:
            raise InvalidInput(f"{file} was changed since the backup was made.", hint="Use another backup.")


def _refuse_filled(ledger: Ledger, manifest: Mapping[str, Any]) -> None:
    with ledger.database.read() as connection:
        _refuse_rows(connection, ledger.database)
    # Blobs of the backup itself may be there: an earlier attempt was interrupted.
    if any(digest not in manifest["blobs"] for digest, _, _ in ledger.blobs.list()):
        raise Conflict(f"{ledger.blobs.store.where} holds blobs already.", hint="Restore into an empty folder.")


def _refuse_rows(connection: Connection, database: Database) -> None:
    for one in _TABLES:
        if connection.execute(select(one.c.project).where(database.mine(one)).limit(1)).first() is not None:
            raise Conflict(
                f"{database.url.render_as_string()} is not empty: it has {one.name} of project "
                f"'{database.scope.project}'. Nothing was restored.",
                hint="Restore into a new database.",
            )


def _table_file(folder: Path, name: str) -> Path:
    return folder / "tables" / f"{name}.jsonl.gz"


@contextmanager
def _private(path: Path) -> Iterator[Any]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, value: Any) -> None:
    with _private(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def _sync(*folders: Path) -> None:
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"The backup cannot be written to {path}: {error.strerror}; nothing was kept.",
            hint="Free some space, or name another folder.",
        ) from error
