"""HTTP/1.1 requests out of bytes. No IO, no clock, any split of the bytes. Answers: ``answer_reading``.

httptools (llhttp with its leniencies off) parses; what a parser does not decide is decided here: sizes, and which
framing is taken at all (RFC 9112, section 6). llhttp itself refuses Content-Length beside Transfer-Encoding, repeated
or malformed lengths, folded headers, bare line feeds, spaces before colons and a final coding other than chunked.

Known leniencies, harmless because a request line is never passed on: several spaces in it, empty lines before it, and
``RTSP`` or ``ICE`` in the place of ``HTTP``.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Final, NoReturn

import httptools

from tidemill.gateway.answers import Refusal
from tidemill.gateway.known_heads import KnownHead, known_head
from tidemill.gateway.limits import Limits

_KEPT: Final = {
    b"authorization": "authorization",
    b"x-api-key": "api_key",
    b"traceparent": "traceparent",
    b"tracestate": "tracestate",
    b"x-tidemill-session": "session",
    b"content-type": "content_type",
    b"content-length": "length",
    b"transfer-encoding": "transfer",
    b"expect": "expect",
    b"accept": "accept",
    b"origin": "origin",
    b"host": "host",
    b"cache-control": "cache_control",
    b"connection": "connection",
    b"proxy-connection": "connection",
}
_ONCE: Final = frozenset(
    ("authorization", "api_key", "host", "session", "traceparent", "origin", "transfer", "expect", "content_type")
)
_REQUEST_FIELDS: Final[dict[bytes, str]] = {}  # names as clients write them, learnt; "" for those nobody reads
_FIELDS_MOST: Final = 1024
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_LESSONS_MOST: Final = 8  # heads learnt of a connection: of one that sends another each time it would be in vain
_PARTS_MOST: Final = 512  # pieces of a body kept apart: a body in one-byte chunks must not cost its size in pointers


def _request_field(name: bytes) -> str:
    field = _KEPT.get(name.lower(), "")
    if len(_REQUEST_FIELDS) < _FIELDS_MOST:
        _REQUEST_FIELDS[name] = field
    return field


class Request:
    """One request as it arrived, with the body whole.

    The headers that the gateway reads for every request are attributes; what is absent stays a class attribute, for
    one of these is made per request. All others are in ``headers``.
    """

    method = b""
    target = b""
    """Path and query, e.g. ``/v1/models?limit=2``; ``*`` for OPTIONS."""
    body = b""
    keep_alive = True
    modern = True
    """Whether the answer may come in chunks (HTTP/1.1)."""
    headers: list[tuple[bytes, bytes]]
    authorization: bytes | None = None
    api_key: bytes | None = None
    traceparent: bytes | None = None
    tracestate: bytes | None = None
    session: bytes | None = None
    content_type: bytes | None = None
    accept: bytes | None = None
    origin: bytes | None = None
    host: bytes | None = None
    length: bytes | None = None
    transfer: bytes | None = None
    expect: bytes | None = None
    connection: bytes | None = None
    cache_control: bytes | None = None
    known: KnownHead | None = None
    """What took it past the parser, or will take the next one like it."""

    def header(self, name: bytes) -> bytes | None:
        """The first header of a name (given in lower case), without the blanks around it; ``None`` without one."""
        for written, value in self.headers:
            if len(written) == len(name) and written.lower() == name:
                return value.strip(b" \t")
        return None


def keep_fields(request: Request, headers: list[tuple[bytes, bytes]]) -> str | None:
    """Set the attributes of a request from its headers.

    Returns:
        The name of a header that may come once and came twice, or ``None``.
    """
    request.headers = headers
    for name, value in headers:
        field = _REQUEST_FIELDS.get(name)
        if field is None:
            field = _request_field(name)
        if field:
            if field in _ONCE and getattr(request, field) is not None:
                return field
            setattr(request, field, value.rstrip(b" \t"))  # llhttp leaves the blanks behind a value
    return None


# How far the message that is being received has come. Plain numbers: looking up a member of an enumeration costs more
# than all else that is done for a header.
IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2


class RequestReader:
    """The requests of one connection, in order.

    Args:
        limits: sizes.

    Attributes:
        ready: complete requests nobody has taken yet.
        refusal: why nothing further is read; it is due after the answers to ``ready``.
        stage: how far the message under way has come: ``IDLE``, ``HEAD`` or ``BODY``.
        invite: the client of the message under way waits for ``100 Continue``; its reader sets this back.
    """

    __slots__ = (
        "_body_bytes", "_bulk", "_head_bytes", "_headers", "_known", "_lessons", "_limits", "_parser", "_parts",
        "_request", "_resumed", "invite", "ready", "refusal", "stage",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self.ready: deque[Request] = deque()
        self.refusal: Refusal | None = None
        self.stage: int = IDLE
        self.invite = False
        self._limits = limits
        self._request = Request()
        self._resumed: Request | None = None  # its head is read, and only its framing is due
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._bulk: bytearray | None = None
        self._body_bytes = 0
        self._head_bytes = 0  # raw bytes read while the head is incomplete: bounds a header that never ends
        self._known: KnownHead | None = None
        self._lessons = _LESSONS_MOST
        self._parser: Any = httptools.HttpRequestParser(self)

    def again(self, data: bytes) -> Request | None:
        """The request that ``data`` is, if it is one whole request with the head of one before; else ``feed`` it."""
        known = self._known
        if known is None or self.stage != IDLE or self.ready or self.refusal is not None:
            return None
        return known.take(data)

    def feed(self, data: bytes) -> None:
        """Read on. Nothing is read after a refusal."""
        if self.refusal is not None or self._parser is None:
            return
        anew, parser = self.stage == IDLE and not self.ready, self._parser
        if self.stage != BODY:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self.refusal is None:
                text = f"The request is not valid HTTP/1.1: {error}."
                self.refusal = Refusal(400, text, "malformed_request", close=True)
        if self.stage == IDLE:
            self._head_bytes = 0
            if anew and len(self.ready) == 1 and self.refusal is None and self._parser is parser and self._lessons:
                self._learn(data, self.ready[0])
        elif self.stage == HEAD and self._head_bytes > self._limits.header_bytes and self.refusal is None:
            self.refusal = self._large_head()

    def _learn(self, data: bytes, request: Request) -> None:
        known = known_head(data, request, self._limits)
        if known is not None:
            self._lessons -= 1
            self._known = request.known = known

    def close(self) -> None:
        """Forget everything. The parser holds bound methods of this object; without the cycle both go at once."""
        self._parser = None
        self.ready.clear()
        self._parts.clear()
        self._bulk = None

    def _stay(self, rest: bytes) -> None:
        """Read on as if no upgrade had been asked for, which a server may (RFC 9110, section 7.8).

        Some clients offer HTTP/2 this way on every first request. llhttp takes such a request for complete after its
        head and goes no further, so another parser gets a head of the same framing, and then what follows.
        """
        request = self.ready.pop()
        if request.method == b"CONNECT":
            self.refusal = Refusal(400, "This server is no proxy for connections.", "connect_refused", close=True)
            return
        self._resumed = request
        self._parser = httptools.HttpRequestParser(self)
        head = b"POST / HTTP/1.1\r\nHost: a\r\n"
        if request.transfer is not None:
            head += b"Transfer-Encoding: chunked\r\n"
        elif request.length is not None:
            head += b"Content-Length: %b\r\n" % request.length
        if not request.keep_alive:
            head += b"Connection: close\r\n"
        self.feed(head + b"\r\n" + rest)

    # -- httptools callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Forget the message before."""
        self._request = Request()
        self._parts = []
        self._headers = []
        self._body_bytes = 0
        self.stage = HEAD

    def on_url(self, url: bytes) -> None:
        """Keep the request target, within its limit (it may come in parts)."""
        request = self._request
        request.target += url
        if len(request.target) > self._limits.url_bytes:
            self._refuse(414, f"The request target is longer than {self._limits.url_bytes} bytes.", "uri_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the header for when all are there."""
        if self.stage == HEAD:
            self._headers.append((name, value))
            return
        # A trailer: never merged into the headers, but it counts as body, so that it is bounded.
        self._body_bytes += len(name) + len(value)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()

    def on_headers_complete(self) -> None:
        """Read the headers, and check what needs all of them."""
        self.stage = BODY
        if self._resumed is not None:
            self._request, self._resumed, self._head_bytes = self._resumed, None, 0
            return
        request, headers, limits = self._request, self._headers, self._limits
        if self._head_bytes > limits.header_bytes or len(headers) > limits.header_count:
            self._check_head()
        self._head_bytes = 0
        twice = keep_fields(request, headers)
        if twice is not None:
            self._refuse(400, f"The header {twice} is given twice.", "duplicate_header")
        request.method = self._parser.get_method()
        # Asking for the version is dear; without a word about the connection, only HTTP/1.1 keeps it.
        if request.connection is not None or not self._parser.should_keep_alive():
            request.modern = self._parser.get_http_version() == "1.1"
        if not request.modern or request.host is None:
            self._check_version(request)
        if request.target[0] != 47:
            self._check_target(request)
        if request.length is not None and int(request.length) > limits.body_bytes:
            self._refuse_body()  # llhttp has accepted it as a plain number; refusing now spares the transfer
        if request.transfer is not None or request.expect is not None:
            self._check_framing(request)

    def on_body(self, data: bytes) -> None:
        """Collect the body, within its limit."""
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        self.invite = False  # it did not wait
        parts = self._parts
        parts.append(data)
        if len(parts) >= _PARTS_MOST:
            if self._bulk is None:
                self._bulk = bytearray()
            self._bulk += b"".join(parts)
            parts.clear()

    def on_message_complete(self) -> None:
        """The request may be answered."""
        self.stage = IDLE
        self.invite = False
        request, parts = self._request, self._parts
        if self._bulk is not None:
            self._bulk += b"".join(parts)
            request.body, self._bulk = bytes(self._bulk), None
        else:
            request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        request.keep_alive = request.modern and self._parser.should_keep_alive()
        self.ready.append(request)

    # -- checks -----------------------------------------------------------------------------------------------

    def _check_head(self) -> None:
        """Measure the head itself: what was read may hold some of the body too."""
        headers = self._headers
        size = sum(len(name) + len(value) + 4 for name, value in headers) + len(self._request.target)
        if size > self._limits.header_bytes or len(headers) > self._limits.header_count:
            self.refusal = self._large_head()
            raise self.refusal

    def _check_version(self, request: Request) -> None:
        if request.modern:
            self._refuse(400, "An HTTP/1.1 request needs a Host header.", "missing_host")
        if self._parser.get_http_version() != "1.0":
            self._refuse(505, "This server speaks HTTP/1.1.", "http_version_not_supported")

    def _check_target(self, request: Request) -> None:
        """Take apart an absolute target, whose host counts instead of the Host header (RFC 9112, section 3.2.2)."""
        if request.target == b"*" and request.method == b"OPTIONS":
            return
        found = _ABSOLUTE.fullmatch(request.target)
        if found is None:
            text = "The request target must be a path, such as /v1/models, or a whole http URL without user name."
            self._refuse(400, text, "malformed_target")
        host, path, query = found.groups(b"")
        request.target = (path or b"/") + query
        request.host = host

    def _check_framing(self, request: Request) -> None:
        transfer, expect = request.transfer, request.expect
        if transfer is not None and (transfer.lower() != b"chunked" or not request.modern):
            self._refuse(501, "The only transfer encoding understood is 'chunked', in HTTP/1.1.", "transfer_encoding")
        if expect is None:
            return
        if expect.lower() != b"100-continue":
            self._refuse(417, "The only expectation understood is '100-continue'.", "expectation_failed")
        self.invite = request.modern

    def _refuse(self, status: int, message: str, code: str) -> NoReturn:
        self.refusal = Refusal(status, message, code, close=True)
        raise self.refusal  # stops llhttp; feed_data reports it as a callback's error

    def _refuse_body(self) -> NoReturn:
        self._refuse(413, f"The request body is larger than {self._limits.body_bytes} bytes.", "body_too_large")

    def _large_head(self) -> Refusal:
        text = f"The headers exceed {self._limits.header_bytes} bytes or {self._limits.header_count} lines."
        return Refusal(431, text, "headers_too_large", close=True)
