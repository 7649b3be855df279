"""Sticky sessions: which release a session was first given, shared by all workers of a host.

The table is a file of fixed size, mapped into every worker, so that a client whose connections land on several
workers has one session, and a killed worker takes none with it. It holds hashes and release digests, no text.

What holds:

* A session keeps its first release for its whole life, in every worker that shares the file, whatever the weights
  become.
* The first assignment is ``kernel.assign`` on session key and opening index, so that workers without a common file
  (other hosts) choose alike as long as their snapshots are alike.
* A session ends after ``session_idle_s`` without a request, or when its release has left the route; the next request
  opens a new one with a new id and the next opening index.
* Memory is bounded: of eight candidate slots the one unused for longest is given up, and its session ends early.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.kernel import InvalidInput, Route, assign

_MAGIC: Final = b"tidemill-sess-1\0"
_SLOT_BYTES: Final = 128
_WAYS: Final = 8
_FACTS: Final = struct.Struct("<16sQI8s72sI")  # key, opened_ns, opening, salt tag, release, crc of what precedes
_FACTS_BYTES: Final = _FACTS.size
_SEEN: Final = struct.Struct("<Q")  # seconds since 1970, rewritten on use
_SEEN_AT: Final = 112
_RELEASE_BYTES: Final = 72


@dataclass(frozen=True, slots=True)
class Session:
    """One run of requests of one user.

    Args:
        session_id: names the session in traces and observations.
        release: digest of the release it was first given.
        opening: how many sessions the same key had before.
        in_rollout: whether it was opened under the route's present salt. One that began before the present rollout
            keeps its release but was not drawn by it, so counting it would bias the comparison.
    """

    session_id: str
    release: str
    opening: int
    in_rollout: bool


class SessionTable:
    """Sessions in a file of fixed size.

    Args:
        path: the shared file, made when missing (0600); ``None`` keeps the table in this process.
        slots: how many sessions fit; a multiple of eight.

    Raises:
        InvalidInput: the file is something else or has another size.
    """

    def __init__(self, path: Path | None, *, slots: int = 32768) -> None:
        size = len(_MAGIC) + slots * _SLOT_BYTES
        self._sets = slots // _WAYS
        self._file = -1
        # By place: where it stands, its facts, the session, and the salt under which it was drawn, if that is known.
        self._known: dict[tuple[str, str, str], tuple[int, bytes, Session, str | None]] = {}
        self._known_limit = slots
        if path is None:
            self._map = mmap.mmap(-1, size)
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            found = os.fstat(self._file).st_size
            if found == 0:
                os.ftruncate(self._file, size)
                os.pwrite(self._file, _MAGIC, 0)
            elif found != size or os.pread(self._file, len(_MAGIC), 0) != _MAGIC:
                raise InvalidInput(
                    f"{path} is not a session table of {slots} slots.",
                    hint="Remove the file; it holds no lasting data.",
                )
        self._map = mmap.mmap(self._file, size)

    def close(self) -> None:
        """Unmap the table; the file stays."""
        self._map.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def resolve(self, route: Route, session_key: str, now_ns: int, live: Container[str]) -> Session:
        """Find the open session of a key, or open one.

        Args:
            route: where the request goes; its tenant and endpoint are part of the key.
            session_key: who asks: a header, a user name, or key and address.
            now_ns: nanoseconds since 1970.
            live: the releases of the route's targets.
        """
        place = (route.tenant, route.endpoint, session_key)
        known = self._known.get(place)
        if known is not None:
            at, facts, session, salt = known
            # The slot may have been given to another session by another worker since.
            if self._map[at : at + _FACTS_BYTES] == facts and self._still_open(at, route, session, now_ns, live):
                if salt == route.salt or facts[28:36] == _salt_tag(route.salt):
                    return session
                return Session(session.session_id, session.release, session.opening, in_rollout=False)
        with self._locked():
            return self._find_or_open(route, session_key, now_ns, live)

    def _still_open(self, at: int, route: Route, session: Session, now_ns: int, live: Container[str]) -> bool:
        now_s = now_ns // 1_000_000_000
        (seen_s,) = _SEEN.unpack_from(self._map, at + _SEEN_AT)
        if now_s - seen_s > route.session_idle_s or session.release not in live:
            return False
        if now_s > seen_s:
            _SEEN.pack_into(self._map, at + _SEEN_AT, now_s)
        return True

    def _find_or_open(self, route: Route, session_key: str, now_ns: int, live: Container[str]) -> Session:
        place = (route.tenant, route.endpoint, session_key)
        key = hashlib.blake2b("\0".join(place).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        now_s = now_ns // 1_000_000_000
        first = len(_MAGIC) + (int.from_bytes(key[:8], "little") % self._sets) * _WAYS * _SLOT_BYTES
        oldest_at, oldest_seen, opening = first, 1 << 64, 0
        for at in range(first, first + _WAYS * _SLOT_BYTES, _SLOT_BYTES):
            facts = self._map[at : at + _FACTS_BYTES]
            (seen_s,) = _SEEN.unpack_from(self._map, at + _SEEN_AT)
            if facts[:16] == key and zlib.crc32(facts[:-4]) == int.from_bytes(facts[-4:], "little"):
                session = _session(facts, route)
                if self._still_open(at, route, session, now_ns, live):
                    return self._remember(place, at, facts, session, route.salt)
                oldest_at, opening = at, session.opening + 1
                break
            if seen_s < oldest_seen:
                oldest_at, oldest_seen = at, seen_s
        release = assign(route, f"{session_key}#{opening}").release.encode()
        if len(release) > _RELEASE_BYTES:
            raise InvalidInput(f"release digest {release.decode()!r} is longer than {_RELEASE_BYTES} bytes")
        facts = _FACTS.pack(key, now_ns, opening, _salt_tag(route.salt), release, 0)[:-4]
        facts += zlib.crc32(facts).to_bytes(4, "little")
        self._map[oldest_at : oldest_at + _FACTS_BYTES] = facts
        _SEEN.pack_into(self._map, oldest_at + _SEEN_AT, now_s)
        return self._remember(place, oldest_at, facts, _session(facts, route), route.salt)

    def _remember(self, place: tuple[str, str, str], at: int, facts: bytes, session: Session, salt: str) -> Session:
        if len(self._known) >= self._known_limit:
            self._known.clear()
        # Kept as if in the rollout: whether it is depends on the route of the moment.
        drawn = Session(session.session_id, session.release, session.opening, in_rollout=True)
        self._known[place] = (at, facts, drawn, salt if session.in_rollout else None)
        return session

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file < 0:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


@functools.lru_cache(maxsize=4096)
def _salt_tag(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=8).digest()


def _session(facts: bytes, route: Route) -> Session:
    _, _, opening, salt_tag, release, _ = _FACTS.unpack(facts)
    name = hashlib.blake2b(facts[:28], digest_size=13).hexdigest()
    return Session("ses_" + name, release.rstrip(b"\0").decode(), opening, in_rollout=salt_tag == _salt_tag(route.salt))
