"""Data set versions: rows with stable ids, their sources, and a name that only their content determines.

A version is an artifact whose content holds the Merkle root over (row id, row digest) in the order of the ids. Which
Parquet parts hold the rows is kept beside it, in tables: a base, then deltas and deletions, shared with the versions it
came from. So an edit costs what it changes, and compaction rewrites the parts without touching the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, and_, delete, func, insert, select

from tidemill.kernel import ArtifactKind, Digest, Fault, InvalidInput, NotFound, RowId, RunId
from tidemill.ledger.dataset_files import (
    MerkleTree,
    Part,
    PartWriter,
    Record,
    Row,
    SortedRows,
    compare,
    merge_parts,
)
from tidemill.ledger.records import ArtifactVersion
from tidemill.ledger.tables import dataset_parts, dataset_rows, dataset_versions

if TYPE_CHECKING:
    from tidemill.ledger.artifacts import Artifacts
    from tidemill.ledger.blobs import Blobs
    from tidemill.ledger.database import Database
    from tidemill.ledger.lineage import Lineage

_MAX_PARTS: Final = 16
_MAX_CHANGED: Final = 0.3
_TABLE_ROWS: Final = 20_000
_NAMED_FIELDS: Final = 200


@dataclass(frozen=True, slots=True)
class _Stored:
    """A part that is in the store and in the tables, but not yet in a version."""

    part: int
    object: Digest


@dataclass(slots=True)
class _Summary:
    """What one pass over the rows shows, and how far they differ from the base."""

    tree: MerkleTree = field(default_factory=MerkleTree)
    count: int = 0
    fields: set[str] = field(default_factory=set)
    changed: int = 0
    deleted: int = 0

    def content(self) -> dict[str, Any]:
        """What goes into the artifact's content under ``rows``."""
        return {"root": self.tree.root(), "count": self.count, "fields": sorted(self.fields)[:_NAMED_FIELDS]}


class Datasets:
    """The data set versions of one scope.

    Args:
        database: where the parts of versions are listed.
        blobs: where the parts lie.
        artifacts: where versions are published.
        lineage: where the sources of rows are linked.
    """

    def __init__(self, database: Database, *, blobs: Blobs, artifacts: Artifacts, lineage: Lineage) -> None:
        self._database = database
        self._blobs = blobs
        self._artifacts = artifacts
        self._lineage = lineage

    def write(
        self,
        name: str,
        rows: Iterable[Row],
        *,
        kind: ArtifactKind = ArtifactKind.DATASET,
        content: Mapping[str, Any] | None = None,
        extra_blobs: Mapping[str, Digest] | None = None,
        made_by: RunId | None = None,
        parents: Iterable[Digest] = (),
        base: ArtifactVersion | None = None,
    ) -> ArtifactVersion:
        """Store rows as a version of a data set, durable when this returns. Memory is bounded.

        Args:
            name: the data set's name.
            rows: all rows of the version, in any order.
            kind: of the artifact.
            content: further JSON content; ``rows`` is taken.
            extra_blobs: role -> digest of further blobs.
            made_by: the run that makes it.
            parents: artifacts it came from, where no run records them.
            base: a version that most rows are shared with: only what differs is stored. It becomes a parent.

        Returns:
            The version; the one that is there when rows and content are the same.

        Raises:
            InvalidInput: two different rows with one id, a value JSON has no form for, a base that is no data set.
            Unavailable: no space is left or the store does not answer. Nothing is published.
        """
        content = dict(content or {})
        if "rows" in content:
            raise InvalidInput("the content of a data set may not have the key 'rows': it describes the rows stored")
        with self._blobs.store.scratch() as folder:
            sorted_rows = SortedRows(rows, folder)
            stored, summary = self._store(sorted_rows, base, folder, made_by)
            self._link(sorted_rows, base)
        parents = [*parents, *([base.digest] if base else [])]
        with self._database.write() as connection:
            self._database.lock(connection, "blobs")
            version = self._artifacts.publish_within(
                connection,
                kind,
                name,
                {**content, "rows": summary.content()},
                blobs=dict(extra_blobs or {}),
                made_by=made_by,
                parents=parents,
            )
            if not self._layout_within(connection, version.digest):
                self._set_layout(connection, version.digest, stored)
        return version

    def read(self, version: ArtifactVersion) -> Iterator[Row]:
        """The rows of a version in the order of their ids, one batch of a thousand in memory at a time.

        Raises:
            InvalidInput: the artifact is no data set.
            NotFound: a part is not in the store.
        """
        with self._open(version) as parts:
            for record in merge_parts(parts):
                yield record.row()

    def rows(self, version: ArtifactVersion, row_ids: Iterable[RowId]) -> list[Row]:
        """The rows with these ids, in the order asked for.

        Raises:
            NotFound: the version does not hold one of them.
        """
        asked = list(row_ids)
        found: dict[str, Row] = {}
        while True:
            layout = self._layout(version)
            where = self._where(version, sorted(set(asked)))
            try:
                for part, wanted in where.items():
                    with ExitStack() as stack:
                        opened = self._opened(stack, layout[part])
                        found |= {record.row_id: record.row() for record in opened.find(wanted)}
                break
            except (NotFound, KeyError):
                if self._layout(version) == layout:
                    raise
                # Compacted meanwhile: the new parts hold the same rows.
        missing = [row_id for row_id in asked if row_id not in found]
        if missing:
            raise NotFound(f"'{version.ref}' does not hold the row '{missing[0]}' ({len(missing)} of {len(asked)}).")
        return [found[row_id] for row_id in asked]

    def count(self, version: ArtifactVersion) -> int:
        """How many rows a version has.

        Raises:
            InvalidInput: the artifact is no data set.
        """
        return int(_described(version)["count"])

    def objects(self, version: ArtifactVersion) -> list[Digest]:
        """The blobs that hold a version's rows: a base, then deltas and deletions."""
        return list(self._layout(version).values())

    def verify(self, version: ArtifactVersion) -> bool:
        """Whether the stored rows have the Merkle root that names the version."""
        tree = MerkleTree()
        with self._open(version) as parts:
            for record in merge_parts(parts, values=False):
                tree.add(record.row_id, record.digest)
        return bool(tree.root() == _described(version)["root"])

    def compact(self, version: ArtifactVersion) -> bool:
        """Rewrite a version that lies in several parts as one base. Its name and digest stay.

        Readers that have begun are not disturbed.

        Returns:
            Whether anything was rewritten; ``False`` too if another compaction was first.

        Raises:
            Fault: the rows read do not have the version's Merkle root; nothing is changed.
        """
        before = self._layout(version)
        if len(before) < 2:
            return False
        tree = MerkleTree()

        def counted(records: Iterator[Record]) -> Iterator[Record]:
            for record in records:
                tree.add(record.row_id, record.digest)
                yield record

        with self._blobs.store.scratch() as folder, self._open(version) as parts:
            stored = self._write_part(folder / "base", counted(merge_parts(parts)), None)
        if tree.root() != _described(version)["root"]:
            raise Fault(f"the parts of '{version.ref}' do not add up to its Merkle root")
        # Readers that began on the old parts get the collector's grace period, counted from now, to finish.
        self._blobs.pin(before.values())
        with self._database.write() as connection:
            self._database.lock(connection, "blobs")
            if self._layout_within(connection, version.digest) != before:
                return False
            mine = and_(self._database.mine(dataset_versions), dataset_versions.c.version == version.digest)
            connection.execute(delete(dataset_versions).where(mine))
            self._set_layout(connection, version.digest, [stored])
            self._forget_unused(connection, list(before))
        return True

    def _store(
        self, rows: SortedRows, base: ArtifactVersion | None, folder: Path, made_by: RunId | None
    ) -> tuple[list[_Stored], _Summary]:
        """Write what is not in the store yet; return the parts of the new version."""
        summary = _Summary()
        if base is not None:
            shared = self._layout(base)
            with self._open(base) as parts:
                for new, old in compare(rows, merge_parts(parts, values=False)):
                    _count(summary, new, old)
            # The base's parts stay in the store while we write, whatever is compacted meanwhile.
            self._blobs.pin(shared.values(), run_id=made_by)
            few = summary.changed + summary.deleted <= _MAX_CHANGED * max(summary.count, 1)
            if few and len(shared) + 2 <= _MAX_PARTS:
                kept = [_Stored(part, blob) for part, blob in shared.items()]
                return kept + self._write_delta(rows, base, folder, made_by), summary
        else:
            for record in rows:
                _count(summary, record, None)
        return [self._write_part(folder / "base", rows, made_by)], summary

    def _write_delta(
        self, rows: SortedRows, base: ArtifactVersion, folder: Path, made_by: RunId | None
    ) -> list[_Stored]:
        def differing(pick: Callable[[Record | None, Record | None], Record | None]) -> Iterator[Record]:
            with self._open(base) as parts:
                for new, old in compare(rows, merge_parts(parts, values=False)):
                    record = pick(new, old)
                    if record is not None:
                        yield record

        def changed(new: Record | None, old: Record | None) -> Record | None:
            return new if new is not None and (old is None or old.digest != new.digest) else None

        def gone(new: Record | None, old: Record | None) -> Record | None:
            return old if new is None else None

        made = [
            self._write_part(folder / "delta", differing(changed), made_by),
            self._write_part(folder / "deletions", differing(gone), made_by, deletions=True),
        ]
        return [stored for stored in made if stored.part >= 0]

    def _write_part(
        self, path: Path, records: Iterable[Record], made_by: RunId | None, *, deletions: bool = False
    ) -> _Stored:
        """Write a part, store it as a blob and list its rows. An empty delta is not stored: its number is -1."""
        with PartWriter(path, deletions=deletions) as writer:
            for record in records:
                writer.add(record)
        if writer.rows == 0 and path.name != "base":
            return _Stored(-1, Digest(""))
        digest = self._blobs.put(path, run_id=made_by)
        part = self._part_number(digest)
        with ExitStack() as stack:
            opened = self._opened_file(stack, path)
            ids = (record.row_id for record in opened.records(values=False))
            while chunk := list(islice(ids, _TABLE_ROWS)):
                held = [self._database.row(row_id=row_id, part=part, present=not deletions) for row_id in chunk]
                with self._database.write(sync_full=False) as connection:
                    self._database.put(connection, dataset_rows, held)
        return _Stored(part, digest)

    def _part_number(self, blob: Digest) -> int:
        mine = self._database.mine(dataset_parts)
        with self._database.write(sync_full=False) as connection:
            self._database.lock(connection, "dataset parts")
            known = select(dataset_parts.c.part).where(mine, dataset_parts.c.object == blob)
            part = connection.execute(known).scalar_one_or_none()
            if part is None:
                newest = connection.execute(select(func.max(dataset_parts.c.part)).where(mine)).scalar_one()
                part = (newest or 0) + 1
                connection.execute(insert(dataset_parts), self._database.row(part=part, object=blob))
        return int(part)

    def _link(self, rows: SortedRows, base: ArtifactVersion | None) -> None:
        """Link the rows to their sources; those that the base has too are linked already."""
        with ExitStack() as stack:
            pairs: Iterable[tuple[Record | None, Record | None]] = ((record, None) for record in rows)
            if base is not None:
                pairs = compare(rows, merge_parts(stack.enter_context(self._open(base)), values=False))
            edges = (
                (new.row_id, source)
                for new, old in pairs
                if new is not None and (old is None or old.digest != new.digest)
                for source in new.sources
            )
            while chunk := list(islice(edges, _TABLE_ROWS)):
                with self._database.write(sync_full=False) as connection:
                    self._lineage.link_rows_within(connection, chunk)

    def _set_layout(self, connection: Connection, version: Digest, stored: list[_Stored]) -> None:
        """List the parts of a version, having made sure that the collector left them."""
        known = select(dataset_parts.c.part, dataset_parts.c.object).where(
            self._database.mine(dataset_parts), dataset_parts.c.part.in_([one.part for one in stored])
        )
        there = {row.part: row.object for row in connection.execute(known)}
        for one in stored:
            if there.get(one.part) != one.object:
                raise NotFound(
                    f"The rows of a data set ({one.object}) were collected while they were being written.",
                    hint="Run it again, with a run that lives or a longer grace period of the collection.",
                )
        ordinals = [
            self._database.row(version=version, ordinal=ordinal, part=one.part) for ordinal, one in enumerate(stored)
        ]
        self._database.put(connection, dataset_versions, ordinals)

    def _forget_unused(self, connection: Connection, parts: list[int]) -> None:
        mine = self._database.mine(dataset_versions)
        used = select(dataset_versions.c.part).where(mine, dataset_versions.c.part.in_(parts))
        unused = set(parts) - set(connection.execute(used).scalars())
        for table in (dataset_rows, dataset_parts):
            connection.execute(delete(table).where(self._database.mine(table), table.c.part.in_(unused)))

    def _where(self, version: ArtifactVersion, row_ids: list[RowId]) -> dict[int, set[str]]:
        """Part -> the ids among these whose row it holds."""
        same = and_(self._database.mine(dataset_rows), dataset_rows.c.part == dataset_versions.c.part)
        spoken: dict[str, tuple[int, bool]] = {}
        with self._database.read() as connection:
            for start in range(0, len(row_ids), 500):
                query = (
                    select(dataset_rows.c.row_id, dataset_rows.c.part, dataset_rows.c.present)
                    .join(dataset_versions, same)
                    .where(self._database.mine(dataset_versions), dataset_versions.c.version == version.digest)
                    .where(dataset_rows.c.row_id.in_(row_ids[start : start + 500]))
                    .order_by(dataset_versions.c.ordinal)
                )
                spoken |= {row.row_id: (row.part, row.present) for row in connection.execute(query)}
        where: dict[int, set[str]] = {}
        for row_id, (part, present) in spoken.items():
            if present:
                where.setdefault(part, set()).add(row_id)
        return where

    def _layout(self, version: ArtifactVersion) -> dict[int, Digest]:
        _described(version)
        with self._database.read() as connection:
            layout = self._layout_within(connection, version.digest)
        if not layout:
            raise NotFound(f"The rows of '{version.ref}' are not in this store.", hint="Restore them from a backup.")
        return layout

    def _layout_within(self, connection: Connection, version: Digest) -> dict[int, Digest]:
        """Part -> its blob, in their order."""
        same = and_(self._database.mine(dataset_parts), dataset_parts.c.part == dataset_versions.c.part)
        query = (
            select(dataset_parts.c.part, dataset_parts.c.object)
            .join(dataset_versions, same)
            .where(self._database.mine(dataset_versions), dataset_versions.c.version == version)
            .order_by(dataset_versions.c.ordinal)
        )
        return {row.part: Digest(row.object) for row in connection.execute(query)}

    @contextmanager
    def _open(self, version: ArtifactVersion) -> Iterator[list[Part]]:
        """All parts of a version, opened; anew when they were compacted and collected before they could be opened."""
        with ExitStack() as stack:
            while True:
                layout = self._layout(version)
                try:
                    parts = [self._opened(stack, blob) for blob in layout.values()]
                    break
                except (NotFound, FileNotFoundError):
                    if self._layout(version) == layout:
                        raise
            yield parts

    def _opened(self, stack: ExitStack, blob: Digest) -> Part:
        return self._opened_file(stack, self._blobs.local_path(blob))

    def _opened_file(self, stack: ExitStack, path: Path) -> Part:
        part = Part(path)
        stack.callback(part.close)
        return part


def _described(version: ArtifactVersion) -> Mapping[str, Any]:
    rows = version.content.get("rows")
    if not isinstance(rows, Mapping) or "root" not in rows:
        raise InvalidInput(f"'{version.ref}' is no data set: it has no rows")
    return rows


def _count(summary: _Summary, new: Record | None, old: Record | None) -> None:
    """Take one pair of ``compare`` into the summary."""
    if new is None:
        summary.deleted += 1
        return
    summary.tree.add(new.row_id, new.digest)
    summary.count += 1
    summary.changed += old is None or old.digest != new.digest
    if len(summary.fields) <= _NAMED_FIELDS:
        import json

        summary.fields.update(json.loads(new.value))
