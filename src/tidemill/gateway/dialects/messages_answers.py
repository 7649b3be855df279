"""Clients that speak Anthropic's Messages API: answers, errors and streams for them.

Format: Anthropic's API reference, messages, errors and streaming, as its Python library 2.12 types them (2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.events import EventSplitter
from tidemill.models.providers.pivot import read_object, reading

STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""``finish_reason`` -> ``stop_reason``."""

_ERRORS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STREAM_STATUS: Final = {  # an error event of the pivot carries no status
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
}
_TIERS: Final = {"default": "standard", "priority": "priority"}
_OWN_FORMATS: Final = (None, "", "anthropic-claude-v1")
_FOREIGN: Final = "reasoning."  # a signature that another provider gave: 'reasoning.FORMAT:SIGNATURE'
_encode: Final = msgspec.json.encode


def write_answer(body: bytes, *, hides_thoughts: bool) -> bytes:
    """A chat completion as a message.

    Args:
        body: the pivot answer.
        hides_thoughts: the client asked for thinking without its text.

    Raises:
        InvalidInput: the body is not a chat completion.
    """
    found = read_object(body, "The answer")
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices:
        raise InvalidInput("The answer is no chat completion: it has no choices.")
    with reading("The answer"):
        return _encode(_message(found, choices[0], hides_thoughts))


def _message(found: dict[str, Any], choice: dict[str, Any], hidden: bool) -> dict[str, Any]:
    said = choice.get("message") or {}
    message = {
        "id": found.get("id") or "",
        "type": "message",
        "role": "assistant",
        "model": found.get("model") or "",
        "content": [*_thoughts(said, hidden), *_spoken(said)],
        **_ending(choice.get("finish_reason"), choice.get("stop_reason"), said, bool(said.get("tool_calls"))),
        "usage": _usage(found.get("usage"), found.get("service_tier")),
    }
    if "tidemill" in found:
        message["tidemill"] = found["tidemill"]
    return message


def _spoken(said: dict[str, Any]) -> Iterable[dict[str, Any]]:
    text = said.get("content") or said.get("refusal")
    if text:
        yield {"type": "text", "text": text, "citations": None}
    for call in said.get("tool_calls") or ():
        function = call.get("function") or {}
        yield {
            "type": "tool_use",
            "id": call.get("id") or "",
            "name": function.get("name") or "",
            "input": _input(function.get("arguments")),
        }


def _input(arguments: Any) -> dict[str, Any]:
    """The arguments as an object; a model's broken JSON is handed on as what it is, for the tool to reject."""
    if isinstance(arguments, dict):
        return arguments
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


def _thoughts(said: dict[str, Any], hidden: bool) -> list[dict[str, Any]]:
    details = said.get("reasoning_details")
    if details:
        return [_thought(detail, hidden) for detail in details]
    text = said.get("reasoning_content") or said.get("reasoning")  # the second is vLLM's and Ollama's word
    if not text:
        return []
    return [{"type": "thinking", "thinking": "" if hidden else text, "signature": ""}]


def _thought(detail: dict[str, Any], hidden: bool) -> dict[str, Any]:
    if detail.get("type") == "reasoning.encrypted":
        return {"type": "redacted_thinking", "data": _signed(detail, detail.get("data") or "")}
    text = "" if hidden else detail.get("text") or detail.get("summary") or ""
    return {"type": "thinking", "thinking": text, "signature": _signed(detail, detail.get("signature") or "")}


def _signed(detail: dict[str, Any], signature: str) -> str:
    """The signature, marked with its format when it is another provider's, so that it finds its way back."""
    form = detail.get("format")
    return signature if form in _OWN_FORMATS or not signature else f"{_FOREIGN}{form}:{signature}"


def opened_details(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Thinking blocks that a client sends back, as the fields of a pivot message.

    Args:
        blocks: ``thinking`` and ``redacted_thinking`` blocks in order.

    Returns:
        ``reasoning_details`` for what is signed, or ``reasoning_content`` for what never was.

    Raises:
        InvalidInput: a signature is no string.
    """
    details = []
    for block in blocks:
        sealed = block.get("signature") if block["type"] == "thinking" else block.get("data")
        if not sealed:
            continue
        if not isinstance(sealed, str):
            raise InvalidInput("The 'signature' or 'data' of a thinking block must be a string.")
        detail: dict[str, Any] = {}
        if sealed.startswith(_FOREIGN):
            detail["format"], _, sealed = sealed.removeprefix(_FOREIGN).partition(":")
        if block["type"] == "thinking":
            detail |= {"type": "reasoning.text", "text": block.get("thinking") or "", "signature": sealed}
        else:
            detail |= {"type": "reasoning.encrypted", "data": sealed}
        details.append(detail)
    if details:
        return {"reasoning_details": details}
    texts = [str(block["thinking"]) for block in blocks if block.get("thinking")]
    return {"reasoning_content": "\n".join(texts)} if texts else {}


def _ending(finish: Any, stopped_by: Any, said: dict[str, Any], called: bool) -> dict[str, Any]:
    reason = STOP_REASONS.get(finish or "", "end_turn")
    if reason == "end_turn" and called:
        reason = "tool_use"  # some servers say 'stop' after a call
    sequence = stopped_by if isinstance(stopped_by, str) and reason == "end_turn" else None  # vLLM tells which
    ending: dict[str, Any] = {"stop_reason": "stop_sequence" if sequence else reason, "stop_sequence": sequence}
    if reason == "refusal":
        ending["stop_details"] = {"type": "refusal", "category": None, "explanation": said.get("refusal")}
    return ending


def _usage(usage: Any, tier: Any) -> dict[str, Any]:
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details") or {}
    cached, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    found: dict[str, Any] = {
        "input_tokens": max(0, (usage.get("prompt_tokens") or 0) - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    if reasoning:
        found["output_tokens_details"] = {"thinking_tokens": reasoning}
    if tier in _TIERS:
        found["service_tier"] = _TIERS[tier]
    return found


def write_error(status: int, body: bytes) -> bytes:
    """OpenAI's error JSON as Anthropic's.

    Args:
        status: the HTTP status, which decides the type.
        body: OpenAI's error object; what cannot be read becomes the message.
    """
    try:
        found = read_object(body, "The error").get("error")
    except InvalidInput:
        found = body[:500].decode("utf-8", "replace")
    found = found if isinstance(found, dict) else {"message": found}
    kind = _ERRORS.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": str(found.get("message") or "The request failed.")}
    if isinstance(found.get("code"), str):
        error["details"] = {"error_code": found["code"]}
    return _encode({"type": "error", "error": error, "request_id": None})


class MessagesStream:
    """A pivot stream as events of the Messages API; see ``StreamTranslator``.

    Blocks are numbered in the order in which they begin. A tool call's block ends when the next call begins and its own
    arguments are complete, otherwise with the stream, so that interleaved calls keep their pieces.

    Args:
        hides_thoughts: the client asked for thinking without its text.
    """

    __slots__ = (
        "_arguments", "_begun", "_blocks", "_calls", "_closed", "_events", "_extra", "_finish", "_hidden", "_open",
        "_refusal", "_stopped_by", "_tier", "_usage",
    )  # fmt: skip

    def __init__(self, *, hides_thoughts: bool = False) -> None:
        self._events = EventSplitter()
        self._hidden = hides_thoughts
        self._begun = self._closed = False
        self._blocks = 0  # how many have begun
        self._open = ""  # the kind of the block that is open last, beside tool calls: text or thinking
        self._calls: dict[int, int] = {}  # the pivot's number of a call -> its block
        self._arguments: dict[int, list[str]] = {}  # block of an open call -> its arguments so far
        self._finish: Any = None
        self._stopped_by: Any = None
        self._refusal: list[str] = []
        self._usage: Any = None
        self._tier: Any = None
        self._extra: Any = None

    def feed(self, data: bytes) -> bytes:
        """Translate further bytes; see ``StreamTranslator.feed``."""
        return b"".join([self._event(event.data) for event in self._events.feed(data)])

    def finish(self) -> bytes:
        """Nothing is due: the last events follow ``[DONE]``; see ``StreamTranslator.finish``."""
        return b""

    def _event(self, data: bytes) -> bytes:
        if self._closed:
            return b""
        if data == b"[DONE]":
            self._closed = True
            with reading("The stream"):
                return self._end()
        found = read_object(data, "An event of the stream")
        if found.get("error") is not None:
            self._closed = True
            kind = found["error"].get("type") if isinstance(found["error"], dict) else None
            return b"event: error\ndata: %b\n\n" % write_error(_STREAM_STATUS.get(kind or "", 500), data)
        try:  # not reading(): this is the hot path
            return self._chunk(found)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(f"An event of the stream has another shape: {error}.") from error

    def _chunk(self, found: dict[str, Any]) -> bytes:
        written = b"" if self._begun else self._begin(found)
        self._usage = found.get("usage") or self._usage
        self._tier = found.get("service_tier") or self._tier
        self._extra = found.get("tidemill") or self._extra
        for choice in found.get("choices") or ():
            if choice.get("index", 0) == 0:
                written += self._delta(choice.get("delta") or {})
                self._finish = choice.get("finish_reason") or self._finish
                self._stopped_by = choice.get("stop_reason") or self._stopped_by
        return written

    def _begin(self, found: dict[str, Any]) -> bytes:
        self._begun = True
        message: dict[str, Any] = {
            "id": found.get("id") or "",
            "type": "message",
            "role": "assistant",
            "model": found.get("model") or "",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(found.get("usage"), found.get("service_tier")),
        }
        return _written("message_start", {"message": message})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        written = b""
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought:
            written += self._enter("thinking", {"thinking": "", "signature": ""})
            if not self._hidden:
                written += self._more({"type": "thinking_delta", "thinking": thought})
        for detail in delta.get("reasoning_details") or ():
            written += self._detail(detail)
        text = delta.get("content")
        if delta.get("refusal"):
            self._refusal.append(delta["refusal"])
        if text:
            written += self._enter("text", {"text": "", "citations": None}) + self._more(
                {"type": "text_delta", "text": text}
            )
        for call in delta.get("tool_calls") or ():
            written += self._call(call)
        return written

    def _detail(self, detail: dict[str, Any]) -> bytes:
        block = _thought(detail, self._hidden)
        if block["type"] == "redacted_thinking":
            written = self._leave() + self._start(block)
            return written + _written("content_block_stop", {"index": self._blocks - 1})
        written = b""
        if self._open != "thinking":  # its text has not been streamed before
            written += self._enter("thinking", {"thinking": "", "signature": ""})
            if block["thinking"]:
                written += self._more({"type": "thinking_delta", "thinking": block["thinking"]})
        if block["signature"]:
            written += self._more({"type": "signature_delta", "signature": block["signature"]})
        return written + self._leave()

    def _call(self, call: dict[str, Any]) -> bytes:
        number = call.get("index", 0)
        function = call.get("function") or {}
        written = b""
        if number not in self._calls:
            written += self._leave() + self._close_calls(complete_only=True)
            self._calls[number] = self._blocks
            self._arguments[self._blocks] = []
            name = function.get("name") or ""
            written += self._start({"type": "tool_use", "id": call.get("id") or "", "name": name, "input": {}})
        text = function.get("arguments")
        if text:
            block = self._calls[number]
            if block not in self._arguments:
                raise InvalidInput("A tool call of the stream goes on after its arguments were complete.")
            self._arguments[block].append(text)
            delta = {"type": "input_json_delta", "partial_json": text}
            written += _written("content_block_delta", {"index": block, "delta": delta})
        return written

    def _start(self, block: dict[str, Any]) -> bytes:
        self._blocks += 1
        return _written("content_block_start", {"index": self._blocks - 1, "content_block": block})

    def _enter(self, kind: str, empty: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        written = self._leave() + self._close_calls(complete_only=True) + self._start({"type": kind, **empty})
        self._open = kind
        return written

    def _more(self, delta: dict[str, Any]) -> bytes:
        form = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n'
        return form % (self._blocks - 1, _encode(delta))

    def _leave(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _written("content_block_stop", {"index": self._blocks - 1})

    def _close_calls(self, *, complete_only: bool) -> bytes:
        written = b""
        for block, pieces in list(self._arguments.items()):
            if not complete_only or _complete("".join(pieces)):
                del self._arguments[block]
                written += _written("content_block_stop", {"index": block})
        return written

    def _end(self) -> bytes:
        written = b"" if self._begun else self._begin({})
        if self._refusal and not self._blocks:
            written += self._enter("text", {"text": "", "citations": None})
            written += self._more({"type": "text_delta", "text": "".join(self._refusal)})
        written += self._leave() + self._close_calls(complete_only=False)
        said = {"refusal": "".join(self._refusal) or None}
        event: dict[str, Any] = {
            "delta": _ending(self._finish, self._stopped_by, said, bool(self._calls)),
            "usage": _usage(self._usage, None),
        }
        if self._extra is not None:
            event["tidemill"] = self._extra
        return written + _written("message_delta", event) + _written("message_stop", {})


def _complete(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _written(name: str, event: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **event}))
