"""The dialect of Google's Gemini API: ``generateContent``, its stream of server-sent events, and embeddings.

Source: Google, "Gemini API reference", v1beta. Requests are written in ``gemini_requests``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.dialect import (
    Credentials,
    Dialect,
    Place,
    ProviderRequest,
    StreamTranslator,
)
from tidemill.models.providers.events import DONE, ChunkWriter, EventSplitter, error_event
from tidemill.models.providers.fields import left_out
from tidemill.models.providers.gemini_requests import EMBEDDING_FIELDS, FIELDS, NAME, chat_body, embedding_body
from tidemill.models.providers.pivot import (
    check_operation,
    completion,
    error_json,
    read_object,
    tool_call,
    usage_of,
    wants_usage,
)

__all__ = ["DIALECTS", "EMBEDDING_FIELDS", "FIELDS", "GeminiDialect"]

_encode: Final = msgspec.json.encode
_BASE_PATH: Final = "/v1beta"

#: finishReason -> finish_reason; a reason that is in neither table counts as an ordinary end
_REASONS: Final[Mapping[str, str]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(
        (
            "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "ESCALATION", "MODEL_ARMOR",
            "PUP_LIMITED_DISABLED", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
        ),
        "content_filter",
    ),
}  # fmt: skip
#: Reasons under which there is no answer to hand on: the same request may succeed the next time, or elsewhere.
_FAILURES: Final = frozenset({
    "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE",
    "MALFORMED_RESPONSE", "OTHER", "NO_IMAGE", "IMAGE_OTHER",
})  # fmt: skip


class GeminiDialect:
    """Chat and embeddings in Gemini's own format, authorised by ``x-goog-api-key``."""

    name = NAME
    operations = frozenset({"chat", "embeddings"})
    stream_type = b"text/event-stream"

    def request(
        self,
        operation: str,
        body: bytes,
        place: Place,
        credentials: Credentials,
        *,
        now_s: float,  # noqa: ARG002 - the interface's; nothing is signed with a time here
    ) -> ProviderRequest:
        """Translate a pivot request; see ``Dialect``."""
        check_operation(self, operation)
        request = read_object(body, "The request")
        model = place.model if "/" in place.model else f"models/{place.model}"
        query = ""
        if operation == "embeddings":
            method, document = embedding_body(request, model, left_out(place))
        else:
            method, document = "generateContent", chat_body(request, place)
            if request.get("stream"):
                method, query = "streamGenerateContent", "?alt=sse"
        headers = [("content-type", "application/json")]
        if credentials.api_key:
            headers.append(("x-goog-api-key", credentials.api_key))
        path = f"{place.base_path or _BASE_PATH}/{quote(model, safe='/-._')}:{method}{query}"
        return ProviderRequest(path, tuple(headers), _encode(document))

    def answer(self, operation: str, body: bytes, *, model: str, now_s: float = 0.0) -> bytes:
        """Translate a whole answer; see ``Dialect``."""
        check_operation(self, operation)
        found = read_object(body, "Gemini's answer")
        try:
            if operation == "embeddings":
                return _encode(_embeddings(found, model))
            identity = _identity(found, body)
            candidates = _listed(found) or _blocked(found)
            if not candidates:
                raise InvalidInput("Gemini's answer has neither candidates nor a reason why the prompt was blocked.")
            choices = [_choice(candidate, number, identity) for number, candidate in enumerate(candidates)]
            name = str(found.get("modelVersion") or model)
            return _encode(completion(identity, name, int(now_s), choices, _usage(found)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(f"Gemini's answer has another shape: {error!r}.") from error

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Translate an error answer; see ``Dialect``."""
        error = _error_of(body)
        if error is None:
            text = body[:300].decode("utf-8", "replace").strip()
            return status, error_json(status, text or f"Gemini answered with the status {status}.")
        return _openai_error(error, status)

    def stream(self, operation: str, request_body: bytes, *, model: str, now_s: float = 0.0) -> StreamTranslator:
        """Begin to translate a stream; see ``Dialect``."""
        check_operation(self, operation)
        return _Stream(model, now_s, include_usage=wants_usage(read_object(request_body, "The request")))


class _Stream:
    """Each event is a ``GenerateContentResponse`` that adds to the candidates."""

    def __init__(self, model: str, now_s: float, *, include_usage: bool) -> None:
        self._events = EventSplitter()
        self._writer = ChunkWriter(model, "", int(now_s), include_usage=include_usage)
        self._calls: dict[int, int] = {}  # candidate -> its tool calls so far
        self._images: dict[int, int] = {}  # candidate -> its images so far
        self._reasons: dict[int, str | None] = {}  # candidate -> how it ended
        self._usage: dict[str, Any] | None = None
        self._failed = False

    def feed(self, data: bytes) -> bytes:
        return b"".join(self._event(event.data) for event in self._events.feed(data))

    def finish(self) -> bytes:
        reasons = {index: reason for index, reason in self._reasons.items() if reason is not None}
        if self._failed or not self._events.empty or not reasons or len(reasons) < len(self._reasons):
            return b""
        return self._writer.end(reasons, self._usage) + DONE

    def _event(self, data: bytes) -> bytes:
        if self._failed:
            return b""
        found = read_object(data, "An event of Gemini's stream")
        try:
            return self._read(found, data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(f"An event of Gemini's stream has another shape: {error!r}.") from error

    def _read(self, found: dict[str, Any], data: bytes) -> bytes:
        if "error" in found:
            return self._fail(_openai_error(found["error"], 502)[1])
        if not self._writer.identity:
            self._writer.identity = _identity(found, data)
        self._writer.model = str(found.get("modelVersion") or self._writer.model)
        self._usage = _usage(found) or self._usage
        candidates = _listed(found) or ([] if self._reasons else _blocked(found))
        return b"".join(self._candidate(candidate) for candidate in candidates)

    def _candidate(self, candidate: dict[str, Any]) -> bytes:
        index = int(candidate.get("index") or 0)
        fresh = index not in self._reasons
        self._reasons.setdefault(index, None)
        pieces = _Pieces(f"{self._writer.identity}-{index}", self._calls.get(index, 0), self._images.get(index, 0))
        pieces.read(candidate)
        self._calls[index], self._images[index] = pieces.calls, pieces.images
        ended = candidate.get("finishReason")
        if ended in _FAILURES:
            return self._fail(error_json(502, _failure(candidate)))
        if ended:
            self._reasons[index] = _finish_reason(str(ended), called=pieces.calls > 0)
        delta = pieces.delta()
        logprobs = _logprobs(candidate)
        if not delta and logprobs is None and not fresh:
            return b""
        return self._writer.delta({"role": "assistant", **delta} if fresh else delta, index=index, logprobs=logprobs)

    def _fail(self, error: bytes) -> bytes:
        self._failed = True
        return error_event(error)


class _Pieces:
    """What the parts of one candidate hold, sorted by where it goes in the pivot.

    Args:
        identity: begins the ids of tool calls to which Gemini gave none.
        calls, images: tool calls and images of the same candidate before these parts.
    """

    def __init__(self, identity: str, calls: int = 0, images: int = 0) -> None:
        self.calls = calls
        self.images = images
        self._identity = identity
        self._texts: dict[str, str] = {}
        self._signature: str | None = None
        self._tool_calls: list[dict[str, Any]] = []
        self._image_parts: list[dict[str, Any]] = []

    def read(self, candidate: Mapping[str, Any]) -> None:
        """Take a candidate's parts.

        Raises:
            InvalidInput: a part that the pivot has no place for.
        """
        content = candidate.get("content")
        for part in (content.get("parts") or ()) if isinstance(content, dict) else ():
            self._part(part)
        if "refusal" in candidate:
            self._texts["refusal"] = candidate["refusal"]

    def _part(self, part: dict[str, Any]) -> None:
        signature = part.get("thoughtSignature")
        if "functionCall" in part:
            self._call(part["functionCall"], signature)
        elif "inlineData" in part:
            blob = part["inlineData"]
            url = f"data:{blob.get('mimeType')};base64,{blob.get('data')}"
            self._image_parts.append({"index": self.images, "type": "image_url", "image_url": {"url": url}})
            self.images += 1
        elif "text" in part:
            field = "reasoning_content" if part.get("thought") else "content"
            self._texts[field] = self._texts.get(field, "") + str(part["text"])
            self._signature = signature or self._signature
        elif signature:
            self._signature = signature
        else:
            raise InvalidInput(f"Gemini's answer holds a part that has no place in a chat answer: {', '.join(part)}.")

    def _call(self, call: dict[str, Any], signature: str | None) -> None:
        identity = str(call.get("id") or f"call_{self._identity.removeprefix('chatcmpl-')}-{self.calls}")
        arguments = _encode(call.get("args") or {}).decode()
        written = tool_call(identity, str(call.get("name") or ""), arguments, index=self.calls)
        if signature:
            written["extra_content"] = {"google": {"thought_signature": signature}}
        self._tool_calls.append(written)
        self.calls += 1

    def delta(self) -> dict[str, Any]:
        """What the parts add to a message; empty when they hold nothing."""
        delta: dict[str, Any] = {field: text for field, text in self._texts.items() if text}
        if self._tool_calls:
            delta["tool_calls"] = self._tool_calls
        if self._image_parts:
            delta["images"] = self._image_parts
        if self._signature:
            delta["extra_content"] = {"google": {"thought_signature": self._signature}}
        return delta

    def message(self) -> dict[str, Any]:
        """The parts as a whole message."""
        delta = self.delta()
        for numbered in (*delta.get("tool_calls", ()), *delta.get("images", ())):
            del numbered["index"]
        return {"role": "assistant", "content": delta.pop("content", None), **delta}


def _choice(candidate: dict[str, Any], number: int, identity: str) -> dict[str, Any]:
    reason = str(candidate.get("finishReason") or "STOP")
    if reason in _FAILURES:
        raise InvalidInput(_failure(candidate))
    index = int(candidate.get("index") or number)
    pieces = _Pieces(f"{identity}-{index}")
    pieces.read(candidate)
    message = pieces.message()
    choice: dict[str, Any] = {"index": index, "message": message}
    logprobs = _logprobs(candidate)
    if logprobs is not None:
        choice["logprobs"] = logprobs
    choice["finish_reason"] = _finish_reason(reason, called=pieces.calls > 0)
    return choice


def _finish_reason(reason: str, *, called: bool) -> str:
    found = _REASONS.get(reason, "stop")
    return "tool_calls" if called and found == "stop" else found


def _failure(candidate: Mapping[str, Any]) -> str:
    message = candidate.get("finishMessage")
    return f"Gemini ended without an answer: {candidate.get('finishReason')}{f', {message}' if message else ''}."


def _listed(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    candidates = found.get("candidates")
    return [one for one in candidates if isinstance(one, dict)] if isinstance(candidates, list) else []


def _blocked(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    feedback = found.get("promptFeedback")
    reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
    if not reason:
        return []
    # The prompt itself was refused: an answer of no words, whose end and refusal say why.
    return [{"index": 0, "finishReason": "SAFETY", "refusal": f"Gemini blocked the prompt: {reason}."}]


def _identity(found: Mapping[str, Any], body: bytes) -> str:
    given = found.get("responseId")
    return f"chatcmpl-{given or hashlib.sha256(body).hexdigest()[:24]}"


def _usage(found: Mapping[str, Any]) -> dict[str, Any] | None:
    counted = found.get("usageMetadata")
    if not isinstance(counted, dict):
        return None
    thoughts = int(counted.get("thoughtsTokenCount") or 0)
    usage = usage_of(
        int(counted.get("promptTokenCount") or 0) + int(counted.get("toolUsePromptTokenCount") or 0),
        int(counted.get("candidatesTokenCount") or 0) + thoughts,
        cached=int(counted.get("cachedContentTokenCount") or 0),
        reasoning=thoughts,
    )
    for details, field in (("promptTokensDetails", "prompt_tokens_details"),
                           ("candidatesTokensDetails", "completion_tokens_details")):  # fmt: skip
        audio = sum(int(one.get("tokenCount") or 0) for one in counted.get(details) or () if _is_audio(one))
        if audio:
            usage.setdefault(field, {})["audio_tokens"] = audio
    return usage


def _is_audio(detail: Mapping[str, Any]) -> bool:
    return detail.get("modality") == "AUDIO"


def _logprobs(candidate: Mapping[str, Any]) -> dict[str, Any] | None:
    result = candidate.get("logprobsResult")
    if not isinstance(result, dict):
        return None
    chosen = result.get("chosenCandidates") or []
    tops = result.get("topCandidates") or []
    content = []
    for at, token in enumerate(chosen):
        top = tops[at].get("candidates", []) if at < len(tops) else []
        content.append({**_logprob(token), "top_logprobs": [_logprob(one) for one in top]})
    return {"content": content, "refusal": None}


def _logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    text = str(token.get("token") or "")
    return {"token": text, "logprob": token.get("logProbability", 0.0), "bytes": list(text.encode())}


def _embeddings(found: Mapping[str, Any], model: str) -> dict[str, Any]:
    single = found.get("embedding")
    rows = [single] if isinstance(single, dict) else found.get("embeddings")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "values" in row for row in rows):
        raise InvalidInput("Gemini's answer has no embeddings.")
    data = [{"object": "embedding", "index": at, "embedding": row["values"]} for at, row in enumerate(rows)]
    answer: dict[str, Any] = {"object": "list", "model": model, "data": data}
    counted = found.get("usageMetadata")
    if isinstance(counted, dict) and "promptTokenCount" in counted:
        answer["usage"] = {"prompt_tokens": counted["promptTokenCount"], "total_tokens": counted["promptTokenCount"]}
    return answer


def _error_of(body: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    # A streaming call that fails before its first event answers with a list of one error.
    if isinstance(found, list) and found:
        found = found[0]
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else None


def _openai_error(error: Any, status: int) -> tuple[int, bytes]:
    if not isinstance(error, dict):
        return status, error_json(status, str(error))
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    word = str(error.get("status") or "") or None
    details = error.get("details")
    listed = details if isinstance(details, list) else []
    if any(isinstance(detail, dict) and detail.get("reason") == "API_KEY_INVALID" for detail in listed):
        status, word = 401, "API_KEY_INVALID"  # Gemini says 400, on which no client would look at its key
    return status, error_json(status, str(error.get("message") or word or f"status {status}"), code=word)


DIALECTS: Final[Mapping[str, Dialect]] = {NAME: GeminiDialect()}
