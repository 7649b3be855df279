"""The quick way past the parser, for messages like those that it has read before.

A client sends nearly the same head with every request of a connection, and an upstream with every answer. What the
parser and all rules have accepted once is accepted again without them:

* a request whose head differs from an accepted one in the digits of ``Content-Length`` alone, its body whole;
* an answer with status 200 and a length, whose header lines are each of the plainest form, its body whole.

Everything else goes the whole way, and so does whatever is doubtful. Tests hold both ways against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tidemill.gateway.limits import Limits
    from tidemill.gateway.reading import Request

_LENGTH_LINE: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)
_DIGITS_MOST: Final = 9
_HEAD_END: Final = b"\r\n\r\n"


class KnownHead:
    """The head of a request that was accepted, to take others like it. Made by ``known_head``.

    Args:
        data: the bytes of one whole request.
        request: what was read from them.
        place: where in ``data`` the digits of its length begin and end.
        end: where its body begins.
        body_bytes_most: longest body that is taken.

    Attributes:
        memory: what the handler has found out about requests with this head; gone with the connection.
    """

    __slots__ = ("_after", "_before", "_body_bytes_most", "_fields", "_length_at", "_make", "_size", "memory")

    def __init__(self, data: bytes, request: Request, place: tuple[int, int], end: int, body_bytes_most: int) -> None:
        self.memory: Any = None
        self._before = data[: place[0]]
        self._size = place[0]
        self._after = data[place[1] : end]
        self._make = type(request)
        self._fields = {name: value for name, value in vars(request).items() if name not in {"body", "known"}}
        names = [name.lower() for name, _ in request.headers]
        self._length_at = names.index(b"content-length")
        self._body_bytes_most = body_bytes_most

    def take(self, data: bytes) -> Request | None:
        """The request that ``data`` is, if it is one whole request with this head; else ``None``."""
        if not data.startswith(self._before):
            return None
        size, after = self._size, self._after
        end = data.find(b"\r", size, size + _DIGITS_MOST + 1)
        digits = data[size:end]
        if not data.startswith(after, end) or not digits.isdigit():
            return None
        body = data[end + len(after) :]
        length = len(body)
        if length != int(digits) or length > self._body_bytes_most:
            return None
        request = self._make()
        fields = request.__dict__
        fields.update(self._fields)
        fields["headers"] = headers = request.headers.copy()
        headers[self._length_at] = (headers[self._length_at][0], digits)
        fields["length"] = digits
        fields["body"] = body
        fields["known"] = self
        return request


def known_head(data: bytes, request: Request, limits: Limits) -> KnownHead | None:
    """What takes further requests like this one; ``None`` where only the parser may.

    Args:
        data: what was read since the end of the message before, and made this one request.
        request: what the parser and all rules made of it.
        limits: sizes.
    """
    if request.length is None or request.transfer is not None or request.expect is not None or not request.keep_alive:
        return None
    end = data.find(_HEAD_END) + len(_HEAD_END)
    found = _LENGTH_LINE.search(data, 0, end)
    if (
        found is None
        or len(data) - end != int(found[1])
        or end + _DIGITS_MOST > limits.header_bytes
        or request.header(b"upgrade") is not None
    ):
        return None
    return KnownHead(data, request, found.span(1), end, limits.body_bytes)


WholeAnswer = tuple[bytes, bytes, bytes]
"""An answer with status 200 that came whole: its content type, header lines for the client (each with its line end),
and its body."""


# What a header line of an answer is to the gateway.
_NOTHING: Final = 0
_FIXED: Final = 1
_TYPE: Final = 2
_LENGTH: Final = 3
_PASSED: Final = 4

_PLAIN_LINE: Final = re.compile(rb"([A-Za-z0-9_-]+): ([!-~](?:[ -~]*[!-~])?)")
_DOUBTFUL_NAMES: Final = frozenset(
    (b"transfer-encoding", b"content-encoding", b"upgrade", b"trailer", b"retry-after", b"retry-after-ms",
     b"proxy-connection")
)  # fmt: skip
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_OK_SIZE: Final = len(_OK)
_SHAPES_MOST: Final = 256
_shapes: Final[dict[bytes, re.Pattern[bytes]]] = {}  # compiled, for to compile one takes long


class KnownAnswers:
    """Plain answers of one connection, past the parser.

    The lines of the last one become a pattern: their names and order stay, values that mean nothing here may be any.

    Args:
        head_bytes_most: longest head.
        passes: whether the client gets a header of this name (in lower case).
    """

    __slots__ = ("_content_type", "_head_bytes_most", "_match", "_passes")

    def __init__(self, head_bytes_most: int, passes: Callable[[bytes], bool]) -> None:
        self._head_bytes_most = head_bytes_most
        self._passes = passes
        self._match: Callable[[bytes, int, int], re.Match[bytes] | None] | None = None
        self._content_type = b""

    def take(self, data: bytes) -> WholeAnswer | None:
        """The answer that ``data`` is, if it is one whole good answer in plain form; else ``None``.

        Args:
            data: what was read since the end of the answer before.
        """
        match = self._match
        found = match(data, 0, self._head_bytes_most) if match is not None else None
        if found is None:
            match = self._learn(data)
            found = match(data, 0, self._head_bytes_most) if match is not None else None
            if found is None:
                return None
        body = data[found.end() :]
        if len(body) != int(found["length"]):
            return None
        passed = b"" if found.lastindex == 1 else b"".join(line for line in found.groups() if line[-1:] == b"\n")
        return self._content_type, passed, body

    def _learn(self, data: bytes) -> Callable[[bytes, int, int], re.Match[bytes] | None] | None:
        end = data.find(_HEAD_END, 0, self._head_bytes_most)
        if end < 0 or not data.startswith(_OK):
            return None
        pattern, content_type, kinds = [re.escape(_OK)], b"application/json", set()
        for line in data[_OK_SIZE:end].split(b"\r\n"):
            found = _PLAIN_LINE.fullmatch(line)
            kind = self._kind(found[1].lower(), found[2]) if found is not None else None
            if found is None or kind is None or (kind in {_TYPE, _LENGTH} and kind in kinds):
                return None
            kinds.add(kind)
            if kind == _TYPE:
                content_type = found[2]
            pattern.append(_FORMS[kind] % re.escape(found[0] if kind in {_FIXED, _TYPE} else found[1]))
        if _LENGTH not in kinds:
            return None
        self._content_type = content_type
        self._match = _shape(b"".join(pattern) + b"\r\n").match
        return self._match

    def _kind(self, name: bytes, value: bytes) -> int | None:
        """What a line is; ``None`` where only the parser may read the answer."""
        if name == b"content-length":
            return _LENGTH if value.isdigit() and len(value) <= _DIGITS_MOST else None
        if name == b"content-type":
            return _TYPE
        if name == b"connection":
            return _FIXED if value.lower() == b"keep-alive" else None
        if name in _DOUBTFUL_NAMES:
            return None
        return _PASSED if self._passes(name) else _NOTHING


# The lines of a pattern. A passed line must be plain to its end, for it goes on as it came.
_FORMS: Final = {
    _NOTHING: rb"%b: [!-~][ -~]*\r\n",
    _FIXED: rb"%b\r\n",
    _TYPE: rb"%b\r\n",
    _LENGTH: rb"%b: (?P<length>[0-9]{1,9})\r\n",
    _PASSED: rb"(%b: [!-~](?:[ -~]*[!-~])?\r\n)",
}


def _shape(pattern: bytes) -> re.Pattern[bytes]:
    found = _shapes.get(pattern)
    if found is None:
        if len(_shapes) >= _SHAPES_MOST:
            _shapes.clear()
        found = _shapes[pattern] = re.compile(pattern)
    return found
