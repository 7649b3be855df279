"""OpenAI's Responses API for clients, chat completions towards the models.

One object serves one request. In order: ``request`` reads the body and gives the chat request of this turn alone, which
is enough to find the endpoint and the key's limits; ``prepare`` puts the history in front of it and fits it into the
window; ``answer``, or ``stream``, translates what comes back; ``keep`` stores the response before its last bytes leave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.gateway.conversations.context import count_fixed, window_of, with_summary
from tidemill.gateway.conversations.store import Beginning, Conversations, History, Turn
from tidemill.gateway.conversations.summaries import Ask, Fitted, fit
from tidemill.gateway.dialects.responses_answer import (
    blank_response,
    conversation_id,
    output_items,
    settle,
    shown,
)
from tidemill.gateway.dialects.responses_fields import to_chat
from tidemill.gateway.dialects.responses_items import Item, Translated, malformed, read_items, to_messages
from tidemill.gateway.dialects.responses_stream import ResponseStream
from tidemill.kernel import Clock, InvalidInput, Overflow, SystemClock, fresh_id
from tidemill.ledger.conversations import ConversationScope
from tidemill.models.providers import StreamTranslator

_log = logging.getLogger(__name__)
_encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.decode


class ResponsesDialect:
    """One request to ``/v1/responses``. A ``ClientDialect`` with two steps of its own, ``prepare`` and ``keep``.

    Args:
        conversations: the store; ``None`` keeps nothing and knows no history.
        scope: whose request.
        clock: where times come from.
        missing: why there is no store at present though there should be one; told to requests that need it.
    """

    def __init__(
        self,
        conversations: Conversations | None,
        scope: ConversationScope,
        clock: Clock | None = None,
        *,
        missing: Refusal | None = None,
    ) -> None:
        self._conversations = conversations
        self._scope = scope
        self._clock = clock or SystemClock()
        self._missing = missing
        self._id = fresh_id("resp")
        self._stamp = self._id.removeprefix("resp_")
        self._request: dict[str, Any] = {}
        self._chat: dict[str, Any] = {}
        self._input: list[Item] = []
        self._response: dict[str, Any] = {}
        self._history: History | None = None
        self._base: Beginning | None = None
        self._start: str | None = None
        self._rewrite: Callable[[], bytes] | None = None
        self.kept: bool | None = None  # whether the response was kept; None: it was not to be

    # -- the request ------------------------------------------------------------------------------------------------

    def request(self, body: bytes) -> bytes:
        """Read the body.

        Returns:
            the chat request of this turn alone; ``model`` and ``stream`` are those of the last one.

        Raises:
            Refusal: 400, naming what cannot be read or served; the reason of a missing store where one is needed.
        """
        try:
            request = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"The request body cannot be read: {error}.", "invalid_json") from None
        if not isinstance(request, dict):
            raise Refusal(400, "The request body must be a JSON object.", "invalid_json")
        if not isinstance(request.get("model"), str):
            text = "The request names no model. Set 'model' to one of the endpoints that GET /v1/models lists."
            raise Refusal(400, text, "missing_model", param="model")
        self._request = request
        self._chat = to_chat(request)
        self._input = read_items(request.get("input") if request.get("input") is not None else [], self._stamp)
        store = self._check(request)
        self._response = blank_response(request, self._id, self._clock.now().timestamp(), store=store)
        if store and self._conversations is not None and len(body) > self._conversations.retention.bytes_most:
            text = (
                f"This request is larger than the {self._conversations.retention.bytes_most} bytes that are kept of a "
                "response. Send 'store': false."
            )
            raise Refusal(400, text, "too_large_to_keep", param="store")
        plain = [item for item in self._input if item["type"] != "item_reference"]
        return _encode({**self._chat, "messages": self._instructed(to_messages(plain).messages)})

    def _check(self, request: dict[str, Any]) -> bool:
        """Check the fields that this gateway serves itself. Returns whether the response is to be kept."""
        for name in ("previous_response_id", "instructions"):
            if not isinstance(request.get(name), str | None):
                raise malformed(f"'{name}' must be a text.", name)
        if request.get("conversation") is not None and conversation_id(request) is None:
            raise malformed("'conversation' must be an id, or an object with one.", "conversation")
        if request.get("truncation") not in {None, "auto", "disabled"}:
            raise malformed("'truncation' must be 'auto' or 'disabled'.", "truncation")
        if not isinstance(request.get("store"), bool | None):
            raise malformed("'store' must be true or false.", "store")
        check_metadata(request.get("metadata"))
        continues = request.get("previous_response_id") or request.get("conversation")
        if request.get("previous_response_id") and request.get("conversation"):
            text = "'previous_response_id' and 'conversation' exclude each other."
            raise malformed(text, "previous_response_id")
        if not continues and not self._input and not request.get("instructions"):
            raise malformed("'input' is missing: a text, or a list of items.", "input")
        return self._keeps(request, continues=bool(continues))

    def _keeps(self, request: dict[str, Any], *, continues: bool) -> bool:
        """Whether the response is to be kept, and whether what the request needs of the store can be had."""
        refers = any(item["type"] == "item_reference" for item in self._input)
        if self._missing is not None and (continues or refers or request.get("store") is not False):
            raise self._missing
        if self._conversations is None and (continues or request.get("store")):
            text = "This gateway keeps no responses. Send the whole history as 'input', and 'store': false."
            raise Refusal(400, text, "store_disabled", param="store")
        store = request.get("store") is not False and self._conversations is not None
        if not store and request.get("conversation"):
            raise malformed("A response of a conversation is always kept: leave 'store' out.", "store")
        return store

    async def prepare(
        self,
        *,
        context_tokens: int | None = None,
        overflow: Overflow = Overflow.PASS,
        ask: Ask | None = None,
        count: Callable[[bytes], int] | None = None,
    ) -> bytes:
        """Put the history in front of the turn and fit all into the window.

        Args:
            context_tokens: the target's window; ``None`` is unknown.
            overflow: the endpoint's policy; the request's ``truncation`` overrides it.
            ask: sends a chat request to the same endpoint, for summaries.
            count: tokens by the target's tokenizer; ``None`` estimates.

        Returns:
            the chat request to send.

        Raises:
            Refusal: no such history (404), too long (400), the store is down (503), no summary (502).
        """
        history = self._history = await self._read_history()
        await self._resolve_references(history)
        items = [*(history.items if history is not None else ()), *self._input]
        translated = to_messages(items)
        summary = history.base.summary if history is not None and history.base is not None else None
        if history is not None:
            self._base, self._start = history.base, history.start
        messages = self._instructed(translated.messages)
        window = window_of(context_tokens, self._overflow(overflow), self._chat, count=count)
        if window is None:
            return _encode({**self._chat, "messages": with_summary(messages, summary) if summary else messages})
        fitted = await fit(
            messages,
            window,
            model=self._request["model"],
            fixed_tokens=count_fixed(self._chat, count),
            summary=summary,
            ask=ask,
        )
        if fitted.summary is not None and fitted.cut.until:
            self._note_cut(fitted, translated, items)
        return _encode({**self._chat, "messages": fitted.messages})

    def _overflow(self, policy: Overflow) -> Overflow:
        asked = self._request.get("truncation")
        if asked == "disabled":
            return Overflow.REFUSE
        if asked == "auto" and policy in {Overflow.PASS, Overflow.REFUSE}:
            return Overflow.TRUNCATE
        return policy

    async def _read_history(self) -> History | None:
        if self._conversations is None:
            return None
        previous = self._request.get("previous_response_id")
        if previous:
            return await self._conversations.history(self._scope, previous)
        conversation = conversation_id(self._request)
        if conversation:
            return await self._conversations.conversation(self._scope, conversation)
        return None

    async def _resolve_references(self, history: History | None) -> None:
        for index, item in enumerate(self._input):
            if item["type"] == "item_reference":
                self._input[index] = await self._referred(item["id"], history)

    async def _referred(self, item_id: str, history: History | None) -> Item:
        known = [] if history is None else history.items
        stamp = item_id.split("_")[1] if item_id.count("_") >= 2 else ""  # items are named after their response
        found = next((item for item in known if item["id"] == item_id), None)
        if found is None and stamp and self._conversations is not None:
            found = await self._conversations.item(self._scope, f"resp_{stamp}", item_id)
        if found is None:
            text = f"There is no item '{item_id[:100]}' here. Send the item itself."
            raise Refusal(404, text, "item_not_found", param="input")
        return found

    def _instructed(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        instructions = self._request.get("instructions")
        return [{"role": "system", "content": instructions}, *messages] if instructions else messages

    def _note_cut(self, fitted: Fitted, translated: Translated, items: list[Item]) -> None:
        """Remember what the summary stands for, in terms of items, so that the next turn begins there."""
        offset = 1 if self._request.get("instructions") else 0

        def end_of(index: int) -> int:
            return translated.ends[index - offset] if index >= offset else 0

        first = end_of(fitted.cut.until - 1)
        pinned = [item for index in fitted.cut.pinned for item in items[end_of(index - 1) : end_of(index)]]
        places = [*(self._history.places if self._history is not None else ())]
        entry, skip = places[first] if first < len(places) else (self._id, first - len(places))
        self._start = entry
        self._base = Beginning(summary=fitted.summary or "", pinned=pinned, skip=skip)

    # -- the answer -------------------------------------------------------------------------------------------------

    def answer(self, body: bytes) -> bytes:
        """Translate a whole answer.

        Raises:
            InvalidInput: it is no answer of a chat.
        """
        try:
            chat = _decode(body)
            choice = chat["choices"][0]
        except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
            raise InvalidInput(f"The model's answer cannot be read: {error!r}.") from None
        response = self._response
        response["model"] = chat.get("model") or response["model"]
        response["service_tier"] = chat.get("service_tier") or response["service_tier"]
        if "tidemill" in chat:
            response["tidemill"] = chat["tidemill"]
        response["output"] = output_items(choice, self._stamp)
        settle(response, choice.get("finish_reason"), chat.get("usage"), now_s=self._clock.now().timestamp())
        self._rewrite = lambda: _encode(self._show(response))
        return self._rewrite()

    def error(self, status: int, body: bytes) -> bytes:  # noqa: ARG002 - a ClientDialect's form
        """OpenAI's error JSON is this API's own."""
        return body

    def stream(self) -> StreamTranslator:
        """Begin to translate a stream. What ``finish`` gives goes through ``keep`` before it is sent."""
        stream = ResponseStream(
            self._response, self._stamp, now_s=lambda: self._clock.now().timestamp(), show=self._show
        )
        self._rewrite = stream.last_bytes
        return stream

    def _show(self, response: dict[str, Any]) -> dict[str, Any]:
        return shown(response, self._request)

    async def keep(self, last: bytes) -> bytes:
        """Store the response, if it is to be and has ended well.

        Args:
            last: what ``answer``, or the stream's ``finish``, gave: the last bytes, not yet sent.

        Returns:
            the last bytes to send. If the response could not be stored they say ``"store": false``: an answer that was
            paid for is not thrown away, and none is called kept that is not.
        """
        response = self._response
        if (
            not response["store"]
            or self._conversations is None
            or response["status"] not in {"completed", "incomplete"}
        ):
            return last
        turn = Turn(
            input=self._input,
            output=response["output"],
            response={name: value for name, value in response.items() if name != "output"},
            base=self._base,
        )
        try:
            self.kept = await self._conversations.keep(
                self._scope,
                self._id,
                turn,
                after=self._history,
                start=self._start,
                conversation=conversation_id(self._request),
            )
        except Refusal as refusal:
            _log.error("response %s was not kept: %s", self._id, refusal.message)
            self.kept = False
        if self.kept or self._rewrite is None:
            return last
        response["store"] = False
        return self._rewrite()


def check_metadata(value: Any) -> dict[str, str]:
    """Metadata of a response or a conversation: at most 16 texts of 512 characters, named by up to 64.

    Raises:
        Refusal: 400.
    """
    if value is None:
        return {}
    good = isinstance(value, dict) and len(value) <= 16
    if not good or not all(
        len(name) <= 64 and isinstance(text, str) and len(text) <= 512 for name, text in value.items()
    ):
        text = "'metadata' must hold at most 16 texts of at most 512 characters, with names of at most 64."
        raise malformed(text, "metadata")
    return dict(value)
