"""The quick way past the parser, for messages like those that it has read before.

A client sends nearly the same head with every request of a connection, and an upstream with every answer. What the
parser and all rules have accepted once is accepted again without them:

* a request whose head differs from an accepted one in the digits of ``Content-Length`` and the ids of
  ``traceparent`` alone, its body whole;
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
_TRACE: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_LINE: Final = re.compile(rb"\r\n(?i:traceparent):[ \t]*(" + _TRACE.pattern + rb")\r\n")
_TRACE_SIZE: Final = 55
_HEAD_END: Final = b"\r\n\r\n"


class KnownHead:
    """The head of a request that was accepted, to take others like it. Made by ``known_head``.

    Args:
        data: the bytes of one whole request.
        request: what was read from them.
        length: where in ``data`` the digits of its length begin and end.
        trace: where the value of its ``traceparent`` begins and ends; ``None`` without one.
        end: where its body begins.
        body_bytes_most: longest body that is taken.

    Attributes:
        memory: what the handler has found out about requests with this head; gone with the connection.
    """

    __slots__ = (
        "_after", "_before", "_body_bytes_most", "_fields", "_length_at", "_make", "_middle", "_trace_at",
        "_trace_first", "memory",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes,
        request: Request,
        length: tuple[int, int],
        trace: tuple[int, int] | None,
        end: int,
        body_bytes_most: int,
    ) -> None:
        self.memory: Any = None
        self._trace_first = trace is not None and trace < length
        first, second = sorted((length, trace)) if trace is not None else (length, length)
        self._before = data[: first[0]]
        self._middle = data[first[1] : second[0]]
        self._after = data[second[1] : end]
        self._make = type(request)
        self._fields = {name: value for name, value in vars(request).items() if name not in {"body", "known"}}
        names = [name.lower() for name, _ in request.headers]
        self._length_at = names.index(b"content-length")
        self._trace_at = names.index(b"traceparent") if trace is not None else -1
        self._body_bytes_most = body_bytes_most

    def take(self, data: bytes) -> Request | None:
        """The request that ``data`` is, if it is one whole request with this head; else ``None``."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        if self._trace_at >= 0:
            return self._take_traced(data)
        at = len(before)
        end = data.find(b"\r", at, at + _DIGITS_MOST + 1)
        if not data.startswith(after, end):
            return None
        return self._request(data[at:end], data[end + len(after) :])

    def _take_traced(self, data: bytes) -> Request | None:
        at, trace, middle = len(self._before), b"", self._middle
        if self._trace_first:
            trace = data[at : at + _TRACE_SIZE]
            at += _TRACE_SIZE + len(middle)
            if not data.startswith(middle, at - len(middle)):
                return None
        end = data.find(b"\r", at, at + _DIGITS_MOST + 1)
        digits = data[at:end]
        if not self._trace_first:
            if not data.startswith(middle, end):
                return None
            end += len(middle) + _TRACE_SIZE
            trace = data[end - _TRACE_SIZE : end]
        if not data.startswith(self._after, end) or _TRACE.fullmatch(trace) is None:
            return None
        request = self._request(digits, data[end + len(self._after) :])
        if request is not None:
            request.headers[self._trace_at] = (request.headers[self._trace_at][0], trace)
            request.traceparent = trace
        return request

    def _request(self, digits: bytes, body: bytes) -> Request | None:
        length = len(body)
        if not digits.isdigit() or length != int(digits) or length > self._body_bytes_most:
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
    length = _LENGTH_LINE.search(data, 0, end)
    trace = _TRACE_LINE.search(data, 0, end) if request.traceparent is not None else None
    if (
        length is None
        or len(data) - end != int(length[1])
        or end + _DIGITS_MOST > limits.header_bytes
        or (trace is None and request.traceparent is not None)
        or request.header(b"upgrade") is not None
    ):
        return None
    place = trace.span(1) if trace is not None else None
    return KnownHead(data, request, length.span(1), place, end, limits.body_bytes)


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
