"""Kept answers in a worker's memory: least recently used go first, bounded in entries and in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from tidemill.gateway.usage import Usage

_SWEPT_MOST: Final = 512

ENTRY_BYTES: Final = 640
"""What an entry costs beside its answer: digest, record, table; measured with tracemalloc."""


class Kept(msgspec.Struct, frozen=True, gc=False):
    """An answer as it went to a client, in the pivot format.

    Args:
        body: the whole answer's JSON, or the events of a stream.
        streamed: which of the two.
        kept_at, expires_at: seconds since 1970.
        trace_id: of the request that was answered so.
        usage: what that request used.
    """

    body: bytes
    streamed: bool
    kept_at: float
    expires_at: float
    trace_id: str
    usage: Usage | None = None

    @property
    def weight(self) -> int:
        """Bytes of memory it is accounted with."""
        return len(self.body) + ENTRY_BYTES


class AnswerStore:
    """The answers one worker keeps; workers share nothing but what the second tier holds.

    Args:
        max_bytes: of all entries together, with what they cost beside their answers.
        max_entries: how many.
        max_answer_bytes: a longer answer is not kept.
    """

    def __init__(
        self, *, max_bytes: int = 32 * 1024 * 1024, max_entries: int = 50_000, max_answer_bytes: int = 256 * 1024
    ) -> None:
        self.bytes = 0
        self.evicted = 0
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.max_answer_bytes = max_answer_bytes
        self._entries: OrderedDict[bytes, Kept] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._entries

    def get(self, digest: bytes, now_s: float) -> Kept | None:
        """The answer under a key, unless it has run out; it counts as used."""
        kept = self._entries.get(digest)
        if kept is None:
            return None
        if kept.expires_at <= now_s:
            self.drop(digest)
            return None
        self._entries.move_to_end(digest)
        return kept

    def put(self, digest: bytes, kept: Kept) -> bool:
        """Keep an answer, in place of an older one under the same key. Returns whether it is kept."""
        size, entries = len(kept.body), self._entries
        weight = size + ENTRY_BYTES
        if size > self.max_answer_bytes or weight > self.max_bytes:
            return False
        if digest in entries:
            self.drop(digest)
        entries[digest] = kept
        self.bytes += weight
        while self.bytes > self.max_bytes or len(entries) > self.max_entries:
            _, oldest = entries.popitem(last=False)
            self.bytes -= oldest.weight
            self.evicted += 1
        return True

    def drop(self, digest: bytes) -> None:
        """Forget an answer, if it is there."""
        kept = self._entries.pop(digest, None)
        if kept is not None:
            self.bytes -= kept.weight

    def sweep(self, now_s: float) -> None:
        """Forget what has run out among those least recently used; bounded work, for the event loop waits."""
        oldest = [digest for digest, _ in zip(self._entries, range(_SWEPT_MOST), strict=False)]
        for digest in oldest:
            if self._entries[digest].expires_at <= now_s:
                self.drop(digest)
