"""The store of conversations as the gateway uses it: sealed, awaited, with a stated retention.

Content is encrypted before it leaves this process (AES-256-GCM, a key of its own for each entry, derived from the
store's key and random salt; bound to project, tenant, API key name and id). The back end sees ids and times only. Its
calls run in threads, so that the event loop never waits for a disk, a lock or a server.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidemill.gateway.answers import Refusal
from tidemill.kernel import Clock, SystemClock, Unavailable
from tidemill.ledger.conversations import ConversationRows, ConversationScope, Entry, Walk

Item = dict[str, Any]
_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_SALT_BYTES: Final = 16
_NONCE: Final = bytes(12)  # a key seals one text only, so the nonce need not change
_THREADS: Final = 4
_PREFIXES: Final = {"response": "resp_", "conversation": "conv_"}


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept, and for how long.

    Args:
        retention_s: a thread is deleted so long after its newest entry.
        bytes_most: a turn (its input, or its input and answer) larger than this is not kept.
        depth_most: turns a history may have; a longer one is refused.
    """

    retention_s: float = 30 * 86400.0
    bytes_most: int = 4 * 1024 * 1024
    depth_most: int = 500


class Beginning(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a history begins with, once its first part was summed up.

    Args:
        summary: stands for everything before.
        pinned: items from before that stay.
        skip: items of the entry at which the history starts that ``summary`` covers.
    """

    summary: str
    pinned: list[Item] = []
    skip: int = 0


class Turn(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The content of an entry.

    Args:
        input: items the client sent.
        output: items the model gave.
        response: the Response object without its output; ``None`` for items added by the client, and for a response
            that was deleted while its conversation stays.
        base: see ``Beginning``; of the history as of this turn.
        metadata: of a conversation.
    """

    input: list[Item] = []
    output: list[Item] = []
    response: dict[str, Any] | None = None
    base: Beginning | None = None
    metadata: dict[str, str] | None = None

    @property
    def items(self) -> list[Item]:
        """All items in order, removed ones included."""
        return [*self.input, *self.output]

    def put(self, index: int, item: Item) -> None:
        """Put another item in the place of one of ``items``."""
        if index < len(self.input):
            self.input[index] = item
        else:
            self.output[index - len(self.input)] = item


@dataclass(frozen=True, slots=True)
class History:
    """What a new turn continues.

    Args:
        head: the newest entry; ``None`` for a conversation without any.
        thread: the thread it belongs to.
        items: oldest first.
        places: for each item, the entry it is in and its index there.
        base: see ``Beginning``.
        start: entry at which ``items`` begin, where that is not the thread's first.
    """

    head: str | None
    thread: str
    items: list[Item]
    places: list[tuple[str, int]]
    base: Beginning | None = None
    start: str | None = None


class Vault:
    """Seals and opens entries.

    Args:
        key: 32 random bytes, the same in all processes that share a store.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, plain: bytes, about: bytes) -> bytes:
        """Encrypt; ``about`` is bound to the text but not stored with it."""
        salt = os.urandom(_SALT_BYTES)
        return salt + self._cipher(salt).encrypt(_NONCE, plain, about)

    def open(self, sealed: bytes, about: bytes) -> bytes | None:
        """Decrypt; ``None`` if another key sealed it, or it was altered or moved."""
        salt, text = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:]
        try:
            return self._cipher(salt).decrypt(_NONCE, text, about)
        except InvalidTag:
            return None

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(hashlib.blake2b(salt, key=self._key, digest_size=32).digest())


#: Type of what stands in the place of an item that was deleted, so that the others keep their numbers.
REMOVED: Final = "removed"

_encode: Final = msgspec.json.encode
_turn: Final = msgspec.json.Decoder(Turn)


class Conversations:
    """The store of one gateway worker.

    Args:
        rows: the back end.
        vault: seals what goes there.
        retention: what is kept and for how long.
        clock: where times come from.
    """

    def __init__(
        self, rows: ConversationRows, vault: Vault, retention: Retention | None = None, clock: Clock | None = None
    ) -> None:
        self.retention: Final = retention or Retention()
        self._rows = rows
        self._vault = vault
        self._clock = clock or SystemClock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="conversations")

    def now_s(self) -> float:
        """Seconds since 1970."""
        return self._clock.now().timestamp()

    async def history(self, scope: ConversationScope, previous: str) -> History:
        """What a response continues.

        Raises:
            Refusal: 404 ``previous_response_not_found``: unknown here, expired, or deleted; 400
                ``conversation_too_deep``; 503.
        """
        walk = await self._walk(scope, previous)
        if not walk.entries or self._open(scope, walk.entries[0]).response is None:
            raise unknown_previous(previous)
        return self._gathered(scope, walk, walk.entries[0].thread)

    async def conversation(self, scope: ConversationScope, conversation: str, *, whole: bool = False) -> History:
        """What a conversation holds.

        Args:
            scope: whose.
            conversation: its id.
            whole: also what a summary stands for by now.

        Raises:
            Refusal: 404 ``conversation_not_found``, 400 ``conversation_too_deep``, 503.
        """
        entry, _ = await self.entry(scope, conversation, "conversation")
        if entry.head is None:
            return History(None, entry.entry_id, [], [])
        walk = await self._walk(scope, entry.head)
        if whole:
            walk = await self._to_the_first(scope, walk)
        return self._gathered(scope, walk, entry.entry_id, whole=whole)

    async def entry(self, scope: ConversationScope, entry_id: str, kind: str) -> tuple[Entry, Turn]:
        """One entry with its content.

        Args:
            scope: whose.
            entry_id: which.
            kind: ``response`` or ``conversation``.

        Raises:
            Refusal: 404 with ``kind`` in its code; 503.
        """
        entry = None
        if entry_id.startswith(_PREFIXES[kind]):
            entry = await self._call(lambda: self._rows.get(scope, entry_id, now=self.now_s()))
        turn = self._open(scope, entry) if entry is not None else None
        if entry is None or turn is None or (kind == "response" and turn.response is None):
            raise Refusal(404, f"There is no {kind} '{entry_id[:100]}' here.", f"{kind}_not_found")
        return entry, turn

    async def item(self, scope: ConversationScope, response_id: str, item_id: str) -> Item | None:
        """One item of a response, of its input or its output; ``None`` if there is none.

        Raises:
            Refusal: 503.
        """
        entry = await self._call(lambda: self._rows.get(scope, response_id, now=self.now_s()))
        turn = self._open(scope, entry) if entry is not None else None
        if turn is None or turn.response is None:
            return None
        return next((item for item in turn.items if item["id"] == item_id and item["type"] != REMOVED), None)

    async def keep(
        self,
        scope: ConversationScope,
        entry_id: str,
        turn: Turn,
        *,
        after: History | None = None,
        start: str | None = None,
        conversation: str | None = None,
    ) -> bool:
        """Keep a turn; when this returns, it is durable.

        Args:
            scope: whose.
            entry_id: its id.
            turn: its content.
            after: what it continues.
            start: see ``Entry``.
            conversation: the conversation it is added to.

        Returns:
            ``False``: it is larger than ``Retention.bytes_most``, or the conversation is gone.

        Raises:
            Refusal: 503: the store cannot be written.
        """
        plain = _encode(turn)
        if len(plain) > self.retention.bytes_most:
            return False
        now = self.now_s()
        entry = Entry(
            entry_id,
            thread=after.thread if after is not None else entry_id,
            created_at=now,
            sealed=self._vault.seal(plain, scope.about(entry_id)),
            parent=after.head if after is not None else None,
            start=start,
        )
        expires_at = now + self.retention.retention_s
        return await self._call(lambda: self._rows.add(scope, entry, expires_at=expires_at, conversation=conversation))

    async def rewrite(self, scope: ConversationScope, entry: Entry, turn: Turn) -> bool:
        """Give an entry other content; ``False`` if it is gone.

        Raises:
            Refusal: 503.
        """
        sealed = self._vault.seal(_encode(turn), scope.about(entry.entry_id))
        changed = replace(entry, sealed=sealed, start=entry.start if turn.base is not None else None)
        return await self._call(lambda: self._rows.replace(scope, changed))

    async def take_out(self, scope: ConversationScope, history: History, index: int) -> None:
        """Delete one item of a whole conversation, and the summaries of it, for they may tell what it said.

        Raises:
            Refusal: 503.
        """
        assert history.head is not None
        entry_id, place = history.places[index]
        walk = await self._to_the_first(scope, await self._walk(scope, history.head))
        for entry in walk.entries:
            turn = self._open(scope, entry)
            found = entry.entry_id == entry_id
            if found:
                turn.put(place, {"id": history.items[index]["id"], "type": REMOVED})
            if found or turn.base is not None:
                turn.base = None
                await self.rewrite(scope, entry, turn)

    async def remove(self, scope: ConversationScope, entry_id: str, *, whole_thread: bool = False) -> bool:
        """Delete an entry, or the whole thread it began; ``False`` if it was not there.

        Raises:
            Refusal: 503.
        """
        return await self._call(lambda: self._rows.remove(scope, entry_id, whole_thread=whole_thread))

    async def sweep(self) -> int:
        """Delete what has expired. Returns the number of entries.

        Raises:
            Refusal: 503.
        """
        return await self._call(lambda: self._rows.sweep(self.now_s()))

    async def close(self) -> None:
        """Wait for calls under way and close the back end."""
        await asyncio.to_thread(self._threads.shutdown)
        self._rows.close()

    async def _to_the_first(self, scope: ConversationScope, walk: Walk) -> Walk:
        """Go on with a walk beyond the start that its head names."""
        entries = list(walk.entries)
        while walk.complete and entries[-1].parent is not None:
            walk = await self._walk(scope, entries[-1].parent)
            entries += walk.entries
        return Walk(entries, walk.complete)

    async def _walk(self, scope: ConversationScope, head: str) -> Walk:
        most = self.retention.depth_most
        return await self._call(lambda: self._rows.walk(scope, head, now=self.now_s(), depth_most=most))

    def _gathered(self, scope: ConversationScope, walk: Walk, thread: str, *, whole: bool = False) -> History:
        if not walk.complete:
            if len(walk.entries) >= self.retention.depth_most:
                text = (
                    f"This conversation has more than {self.retention.depth_most} turns. Begin a new one with what "
                    "matters of it, or use an endpoint whose overflow policy is 'summarise'."
                )
                raise Refusal(400, text, "conversation_too_deep", param="previous_response_id")
            raise unknown_previous(walk.entries[-1].parent or thread)
        items: list[Item] = []
        places: list[tuple[str, int]] = []
        head = walk.entries[0]
        base = None if whole else self._open(scope, head).base
        for entry in reversed(walk.entries):
            skip = base.skip if base is not None and entry.entry_id == head.start else 0
            for index, item in enumerate(self._open(scope, entry).items[skip:], skip):
                if item["type"] != REMOVED:
                    items.append(item)
                    places.append((entry.entry_id, index))
        if base is not None and base.pinned:
            items = [*base.pinned, *items]
            places = [("", index) for index in range(len(base.pinned))] + places
        return History(head.entry_id, thread, items, places, base, head.start)

    def _open(self, scope: ConversationScope, entry: Entry) -> Turn:
        plain = self._vault.open(entry.sealed, scope.about(entry.entry_id))
        if plain is None:
            text = "A kept response cannot be decrypted: the key of the store of conversations is another one by now."
            raise Refusal(500, text, "conversation_unreadable")
        return _turn.decode(plain)

    async def _call(self, what: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, what)
        except Unavailable as error:
            _log.warning("%s", error)
            text = (
                "The store of conversations does not answer at present. Try again, or send the whole history as input."
            )
            raise Refusal(503, text, "conversations_unavailable") from error


def unknown_previous(entry_id: str) -> Refusal:
    """The refusal of a history that is not there."""
    text = f"Previous response '{entry_id[:100]}' is not here: it was never kept, was deleted, or its retention ended."
    return Refusal(404, text, "previous_response_not_found", param="previous_response_id")
