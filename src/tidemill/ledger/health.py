"""The doctor: looks over a store, says in sentences what is wrong, and mends what can be mended without a backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, func, select, text

from tidemill.kernel import Digest, NotFound, Unavailable
from tidemill.ledger.blob_folder import Folder
from tidemill.ledger.garbage import drop_stale_pins, live_pins, remove_paths
from tidemill.ledger.records import ArtifactVersion, RunStatus
from tidemill.ledger.schema import version as schema_version
from tidemill.ledger.tables import (
    SCHEMA_VERSION,
    artifact_blobs,
    blob_pins,
    dataset_parts,
    dataset_versions,
    metadata,
    runs,
)

if TYPE_CHECKING:
    from tidemill.ledger.ledger import Ledger

_PIN_GRACE: Final = timedelta(hours=1)
_EMPTY: Final = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Args:
        check: its name.
        ok: nothing is wrong now.
        what: a sentence.
        mended: something was wrong and was mended.
    """

    check: str
    ok: bool
    what: str
    mended: bool = False


def doctor(ledger: Ledger, *, mend: bool = False, deep: bool = False) -> list[Finding]:
    """Look over a store beside its users.

    Args:
        ledger: whose database and blobs.
        mend: put right what can be: remove leftovers, mark dead runs, restrict modes, set damaged blobs aside.
        deep: read every blob and every data set and compare with their digests.

    Returns:
        A finding of each check, at least one each.

    Raises:
        Unavailable: the database or the store does not answer.
    """
    findings: list[Finding] = []
    for check in (_database, _migrations, _audit, _blobs, _leftovers, _runs, _pins, _modes):
        findings += check(ledger, mend)
    if deep:
        findings += _digests(ledger, mend)
        findings += _datasets(ledger)
    return findings


def _database(ledger: Ledger, _mend: bool) -> Iterator[Finding]:
    where = ledger.database.url.render_as_string()
    with ledger.database.read() as connection:
        if ledger.database.dialect == "sqlite":
            said = connection.execute(text("PRAGMA integrity_check(5)")).scalars().all()
            broken = connection.execute(text("PRAGMA foreign_key_check")).all()
            faults = [line for line in said if line != "ok"] + [
                f"a row of {row[0]} refers to nothing" for row in broken
            ]
        else:
            faults = []
            for table in metadata.sorted_tables:
                connection.execute(select(func.count()).select_from(table))
    if faults:
        yield Finding("database", False, f"{where} is damaged: {'; '.join(faults[:5])}. Restore a backup.")
    else:
        yield Finding("database", True, f"{where} is sound.")


def _migrations(ledger: Ledger, _mend: bool) -> Iterator[Finding]:
    found = schema_version(ledger.database)
    ok = found == SCHEMA_VERSION
    what = f"The tables have version {found}" + (" as they should." if ok else f"; {SCHEMA_VERSION} is needed.")
    yield Finding("migrations", ok, what)


def _audit(ledger: Ledger, _mend: bool) -> Iterator[Finding]:
    report = ledger.audit.verify()
    if report.ok:
        yield Finding("audit", True, f"The audit chain verifies: {report.entries} entries.")
    else:
        yield Finding("audit", False, f"The audit chain breaks at entry {report.first_bad_seq}: {report.reason}.")


def _blobs(ledger: Ledger, mend: bool) -> Iterator[Finding]:
    there = {digest: size for digest, size, _ in ledger.blobs.list()}
    database = ledger.database
    used = select(dataset_versions.c.part).where(database.mine(dataset_versions))
    part = and_(database.mine(dataset_parts), dataset_parts.c.part.in_(used))
    with database.read() as connection:
        held = select(artifact_blobs.c.blob, artifact_blobs.c.artifact).where(database.mine(artifact_blobs))
        needed = {row.blob: f"artifact {row.artifact}" for row in connection.execute(held)}
        parts = connection.execute(select(dataset_parts.c.object).where(part)).scalars()
        needed |= dict.fromkeys(parts, "a data set version")
    for digest, by in needed.items():
        if digest not in there:
            yield Finding("blobs", False, f"The blob {digest} of {by} is missing. Restore a backup, or make it again.")
    for digest, size in there.items():
        if size == 0 and digest != _EMPTY:
            yield _damaged(ledger, digest, mend, by=needed.get(digest))
    yield Finding("blobs", True, f"{len(there)} blobs, {sum(there.values())} bytes; {len(needed)} are referred to.")


def _digests(ledger: Ledger, mend: bool) -> Iterator[Finding]:
    good = 0
    for digest, _, _ in ledger.blobs.list():
        try:
            for _chunk in ledger.blobs.stream(digest):
                pass
            good += 1
        except NotFound:
            continue  # collected, or set aside by the check before
        except Unavailable:
            if ledger.blobs.store.size(digest) is None:  # the store answers, so the bytes are at fault
                continue
            yield _damaged(ledger, digest, mend, by=None)
    yield Finding("digests", True, f"{good} blobs have the bytes that their digests name.")


def _damaged(ledger: Ledger, digest: Digest, mend: bool, *, by: str | None) -> Finding:
    what = f"The blob {digest}" + (f" of {by}" if by else "") + " is damaged"
    if not mend:
        return Finding("digests", False, f"{what}. Run with mend to set it aside, so that it can be stored again.")
    ledger.blobs.store.set_aside(digest)
    return Finding("digests", False, f"{what} and was set aside: store it again, or restore a backup.", mended=True)


def _datasets(ledger: Ledger) -> Iterator[Finding]:
    good = 0
    for version in _versions(ledger):
        try:
            ok = ledger.datasets.verify(version)
            why = "its rows do not have its Merkle root"
        except (NotFound, Unavailable, OSError) as error:
            ok, why = False, str(error).partition("\n")[0]
        if ok:
            good += 1
        else:
            yield Finding("data sets", False, f"'{version.ref}' cannot be read: {why}. Restore a backup.")
    yield Finding("data sets", True, f"{good} data set versions have the rows that their names promise.")


def _versions(ledger: Ledger) -> Iterator[ArtifactVersion]:
    query = select(dataset_versions.c.version).where(ledger.database.mine(dataset_versions)).distinct()
    with ledger.database.read() as connection:
        digests = connection.execute(query).scalars().all()
    yield from ledger.artifacts.named_by(digests).values()


def _leftovers(ledger: Ledger, mend: bool) -> Iterator[Finding]:
    orphans = ledger.blobs.store.orphans()
    if orphans and mend:
        remove_paths(orphans)
    yield _counted("temporary files", len(orphans), "temporary files of dead writers", "removed", mend=mend)


def _runs(ledger: Ledger, mend: bool) -> Iterator[Finding]:
    over = and_(runs.c.status == RunStatus.RUNNING.value, runs.c.lease_until <= ledger.clock.now())
    with ledger.database.read() as connection:
        query = select(func.count()).select_from(runs).where(ledger.database.mine(runs), over)
        dead = connection.execute(query).scalar_one()
    if dead and mend:
        ledger.runs.expire()
    yield _counted("runs", dead, "runs without a sign of life", "marked abandoned", mend=mend)


def _pins(ledger: Ledger, mend: bool) -> Iterator[Finding]:
    cutoff = ledger.clock.now() - _PIN_GRACE
    mine = ledger.database.mine(blob_pins)
    with ledger.database.read() as connection:
        query = select(func.count()).select_from(blob_pins).where(mine, ~live_pins(ledger.database, cutoff))
        stale = connection.execute(query).scalar_one()
    if stale and mend:
        drop_stale_pins(ledger.database, cutoff)
    yield _counted(
        "pins", stale, "pins of runs that ended or writers that are done", "removed", mend=mend, harmless=True
    )


def _modes(ledger: Ledger, mend: bool) -> Iterator[Finding]:
    open_to_others = [path for path in _private_paths(ledger) if _mode(path) & 0o077]
    if mend:
        for path in open_to_others:
            with suppress(FileNotFoundError):
                path.chmod(_mode(path) & 0o700)
    what = "files or folders that others than their owner can reach"
    yield _counted("modes", len(open_to_others), what, "restricted", mend=mend)


def _mode(path: Path) -> int:
    """The mode of a file; 0 where it was collected or closed meanwhile."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0


def _private_paths(ledger: Ledger) -> Iterator[Path]:
    database = ledger.database.path
    if database is not None:
        beside = (database.with_name(database.name + end) for end in ("", "-wal", "-shm"))
        yield from (path for path in beside if path.exists())
    store = ledger.blobs.store
    if isinstance(store, Folder):
        yield from store.folders()
        paths: Callable[[Digest], Path] = store.path
        yield from (path for path in (paths(digest) for digest, _, _ in store.list()) if path.exists())


def _counted(check: str, count: int, what: str, done: str, *, mend: bool, harmless: bool = False) -> Finding:
    if count == 0:
        return Finding(check, True, f"No {what}.")
    if mend:
        return Finding(check, True, f"{count} {what}: {done}.", mended=True)
    return Finding(check, harmless, f"{count} {what}: can be mended.")
