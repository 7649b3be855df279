"""The side that faces clients: HTTP/1.1 requests in, answers out, one at a time per connection.

httptools (llhttp, strict) parses; this module adds what a parser does not decide: size limits, the order of pipelined
requests, timers, and how a connection that cannot be trusted any more ends. llhttp itself refuses Content-Length beside
Transfer-Encoding, repeated or malformed lengths, folded headers, bare line feeds and spaces before colons.

While an answer is under way at most one further read is kept aside, then the socket waits; a client that pipelines so
far ahead and leaves is noticed when its answer is written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Any, Final, NoReturn, Protocol

import httptools

from tidemill.gateway.answers import Refusal, full_answer
from tidemill.gateway.limits import Limits

_KEPT: Final = {
    b"authorization": "authorization",
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
}
_ONCE: Final = frozenset(("authorization", "host", "session", "traceparent", "origin", "transfer", "expect"))
_FIELDS: Final[dict[bytes, str]] = {}  # names as clients write them, learnt; "" for those nobody reads
_FIELDS_MOST: Final = 1024
_LINGER_S: Final = 1.0


def _field(name: bytes) -> str:
    field = _KEPT.get(name.lower(), "")
    if len(_FIELDS) < _FIELDS_MOST:
        _FIELDS[name] = field
    return field


class Request:
    """One request as it arrived: the body whole, of the headers only those the gateway reads.

    What is absent stays a class attribute, for one of these is made per request.
    """

    method = b""
    target = b""
    body = b""
    keep_alive = True
    modern = True  # HTTP/1.1, which knows chunks
    authorization: bytes | None = None
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


class Call(Protocol):
    """What answers a request; the connection tells it about the client."""

    def client_left(self) -> None:
        """The client closed the connection before the answer was complete."""
        ...

    def client_slow(self) -> None:
        """The client does not read fast enough: send nothing more."""
        ...

    def client_ready(self) -> None:
        """The client reads again."""
        ...


class Handler(Protocol):
    """Where complete requests go."""

    def handle(self, front: Front, request: Request) -> None:
        """Answer now, or attend to the connection with a ``Call`` and answer later."""
        ...

    def refused(self, status: int) -> None:
        """A request was refused before it was complete (for the counters)."""
        ...


class Front(asyncio.Protocol):
    """One client connection.

    Args:
        handler: gets each complete request, never a second one before the first is answered.
        limits: sizes and times.
        fronts: the set of live connections, which the worker sweeps for timers.
    """

    def __init__(self, handler: Handler, limits: Limits, fronts: set[Front]) -> None:
        self.transport: Any = None
        self.client_address = ""
        self.draining = False
        self.deadline = 0.0
        self._handler = handler
        self._limits = limits
        self._fronts = fronts
        self._parser: Any = None
        self._request = Request()
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0  # raw bytes read while the head is incomplete: bounds a header that never ends
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head = True
        self._receiving = False  # a message has begun and is not complete
        self._refusal: Refusal | None = None
        self._waiting: deque[Request] = deque()
        self._stash = b""
        self._call: Call | None = None
        self._busy = False
        self._pumping = False
        self._keep_alive = True
        self._ending = False
        self._slow = False

    # -- what answers use -------------------------------------------------------------------------------------

    @property
    def stays(self) -> bool:
        """Whether the connection goes on after the present answer."""
        return self._keep_alive and not self.draining

    @property
    def slow(self) -> bool:
        """Whether the client is behind with reading."""
        return self._slow

    def attend(self, call: Call) -> None:
        """Name who answers the present request, and is told when the client leaves."""
        self._call = call

    def answer(
        self, status: int, body: bytes, *, headers: bytes = b"", content_type: bytes = b"application/json"
    ) -> None:
        """Write a whole answer and go on to the next request."""
        if self.transport is not None:
            self.transport.write(
                full_answer(status, body, content_type=content_type, headers=headers, keep_alive=self.stays)
            )
        self.finished(stays=self.stays)

    def write(self, data: bytes) -> None:
        """Send bytes of an answer; nothing when the client has left."""
        if self.transport is not None:
            self.transport.write(data)

    def finished(self, *, stays: bool) -> None:
        """The present answer is complete. ``stays`` must be what its head announced."""
        self._call = None
        self._busy = False
        if self.transport is None:
            return
        if not stays:
            self._ending = True
            self.transport.close()
            return
        self.deadline = monotonic() + (self._limits.write_timeout_s if self._slow else self._limits.idle_timeout_s)
        if not self._pumping and (self._waiting or self._stash or self._refusal is not None):
            self._pump()

    def cut(self) -> None:
        """End the connection at once, so that the client sees its answer is incomplete."""
        self._ending = True
        self._call = None
        if self.transport is not None:
            self.transport.abort()

    def drain(self) -> None:
        """Take no further request: close now when idle, else after the answer in flight."""
        self.draining = True
        if not self._busy and not self._receiving and self.transport is not None:
            self._ending = True
            self.transport.close()

    def expire(self, now: float) -> None:
        """Act on a timer that has run out. ``now`` is monotonic, in seconds."""
        if not self.deadline or now < self.deadline or self.transport is None:
            return
        self.deadline = 0.0
        if self._slow or self._ending:
            self.transport.abort()
        elif self._receiving or self._head_bytes:
            self._refusal = Refusal(408, "The request did not arrive in time.", "request_timeout", close=True)
            self._answer_refusal()
        else:
            self.transport.close()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start with the timer of a connection that has sent nothing yet."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.client_address = str(peer[0]) if isinstance(peer, tuple) and peer else "local"
        self._parser = httptools.HttpRequestParser(self)
        self._fronts.add(self)
        self.deadline = monotonic() + self._limits.header_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
        """Cancel what is in flight: nobody waits for it any more."""
        self._fronts.discard(self)
        self.transport = None
        self._waiting.clear()
        self._stash = b""
        # The parser holds bound methods of this object; without the cycle both are freed at once.
        self._parser = None
        call, self._call = self._call, None
        if call is not None:
            call.client_left()

    def data_received(self, data: bytes) -> None:
        """Parse, or keep aside while an answer is under way."""
        if self._ending or self._refusal is not None:
            return
        if self._busy:
            self._stash += data
            self.transport.pause_reading()
            return
        self._parse(data)
        self._pump()

    def pause_writing(self) -> None:
        """The client reads slower than the answer arrives."""
        self._slow = True
        self.deadline = monotonic() + self._limits.write_timeout_s
        if self._call is not None:
            self._call.client_slow()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._slow = False
        self.deadline = 0.0 if self._busy else monotonic() + self._limits.idle_timeout_s
        if self._call is not None:
            self._call.client_ready()

    # -- httptools callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Forget the message before."""
        self._request = Request()
        self._parts = []
        self._headers = []
        self._body_bytes = 0
        self._in_head = self._receiving = True

    def on_url(self, url: bytes) -> None:
        """Keep the request target, within its limit (it may come in parts)."""
        request = self._request
        request.target += url
        if len(request.target) > self._limits.url_bytes:
            self._refuse(414, f"The request target is longer than {self._limits.url_bytes} bytes.", "uri_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the header for when all are there."""
        if self._in_head:
            self._headers.append((name, value))
            return
        # A trailer: never merged into the headers, but it counts as body, so that it is bounded.
        self._body_bytes += len(name) + len(value)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()

    def on_headers_complete(self) -> None:
        """Read the headers, check what needs all of them, and let a client that asks first send its body."""
        self._in_head = False
        request, headers, limits = self._request, self._headers, self._limits
        if self._head_bytes > limits.header_bytes or len(headers) > limits.header_count:
            self._check_head()
        self._head_bytes = 0
        for name, value in headers:
            field = _FIELDS.get(name)
            if field is None:
                field = _field(name)
            if field:
                if field in _ONCE and getattr(request, field) is not None:
                    self._refuse(400, f"The header {field} is given twice.", "duplicate_header")
                setattr(request, field, value)
        request.method = self._parser.get_method()
        request.modern = self._parser.get_http_version() == "1.1"
        if not request.modern or request.host is None:
            self._check_version(request)
        if request.length is not None and int(request.length) > limits.body_bytes:
            self._refuse_body()  # llhttp has accepted it as a plain number; refusing now spares the transfer
        if request.transfer is not None or request.expect is not None:
            self._check_framing(request)
        self.deadline = monotonic() + limits.body_timeout_s

    def on_body(self, data: bytes) -> None:
        """Collect the body, within its limit."""
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """Queue the request; it starts when no other is in flight."""
        self._receiving = False
        self._in_head = True
        request, parts = self._request, self._parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        request.keep_alive = request.modern and self._parser.should_keep_alive()
        self._waiting.append(request)

    # -- order ------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        if self._in_head:
            if not self._head_bytes:
                self.deadline = monotonic() + self._limits.header_timeout_s
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._waiting.clear()
            self._refusal = Refusal(400, "This server does not switch protocols.", "upgrade_refused", close=True)
        except httptools.HttpParserError as error:
            if self._refusal is None:
                text = f"The request is not valid HTTP/1.1: {error}."
                self._refusal = Refusal(400, text, "malformed_request", close=True)
        if self._in_head and not self._receiving:
            self._head_bytes = 0
        elif self._in_head and self._head_bytes > self._limits.header_bytes and self._refusal is None:
            self._refusal = self._large_head()

    def _pump(self) -> None:
        """Start what can be started, in order. A loop, for thousands of tiny requests fit one read."""
        self._pumping = True
        while not self._busy and not self._ending and self.transport is not None:
            if self._waiting:
                self._start(self._waiting.popleft())
            elif self._refusal is not None:
                self._answer_refusal()
            elif self._stash:
                data, self._stash = self._stash, b""
                self.transport.resume_reading()
                self._parse(data)
            else:
                break
        self._pumping = False

    def _start(self, request: Request) -> None:
        self._busy = True
        self._keep_alive = request.keep_alive
        self.deadline = 0.0
        self._handler.handle(self, request)

    # -- refusals ---------------------------------------------------------------------------------------------

    def _check_head(self) -> None:
        """Measure the head itself: what was read may hold some of the body too."""
        headers = self._headers
        size = sum(len(name) + len(value) + 4 for name, value in headers) + len(self._request.target)
        if size > self._limits.header_bytes or len(headers) > self._limits.header_count:
            self._refuse_head()

    def _check_version(self, request: Request) -> None:
        if request.modern:
            self._refuse(400, "An HTTP/1.1 request needs a Host header.", "missing_host")
        if self._parser.get_http_version() != "1.0":
            self._refuse(505, "This server speaks HTTP/1.1.", "http_version_not_supported")

    def _check_framing(self, request: Request) -> None:
        transfer, expect = request.transfer, request.expect
        if transfer is not None and (transfer.strip().lower() != b"chunked" or not request.modern):
            self._refuse(501, "The only transfer encoding understood is 'chunked', in HTTP/1.1.", "transfer_encoding")
        if expect is None:
            return
        if expect.lower() != b"100-continue":
            self._refuse(417, "The only expectation understood is '100-continue'.", "expectation_failed")
        if not self._waiting:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, status: int, message: str, code: str) -> NoReturn:
        self._refusal = Refusal(status, message, code, close=True)
        raise self._refusal  # stops llhttp; feed_data reports it as a callback's error

    def _refuse_body(self) -> NoReturn:
        self._refuse(413, f"The request body is larger than {self._limits.body_bytes} bytes.", "body_too_large")

    def _refuse_head(self) -> NoReturn:
        self._refusal = self._large_head()
        raise self._refusal

    def _large_head(self) -> Refusal:
        text = f"The headers exceed {self._limits.header_bytes} bytes or {self._limits.header_count} lines."
        return Refusal(431, text, "headers_too_large", close=True)

    def _answer_refusal(self) -> None:
        """Say what was wrong and end. The socket stays open for reading a moment, else a reset could eat the answer."""
        refusal = self._refusal
        assert refusal is not None
        self._ending = True
        self._handler.refused(refusal.status)
        self.transport.write(full_answer(refusal.status, refusal.body(), keep_alive=False))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.deadline = monotonic() + _LINGER_S
