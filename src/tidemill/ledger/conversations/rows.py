"""What a store of conversations holds, and what each of its back ends can do.

An **entry** is one turn (a response with its input) or a batch of items; entries form a linked list by ``parent``. A
**thread** is everything that grew from one first entry, branches included; a thread expires as a whole, so many seconds
after its newest entry, for a history with holes is of no use. A **conversation** is an entry without content of its own
that names the thread's newest entry as its ``head``. What the entries say is sealed before it comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ConversationScope:
    """Whose conversations: nothing is read or written across scopes.

    Args:
        project, tenant: as everywhere.
        key: name of the API key; a key that was rotated keeps its name.
    """

    project: str
    tenant: str
    key: str

    def about(self, entry_id: str) -> bytes:
        """What binds a sealed entry to its place, so that it opens nowhere else."""
        return "\0".join((self.project, self.tenant, self.key, entry_id)).encode()


@dataclass(frozen=True, slots=True)
class Entry:
    """One turn, one batch of items, or a conversation.

    Args:
        entry_id: unique in its scope.
        thread: first entry of the thread, or the conversation.
        created_at: seconds since 1970.
        sealed: the encrypted content.
        parent: the entry it continues.
        start: the oldest entry its history is read from; what lies before is summed up in its content. ``None``
            reads to the first.
        head: of a conversation: its newest entry.
    """

    entry_id: str
    thread: str
    created_at: float
    sealed: bytes
    parent: str | None = None
    start: str | None = None
    head: str | None = None


@dataclass(frozen=True, slots=True)
class Walk:
    """A history as read back from its newest entry.

    Args:
        entries: newest first.
        complete: it reached its beginning; otherwise an entry is gone, or the bound on the depth was met.
    """

    entries: Sequence[Entry]
    complete: bool

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Walk:
        """Judge what a back end found: does the last entry begin the history?"""
        if not entries:
            return cls((), complete=False)
        last = entries[-1]
        return cls(entries, last.parent is None or last.entry_id == entries[0].start)


class ConversationRows(Protocol):
    """A back end. Calls block; objects are safe for threads; each call is one transaction.

    Every call raises ``Unavailable`` when the store cannot be reached or written.
    """

    def add(
        self, scope: ConversationScope, entry: Entry, *, expires_at: float, conversation: str | None = None
    ) -> bool:
        """Keep a new entry and set when its thread expires. When this returns, the entry is durable.

        Args:
            scope: whose.
            entry: the entry; with ``conversation`` its parent becomes that conversation's head of this moment.
            expires_at: seconds since 1970; a thread's time never moves back.
            conversation: the conversation whose new head it is.

        Returns:
            ``False`` if there is no such conversation; nothing was written then.
        """
        ...

    def get(self, scope: ConversationScope, entry_id: str, *, now: float) -> Entry | None:
        """One entry; ``None`` if it is unknown, of another scope, or expired."""
        ...

    def walk(self, scope: ConversationScope, head: str, *, now: float, depth_most: int) -> Walk:
        """An entry and what it continues, back to its ``start``; at most ``depth_most`` entries."""
        ...

    def replace(self, scope: ConversationScope, entry: Entry) -> bool:
        """Give the entry of this id another ``sealed`` and ``start``; ``False`` if it is gone."""
        ...

    def remove(self, scope: ConversationScope, entry_id: str, *, whole_thread: bool = False) -> bool:
        """Delete an entry, or the whole thread that it began. ``False`` if it was not there."""
        ...

    def sweep(self, now: float, /) -> int:
        """Delete what has expired, of all scopes. Returns the number of entries deleted here."""
        ...

    def close(self) -> None:
        """Give the connections back. The object may not be used afterwards."""
        ...
