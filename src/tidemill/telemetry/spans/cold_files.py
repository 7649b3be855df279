"""Where partitions lie: a folder, or object storage read through a bounded folder of copies."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence, Set
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from tidemill.kernel import Unavailable

_CACHE_BYTES: Final = 4 << 30
_PIECE_BYTES: Final = 32 << 20
"""Read at once: a request must be answered within 30 seconds, and client options would replace the environment's."""
_RETRIES: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
"""A query waits for storage that hiccups, and not for minutes on one that is away."""


class ColdFiles(Protocol):
    """Files under names with slashes, written once."""

    def keep(self, draft: Path, name: str) -> None:
        """Take a finished file in under a name, whole and durable or not at all; the draft is gone afterwards."""
        ...

    def local(self, names: Sequence[str]) -> list[Path]:
        """Local paths to read files from, all of them at once.

        Raises:
            FileNotFoundError: one of them has been removed.
            Unavailable: the storage does not answer.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file and every copy of it; of none, nothing."""
        ...

    def names(self, prefix: str) -> list[str]:
        """The names of all files below a folder."""
        ...


class Folder:
    """Files in a folder of this machine.

    Args:
        root: the folder, made if missing. Drafts must lie on the same file system.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, draft: Path, name: str) -> None:
        """See ``ColdFiles.keep``."""
        target = self._root / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.chmod(0o600)
        _sync(draft)
        draft.rename(target)
        for folder in [target.parent, *target.parent.parents]:
            _sync(folder)
            if folder == self._root:
                break

    def local(self, names: Sequence[str]) -> list[Path]:
        """See ``ColdFiles.local``; that a file is gone shows when it is opened."""
        return [self._root / name for name in names]

    def remove(self, name: str) -> None:
        """See ``ColdFiles.remove``."""
        (self._root / name).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """See ``ColdFiles.names``."""
        return sorted(
            path.relative_to(self._root).as_posix() for path in (self._root / prefix).rglob("*") if path.is_file()
        )


class ObjectStorage:
    """Files in a bucket, copied into a local folder when read; the copies used longest ago make room for others.

    Args:
        store: an obstore store, with its prefix.
        cache: folder of the copies.
        cache_bytes: how large they may be together; what one query reads is copied even if it is larger.
    """

    def __init__(self, store: Any, cache: Path, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._store = store
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()

    def keep(self, draft: Path, name: str) -> None:
        """See ``ColdFiles.keep``."""
        import obstore

        try:
            with draft.open("rb") as file:
                obstore.put(self._store, name, file)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _unreachable(name, error) from error
        path = self._cache / name
        with self._lock:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.chmod(0o600)
            draft.rename(path)  # what was written last is asked for first
            self._make_room({path})

    def local(self, names: Sequence[str]) -> list[Path]:
        """See ``ColdFiles.local``."""
        paths = [self._cache / name for name in names]
        with self._lock:
            for name, path in zip(names, paths, strict=True):
                if path.exists():
                    os.utime(path)
                else:
                    self._fetch(name, path)
            self._make_room(set(paths))
        return paths

    def remove(self, name: str) -> None:
        """See ``ColdFiles.remove``."""
        import obstore

        path = self._cache / name
        with self._lock:
            for copy in (path, _draft_of(path)):
                copy.unlink(missing_ok=True)
        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _unreachable(name, error) from error

    def names(self, prefix: str) -> list[str]:
        """See ``ColdFiles.names``."""
        import obstore

        try:
            return sorted(one["path"] for page in obstore.list(self._store, prefix) for one in page)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _unreachable(prefix, error) from error

    def _fetch(self, name: str, path: Path) -> None:
        import obstore

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = _draft_of(path)
        try:
            with draft.open("wb") as file:
                size = obstore.head(self._store, name)["size"]
                for start in range(0, size, _PIECE_BYTES):
                    end = min(start + _PIECE_BYTES, size)
                    file.write(obstore.get_range(self._store, name, start=start, end=end))
        except FileNotFoundError:
            draft.unlink(missing_ok=True)
            raise
        except (OSError, obstore.exceptions.BaseError) as error:
            draft.unlink(missing_ok=True)
            raise _unreachable(name, error) from error
        draft.rename(path)

    def _make_room(self, wanted: Set[Path]) -> None:
        kept = sorted(self._copies(), key=lambda path: path.stat().st_mtime_ns)
        total = sum(path.stat().st_size for path in kept)
        for path in kept:
            if total <= self._cache_bytes:
                return
            if path not in wanted:
                total -= path.stat().st_size
                path.unlink()

    def _copies(self) -> Iterator[Path]:
        return (path for path in self._cache.rglob("*.parquet") if path.is_file())


def cold_files(place: str | None, state: Path) -> ColdFiles:
    """The files that a setting names.

    Args:
        place: a folder, or an ``s3://bucket/prefix`` URL whose access the environment gives; ``None`` for ``state``.
        state: folder of this machine for partitions or copies of them.
    """
    if place is None:
        return Folder(state)
    if "://" not in place:
        return Folder(Path(place))
    import obstore.store

    return ObjectStorage(obstore.store.from_url(place, retry_config=_RETRIES), state)


def _draft_of(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unreachable(name: str, error: Exception) -> Unavailable:
    return Unavailable(
        f"The cold partition {name} cannot be reached: {error}",
        hint="Check telemetry.retention.cold and the storage's credentials.",
    )
