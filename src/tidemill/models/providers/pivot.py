"""Reading pivot requests and writing pivot answers and errors: what every translating dialect needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.dialect import Dialect, UnsupportedField, UnsupportedOperation

_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_decode: Final = msgspec.json.decode
_encode: Final = msgspec.json.encode

#: status -> OpenAI's error type
_TYPES: Final[dict[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class DataUrl(NamedTuple):
    """The parts of a ``data:`` URL with base64 data."""

    media_type: str
    base64: str


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn a surprise while a provider's JSON is read into what it is: JSON of another shape.

    Not for requests: there, each field that is wrong deserves its own sentence.

    Args:
        what: names what is read, e.g. ``The provider's answer``.

    Raises:
        InvalidInput: a key was missing, or a value of another type than the format says.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InvalidInput(f"{what} has another shape than its format says: {error}.") from error


def check_operation(dialect: Dialect, operation: str) -> None:
    """Refuse what a dialect does not offer.

    Raises:
        UnsupportedOperation: the operation is not one of the dialect's.
    """
    if operation not in dialect.operations:
        raise UnsupportedOperation(operation, dialect.name)


def read_object(body: bytes, what: str) -> dict[str, Any]:
    """Decode a JSON object.

    Args:
        body: JSON.
        what: names the body in the message, e.g. ``The request``.

    Raises:
        InvalidInput: it is no JSON, or no object.
    """
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{what} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{what} is not a JSON object.")
    return found


def read_list(value: Any, field: str) -> list[Any]:
    """The value, when it is an array.

    Raises:
        InvalidInput: it is none; the message names the field.
    """
    if not isinstance(value, list):
        raise InvalidInput(f"'{field}' must be an array.")
    return value


def read_messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat request.

    Raises:
        InvalidInput: there are none, or one is not an object with a role.
    """
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("'messages' must be a list with at least one message.")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidInput(f"'messages[{number}]' must be an object with a 'role'.")
    return messages


def parts_of(content: Any, field: str) -> Iterator[dict[str, Any]]:
    """The parts of a message's content; a string is one text part, ``null`` none.

    Raises:
        InvalidInput: the content has another shape.
    """
    if content is None:
        return
    if isinstance(content, str):
        if content:
            yield {"type": "text", "text": content}
        return
    for part in read_list(content, field):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidInput(f"Each part of '{field}' must be an object with a 'type'.")
        yield part


def text_of(content: Any, field: str, provider: str) -> str:
    """The text of a content that may hold nothing else.

    Raises:
        UnsupportedField: a part is not text.
        InvalidInput: the content has another shape.
    """
    texts = []
    for part in parts_of(content, field):
        if part["type"] not in ("text", "refusal"):
            raise UnsupportedField(f"{field}.{part['type']}", provider, "only text has a place there")
        texts.append(str(part.get("text") or part.get("refusal") or ""))
    return "\n".join(texts)


def image_url(part: dict[str, Any]) -> str:
    """The URL of an ``image_url`` part.

    Raises:
        InvalidInput: it has none.
    """
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str) or not url:
        raise InvalidInput("An 'image_url' part must have a URL.")
    return url


def data_url(url: str) -> DataUrl | None:
    """The media type and base64 data of a ``data:`` URL (RFC 2397); ``None`` when it is another kind of URL.

    Raises:
        InvalidInput: a ``data:`` URL without base64 data.
    """
    if not url.startswith("data:"):
        return None
    match = _DATA_URL.match(url)
    if match is None or not match[3]:
        raise InvalidInput("A data URL must look like 'data:image/png;base64,...'.")
    return DataUrl(match[1] or "text/plain", url[match.end() :])


def arguments_of(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pivot tool call as an object; no arguments are an empty one.

    Raises:
        InvalidInput: the call has no function, or its arguments are no JSON object.
    """
    function = call.get("function")
    if not isinstance(function, dict):
        raise InvalidInput("A tool call must have a 'function'.")
    text = function.get("arguments")
    if not text:
        return {}
    if isinstance(text, dict):
        return text
    return read_object(str(text).encode(), "The 'arguments' of a tool call")


def usage_of(
    prompt_tokens: int, completion_tokens: int, *, cached: int = 0, cache_write: int = 0, reasoning: int = 0
) -> dict[str, Any]:
    """A pivot ``usage`` object.

    Args:
        prompt_tokens: all input tokens, those read from and written to a cache included.
        completion_tokens: all output tokens, reasoning included.
        cached: input tokens read from the provider's cache.
        cache_write: input tokens written to it.
        reasoning: output tokens of hidden reasoning.
    """
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached or cache_write:
        usage["prompt_tokens_details"] = {"cached_tokens": cached, "cache_write_tokens": cache_write}
    if reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def completion(
    identity: str, model: str, created_s: int, choices: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """A pivot ``chat.completion`` object, to be encoded by the caller.

    Args:
        identity: the answer's id.
        model: the model's name.
        created_s: Unix time.
        choices: each with ``index``, ``message`` and ``finish_reason``.
        usage: of ``usage_of``.
    """
    answer = {
        "id": identity,
        "object": "chat.completion",
        "created": created_s,
        "model": model,
        "choices": choices,
    }
    if usage is not None:
        answer["usage"] = usage
    return answer


def tool_call(identity: str, name: str, arguments: str, *, index: int | None = None) -> dict[str, Any]:
    """A pivot tool call.

    Args:
        identity: pairs the call with its result.
        name: the function's.
        arguments: JSON text.
        index: the call's number, in a stream's delta only.
    """
    call: dict[str, Any] = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
    return call if index is None else {"index": index, **call}


def error_json(
    status: int, message: str, *, kind: str | None = None, code: str | None = None, param: str | None = None
) -> bytes:
    """OpenAI's error object.

    Args:
        status: the HTTP status, which decides the type where none is given.
        message: what is wrong.
        kind: the error's ``type``.
        code: a short machine-readable word.
        param: the field that is at fault.
    """
    kind = kind or _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def wants_usage(request: dict[str, Any]) -> bool:
    """Whether the request asks for a stream's usage event."""
    options = request.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))
