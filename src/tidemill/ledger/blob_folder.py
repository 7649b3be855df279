"""Blobs in a folder of the local file system, and what every store of blobs shares.

Written without obstore, which neither makes a file durable (fsync of file and folder) nor private (0600, folders 0700).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tidemill.kernel import Digest, InvalidInput, NotFound, Scope, Unavailable, digest_bytes, fresh_id

CHUNK_BYTES: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Bytes whose digest is known and that no reader can see yet: in memory, or in a file.

    Args:
        owned: the file is a temporary one of ours, to be renamed or removed.
        handle: its open descriptor; the lock on it tells others that its writer lives.
    """

    digest: Digest
    size: int
    data: bytes | None = None
    path: Path | None = None
    owned: bool = False
    handle: int | None = None

    def chunks(self) -> Iterator[bytes]:
        """The bytes again.

        Raises:
            Unavailable: the file changed since it was digested; raised before its last chunk is handed out, so that
                an upload from this stream is never completed with wrong bytes.
        """
        if self.path is None:
            yield self.data or b""
            return
        hasher = hashlib.sha256()
        held = b""
        for chunk in read_file(self.path):
            if held:
                yield held
            hasher.update(chunk)
            held = chunk
        if "sha256:" + hasher.hexdigest() != self.digest:
            raise Unavailable(f"{self.path} changed while it was stored; nothing was kept.", hint="Store it again.")
        yield held

    def discard(self) -> None:
        """Remove what is temporary."""
        if self.owned and self.path is not None:
            self.path.unlink(missing_ok=True)
        if self.handle is not None:
            os.close(self.handle)


def key_of(digest: Digest) -> str:
    """The part of a blob's key that its digest determines."""
    return f"sha256/{digest[7:9]}/{digest[9:]}"


def read_file(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """A file's bytes in chunks."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(chunk_bytes):
            yield chunk


class Folder:
    """Blobs in a folder of the local file system, read-only once stored.

    Args:
        root: the folder; made when first written to.
        scope: whose blobs.
    """

    def __init__(self, root: Path, scope: Scope) -> None:
        self.where = str(root)
        self.root: Final = root
        self._own: Final = root / scope.project / scope.tenant
        self.temporary: Final = self._own / "tmp"

    def stage(self, data: bytes | Iterable[bytes] | Path) -> Staged:
        """Digest the data, and keep what is over a mebibyte in a temporary file on the same file system."""
        if isinstance(data, bytes):
            return Staged(digest=digest_bytes(data), size=len(data), data=data)
        return self._spool(source_chunks(data) if isinstance(data, Path) else data)

    def admit(self, staged: Staged) -> None:
        """Write, fsync, rename, fsync the folder."""
        target = self.path(staged.digest)
        with self._explained(f"storing a blob of {staged.size} bytes"):
            if staged.path is None:
                temporary, handle = self._temporary()
                try:
                    self._write_all(handle, staged.data or b"")
                    self._publish(temporary, handle, target)
                finally:
                    temporary.unlink(missing_ok=True)
                    os.close(handle)
            else:
                assert staged.handle is not None, "a folder stages into files of its own"
                self._publish(staged.path, staged.handle, target)

    def stream(self, digest: Digest, chunk_bytes: int) -> Iterator[bytes]:
        """The blob's bytes, unchecked."""
        with self._explained("reading a blob"):
            yield from read_file(self.path(digest), chunk_bytes)

    def size(self, digest: Digest) -> int | None:
        """The blob's size in bytes; ``None`` where there is none."""
        with self._explained("looking for a blob"):
            try:
                return self.path(digest).stat().st_size
            except FileNotFoundError:
                return None

    def list(self) -> Iterator[tuple[Digest, int, datetime]]:
        """Every blob: digest, size in bytes, when it was stored."""
        with self._explained("listing blobs"):
            for folder in _entries(self._own / "sha256"):
                for entry in _entries(Path(folder.path)):
                    with suppress(FileNotFoundError):  # collected while we look
                        found = entry.stat()
                        stored = datetime.fromtimestamp(found.st_mtime, UTC)
                        yield Digest(f"sha256:{folder.name}{entry.name}"), found.st_size, stored

    def remove(self, digests: Sequence[Digest]) -> None:
        """Delete blobs; one that is gone already is no error."""
        with self._explained("deleting blobs"):
            for digest in digests:
                self.path(digest).unlink(missing_ok=True)

    def set_aside(self, digest: Digest) -> None:
        """Take a damaged blob out of the way, keeping its bytes in the folder ``damaged``."""
        aside = self._own / "damaged"
        with self._explained("setting a blob aside"):
            aside.mkdir(mode=0o700, exist_ok=True)
            self.path(digest).rename(aside / digest[7:])

    def local_path(self, digest: Digest) -> Path | None:
        """The blob's own file."""
        return None if self.size(digest) is None else self.path(digest)

    def scratch(self) -> AbstractContextManager[Path]:
        """A private folder for as long as the context lasts."""
        return self._scratch()

    def orphans(self) -> Sequence[Path]:
        """Temporary files and folders older than a minute that no living process has locked."""
        found = []
        for entry in _entries(self.temporary):
            path = Path(entry.path)
            with suppress(OSError):  # renamed, removed or locked meanwhile: not an orphan
                handle = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - path.stat().st_mtime > 60:
                        found.append(path)
                finally:
                    os.close(handle)
        return found

    def path(self, digest: Digest) -> Path:
        """Where a blob lies, or would."""
        return self._own / key_of(digest)

    def folders(self) -> Iterator[Path]:
        """Every folder that holds blobs, from the root down."""
        yield from (path for path in (self.root, self._own.parent, self._own, self._own / "sha256") if path.is_dir())
        yield from (Path(entry.path) for entry in _entries(self._own / "sha256"))

    def _spool(self, chunks: Iterable[bytes]) -> Staged:
        hasher = hashlib.sha256()
        head = bytearray()
        size = 0
        temporary: tuple[Path, int] | None = None
        try:
            for chunk in chunks:
                hasher.update(chunk)
                size += len(chunk)
                with self._explained(f"storing a blob of {size} bytes or more"):
                    if temporary is None and size <= CHUNK_BYTES:
                        head += chunk
                        continue
                    if temporary is None:
                        temporary = self._temporary()
                        self._write_all(temporary[1], head)
                    self._write_all(temporary[1], chunk)
        except BaseException:
            if temporary is not None:
                temporary[0].unlink(missing_ok=True)
                os.close(temporary[1])
            raise
        digest = Digest("sha256:" + hasher.hexdigest())
        if temporary is None:
            return Staged(digest=digest, size=size, data=bytes(head))
        return Staged(digest=digest, size=size, path=temporary[0], owned=True, handle=temporary[1])

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with self._explained("temporary files"):
            self._make_temporary()
            path = self.temporary / fresh_id("scratch")
            path.mkdir(mode=0o700)
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
                os.close(handle)

    def _make_temporary(self) -> None:
        """Make the folders down to the temporary one, private and, in their parents, durable."""
        if self.temporary.is_dir():
            return
        self.root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.root, self._own.parent, self._own, self.temporary):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(folder.parent)

    def _temporary(self) -> tuple[Path, int]:
        self._make_temporary()
        path = self.temporary / fresh_id("blob")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return path, handle

    def _write_all(self, handle: int, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]

    def _publish(self, temporary: Path, handle: int, target: Path) -> None:
        os.fchmod(handle, 0o400)
        os.fsync(handle)
        fresh = [folder for folder in (target.parent.parent, target.parent) if not folder.exists()]
        for folder in fresh:
            folder.mkdir(mode=0o700, exist_ok=True)
        temporary.rename(target)
        for folder in (target.parent, *(folder.parent for folder in fresh)):
            _sync_folder(folder)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise Unavailable(
                    f"No space is left in {self.where} for {doing}; nothing was kept.", hint="Free some space."
                ) from error
            raise Unavailable(
                f"{self.where} cannot be used for {doing}: {error.strerror} ({error.filename or self.where}).",
                hint="Check that the folder is there and yours.",
            ) from error


def damaged(where: str, digest: Digest) -> Unavailable:
    """The error for bytes that are not those their digest names."""
    return Unavailable(
        f"The blob {digest} in {where} is damaged: its bytes have another digest.",
        hint="Run: tidemill doctor; then restore it from a backup.",
    )


def source_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file the user named.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it cannot be read.
    """
    try:
        yield from read_file(path)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
