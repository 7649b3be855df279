"""HTTP/1.1 answers of upstreams out of bytes. No IO, no clock, any split of the bytes. Requests: ``reading``.

httptools parses; which framing is taken, and how long a head may be, is decided here. Known leniencies: empty lines
before an answer, ``RTSP`` or ``ICE`` in the place of ``HTTP``; and chunks under HTTP/1.0 are read, but the connection
ends.
"""

from __future__ import annotations

from typing import Any, Final

import httptools

_FIELDS_MOST: Final = 1024

# Answer headers a client may need: rate limits and request ids, which the official clients read.
_PASSED: Final = frozenset((b"retry-after", b"retry-after-ms", b"x-request-id", b"x-should-retry", b"content-encoding"))
_PASSED_PREFIXES: Final = (b"x-ratelimit-", b"openai-")
_READ: Final = {
    b"content-type": "content_type",
    b"content-length": "length",
    b"transfer-encoding": "transfer",
    b"retry-after": "retry_after",
    b"retry-after-ms": "retry_after_ms",
}
_ANSWER_FIELDS: Final[dict[bytes, tuple[str, bool]]] = {}  # names as upstreams write them, learnt


class AnswerHead:
    """The headers of an answer that matter to the gateway. Absent ones are class attributes: one is made per answer."""

    content_type = b"application/json"
    length: bytes | None = None
    transfer: bytes | None = None
    retry_after: bytes | None = None
    retry_after_ms: bytes | None = None
    passed = b""
    """Header lines for the client, each with its line end."""


def is_passed(name: bytes) -> bool:
    """Whether clients get the header of this name, which is given in lower case."""
    return name in _PASSED or name.startswith(_PASSED_PREFIXES)


def _answer_field(name: bytes) -> tuple[str, bool]:
    lower = name.lower()
    field = (_READ.get(lower, ""), is_passed(lower))
    if len(_ANSWER_FIELDS) < _FIELDS_MOST:
        _ANSWER_FIELDS[name] = field
    return field


class AnswerReader:
    """The answers of one connection, one at a time. Requests are never HEAD or CONNECT.

    Args:
        head_bytes: longest head, interim answers included.

    Attributes:
        status: of the final answer; 0 until its head is complete.
        head: its headers, when ``status`` is set.
        started: a byte of an answer has come.
        ended: the answer is complete.
        reusable: whether the connection may carry another request after it.
    """

    __slots__ = (
        "_closes_at_end", "_head_bytes", "_head_bytes_most", "_parser", "_pieces",
        "ended", "head", "reusable", "started", "status",
    )  # fmt: skip

    def __init__(self, head_bytes: int) -> None:
        self._head_bytes_most = head_bytes
        self._pieces: list[bytes] = []
        self._parser: Any = httptools.HttpResponseParser(self)  # starts anew by itself after each complete answer
        self.expect()

    def expect(self) -> None:
        """A request was sent: what comes now is its answer."""
        self.status = self._head_bytes = 0
        self.head = AnswerHead()
        self.started = self.ended = self.reusable = self._closes_at_end = False

    def feed(self, data: bytes) -> str | None:
        """Read on. What was read before a fault still counts.

        Returns:
            What is wrong with the answer, or ``None``.
        """
        self.started = True
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.reusable = False
            if self.ended:  # what came behind a complete answer concerns nobody
                return None
            cause = error.__context__
            return str(cause) if isinstance(cause, _Fault) else f"the answer is not valid HTTP/1.1: {error}"
        if not self.status and self._head_bytes > self._head_bytes_most:
            return "the answer's headers never end"
        return None

    def take(self) -> bytes:
        """The bytes of the body that have come since the last call, as one piece."""
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces.pop()
        data = b"".join(pieces)
        pieces.clear()
        return data

    def end(self) -> bool:
        """The connection has closed. Returns whether that is the end of the answer."""
        if self.status and self._closes_at_end:
            self.ended = True
        return self.ended

    def close(self) -> None:
        """Forget everything (the parser holds bound methods of this object)."""
        self._parser = None
        self._pieces.clear()

    # -- httptools callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Stop at a second answer nobody asked for."""
        if self.ended:
            raise _Fault("another answer follows")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what the client or the gateway needs."""
        field, passed = _ANSWER_FIELDS.get(name) or _answer_field(name)
        if self.status:  # a trailer
            return
        if field:
            if field == "transfer" and self.head.transfer is not None:  # one list in several lines
                value = self.head.transfer + b", " + value
            setattr(self.head, field, value.rstrip(b" \t"))
        if passed:
            self.head.passed += name + b": " + value + b"\r\n"

    def on_headers_complete(self) -> None:
        """Note the head of a final answer; interim answers (1xx) are swallowed."""
        status = self._parser.get_status_code()
        if status < 200 or status > 599:
            if not 100 <= status < 200:
                raise _Fault(f"the answer has status {status}")
            self.head = AnswerHead()
            return
        head = self.head
        if head.transfer is not None and head.transfer.lower() != b"chunked":
            raise _Fault(f"the answer's transfer encoding {head.transfer[:64]!r} was not asked for")
        if status in {204, 304}:
            head.length = head.transfer = None
        else:
            self._closes_at_end = head.length is None and head.transfer is None
        self.status = status

    def on_body(self, data: bytes) -> None:
        """Collect the pieces of one read."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Mark the end."""
        if self.status:
            self.ended = True
            self.reusable = self._parser.should_keep_alive()


class _Fault(Exception):
    """Stops llhttp from within a callback; says what is wrong."""
