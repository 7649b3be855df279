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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from tidemill.gateway.limits import Limits
    from tidemill.gateway.reading import Request

_LENGTH_LINE: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)
_DIGITS_MOST: Final = 9
_LINE_END: Final = b"\r\n"
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


class WholeAnswer(NamedTuple):
    """An answer with status 200 that came whole.

    Args:
        content_type: of the body.
        passed: header lines for the client, each with its line end.
        body: it.
    """

    content_type: bytes
    passed: bytes
    body: bytes


# What a header line of an answer is to the gateway.
_NOTHING: Final = 0
_TYPE: Final = 1
_LENGTH: Final = 2
_PASSED: Final = 3
_DOUBTFUL: Final = 4  # only the parser may read the answer

_PLAIN_LINE: Final = re.compile(rb"([A-Za-z0-9_-]+): ([!-~](?:[ -~]*[!-~])?)")
_DOUBTFUL_NAMES: Final = frozenset(
    (b"transfer-encoding", b"content-encoding", b"upgrade", b"trailer", b"retry-after", b"retry-after-ms",
     b"proxy-connection")
)  # fmt: skip
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_OK_SIZE: Final = len(_OK)
_LINES_MOST: Final = 1024
_LINE_BYTES_MOST: Final = 256
_lines: Final[dict[bytes, tuple[int, bytes]]] = {}  # as upstreams write them, learnt; forgotten when they are many


def whole_answer(data: bytes, head_bytes_most: int, passes: Callable[[bytes], bool]) -> WholeAnswer | None:
    """The answer that ``data`` is, if it is one whole good answer in plain form; else ``None``.

    Args:
        data: what was read since the end of the message before.
        head_bytes_most: longest head.
        passes: whether the client gets a header of this name (in lower case).
    """
    end = data.find(_HEAD_END, 0, head_bytes_most)
    if end < 0 or not data.startswith(_OK):
        return None
    content_type, passed, length, typed = b"application/json", b"", -1, False
    for line in data[_OK_SIZE:end].split(_LINE_END):
        kind, value = _lines.get(line) or _learn(line, passes)
        if kind == _NOTHING:
            continue
        if kind == _LENGTH and length < 0:
            length = int(value)
        elif kind == _TYPE and not typed:
            content_type, typed = value, True
        elif kind == _PASSED:
            passed += value
        else:
            return None
    body = data[end + 4 :]
    return WholeAnswer(content_type, passed, body) if len(body) == length else None


def _learn(line: bytes, passes: Callable[[bytes], bool]) -> tuple[int, bytes]:
    found = _PLAIN_LINE.fullmatch(line)
    learnt = (_DOUBTFUL, b"")
    if found is not None:
        name, value = found[1].lower(), found[2]
        if name == b"content-length":
            if value.isdigit() and len(value) <= _DIGITS_MOST:
                learnt = (_LENGTH, value)
        elif name == b"content-type":
            learnt = (_TYPE, value)
        elif name == b"connection":
            if value.lower() == b"keep-alive":
                learnt = (_NOTHING, b"")
        elif name not in _DOUBTFUL_NAMES:
            learnt = (_PASSED, line + b"\r\n") if passes(name) else (_NOTHING, b"")
    if len(_lines) >= _LINES_MOST:
        _lines.clear()
    if len(line) < _LINE_BYTES_MOST:
        _lines[line] = learnt
    return learnt
