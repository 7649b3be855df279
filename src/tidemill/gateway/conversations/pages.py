"""The pages of kept responses and conversations: reading, adding to and deleting what the store holds.

Source: OpenAI's API reference, Responses and Conversations, 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.gateway.conversations.store import REMOVED, Conversations, History, Item, Turn
from tidemill.kernel import fresh_id
from tidemill.ledger.conversations import ConversationScope, Entry

_LIMIT: Final = 20
_LIMIT_MOST: Final = 100
_ITEMS_ADDED_MOST: Final = 20

_encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.decode

ReadItems = Callable[[Any, str, str], list[Item]]
ReadMetadata = Callable[[Any], dict[str, str]]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One request for a page.

    Args:
        scope: whose.
        ids: the ids in the path, in order.
        query: the last value of each parameter.
        body: the request's bytes.
    """

    scope: ConversationScope
    ids: tuple[str, ...]
    query: Mapping[str, str]
    body: bytes

    def document(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty one.

        Raises:
            Refusal: 400.
        """
        try:
            found = _decode(self.body) if self.body else {}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"The request body cannot be read: {error}.", "invalid_json") from None
        if not isinstance(found, dict):
            raise Refusal(400, "The request body must be a JSON object.", "invalid_json")
        return found


class ConversationPages:
    """Serves ``/v1/responses/{id}…`` and ``/v1/conversations…``.

    Args:
        conversations: the store; ``None`` has nothing.
        read_items: checks items that a client sends (``dialects.responses_items.read_items``).
        read_metadata: checks metadata (``dialects.responses.check_metadata``).
    """

    def __init__(
        self, conversations: Conversations | None, *, read_items: ReadItems, read_metadata: ReadMetadata
    ) -> None:
        self._store = conversations
        self._read_items = read_items
        self._read_metadata = read_metadata
        one, item = r"/v1/conversations/([^/]+)", r"/items/([^/]+)"
        self._pages: Final[tuple[tuple[re.Pattern[str], dict[bytes, Page]], ...]] = (
            (re.compile(r"/v1/responses/([^/]+)"), {b"GET": self._response, b"DELETE": self._delete_response}),
            (re.compile(r"/v1/responses/([^/]+)/input_items"), {b"GET": self._input_items}),
            (re.compile(r"/v1/responses/([^/]+)/cancel"), {b"POST": self._cancel}),
            (re.compile(r"/v1/conversations"), {b"POST": self._create}),
            (re.compile(one), {b"GET": self._get, b"POST": self._update, b"DELETE": self._delete}),
            (re.compile(one + "/items"), {b"GET": self._items, b"POST": self._add_items}),
            (re.compile(one + item), {b"GET": self._item, b"DELETE": self._delete_item}),
        )

    @staticmethod
    def serves(path: bytes) -> bool:
        """Whether a path is one of these pages; ``POST /v1/responses`` itself is not."""
        return path.startswith((b"/v1/responses/", b"/v1/conversations/")) or path == b"/v1/conversations"

    async def answer(self, method: bytes, target: bytes, body: bytes, scope: ConversationScope) -> bytes:
        """The JSON of a page; its status is 200.

        Args:
            method: of the request.
            target: path and query.
            body: of the request.
            scope: whose.

        Raises:
            Refusal: 400, 404 and 405, and 503 when the store does not answer.
        """
        path, _, query = target.decode("latin-1").partition("?")
        for pattern, methods in self._pages:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            page = methods.get(method)
            if page is None:
                allowed = b", ".join(methods).decode()
                raise Refusal(405, f"{path[:200]} takes {allowed}.", "method_not_allowed")
            values = {name: found[-1] for name, found in parse_qs(query).items()}
            return _encode(await page(PageRequest(scope, match.groups(), values, body)))
        raise Refusal(404, f"There is no {path[:200]} here.", "unknown_url")

    # -- responses ------------------------------------------------------------------------------------------------

    async def _response(self, asked: PageRequest) -> dict[str, Any]:
        if asked.query.get("stream") == "true":
            text = "A kept response is not streamed again here. Ask without 'stream'."
            raise Refusal(400, text, "unsupported_parameter", param="stream")
        _, turn = await self._known.entry(asked.scope, asked.ids[0], "response")
        return {**(turn.response or {}), "output": _remaining(turn.output, asked.query)}

    async def _delete_response(self, asked: PageRequest) -> dict[str, Any]:
        entry, turn = await self._known.entry(asked.scope, asked.ids[0], "response")
        if entry.thread.startswith("conv_"):  # its items belong to the conversation, which stays
            gone = Turn(input=turn.items, base=turn.base)
            await self._known.rewrite(asked.scope, entry, gone)
        else:
            await self._known.remove(asked.scope, entry.entry_id)
        return {"id": entry.entry_id, "object": "response", "deleted": True}

    async def _input_items(self, asked: PageRequest) -> dict[str, Any]:
        _, turn = await self._known.entry(asked.scope, asked.ids[0], "response")
        return _page(_remaining(turn.input, {}), asked.query)

    async def _cancel(self, asked: PageRequest) -> dict[str, Any]:
        await self._known.entry(asked.scope, asked.ids[0], "response")
        text = "Only a background response can be cancelled, and this gateway makes none. Close the connection instead."
        raise Refusal(400, text, "not_background")

    # -- conversations ----------------------------------------------------------------------------------------------

    async def _create(self, asked: PageRequest) -> dict[str, Any]:
        document = asked.document()
        metadata = self._read_metadata(document.get("metadata"))
        conversation = fresh_id("conv")
        items = self._new_items(document.get("items") or [])
        await self._known.keep(asked.scope, conversation, Turn(metadata=metadata))
        if items:
            await self._append(asked.scope, conversation, items)
        return await self._get(PageRequest(asked.scope, (conversation,), {}, b""))

    async def _get(self, asked: PageRequest) -> dict[str, Any]:
        entry, turn = await self._known.entry(asked.scope, asked.ids[0], "conversation")
        return _conversation(entry, turn)

    async def _update(self, asked: PageRequest) -> dict[str, Any]:
        entry, turn = await self._known.entry(asked.scope, asked.ids[0], "conversation")
        turn.metadata = self._read_metadata(asked.document().get("metadata"))
        await self._known.rewrite(asked.scope, entry, turn)
        return _conversation(entry, turn)

    async def _delete(self, asked: PageRequest) -> dict[str, Any]:
        entry, _ = await self._known.entry(asked.scope, asked.ids[0], "conversation")
        await self._known.remove(asked.scope, entry.entry_id, whole_thread=True)
        return {"id": entry.entry_id, "object": "conversation.deleted", "deleted": True}

    async def _items(self, asked: PageRequest) -> dict[str, Any]:
        history = await self._whole(asked)
        return _page(history.items, asked.query)

    async def _add_items(self, asked: PageRequest) -> dict[str, Any]:
        entry, _ = await self._known.entry(asked.scope, asked.ids[0], "conversation")
        items = self._new_items(asked.document().get("items"))
        await self._append(asked.scope, entry.entry_id, items)
        return _listed(items, more=False)

    async def _item(self, asked: PageRequest) -> dict[str, Any]:
        history = await self._whole(asked)
        index = _index_of(history.items, asked.ids[1])
        return _visible(history.items[index], asked.query)

    async def _delete_item(self, asked: PageRequest) -> dict[str, Any]:
        history = await self._whole(asked)
        index = _index_of(history.items, asked.ids[1])
        await self._known.take_out(asked.scope, history, index)
        return await self._get(asked)

    async def _whole(self, asked: PageRequest) -> History:
        return await self._known.conversation(asked.scope, asked.ids[0], whole=True)

    def _new_items(self, given: Any) -> list[Item]:
        if not isinstance(given, list) or len(given) > _ITEMS_ADDED_MOST:
            text = f"'items' must be a list of at most {_ITEMS_ADDED_MOST} items."
            raise Refusal(400, text, "invalid_request", param="items")
        items = self._read_items(given, fresh_id("x").removeprefix("x_"), "items")
        if any(item["type"] == "item_reference" for item in items):
            raise Refusal(400, "Send the items themselves, not references.", "invalid_request", param="items")
        return items

    async def _append(self, scope: ConversationScope, conversation: str, items: list[Item]) -> None:
        thread = History(None, conversation, [], [])
        entry_id = fresh_id("items")
        if not await self._known.keep(scope, entry_id, Turn(input=items), after=thread, conversation=conversation):
            text = f"These items were not kept: they take more than {self._known.retention.bytes_most} bytes together."
            raise Refusal(400, text, "too_large_to_keep", param="items")

    @property
    def _known(self) -> Conversations:
        if self._store is None:
            raise Refusal(404, "This gateway keeps no responses.", "store_disabled")
        return self._store


Page = Callable[[PageRequest], Awaitable[dict[str, Any]]]


def _conversation(entry: Entry, turn: Turn) -> dict[str, Any]:
    metadata = turn.metadata or {}
    return {
        "id": entry.entry_id,
        "object": "conversation",
        "created_at": int(entry.created_at),
        "metadata": metadata,
    }


def _index_of(items: list[Item], item_id: str) -> int:
    for index, item in enumerate(items):
        if item["id"] == item_id:
            return index
    raise Refusal(404, f"There is no item '{item_id[:100]}' in this conversation.", "item_not_found")


def _remaining(items: list[Item], query: Mapping[str, str]) -> list[Item]:
    return [_visible(item, query) for item in items if item["type"] != REMOVED]


def _page(items: list[Item], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of a list: ``limit`` (1 to 100), ``order`` (newest first unless ``asc``), ``after`` (an item's id)."""
    limit = query.get("limit", str(_LIMIT))
    if not limit.isdecimal() or not 1 <= int(limit) <= _LIMIT_MOST:
        raise Refusal(400, f"'limit' must be 1 to {_LIMIT_MOST}.", "invalid_request", param="limit")
    order = query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise Refusal(400, "'order' must be 'asc' or 'desc'.", "invalid_request", param="order")
    ordered = items if order == "asc" else items[::-1]
    after = query.get("after")
    begin = _index_of(ordered, after) + 1 if after else 0
    end = begin + int(limit)
    return _listed([_visible(item, query) for item in ordered[begin:end]], more=end < len(ordered))


def _listed(items: list[Item], *, more: bool) -> dict[str, Any]:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": more}


def _visible(item: Item, query: Mapping[str, str]) -> Item:
    """An item without its encrypted reasoning, unless the query includes it."""
    included = query.get("include") or query.get("include[]") or query.get("include[0]")
    if item["type"] != "reasoning" or included == "reasoning.encrypted_content":
        return item
    return {name: value for name, value in item.items() if name != "encrypted_content"}
