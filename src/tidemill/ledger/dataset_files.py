"""The files of data set versions: rows sorted within bounded memory, Parquet parts, and the Merkle root over them.

A part is a Parquet file sorted by row id: of rows (a base or a delta), or of row ids alone (deletions).
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tidemill.kernel import Digest, InvalidInput, RowId, Unavailable, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

_SORT_BYTES: Final = 64 << 20
_GROUP_BYTES: Final = 4 << 20
_GROUP_ROWS: Final = 5000
_ROW_OVERHEAD_BYTES: Final = 400
_BATCH_ROWS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a data set version.

    Args:
        row_id: stable across versions.
        value: a JSON object.
        sources: ids of the rows, or URIs of the sources, that it came from.
        subject_hash: keyed hash of the person it concerns.
    """

    row_id: RowId
    value: Mapping[str, Any]
    sources: tuple[str, ...] = ()
    subject_hash: str | None = None


class Record(NamedTuple):
    """A row as it is stored: its value as canonical JSON text, and the digest over value, sources and subject."""

    row_id: str
    digest: bytes
    value: str
    sources: tuple[str, ...]
    subject_hash: str | None

    def row(self) -> Row:
        """The row again."""
        return Row(
            row_id=RowId(self.row_id),
            value=json.loads(self.value),
            sources=self.sources,
            subject_hash=self.subject_hash,
        )


class SortedRows:
    """Rows in the order of their ids, to be gone through several times, in memory or in sorted runs on the disk.

    Args:
        rows: in any order; the same row twice counts once.
        folder: where runs are written.
        limit_bytes: memory for rows.

    Raises:
        InvalidInput: an empty id, or two different rows with one id (raised when they meet, in reading).
    """

    def __init__(self, rows: Iterable[Row], folder: Path, limit_bytes: int = _SORT_BYTES) -> None:
        self._folder = folder
        self._runs: list[Path] = []
        self._held: list[Record] = []
        size = 0
        for row in rows:
            record = _record(row)
            self._held.append(record)
            size += len(record.value) + _ROW_OVERHEAD_BYTES
            if size > limit_bytes:
                self._spill()
                size = 0
        self._held.sort(key=lambda record: record.row_id)

    def __iter__(self) -> Iterator[Record]:
        merged = heapq.merge(*(_read_run(run) for run in self._runs), self._held, key=lambda record: record.row_id)
        last: Record | None = None
        for record in merged:
            if last is not None and last.row_id == record.row_id:
                if last.digest != record.digest:
                    raise InvalidInput(f"two different rows have the id '{record.row_id}'")
                continue
            last = record
            yield record

    def _spill(self) -> None:
        self._held.sort(key=lambda record: record.row_id)
        run = self._folder / f"run-{len(self._runs):06d}"
        with run.open("w", encoding="utf-8") as file:
            for record in self._held:
                plain = (record.row_id, record.digest.hex(), record.value, record.sources, record.subject_hash)
                file.write(json.dumps(plain) + "\n")
        self._runs.append(run)
        self._held = []


class MerkleTree:
    """The root over leaves added one by one, holding one node a level.

    The tree is that of RFC 6962, section 2.1, with leaves ``0x00 + row digest (32 bytes) + row id``.
    """

    def __init__(self) -> None:
        self._nodes: list[tuple[int, bytes]] = []

    def add(self, row_id: str, digest: bytes) -> None:
        """Add the next row; ids come in their order."""
        level, node = 0, hashlib.sha256(b"\x00" + digest + row_id.encode()).digest()
        while self._nodes and self._nodes[-1][0] == level:
            node = hashlib.sha256(b"\x01" + self._nodes.pop()[1] + node).digest()
            level += 1
        self._nodes.append((level, node))

    def root(self) -> Digest:
        """The root of what was added; of nothing, the digest of no bytes."""
        if not self._nodes:
            return Digest("sha256:" + hashlib.sha256().hexdigest())
        node = self._nodes[-1][1]
        for _, left in reversed(self._nodes[:-1]):
            node = hashlib.sha256(b"\x01" + left + node).digest()
        return Digest("sha256:" + node.hex())


class PartWriter:
    """Writes a part in row groups of bounded size. A context manager.

    Args:
        path: the new file.
        deletions: the part lists row ids that are removed.
    """

    def __init__(self, path: Path, *, deletions: bool = False) -> None:
        import pyarrow.parquet as pq

        self.path: Final = path
        self.rows = 0
        self._schema = _schema(deletions=deletions)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=6)
        self._group: list[tuple[Any, ...]] = []
        self._group_bytes = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with _disk(self.path):
            self._flush()
            self._writer.close()

    def add(self, record: Record) -> None:
        """Add the next row; of a deletion only the id is kept."""
        self.rows += 1
        self._group.append(record)
        self._group_bytes += len(record.value) + _ROW_OVERHEAD_BYTES
        if self._group_bytes > _GROUP_BYTES or len(self._group) >= _GROUP_ROWS:
            with _disk(self.path):
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._group:
            columns = list(zip(*self._group, strict=True))[: len(self._schema)]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._group = []
        self._group_bytes = 0


class Part:
    """An open part. It stays readable when its file is deleted meanwhile.

    Args:
        path: the Parquet file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        # Opened by ourselves: pyarrow closes only what it opened, and says nothing of when.
        self._file = path.open("rb")
        self._parquet = pq.ParquetFile(self._file)
        self.deletions: Final = "value" not in self._parquet.schema_arrow.names

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()

    def records(self, *, values: bool = True) -> Iterator[Record]:
        """The rows in order; without ``values`` only ids and digests are read and filled in."""
        names = _schema(deletions=self.deletions).names if values or self.deletions else ["row_id", "digest"]
        for batch in self._parquet.iter_batches(batch_size=_BATCH_ROWS, columns=names):
            yield from _records(batch, names)

    def find(self, row_ids: set[str]) -> Iterator[Record]:
        """The rows with these ids, reading only the groups that can hold them."""
        wanted = sorted(row_ids)
        for index in range(self._parquet.num_row_groups):
            bounds = self._parquet.metadata.row_group(index).column(0).statistics
            if bounds is not None and bounds.has_min_max and not _overlaps(wanted, bounds.min, bounds.max):
                continue
            names = _schema(deletions=False).names
            for record in _records(self._parquet.read_row_group(index, columns=names), names):
                if record.row_id in row_ids:
                    yield record


def merge_parts(parts: list[Part], *, values: bool = True) -> Iterator[Record]:
    """The rows that parts add up to, in the order of their ids: what a later part says of a row holds."""
    if len(parts) == 1:
        yield from parts[0].records(values=values)
        return
    streams = [_ranked(part, -ordinal, values=values) for ordinal, part in enumerate(parts)]
    last = None
    for row_id, _, record in heapq.merge(*streams, key=lambda item: item[:2]):
        if row_id != last:
            last = row_id
            if record is not None:
                yield record


def compare(new: Iterable[Record], old: Iterator[Record]) -> Iterator[tuple[Record | None, Record | None]]:
    """Pair two sorted streams by row id: (new, None) added, (None, old) gone, (new, old) in both."""
    before = next(old, None)
    for record in new:
        while before is not None and before.row_id < record.row_id:
            yield None, before
            before = next(old, None)
        if before is not None and before.row_id == record.row_id:
            yield record, before
            before = next(old, None)
        else:
            yield record, None
    while before is not None:
        yield None, before
        before = next(old, None)


def _record(row: Row) -> Record:
    if not row.row_id:
        raise InvalidInput("a data set row has an empty id")
    value = canonical_json(dict(row.value))
    frame = canonical_json({"sources": list(row.sources), "subject_hash": row.subject_hash})
    # With its length before it the frame ends in one place only: no other pair gives the same bytes.
    digest = hashlib.sha256(len(frame).to_bytes(8, "big") + frame + value).digest()
    return Record(row.row_id, digest, value.decode(), tuple(row.sources), row.subject_hash)


def _read_run(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row_id, digest, value, sources, subject_hash = json.loads(line)
            yield Record(row_id, bytes.fromhex(digest), value, tuple(sources), subject_hash)


def _ranked(part: Part, rank: int, *, values: bool) -> Iterator[tuple[str, int, Record | None]]:
    for record in part.records(values=values):
        yield record.row_id, rank, None if part.deletions else record


def _records(batch: Any, names: list[str]) -> Iterator[Record]:
    columns: dict[str, list[Any]] = {name: batch.column(name).to_pylist() for name in names}
    empty: list[Any] = [None] * batch.num_rows
    row_ids = columns["row_id"]
    digests = columns.get("digest", empty)
    values = columns.get("value", empty)
    sources = columns.get("sources", empty)
    subjects = columns.get("subject_hash", empty)
    for row_id, digest, value, source, subject in zip(row_ids, digests, values, sources, subjects, strict=True):
        yield Record(row_id, digest or b"", value or "", tuple(source or ()), subject)


def _overlaps(wanted: list[str], low: str, high: str) -> bool:
    from bisect import bisect_left

    place = bisect_left(wanted, low)
    return place < len(wanted) and wanted[place] <= high


def _schema(*, deletions: bool) -> pa.Schema:
    import pyarrow as pa

    row_id = pa.field("row_id", pa.string(), nullable=False)
    if deletions:
        return pa.schema([row_id])
    return pa.schema(
        [
            row_id,
            pa.field("digest", pa.binary(32), nullable=False),
            pa.field("value", pa.string(), nullable=False),
            pa.field("sources", pa.list_(pa.string()), nullable=False),
            pa.field("subject_hash", pa.string()),
        ]
    )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{path.parent} cannot take the rows of a data set: {error}; nothing was kept.", hint="Free some space."
        ) from error
