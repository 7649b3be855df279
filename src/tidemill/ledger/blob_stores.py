"""Where blobs lie: a folder of our own, or an object store reached by obstore.

Both keep a blob under ``project/tenant/sha256/ab/cdef…`` and show it whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from tidemill.kernel import Digest, InvalidInput, Scope, Unavailable
from tidemill.ledger.blob_folder import CHUNK_BYTES, Folder, Staged, damaged, key_of, source_chunks
from tidemill.ledger.records import S3Options

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PART_BYTES: Final = 8 << 20
_MAX_PARTS: Final = 9000  # S3 takes 10,000 parts an object


class BlobStore(Protocol):
    """What ``Blobs`` needs of a place that keeps blobs of one scope."""

    where: str

    def stage(self, data: bytes | Iterable[bytes] | Path) -> Staged:
        """Digest the data, and keep what does not fit in memory in a temporary file."""
        ...

    def admit(self, staged: Staged) -> None:
        """Make staged bytes a blob: durable, whole and visible when this returns."""
        ...

    def stream(self, digest: Digest, chunk_bytes: int) -> Iterator[bytes]:
        """The blob's bytes, unchecked. Raises ``FileNotFoundError`` where there is none."""
        ...

    def size(self, digest: Digest) -> int | None:
        """The blob's size in bytes; ``None`` where there is none."""
        ...

    def list(self) -> Iterator[tuple[Digest, int, datetime]]:
        """Every blob: digest, size in bytes, when it was stored."""
        ...

    def remove(self, digests: Sequence[Digest]) -> None:
        """Delete blobs; one that is gone already is no error."""
        ...

    def set_aside(self, digest: Digest) -> None:
        """Take a damaged blob out of the way, keeping its bytes beside the others."""
        ...

    def local_path(self, digest: Digest) -> Path | None:
        """A read-only file with the blob's bytes; ``None`` where there is no such blob."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """A private folder on a local disk for as long as the context lasts."""
        ...

    def orphans(self) -> Sequence[Path]:
        """Temporary files and folders whose writer died."""
        ...


def open_store(url: str, scope: Scope, *, s3: S3Options | None, cache_dir: Path | None) -> BlobStore:
    """Open the place a URL names.

    Args:
        url: a folder, ``memory://`` or ``s3://bucket/prefix``.
        scope: whose blobs.
        s3: how to reach an S3-compatible store.
        cache_dir: for large blobs on their way to and from a remote store.

    Raises:
        InvalidInput: a URL of another kind.
    """
    if "://" not in url:
        return Folder(Path(url).absolute(), scope)
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return Folder(Path("/" + rest.lstrip("/")), scope)
    if scheme not in ("memory", "s3") or (scheme == "s3" and not rest.strip("/")):
        raise InvalidInput(f"'{url}' is no place for blobs: write a folder, memory:// or s3://bucket/prefix")
    if cache_dir is None:
        import tempfile

        cache_dir = Path(tempfile.mkdtemp(prefix="tidemill-cache-"))
    return Remote(_connect(rest.strip("/"), s3 or S3Options()) if scheme == "s3" else _memory(), url, scope, cache_dir)


class Remote:
    """Blobs in an object store: S3-compatible, or memory for tests.

    A stream of unknown digest is spooled to a local file first: then nothing is uploaded that is there already, no
    half-made object is left in the bucket, and the copy from a temporary key, which S3 limits to 5 GB, is not needed.

    Args:
        store: an obstore store.
        where: how to name it to a person.
        scope: whose blobs.
        cache_dir: for spooled uploads and downloaded blobs.
    """

    def __init__(self, store: ObjectStore, where: str, scope: Scope, cache_dir: Path) -> None:
        self.where = where
        self._store = store
        self._prefix = f"{scope.project}/{scope.tenant}/"
        self._cache = Folder(cache_dir, scope)

    def stage(self, data: bytes | Iterable[bytes] | Path) -> Staged:
        """Digest the data; a file is read where it is, a large stream is spooled."""
        if not isinstance(data, Path):
            return self._cache.stage(data)
        hasher = hashlib.sha256()
        size = 0
        for chunk in source_chunks(data):
            hasher.update(chunk)
            size += len(chunk)
        return Staged(digest=Digest("sha256:" + hasher.hexdigest()), size=size, path=data)

    def admit(self, staged: Staged) -> None:
        """Upload, in parts when large; the object appears when the last part is in."""
        import obstore

        key = self._key(staged.digest)
        part_bytes = max(_PART_BYTES, -(-staged.size // _MAX_PARTS))
        doing = f"storing a blob of {staged.size} bytes"
        try:
            with self._explained(doing):
                if staged.size <= part_bytes:
                    obstore.put(self._store, key, b"".join(staged.chunks()), use_multipart=False)
                elif staged.data is not None:
                    obstore.put(self._store, key, staged.data, chunk_size=part_bytes, max_concurrency=2)
                else:
                    obstore.put(self._store, key, staged.chunks(), chunk_size=part_bytes, max_concurrency=2)
        except (FileNotFoundError, Unavailable) as error:
            # When the answer to the last request of an upload is lost, its repetition finds no such upload, though the
            # object is there. It appears whole or not at all, so its size tells.
            if self.size(staged.digest) == staged.size:
                return
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(f"{self.where} lost an upload while {doing}.", hint="Store it again.") from error

    def stream(self, digest: Digest, chunk_bytes: int) -> Iterator[bytes]:
        """The blob's bytes, unchecked."""
        import obstore

        with self._explained("reading a blob"):
            for chunk in obstore.get(self._store, self._key(digest)).stream(chunk_bytes):
                yield bytes(chunk)

    def size(self, digest: Digest) -> int | None:
        """The blob's size in bytes; ``None`` where there is none."""
        import obstore

        with self._explained("looking for a blob"):
            try:
                return int(obstore.head(self._store, self._key(digest))["size"])
            except FileNotFoundError:
                return None

    def list(self) -> Iterator[tuple[Digest, int, datetime]]:
        """Every blob: digest, size in bytes, when it was stored."""
        import obstore

        with self._explained("listing blobs"):
            for page in obstore.list(self._store, self._prefix + "sha256", chunk_size=1000):
                for found in page:
                    digest = Digest("sha256:" + found["path"].rpartition("sha256/")[2].replace("/", ""))
                    yield digest, found["size"], found["last_modified"]

    def remove(self, digests: Sequence[Digest]) -> None:
        """Delete blobs; one that is gone already is no error."""
        import obstore

        with self._explained("deleting blobs"), suppress(FileNotFoundError):
            obstore.delete(self._store, [self._key(digest) for digest in digests])

    def set_aside(self, digest: Digest) -> None:
        """Take a damaged blob out of the way, keeping its bytes under ``damaged/``."""
        import obstore

        with self._explained("setting a blob aside"):
            obstore.rename(self._store, self._key(digest), f"{self._prefix}damaged/{digest[7:]}")

    def local_path(self, digest: Digest) -> Path | None:
        """The blob in the cache; downloaded and checked when it is not there yet."""
        cached = self._cache.local_path(digest)
        if cached is None and self.size(digest) is not None:
            staged = self._cache.stage(self.stream(digest, CHUNK_BYTES))
            try:
                if staged.digest != digest:
                    raise damaged(self.where, digest)
                self._cache.admit(staged)
            finally:
                staged.discard()
            cached = self._cache.local_path(digest)
        return cached

    def scratch(self) -> AbstractContextManager[Path]:
        """A private folder in the cache for as long as the context lasts."""
        return self._cache.scratch()

    def orphans(self) -> Sequence[Path]:
        """Spooled uploads whose writer died."""
        return self._cache.orphans()

    def _key(self, digest: Digest) -> str:
        return self._prefix + key_of(digest)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            said = str(error).partition("\n")[0]
            raise Unavailable(
                f"{self.where} cannot be used for {doing}: {said}", hint="Check the endpoint, the bucket and the keys."
            ) from error


def _memory() -> ObjectStore:
    from obstore.store import MemoryStore

    return MemoryStore()


def _connect(path: str, options: S3Options) -> ObjectStore:
    from obstore.store import S3Store

    bucket, _, prefix = path.partition("/")
    given: dict[str, Any] = {
        "endpoint": options.endpoint,
        "access_key_id": options.access_key_id,
        "secret_access_key": options.secret_access_key,
    }
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=options.region,
        virtual_hosted_style_request=False,
        # The overall limit of obstore is 30 s by default, which a large blob exceeds; a stall is told by read_timeout.
        client_options={
            "allow_http": options.allow_http,
            "timeout": "6h",
            "connect_timeout": "5s",
            "read_timeout": "180s",
        },
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
        **{name: value for name, value in given.items() if value is not None},
    )
