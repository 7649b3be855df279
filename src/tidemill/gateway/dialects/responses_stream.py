"""A chat's stream as the typed events of a response.

Order of the events, as in OpenAI's API reference (Streaming events, 2026-11)::

    response.created, response.in_progress
    for each output item:       output_item.added … output_item.done
      of a message, each part:    content_part.added, output_text|refusal.delta…, output_text|refusal.done,
                                  content_part.done
      of a thought:               content_part.added, reasoning_text.delta…, reasoning_text.done, content_part.done
      of a call:                  function_call_arguments|custom_tool_call_input.delta…, ….done
    response.completed | response.incomplete | error, response.failed

A thought ends where anything else begins, a message where a call begins; calls stay open to the end, for a chat's
stream may return to an earlier call. A good stream's last event comes from ``finish`` alone, so that what must happen
before it can happen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tidemill.gateway.dialects.responses_answer import (
    annotations_of,
    call_item,
    error_words,
    fail,
    logprobs_of,
    message_item,
    reasoning_item,
    settle,
    text_part,
)
from tidemill.models.providers.events import EventSplitter

_encode: Final = msgspec.json.encode


class _Delta(msgspec.Struct):
    content: Any = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    reasoning_details: list[Any] | None = None
    annotations: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    logprobs: Any = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: Any = None
    service_tier: str | None = None
    error: Any = None
    tidemill: Any = None


_chunk: Final = msgspec.json.Decoder(_Chunk)

#: part type -> (events' stem, field of the part that holds the text)
_PARTS: Final = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
}
#: call item type -> (events' stem, field of the item that holds the text)
_CALLS: Final = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}
_LAST_EVENTS: Final = {"completed": "response.completed", "incomplete": "response.incomplete"}


@dataclass(slots=True)
class _Open:
    """An output item under way.

    Args:
        index: its place in the output.
        texts: of the part, or the call, under way.
    """

    item: dict[str, Any]
    index: int
    texts: list[str] = field(default_factory=list)
    part: dict[str, Any] | None = None
    details: list[Any] = field(default_factory=list)


class ResponseStream:
    """Translates one stream. A ``StreamTranslator``.

    Args:
        response: the Response object so far; filled in as the answer comes.
        stamp: part of the items' ids.
        now_s: seconds since 1970.
        show: what the client sees of a response.
    """

    def __init__(
        self,
        response: dict[str, Any],
        stamp: str,
        *,
        now_s: Callable[[], float],
        show: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self.response = response
        self._stamp = stamp
        self._now_s = now_s
        self._show = show
        self._splitter = EventSplitter()
        self._sequence = 0
        self._thought: _Open | None = None
        self._message: _Open | None = None
        self._calls: dict[int, _Open] = {}
        self._finish_reason: str | None = None
        self._usage: Any = None
        self._failed = False
        self._last_sequence = 0
        self._closing = b""

    @property
    def ended_well(self) -> bool:
        """Whether ``finish`` has given the response a good end."""
        return self.response["status"] in _LAST_EVENTS

    def feed(self, data: bytes) -> bytes:
        """Translate further pivot bytes; never gives the last event of a good stream.

        Raises:
            InvalidInput: an event is too long.
        """
        out: list[bytes] = []
        for event in self._splitter.feed(data):
            if self._failed or event.data == b"[DONE]":
                continue
            try:
                chunk = _chunk.decode(event.data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._fail(out, {"code": "server_error", "message": "The model's stream could not be read."})
                continue
            if not self._sequence:
                self._event(out, "response.created", response=self._show(self.response))
                self._event(out, "response.in_progress", response=self._show(self.response))
            self._take(chunk, out)
        return b"".join(out)

    def finish(self) -> bytes:
        """What ends the stream: the last events, or those of a failure where the source ended too early."""
        out: list[bytes] = []
        if self._failed:
            return b""
        if self._finish_reason is None:
            self._fail(out, {"code": "server_error", "message": "The answer broke off upstream."})
            return b"".join(out)
        self._close_thought(out)
        self._close_message(out)
        for call in self._calls.values():
            self._close_call(call, out)
        if not self.response["output"]:  # an answer without a word is an empty message
            self._say("output_text", "", None, out)
            self._close_message(out)
        settle(self.response, self._finish_reason, self._usage, now_s=self._now_s())
        self._closing, self._last_sequence = b"".join(out), self._sequence
        return self.last_bytes()

    def last_bytes(self) -> bytes:
        """What ``finish`` gave, written anew from the response as it is now."""
        out = [self._closing]
        self._sequence = self._last_sequence
        self._event(out, _LAST_EVENTS[self.response["status"]], response=self._show(self.response))
        return b"".join(out)

    # -- chunks -------------------------------------------------------------------------------------------------

    def _take(self, chunk: _Chunk, out: list[bytes]) -> None:
        if chunk.error is not None:
            self._fail(out, chunk.error)
            return
        response = self.response
        response["model"] = chunk.model or response["model"]
        response["service_tier"] = chunk.service_tier or response["service_tier"]
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.tidemill is not None:
            response["tidemill"] = chunk.tidemill
        for choice in chunk.choices or ():
            if choice.index == 0:
                if choice.delta is not None:
                    self._take_delta(choice.delta, choice.logprobs, out)
                self._finish_reason = choice.finish_reason or self._finish_reason

    def _take_delta(self, delta: _Delta, logprobs: Any, out: list[bytes]) -> None:
        thought = delta.reasoning_content or (delta.reasoning if isinstance(delta.reasoning, str) else None)
        if thought or delta.reasoning_details:
            self._think(thought, delta.reasoning_details, out)
        if delta.content:
            self._say("output_text", str(delta.content), logprobs, out)
        if delta.refusal:
            self._say("refusal", delta.refusal, None, out)
        if delta.annotations and self._message is not None and self._message.part is not None:
            self._annotate(self._message, delta.annotations, out)
        for call in delta.tool_calls or ():
            self._call(call, out)

    def _think(self, text: str | None, details: list[Any] | None, out: list[bytes]) -> None:
        thought = self._thought
        if thought is None:
            self._close_message(out)
            item = reasoning_item(f"rs_{self._stamp}_{len(self.response['output'])}", "", None, "in_progress")
            thought = self._thought = self._add(item, out)
        for detail in details or ():
            _merge(thought.details, detail)
        if text:
            self._write(thought, "reasoning_text", text, {}, out)

    def _say(self, kind: str, text: str, logprobs: Any, out: list[bytes]) -> None:
        self._close_thought(out)
        message = self._message
        if message is None:
            item = message_item(f"msg_{self._stamp}_{len(self.response['output'])}", [], "in_progress")
            message = self._message = self._add(item, out)
        if kind == "refusal":
            self._write(message, kind, text, {}, out)
            return
        tokens = logprobs_of(logprobs)
        self._write(message, kind, text, {"logprobs": tokens}, out)
        if tokens and message.part is not None:
            message.part["logprobs"] += tokens

    def _annotate(self, message: _Open, annotations: list[Any], out: list[bytes]) -> None:
        part = message.part
        assert part is not None
        for annotation in annotations_of(annotations):
            self._event(
                out,
                "response.output_text.annotation.added",
                item_id=message.item["id"],
                output_index=message.index,
                content_index=len(message.item["content"]),
                annotation_index=len(part.setdefault("annotations", [])),
                annotation=annotation,
            )
            part["annotations"].append(annotation)

    def _call(self, call: dict[str, Any], out: list[bytes]) -> None:
        place = call.get("index")
        number = place if isinstance(place, int) else len(self._calls)
        under_way = self._calls.get(number)
        named = call.get("function") or call.get("custom") or {}
        text = named.get("arguments") or named.get("input") or ""
        if under_way is None:
            self._close_thought(out)
            self._close_message(out)
            kind = "custom" if call.get("custom") else "function"
            begun = {"id": call.get("id"), "type": kind, kind: {"name": named.get("name")}}
            item = call_item(begun, f"{self._stamp}_{len(self.response['output'])}", "in_progress")
            under_way = self._calls[number] = self._add(item, out)
        if text:
            under_way.texts.append(text)
            stem, _ = _CALLS[under_way.item["type"]]
            self._event(out, f"{stem}.delta", item_id=under_way.item["id"], output_index=under_way.index, delta=text)

    # -- items and parts ------------------------------------------------------------------------------------------

    def _add(self, item: dict[str, Any], out: list[bytes]) -> _Open:
        output = self.response["output"]
        self._event(out, "response.output_item.added", output_index=len(output), item=item)
        output.append(item)
        return _Open(item, len(output) - 1)

    def _write(self, to: _Open, kind: str, text: str, more: dict[str, Any], out: list[bytes]) -> None:
        """Add to the part of a kind, after beginning it where another one is under way."""
        if to.part is None or to.part["type"] != kind:
            self._close_part(to, out)
            to.part = text_part("", [], []) if kind == "output_text" else {"type": kind, _PARTS[kind][1]: ""}
            self._part_event(to, "response.content_part.added", out, part=to.part)
        if text:
            to.texts.append(text)
            self._part_event(to, f"{_PARTS[kind][0]}.delta", out, delta=text, **more)

    def _close_part(self, to: _Open, out: list[bytes]) -> None:
        part = to.part
        if part is None:
            return
        stem, name = _PARTS[part["type"]]
        part[name] = "".join(to.texts)
        more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        self._part_event(to, f"{stem}.done", out, **{name: part[name]}, **more)
        self._part_event(to, "response.content_part.done", out, part=part)
        to.item["content"].append(part)
        to.part = None
        to.texts.clear()

    def _part_event(self, to: _Open, kind: str, out: list[bytes], /, **more: Any) -> None:
        place = {"item_id": to.item["id"], "output_index": to.index, "content_index": len(to.item["content"])}
        self._event(out, kind, **place, **more)

    def _close_thought(self, out: list[bytes]) -> None:
        thought, self._thought = self._thought, None
        if thought is not None:
            self._close_part(thought, out)
            content = thought.item["content"]
            text = content[0]["text"] if content else ""
            thought.item.update(reasoning_item(thought.item["id"], text, thought.details))
            self._item_done(thought, out)

    def _close_message(self, out: list[bytes]) -> None:
        message, self._message = self._message, None
        if message is not None:
            self._close_part(message, out)
            self._item_done(message, out)

    def _close_call(self, call: _Open, out: list[bytes]) -> None:
        stem, name = _CALLS[call.item["type"]]
        call.item[name] = "".join(call.texts)
        place = {"item_id": call.item["id"], "output_index": call.index}
        self._event(out, f"{stem}.done", **place, **{name: call.item[name]})
        self._item_done(call, out)

    def _item_done(self, one: _Open, out: list[bytes]) -> None:
        cut = one.index == len(self.response["output"]) - 1 and self._finish_reason in {"length", "content_filter"}
        one.item["status"] = "incomplete" if cut else "completed"
        item = self._show({"output": [one.item]})["output"][0]
        self._event(out, "response.output_item.done", output_index=one.index, item=item)

    def _fail(self, out: list[bytes], error: Any) -> None:
        self._failed = True
        code, message = error_words(error)
        if not self._sequence:
            self._event(out, "response.created", response=self._show(self.response))
            self._event(out, "response.in_progress", response=self._show(self.response))
        self._keep_fragments()
        fail(self.response, error)
        param = error.get("param") if isinstance(error, dict) else None
        self._event(out, "error", code=code, message=message, param=param)
        self._event(out, "response.failed", response=self._show(self.response))

    def _keep_fragments(self) -> None:
        """Put what has come of unfinished items into the response, without events."""
        sequence, unsent = self._sequence, list[bytes]()
        under_way = [self._thought, self._message, *self._calls.values()]
        self._close_thought(unsent)
        self._close_message(unsent)
        for call in self._calls.values():
            self._close_call(call, unsent)
        for one in under_way:
            if one is not None:
                one.item["status"] = "incomplete"
        self._sequence = sequence

    def _event(self, out: list[bytes], kind: str, /, **fields: Any) -> None:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(event)))


def _merge(details: list[Any], detail: Any) -> None:
    """Add a piece of ``reasoning_details``: pieces of one text are joined until its signature has come."""
    last = details[-1] if details else None
    if (
        isinstance(last, dict)
        and isinstance(detail, dict)
        and last.get("type") == detail.get("type") == "reasoning.text"
        and not last.get("signature")
        and last.get("index") == detail.get("index")
    ):
        text = f"{last.get('text') or ''}{detail.get('text') or ''}"
        details[-1] = {**last, **{name: value for name, value in detail.items() if value is not None}, "text": text}
        return
    details.append(detail)
