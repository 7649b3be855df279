"""Forms with files (multipart/form-data, RFC 7578), as audio endpoints take them: read by place, never copied.

Strict, because the upstream reads the same bytes with a parser of its own: what two parsers could read differently is
refused. So there is nothing before the first boundary or behind the last, and a field asked for stands there once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tidemill.gateway.answers import Refusal

_TYPE: Final = re.compile(
    rb"multipart/form-data(?:[ \t]*;[ \t]*(?!boundary)[\w-]+=(?:[\w.-]+|\"[^\"]*\"))*"
    rb"[ \t]*;[ \t]*boundary=(?:\"([^\"]+)\"|([^\s;\"]+))[ \t]*",
    re.IGNORECASE,
)
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046, section 5.1.1
_DISPOSITION: Final = re.compile(
    rb"form-data((?:[ \t]*;[ \t]*[\w*-]+=(?:\"(?:[^\"\\\r\n]|\\.)*\"|[^\s;\"]+))+)", re.IGNORECASE
)
_PARAMETER: Final = re.compile(rb"([\w*-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;\"]+))")
_PART_HEAD_BYTES: Final = 8 * 1024
_PARTS_MOST: Final = 128
_TEXT_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form.

    Args:
        begin, end: where its value stands in the body.
        is_file: it came with a file name.
    """

    name: str
    begin: int
    end: int
    is_file: bool


@dataclass(frozen=True, slots=True)
class Form:
    """A form and the body it stands in."""

    body: bytes
    boundary: bytes
    parts: tuple[Part, ...]

    def text(self, name: str) -> str | None:
        """The value of a plain field; ``None`` when the form has none of that name.

        Raises:
            Refusal: 400: the field is there twice, is a file, is no UTF-8 or is far too long.
        """
        part = self._part(name)
        if part is None:
            return None
        if part.is_file or part.end - part.begin > _TEXT_BYTES:
            raise _malformed(f"the field '{name}' must be short text", name)
        try:
            return self.body[part.begin : part.end].decode()
        except UnicodeDecodeError:
            raise _malformed(f"the field '{name}' is not UTF-8 text", name) from None

    def with_text(self, name: str, value: str) -> bytes:
        """The body with a field replaced, or put in front where there was none. All other bytes stay.

        Raises:
            Refusal: 400: the field is there twice, or the form's boundary occurs in the value.
        """
        raw = value.encode()
        if b"\r" in raw or b"\n" in raw:
            raise _malformed(f"the field '{name}' must be one line", name)
        part = self._part(name)
        if part is not None:
            return b"".join((self.body[: part.begin], raw, self.body[part.end :]))
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (self.boundary, name.encode())
        return b"".join((head, raw, b"\r\n", self.body))

    def _part(self, name: str) -> Part | None:
        found = [part for part in self.parts if part.name == name]
        if len(found) > 1:
            raise _malformed(f"the field '{name}' is given twice", name)
        return found[0] if found else None


def read_form(content_type: bytes | None, body: bytes) -> Form:
    """Find the fields of a form.

    Args:
        content_type: of the request, with the boundary.
        body: whole.

    Raises:
        Refusal: 415: it is no form; 400: it is malformed.
    """
    kind = _TYPE.fullmatch(content_type or b"")
    if kind is None:
        text = "This endpoint takes a form with a file. Send it as multipart/form-data, with a boundary."
        raise Refusal(415, text, "unsupported_media_type")
    boundary = kind[1] or kind[2]
    if _BOUNDARY.fullmatch(boundary) is None:
        raise _malformed("its boundary holds characters that RFC 2046 does not allow")
    return Form(body, boundary, tuple(_parts(body, boundary)))


def _parts(body: bytes, boundary: bytes) -> list[Part]:
    found: list[Part] = []
    delimiter = b"\r\n--" + boundary
    if not body.startswith(delimiter[2:]):
        raise _malformed("it does not begin with its boundary")
    at = len(delimiter) - 2
    while body[at : at + 2] == b"\r\n":
        if len(found) == _PARTS_MOST:
            raise _malformed(f"it has more than {_PARTS_MOST} fields")
        begin = body.find(b"\r\n\r\n", at, at + _PART_HEAD_BYTES) + 4
        if begin == 3:
            raise _malformed("the head of a field does not end")
        end = body.find(delimiter, begin)
        if end < 0:
            raise _malformed("it breaks off inside a field")
        name, is_file = _named(body[at + 2 : begin - 4])
        found.append(Part(name, begin, end, is_file))
        at = end + len(delimiter)
    if body[at:] not in {b"--", b"--\r\n"}:
        raise _malformed("it does not end with its boundary")
    return found


def _named(head: bytes) -> tuple[str, bool]:
    """The name a part's head gives it, and whether it is a file."""
    dispositions = []
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip() or b"\n" in line or b"\r" in line:
            raise _malformed("the head of a field is not made of 'name: value' lines")
        if name.lower() == b"content-disposition":
            dispositions.append(value.strip(b" \t"))
    matched = _DISPOSITION.fullmatch(dispositions[0]) if len(dispositions) == 1 else None
    if matched is None:
        raise _malformed("a field needs one header 'Content-Disposition: form-data; name=…'")
    parameters: dict[bytes, bytes] = {}
    for key, quoted, plain in _PARAMETER.findall(matched[1]):
        if key.lower() in parameters:
            raise _malformed("a field is named twice")
        parameters[key.lower()] = quoted or plain
    named = parameters.get(b"name")
    if named is None or b"\\" in named or b"name*" in parameters:
        raise _malformed("a field has no plain name")
    return named.decode("utf-8", "replace"), b"filename" in parameters or b"filename*" in parameters


def _malformed(what: str, param: str | None = None) -> Refusal:
    return Refusal(400, f"The form cannot be read: {what}.", "malformed_form", param=param)
