"""Blobs: bytes by their digest, streamed, deduplicated, and kept from the collector until something refers to them.

A blob is pinned in the database before anyone can see it. The collector looks at the pins and deletes under the same
lock that a pin is written under, so either it sees the pin and spares the blob, or ``put`` sees that the blob is gone
and stores it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidemill.kernel import Digest, NotFound, RunId, parse_digest
from tidemill.ledger.blob_folder import CHUNK_BYTES, Staged, damaged
from tidemill.ledger.blob_stores import BlobStore, open_store
from tidemill.ledger.records import S3Options
from tidemill.ledger.tables import blob_pins

if TYPE_CHECKING:
    from tidemill.ledger.database import Database

NOBODY: Final = RunId("")
"""Pins what no run owns; such a pin holds for the collector's grace period."""


class Blobs:
    """The blobs of one scope. Safe for threads and for many processes on one store.

    Args:
        url: a folder, ``memory://`` or ``s3://bucket/prefix``.
        database: where pins are written, and whose scope is used.
        s3: how to reach an S3-compatible store.
        cache_dir: where blobs of a remote store are spooled and kept once downloaded.
    """

    def __init__(
        self, url: str, *, database: Database, s3: S3Options | None = None, cache_dir: Path | None = None
    ) -> None:
        self.store: Final[BlobStore] = open_store(url, database.scope, s3=s3, cache_dir=cache_dir)
        self._database = database

    def put(self, data: bytes | Iterable[bytes] | Path, *, run_id: RunId | None = None) -> Digest:
        """Store bytes, durable when this returns. Memory stays bounded for a stream or a file.

        Args:
            data: the bytes, a stream of them, or a file to copy.
            run_id: the run that makes it. The blob is kept while the run lives; then something must refer to it.
                Without a run it is kept for the collector's grace period.

        Returns:
            Its digest; the same for the same bytes, which are stored once.

        Raises:
            NotFound: the file is not there.
            InvalidInput: the file cannot be read.
            Unavailable: no space is left, or the store does not answer. Nothing is kept.
        """
        staged = self.store.stage(data)
        try:
            self.pin([staged.digest], run_id=run_id)
            if self._absent(staged):
                self.store.admit(staged)
        finally:
            staged.discard()
        return staged.digest

    def pin(self, digests: Iterable[Digest], *, run_id: RunId | None = None) -> None:
        """Keep blobs from the collector for as long as the run lives, or for the grace period."""
        now = self._database.clock.now()
        rows = [
            self._database.row(digest=digest, run_id=run_id or NOBODY, created_at=now)
            for digest in sorted(set(digests))
        ]
        with self._database.write(sync_full=False) as connection:
            self._database.lock(connection, "blobs")
            self._database.put(connection, blob_pins, rows, replace=("created_at",))

    def read(self, digest: Digest) -> bytes:
        """All bytes of a blob, checked.

        Raises:
            NotFound: there is no such blob.
            Unavailable: it is damaged, or the store does not answer.
        """
        return b"".join(self.stream(digest))

    def stream(self, digest: Digest, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """A blob's bytes in chunks, checked: damage is raised after the last chunk.

        Raises:
            NotFound: there is no such blob.
            Unavailable: it is damaged, or the store does not answer.
        """
        hasher = hashlib.sha256()
        try:
            for chunk in self.store.stream(parse_digest(digest), chunk_bytes):
                hasher.update(chunk)
                yield chunk
        except FileNotFoundError as error:
            raise self._missing(digest) from error
        if "sha256:" + hasher.hexdigest() != digest:
            raise damaged(self.store.where, digest)

    def exists(self, digest: Digest) -> bool:
        """Whether the blob is in the store."""
        return self.store.size(parse_digest(digest)) is not None

    def size(self, digest: Digest) -> int:
        """Size of a blob in bytes.

        Raises:
            NotFound: there is no such blob.
        """
        size = self.store.size(parse_digest(digest))
        if size is None:
            raise self._missing(digest)
        return size

    def list(self) -> Iterator[tuple[Digest, int, datetime]]:
        """Every blob of the scope: digest, size in bytes, when it was stored."""
        return self.store.list()

    def local_path(self, digest: Digest) -> Path:
        """A read-only file with a blob's bytes: the store's own, or the cached download of a remote store.

        Raises:
            NotFound: there is no such blob.
            Unavailable: it is damaged, or the store does not answer.
        """
        path = self.store.local_path(parse_digest(digest))
        if path is None:
            raise self._missing(digest)
        return path

    def _absent(self, staged: Staged) -> bool:
        """Whether to store: it is not there, or cut short by a crash of the file system."""
        return self.store.size(staged.digest) != staged.size

    def _missing(self, digest: Digest) -> NotFound:
        return NotFound(
            f"There is no blob {digest} in {self.store.where}.", hint="If it should be there, run: tidemill doctor"
        )
