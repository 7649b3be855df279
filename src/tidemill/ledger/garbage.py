"""Garbage collection: blobs that nothing refers to are deleted, beside running writers.

A blob stays while an artifact, a run's inputs or outputs, a part of a data set version, a cached result or the text of
an artifact names its digest, while a live run pins it, or while it or its pin is younger than the grace period. What
was found unreferenced is looked up once more under the lock of the pins in the transaction that deletes it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Connection, Select, Text, and_, delete, or_, select, type_coerce

from tidemill.kernel import Conflict, Digest, fresh_id
from tidemill.ledger.records import Lease, RunStatus
from tidemill.ledger.tables import (
    artifact_blobs,
    artifacts,
    blob_pins,
    dataset_parts,
    dataset_rows,
    dataset_versions,
    edges,
    results,
    runs,
)

if TYPE_CHECKING:
    from tidemill.ledger.database import Database
    from tidemill.ledger.leases import Leases
    from tidemill.ledger.ledger import Ledger

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_BATCH: Final = 400
_TTL_S: Final = 120.0
_SKEW: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageReport:
    """What a collection did, or would do.

    Args:
        examined: blobs in the store.
        removed: blobs deleted (with ``dry_run``: that would be).
        freed_bytes: their size.
        kept_young: unreferenced blobs that the grace period or a pin keeps.
        temporary_removed: temporary files of dead writers.
    """

    examined: int
    removed: tuple[Digest, ...]
    freed_bytes: int
    kept_young: int
    temporary_removed: int


class StorageLease:
    """The sole right to delete blobs or to rely on none being deleted; renewed by ``keep``."""

    def __init__(self, leases: Leases, lease: Lease, database: Database) -> None:
        self._leases = leases
        self._lease = lease
        self._database = database

    def keep(self) -> None:
        """Renew when a third of the time is over; to be called often.

        Raises:
            Conflict: it was lost.
        """
        if self._lease.until - self._database.clock.now() < timedelta(seconds=_TTL_S * 2 / 3):
            self._lease = self._leases.renew(self._lease, _TTL_S)

    def check_within(self, connection: Connection) -> None:
        """Make sure, as a part of a write transaction, that it still holds.

        Raises:
            Conflict: it was lost.
        """
        self._leases.check_within(connection, self._lease)

    def release(self) -> None:
        """Give it back."""
        self._leases.release(self._lease)


@contextmanager
def storage_lease(ledger: Ledger) -> Iterator[StorageLease]:
    """Keep other collections and backups out.

    Raises:
        Conflict: one is under way.
    """
    lease = ledger.leases.acquire("storage", fresh_id("storage"), _TTL_S)
    if lease is None:
        raise Conflict(
            "A garbage collection or a backup of this store is under way.",
            hint=f"Wait for it; if it was killed, its claim ends within {_TTL_S:.0f} s.",
        )
    held = StorageLease(ledger.leases, lease, ledger.database)
    try:
        yield held
    finally:
        held.release()


def collect_garbage(ledger: Ledger, *, grace_s: float = 3600.0, dry_run: bool = False) -> GarbageReport:
    """Delete the blobs that nothing refers to.

    Args:
        ledger: whose blobs; those of its scope alone.
        grace_s: how long a blob without references stays after it was stored or pinned, in seconds. It must exceed
            the difference between the machines' clocks.
        dry_run: delete nothing, report what would be.

    Raises:
        Conflict: another collection or a backup is under way.
        Unavailable: the store or the database does not answer; what was deleted until then was garbage.
    """
    with storage_lease(ledger) as lease:
        started = ledger.clock.now()
        cutoff = started - timedelta(seconds=grace_s)
        found: dict[str, tuple[int, datetime]] = {}
        for digest, size, stored in ledger.blobs.list():
            found[digest] = size, stored
            if len(found) % 1000 == 0:
                lease.keep()
        examined = len(found)
        _strike(found, references(ledger.database))
        old = {digest: size for digest, (size, stored) in found.items() if stored <= cutoff}
        removed: list[Digest] = []
        for batch in _batches(old):
            lease.keep()
            removed += _collect(ledger, lease, batch, (cutoff, started), dry_run=dry_run)
        orphans = ledger.blobs.store.orphans()
        if not dry_run:
            remove_paths(orphans)
            drop_stale_pins(ledger.database, cutoff)
    return GarbageReport(
        examined=examined,
        removed=tuple(removed),
        freed_bytes=sum(old[digest] for digest in removed),
        kept_young=len(found) - len(removed),
        temporary_removed=len(orphans),
    )


def references(database: Database) -> Iterator[str]:
    """Every digest that the rows of the scope refer to, with repetitions; not all are digests of blobs."""
    with database.read() as connection:
        yield from references_within(connection, database)


def references_within(connection: Connection, database: Database) -> Iterator[str]:
    """``references`` as a part of a larger read."""
    mine = database.mine
    for query in (
        select(artifact_blobs.c.blob).where(mine(artifact_blobs)),
        select(edges.c.child).where(mine(edges), edges.c.relation == "output"),
        select(edges.c.parent).where(mine(edges), edges.c.relation == "input"),
        _parts(database),
    ):
        yield from _streamed(connection, query)
    for query in (
        select(type_coerce(artifacts.c.content, Text)).where(mine(artifacts)),
        select(type_coerce(results.c.value, Text)).where(mine(results)),
    ):
        for text in _streamed(connection, query):
            yield from _DIGEST.findall(text)


def live_pins(database: Database, cutoff: datetime) -> ColumnElement[bool]:
    """The condition that a pin holds: it is younger than the cutoff, or its run was alive then."""
    alive = select(runs.c.run_id).where(
        database.mine(runs), runs.c.status == RunStatus.RUNNING.value, runs.c.lease_until >= cutoff
    )
    holds = or_(blob_pins.c.created_at >= cutoff, blob_pins.c.run_id.in_(alive))
    return and_(database.mine(blob_pins), holds)


def remove_paths(paths: Iterable[Path]) -> None:
    """Delete files and folders; one that is gone already is no error."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def drop_stale_pins(database: Database, cutoff: datetime) -> int:
    """Delete the pins that hold nothing any more, and say how many."""
    with database.write(sync_full=False) as connection:
        database.lock(connection, "blobs")
        stale = select(blob_pins.c.digest, blob_pins.c.run_id).where(
            database.mine(blob_pins), ~live_pins(database, cutoff)
        )
        rows = connection.execute(stale).all()
        for row in rows:
            which = and_(blob_pins.c.digest == row.digest, blob_pins.c.run_id == row.run_id)
            connection.execute(delete(blob_pins).where(database.mine(blob_pins), which))
        return len(rows)


def _collect(
    ledger: Ledger,
    lease: StorageLease,
    batch: list[Digest],
    times: tuple[datetime, datetime],
    *,
    dry_run: bool,
) -> list[Digest]:
    """Delete those of a batch that are still garbage, under the lock that pins are written under."""
    database = ledger.database
    cutoff, started = times
    with database.write(sync_full=False) as connection:
        database.lock(connection, "blobs")
        lease.check_within(connection)
        doomed: dict[str, Any] = dict.fromkeys(batch)
        for query in _lookups(database, batch, cutoff):
            _strike(doomed, connection.execute(query).scalars())
        _strike(doomed, _texts_since(connection, database, started - _SKEW))
        garbage = [Digest(digest) for digest in doomed]
        if not dry_run:
            ledger.blobs.store.remove(garbage)
            _forget_parts(connection, database, garbage)
    return garbage


def _forget_parts(connection: Connection, database: Database, objects: list[Digest]) -> None:
    """Delete the row lists of data set parts whose objects are gone: a writer died before it published them."""
    gone = select(dataset_parts.c.part).where(database.mine(dataset_parts), dataset_parts.c.object.in_(objects))
    parts = connection.execute(gone).scalars().all()
    for table in (dataset_rows, dataset_parts):
        connection.execute(delete(table).where(database.mine(table), table.c.part.in_(parts)))


def _lookups(database: Database, batch: list[Digest], cutoff: datetime) -> list[Select[Any]]:
    mine = database.mine
    return [
        select(blob_pins.c.digest).where(live_pins(database, cutoff), blob_pins.c.digest.in_(batch)),
        select(artifact_blobs.c.blob).where(mine(artifact_blobs), artifact_blobs.c.blob.in_(batch)),
        select(edges.c.child).where(mine(edges), edges.c.child.in_(batch)),
        select(edges.c.parent).where(mine(edges), edges.c.parent.in_(batch)),
        _parts(database).where(dataset_parts.c.object.in_(batch)),
    ]


def _texts_since(connection: Connection, database: Database, since: datetime) -> Iterator[str]:
    content = select(type_coerce(artifacts.c.content, Text)).where(
        database.mine(artifacts), artifacts.c.created_at >= since
    )
    value = select(type_coerce(results.c.value, Text)).where(database.mine(results), results.c.at >= since)
    for query in (content, value):
        for text in _streamed(connection, query):
            yield from _DIGEST.findall(text)


def _parts(database: Database) -> Select[Any]:
    used = select(dataset_versions.c.part).where(database.mine(dataset_versions))
    return select(dataset_parts.c.object).where(database.mine(dataset_parts), dataset_parts.c.part.in_(used))


def _streamed(connection: Connection, query: Select[Any]) -> Iterator[str]:
    # Execution options live on the statement: on the connection they would outlast this query.
    yield from connection.execute(query.execution_options(yield_per=1000)).scalars()


def _strike(found: dict[str, Any], referenced: Iterable[str]) -> None:
    for digest in referenced:
        found.pop(digest, None)


def _batches(digests: Iterable[str]) -> Iterator[list[Digest]]:
    rest = iter(digests)
    while batch := [Digest(digest) for digest in islice(rest, _BATCH)]:
        yield batch
