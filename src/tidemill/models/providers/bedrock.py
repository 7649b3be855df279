"""The dialect of Amazon Bedrock: Converse and ConverseStream, signed with AWS credentials or by an API key.

Source: AWS, "Amazon Bedrock Runtime API reference". Requests are written in ``bedrock_requests``, the binary stream is
cut in ``bedrock_eventstream``, the signature is ``sigv4``'s.

Credentials: ``api_key`` (an Amazon Bedrock API key), or in ``extra`` ``aws_access_key_id``, ``aws_secret_access_key``
and, with temporary ones, ``aws_session_token``. Options of a target: ``region``, where the host does not tell it, and
``leave_out``.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.anthropic_answers import redacted_detail, thinking_detail
from tidemill.models.providers.bedrock_eventstream import EventStreamDecoder, Frame
from tidemill.models.providers.bedrock_requests import FIELDS, NAME, converse_body
from tidemill.models.providers.dialect import Credentials, Dialect, Place, ProviderRequest, StreamTranslator
from tidemill.models.providers.events import DONE, ChunkWriter, error_event
from tidemill.models.providers.pivot import (
    check_operation,
    completion,
    error_json,
    read_object,
    tool_call,
    usage_of,
    wants_usage,
)
from tidemill.models.providers.sigv4 import SigningIdentity, signed_headers

__all__ = ["DIALECTS", "FIELDS", "BedrockDialect"]

_encode: Final = msgspec.json.encode
_SERVICE: Final = "bedrock"
_REGION: Final = re.compile(r"bedrock-runtime(?:-fips)?\.([a-z0-9-]+)\.")

#: stopReason -> finish_reason
_REASONS: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
#: Reasons under which there is no answer to hand on: the same request may succeed the next time, or elsewhere.
_FAILURES: Final = frozenset({"malformed_model_output", "malformed_tool_use"})
#: exception -> HTTP status, for exceptions inside a stream, which carry none
_STATUSES: Final[Mapping[str, int]] = {
    "validationException": 400,
    "accessDeniedException": 403,
    "resourceNotFoundException": 404,
    "throttlingException": 429,
    "modelNotReadyException": 429,
    "internalServerException": 500,
    "modelStreamErrorException": 502,
    "modelErrorException": 502,
    "serviceUnavailableException": 503,
    "modelTimeoutException": 504,
}
#: Bedrock's status -> the client's, where the word for it would mislead: both are failures of the model
_TRANSLATED: Final[Mapping[int, int]] = {424: 502, 408: 504}


class BedrockDialect:
    """Chat by Converse."""

    name = NAME
    operations = frozenset({"chat"})
    stream_type = b"application/vnd.amazon.eventstream"

    def request(
        self, operation: str, body: bytes, place: Place, credentials: Credentials, *, now_s: float
    ) -> ProviderRequest:
        """Translate and sign a pivot request; see ``Dialect.request``."""
        check_operation(self, operation)
        request = read_object(body, "The request")
        document = _encode(converse_body(request, place))
        method = "converse-stream" if request.get("stream") else "converse"
        # A model's name may be an ARN; every reserved character of it is data here.
        path = f"{place.base_path}/model/{quote(place.model, safe='')}/{method}"
        headers = (("content-type", "application/json"),)
        return ProviderRequest(
            path, headers + _authorised(path, headers, document, place, credentials, now_s), document
        )

    def answer(self, operation: str, body: bytes, *, model: str, now_s: float = 0.0) -> bytes:
        """Translate a whole answer; see ``Dialect.answer``."""
        check_operation(self, operation)
        found = read_object(body, "Bedrock's answer")
        try:
            choice = _choice(found)
            usage = _usage(found.get("usage"))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(f"Bedrock's answer has another shape: {error!r}.") from error
        return _encode(completion(_identity(body, now_s), model, int(now_s), [choice], usage))

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Translate an error answer; see ``Dialect.error``."""
        status = _TRANSLATED.get(status, status)
        try:
            found = read_object(body, "The error")
        except InvalidInput:
            found = {"message": body[:300].decode("utf-8", "replace").strip()}
        message = found.get("message") or found.get("Message") or f"Bedrock answered with the status {status}."
        kind = found.get("__type")
        return status, error_json(status, str(message), code=str(kind).rpartition("#")[2] if kind else None)

    def stream(self, operation: str, request_body: bytes, *, model: str, now_s: float = 0.0) -> StreamTranslator:
        """Begin to translate a stream; see ``Dialect.stream``."""
        check_operation(self, operation)
        include_usage = wants_usage(read_object(request_body, "The request"))
        identity = _identity(request_body, now_s)
        return _Stream(ChunkWriter(model, identity, int(now_s), include_usage=include_usage))


def _authorised(
    path: str,
    headers: tuple[tuple[str, str], ...],
    body: bytes,
    place: Place,
    credentials: Credentials,
    now_s: float,
) -> tuple[tuple[str, str], ...]:
    if credentials.api_key:
        return (("authorization", f"Bearer {credentials.api_key}"),)
    secrets = credentials.extra
    if not secrets.get("aws_access_key_id") or not secrets.get("aws_secret_access_key"):
        raise InvalidInput(
            "A target of the dialect 'bedrock' has no credentials.",
            hint="Give it an api_key, or aws_access_key_id and aws_secret_access_key.",
        )
    identity = SigningIdentity(
        access_key_id=secrets["aws_access_key_id"],
        secret_access_key=secrets["aws_secret_access_key"],
        session_token=secrets.get("aws_session_token"),
        region=_region(place),
        service=_SERVICE,
    )
    return signed_headers("POST", path, (("host", place.host), *headers), body, identity, now_s=now_s)


def _region(place: Place) -> str:
    if region := place.options.get("region"):
        return region
    found = _REGION.search(place.host)
    if found is None:
        raise InvalidInput(
            f"The host '{place.host}' does not tell the AWS region to sign for.",
            hint="Give the target the option 'region', e.g. eu-central-1.",
        )
    return found[1]


def _identity(source: bytes, now_s: float) -> str:
    # Converse names its answers in a header alone, which a dialect does not see.
    return f"chatcmpl-{hashlib.sha256(b'%r %b' % (now_s, source)).hexdigest()[:24]}"


def _choice(found: Mapping[str, Any]) -> dict[str, Any]:
    reason = str(found["stopReason"])
    if reason in _FAILURES:
        raise InvalidInput(f"Bedrock ended without an answer: {reason}.")
    message = _Message()
    for block in found["output"]["message"]["content"]:
        message.read(block)
    return {"index": 0, "message": message.written(), "finish_reason": _REASONS.get(reason, "stop")}


class _Message:
    """The blocks of an answer, sorted by where they go in the pivot."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._lists: dict[str, list[dict[str, Any]]] = {}

    def read(self, block: Mapping[str, Any]) -> None:
        """Take one content block.

        Raises:
            InvalidInput: a block that the pivot has no place for.
        """
        if "text" in block:
            self._say("content", block["text"])
        elif "toolUse" in block:
            use = block["toolUse"]
            arguments = _encode(use.get("input") or {}).decode()
            self._list("tool_calls", tool_call(use["toolUseId"], use["name"], arguments))
        elif "reasoningContent" in block:
            self._think(block["reasoningContent"])
        elif "citationsContent" in block:
            for text in block["citationsContent"].get("content") or ():
                self._say("content", text["text"])
        elif "image" in block:
            self._list("images", _image(block["image"]))
        else:
            raise InvalidInput(
                f"Bedrock's answer holds a block that has no place in a chat answer: {', '.join(block)}."
            )

    def written(self) -> dict[str, Any]:
        """The pivot's message."""
        texts = dict(self._texts)
        return {"role": "assistant", "content": texts.pop("content", None), **texts, **self._lists}

    def _think(self, block: Mapping[str, Any]) -> None:
        if "redactedContent" in block:
            self._list("reasoning_details", redacted_detail(block["redactedContent"]))
            return
        thought = block["reasoningText"]
        self._say("reasoning_content", thought["text"])
        if thought.get("signature"):
            self._list("reasoning_details", thinking_detail(thought["text"], thought["signature"]))

    def _say(self, field: str, text: str) -> None:
        self._texts[field] = self._texts.get(field, "") + text

    def _list(self, field: str, entry: dict[str, Any]) -> None:
        self._lists.setdefault(field, []).append(entry)


def _image(image: Mapping[str, Any]) -> dict[str, Any]:
    source = image["source"]
    url = f"data:image/{image['format']};base64,{source['bytes']}" if "bytes" in source else source["s3Location"]["uri"]
    return {"type": "image_url", "image_url": {"url": url}}


def _joined(pieces: list[str]) -> str:
    """Base64 of what several pieces of base64 hold together."""
    return b64encode(b"".join(map(b64decode, pieces))).decode() if len(pieces) > 1 else pieces[0]


def _usage(counted: Any) -> dict[str, Any] | None:
    if not isinstance(counted, dict):
        return None
    # What was read from or written to the cache is not among inputTokens.
    read, written = int(counted.get("cacheReadInputTokens") or 0), int(counted.get("cacheWriteInputTokens") or 0)
    prompt = int(counted["inputTokens"]) + read + written
    return usage_of(prompt, int(counted["outputTokens"]), cached=read, cache_write=written)


class _Stream:
    """The frames of ConverseStream as pivot chunks."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._frames = EventStreamDecoder()
        self._writer = writer
        self._calls: dict[int, int] = {}  # content block -> number of its tool call
        self._begun: set[int] = set()  # tool calls that have got arguments
        self._blocks: dict[int, dict[str, list[str]]] = {}  # content block -> what it holds back until it ends
        self._entries: dict[str, int] = {}  # list in the message -> number of its last entry
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._failed = False

    def feed(self, data: bytes) -> bytes:
        return b"".join([self._frame(frame) for frame in self._frames.feed(data)])

    def finish(self) -> bytes:
        if self._failed or self._frames.incomplete or self._reason is None:
            return b""
        return self._writer.end({0: self._reason}, self._usage) + DONE

    def _frame(self, frame: Frame) -> bytes:
        if self._failed:
            return b""
        kind = frame.text(":message-type")
        if kind == "error":
            return self._fail(frame.text(":error-code"), frame.text(":error-message"))
        found = read_object(frame.payload, "A message of Bedrock's stream") if frame.payload else {}
        if kind == "exception":
            return self._fail(frame.text(":exception-type"), str(found.get("message") or ""))
        handle = _HANDLERS.get(frame.text(":event-type"))
        try:
            return handle(self, found) if handle is not None else b""
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(f"A message of Bedrock's stream has another shape: {error!r}.") from error

    def _fail(self, exception: str, message: str) -> bytes:
        self._failed = True
        status = _STATUSES.get(exception[:1].lower() + exception[1:], 502)
        text = message or f"Bedrock broke the stream off: {exception or 'no reason given'}."
        return error_event(error_json(status, text, code=exception or None))

    def _message_start(self, _: dict[str, Any]) -> bytes:
        return self._writer.delta({"role": "assistant", "content": ""})

    def _block_start(self, found: dict[str, Any]) -> bytes:
        start, block = found["start"], found["contentBlockIndex"]
        if "toolUse" in start:
            number = self._calls[block] = len(self._calls)
            call = tool_call(start["toolUse"]["toolUseId"], start["toolUse"]["name"], "", index=number)
            return self._writer.delta({"tool_calls": [call]})
        if "image" in start:
            self._keep(block, "format", start["image"]["format"])
        return b""

    def _block_delta(self, found: dict[str, Any]) -> bytes:
        delta, block = found["delta"], found["contentBlockIndex"]
        if "text" in delta:
            return self._writer.delta({"content": delta["text"]})
        if "toolUse" in delta:
            return self._arguments(self._calls[block], delta["toolUse"]["input"])
        if "reasoningContent" in delta:
            return self._thought(block, delta["reasoningContent"])
        if "image" in delta:
            self._keep(block, "bytes", delta["image"]["source"]["bytes"])
        return b""

    def _arguments(self, number: int, text: str) -> bytes:
        if not text:
            return b""
        self._begun.add(number)
        return self._writer.delta({"tool_calls": [{"index": number, "function": {"arguments": text}}]})

    def _thought(self, block: int, delta: dict[str, Any]) -> bytes:
        for name in ("text", "signature", "redactedContent"):
            if delta.get(name):
                self._keep(block, name, delta[name])
        return self._writer.delta({"reasoning_content": delta["text"]}) if delta.get("text") else b""

    def _keep(self, block: int, name: str, value: str) -> None:
        self._blocks.setdefault(block, {}).setdefault(name, []).append(value)

    def _block_stop(self, found: dict[str, Any]) -> bytes:
        block = found["contentBlockIndex"]
        if block in self._calls and self._calls[block] not in self._begun:
            return self._arguments(self._calls[block], "{}")  # a call without arguments: clients parse what they get
        kept = self._blocks.pop(block, {})
        if "bytes" in kept:
            image = {"format": kept["format"][0], "source": {"bytes": _joined(kept["bytes"])}}
            return self._entry("images", _image(image))
        if "redactedContent" in kept:
            return self._entry("reasoning_details", redacted_detail(_joined(kept["redactedContent"])))
        if "signature" in kept:
            detail = thinking_detail("".join(kept.get("text", ())), "".join(kept["signature"]))
            return self._entry("reasoning_details", detail)
        return b""

    def _entry(self, field: str, entry: dict[str, Any]) -> bytes:
        # Clients put the lists of a stream together by the entries' numbers.
        number = self._entries[field] = self._entries.get(field, -1) + 1
        return self._writer.delta({field: [{"index": number, **entry}]})

    def _message_stop(self, found: dict[str, Any]) -> bytes:
        reason = str(found["stopReason"])
        if reason in _FAILURES:
            return self._fail("", f"Bedrock ended without an answer: {reason}.")
        self._reason = _REASONS.get(reason, "stop")
        return b""

    def _metadata(self, found: dict[str, Any]) -> bytes:
        self._usage = _usage(found.get("usage"))
        return b""


_HANDLERS: Final[Mapping[str, Callable[[_Stream, dict[str, Any]], bytes]]] = {
    "messageStart": _Stream._message_start,
    "contentBlockStart": _Stream._block_start,
    "contentBlockDelta": _Stream._block_delta,
    "contentBlockStop": _Stream._block_stop,
    "messageStop": _Stream._message_stop,
    "metadata": _Stream._metadata,
}

DIALECTS: Final[Mapping[str, Dialect]] = {NAME: BedrockDialect()}
