"""Reading what stands inside pivot messages: their known keys, and images, audio and files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from mimetypes import guess_type
from typing import Any, Final
from urllib.parse import urlsplit

from tidemill.kernel import InvalidInput
from tidemill.models.providers.dialect import UnsupportedField
from tidemill.models.providers.fields import check_keys
from tidemill.models.providers.pivot import data_url, image_url, read_list

_SPOKEN: Final = frozenset({"role", "content"})

MESSAGE_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "system": _SPOKEN,
    "developer": _SPOKEN,
    "user": _SPOKEN,
    "assistant": _SPOKEN | {"refusal", "tool_calls", "reasoning_content", "reasoning_details", "extra_content"},
    "tool": _SPOKEN | {"tool_call_id", "name"},  # the name is that of the called function
}
"""Role -> the fields of such a message that the dialects here read."""

CACHE_MARKS: Final = frozenset({"prompt_cache_breakpoint", "cache_control"})
"""Fields of a part that mark the prompt up to it for the provider's cache: OpenAI's, and Anthropic's."""


@dataclass(frozen=True, slots=True)
class Media:
    """An image, a sound or a file in a message; either its bytes or its URL.

    Args:
        kind: ``image``, ``audio`` or ``file``.
        part: the type of the part that holds it, e.g. ``image_url``.
        media_type: IANA media type; empty when nothing tells it.
        base64: the bytes, in base64; empty with a URL.
        url: where it lies; empty with bytes.
        name: the file's name, if it has one.
        detail: an image's ``detail``: ``low``, ``high``, or empty.
    """

    kind: str
    part: str
    media_type: str
    base64: str = ""
    url: str = ""
    name: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SignedThought:
    """Earlier reasoning that its provider gave to be sent back.

    Args:
        text, signature: what was thought, and the provider's signature of it.
        data: instead of both where the provider encrypted it.
    """

    text: str = ""
    signature: str = ""
    data: str = ""


def signed_thoughts(
    message: Mapping[str, Any], provider: str, reasoning_format: str, leave_out: frozenset[str]
) -> Iterator[SignedThought]:
    """Earlier reasoning of an assistant's message, which goes back unchanged and signed, or not at all.

    Args:
        message: the message.
        provider: the dialect's name.
        reasoning_format: the ``format`` of the reasoning that this provider has signed.
        leave_out: paths of fields to pass over.

    Raises:
        UnsupportedField: it is not signed, or another provider signed it.
    """
    details = message.get("reasoning_details")
    if not details:
        if message.get("reasoning_content") and "messages.reasoning_content" not in leave_out:
            reason = "it takes earlier reasoning only signed, as 'reasoning_details'"
            raise UnsupportedField("messages.reasoning_content", provider, reason)
        return
    if "messages.reasoning_details" in leave_out:
        return
    for detail in read_list(details, "messages.reasoning_details"):
        ours = isinstance(detail, dict) and detail.get("format", reasoning_format) == reasoning_format
        if ours and detail.get("type") == "reasoning.text" and detail.get("signature"):
            yield SignedThought(detail.get("text") or "", detail["signature"])
        elif ours and detail.get("type") == "reasoning.encrypted" and detail.get("data"):
            yield SignedThought(data=detail["data"])
        else:
            reason = "it takes back only reasoning that it has signed itself"
            raise UnsupportedField("messages.reasoning_details", provider, reason)


def check_message(message: Mapping[str, Any], provider: str, leave_out: frozenset[str]) -> str:
    """The message's role, once nothing in it is without a place.

    Args:
        message: one message of the request.
        provider: the dialect's name.
        leave_out: paths of fields to pass over.

    Raises:
        UnsupportedField: a field, or the role, is not known.
    """
    role = str(message["role"])
    known = MESSAGE_FIELDS.get(role)
    if known is None:
        raise UnsupportedField(f"messages.{role}", provider, "there is no such role there")
    check_keys(message, known, "messages", provider, leave_out)
    return role


def check_part(part: Mapping[str, Any], provider: str, leave_out: frozenset[str], *, marks: bool = False) -> None:
    """See that nothing in a part is without a place.

    Args:
        part: one part of a message's content.
        provider: the dialect's name.
        leave_out: paths of fields to pass over.
        marks: whether the provider's cache is steered by marks on parts.

    Raises:
        UnsupportedField: the first field that is not known.
    """
    kind = str(part["type"])
    known = frozenset({"type", kind}) | (CACHE_MARKS if marks else frozenset())
    check_keys(part, known, f"messages.content.{kind}", provider, leave_out)


def read_media(part: Mapping[str, Any], provider: str) -> Media:
    """An image, sound or file of a message's content.

    Raises:
        UnsupportedField: another kind of part, or a file by its id.
        InvalidInput: a part of another shape.
    """
    kind = str(part["type"])
    if kind not in _READERS:
        raise UnsupportedField(f"messages.content.{kind}", provider, "such a part has no place there")
    reader, known = _READERS[kind]
    if isinstance(part.get(kind), dict):
        check_keys(part[kind], known, f"messages.content.{kind}", provider)
    return reader(dict(part), provider)


def _image(part: dict[str, Any], _: str) -> Media:
    image = part["image_url"] if isinstance(part.get("image_url"), dict) else {}
    detail = str(image.get("detail") or "")
    detail = "" if detail == "auto" else detail
    url = image_url(part)
    found = data_url(url)
    if found is not None:
        return Media("image", "image_url", found.media_type, base64=found.base64, detail=detail)
    return Media("image", "image_url", guess_type(urlsplit(url).path)[0] or "", url=url, detail=detail)


def _audio(part: dict[str, Any], _: str) -> Media:
    audio = part.get("input_audio")
    if not isinstance(audio, dict) or not isinstance(audio.get("data"), str) or not audio.get("format"):
        raise InvalidInput("An 'input_audio' part must have base64 'data' and a 'format'.")
    return Media("audio", "input_audio", f"audio/{audio['format']}", base64=audio["data"])


def _file(part: dict[str, Any], provider: str) -> Media:
    file = part.get("file")
    if not isinstance(file, dict):
        raise InvalidInput("A 'file' part must have a 'file' object.")
    name, data = str(file.get("filename") or ""), file.get("file_data")
    if not isinstance(data, str) or not data:
        raise UnsupportedField("messages.content.file.file_id", provider, "send the file itself as 'file_data'")
    found = data_url(data)
    if found is None:
        raise InvalidInput("A file's 'file_data' must be a data URL.")
    return Media("file", "file", found.media_type, base64=found.base64, name=name)


#: type of a part -> how it is read, and the keys of its object
_READERS: Final[Mapping[str, tuple[Callable[[dict[str, Any], str], Media], frozenset[str]]]] = {
    "image_url": (_image, frozenset({"url", "detail"})),
    "input_audio": (_audio, frozenset({"data", "format"})),
    "file": (_file, frozenset({"filename", "file_data", "file_id"})),
}
