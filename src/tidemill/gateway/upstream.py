"""The side that faces upstreams: kept-alive HTTP/1.1 connections, one request at a time on each.

The caller hands over a finished request (head and body as bytes) and a sink; the connection parses the answer and
passes it on in pieces, one per read. A connection is used again only after an answer that ended where HTTP says it
ends, with nothing behind it.
"""

from __future__ import annotations

import asyncio
import ssl
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import httptools

from tidemill.gateway.limits import Limits
from tidemill.kernel import InvalidInput

# Answer headers a client may need: rate limits and request ids, which the official clients read.
_PASSED: Final = frozenset((b"retry-after", b"retry-after-ms", b"x-request-id", b"x-should-retry", b"content-encoding"))
_PASSED_PREFIXES: Final = (b"x-ratelimit-", b"openai-")
_READ: Final = {b"content-type": "content_type", b"content-length": "length", b"transfer-encoding": "transfer"}
_FIELDS: Final[dict[bytes, str]] = {}  # names as upstreams write them, learnt; "" for those nobody reads
_FIELDS_MOST: Final = 1024


class Address(NamedTuple):
    """Where an upstream listens, and the path its API begins with."""

    host: str
    port: int
    tls: bool
    base_path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a base URL such as ``http://127.0.0.1:8431/v1``.

        Raises:
            InvalidInput: not an http or https URL with a host.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidInput(f"upstream URL {url!r} is not http://HOST[:PORT]/… or https://…")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Failure(NamedTuple):
    """Why an upstream gave no complete answer.

    Args:
        kind: ``connect``, ``lost``, ``malformed``, ``timeout``: the ``error_type`` of spans, after ``upstream_``.
        detail: what happened, for the operator.
        untouched: no byte of an answer had come.
    """

    kind: str
    detail: str
    untouched: bool


class Sink(Protocol):
    """Who takes an answer."""

    def on_head(self, status: int, headers: AnswerHead) -> None:
        """The head is complete."""
        ...

    def on_data(self, data: bytes) -> None:
        """A piece of the body; one call per read at most."""
        ...

    def on_done(self) -> None:
        """The answer ended as it should."""
        ...

    def on_failure(self, failure: Failure) -> None:
        """There will be no more."""
        ...


class AnswerHead:
    """The headers of an answer that matter to the gateway. Absent ones are class attributes: one is made per answer."""

    content_type = b"application/json"
    length: bytes | None = None
    transfer: bytes | None = None
    passed = b""


def _field(name: bytes) -> str:
    lower = name.lower()
    field = _READ.get(lower) or ("passed" if lower in _PASSED or lower.startswith(_PASSED_PREFIXES) else "")
    if len(_FIELDS) < _FIELDS_MOST:
        _FIELDS[name] = field
    return field


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream. Made by ``UpstreamPool``; ``stop`` and the flow methods are for its user."""

    def __init__(self, pool: UpstreamPool, address: Address) -> None:
        self.transport: Any = None
        self.address = address
        self.alive = True
        self.fresh = True  # no answer has come over it yet
        self.idle_since = 0.0
        self.deadline = 0.0
        self._pool = pool
        self._limits = pool.limits
        self.place = address[:3]
        self._sink: Sink | None = None
        self._parser: Any = None
        self._head = AnswerHead()
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self._status = 0
        self._started = False
        self._closes_at_end = self._reusable = False

    def start(self, sink: Sink, data: bytes) -> None:
        """Send a request and pass its answer to ``sink``."""
        self._sink = sink
        self._head = AnswerHead()
        self._head_bytes = self._status = 0
        self._started = False
        self.deadline = monotonic() + self._limits.first_byte_timeout_s
        self.transport.write(data)

    def stop(self) -> None:
        """Forget the sink and drop the connection: its answer is not wanted any more."""
        self._sink = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """Read nothing for now (the client is slow). The wait does not count as the upstream's."""
        self.deadline = 0.0
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.deadline = monotonic() + self._pool.limits.chunk_timeout_s
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def expire(self, now: float) -> None:
        """Fail an answer that takes too long, close a connection idle too long. ``now`` is monotonic seconds."""
        if self._sink is None:
            if self.idle_since and now - self.idle_since > self._pool.limits.upstream_idle_s:
                self.alive = False
                self.transport.close()
        elif self.deadline and now > self.deadline:
            self._fail("timeout", "no byte came in time")

    # -- asyncio.Protocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the pool's sweep."""
        self.transport = transport
        self._parser = httptools.HttpResponseParser(self)  # starts anew by itself after each complete answer
        self._pool.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report it, unless the end of the connection is the end of the answer."""
        self.alive = False
        self._pool.connections.discard(self)
        if self._sink is not None:
            if self._status and self._closes_at_end and exc is None:
                self.on_message_complete()
                self._flush()
            else:
                self._fail("lost", f"the connection broke: {exc or 'closed by the upstream'}")
        self._parser = None
        self.transport = None

    def data_received(self, data: bytes) -> None:
        """Parse and pass on what this read brought, as one piece."""
        if self._sink is None:  # bytes nobody asked for: what follows cannot be trusted
            self.alive = False
            self.transport.abort()
            return
        self.deadline = monotonic() + self._limits.chunk_timeout_s
        if not self._status:
            self._head_bytes += len(data)
        self._started = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._flush()
            self._fail("malformed", f"the answer is not valid HTTP/1.1: {error}")
            return
        if not self._status and self._head_bytes > self._limits.response_header_bytes:
            self._fail("malformed", "the answer's headers never end")
            return
        if self._pieces:
            self._flush()

    # -- httptools callbacks ----------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what the client or the gateway needs."""
        field = _FIELDS.get(name)
        if field is None:
            field = _field(name)
        if not field or self._status:  # nobody reads it, or a trailer
            return
        if field == "passed":
            self._head.passed += name + b": " + value + b"\r\n"
        else:
            setattr(self._head, field, value)

    def on_headers_complete(self) -> None:
        """Pass the head on; interim answers (1xx) are swallowed."""
        status = self._parser.get_status_code()
        if status < 200:
            self._head = AnswerHead()
            return
        self._status = status
        head = self._head
        self._closes_at_end = head.length is None and head.transfer is None and status not in {204, 304}
        if self._sink is not None:
            self._sink.on_head(status, head)

    def on_body(self, data: bytes) -> None:
        """Collect the pieces of one read."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Mark the end; it is reported after the pieces of the same read."""
        if self._status:
            self._reusable = not self._closes_at_end and self._parser.should_keep_alive()
            self._pieces.append(_END)

    # -- ends -------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        pieces = self._pieces
        if not pieces or self._sink is None:
            pieces.clear()
            return
        self._pieces = []
        ended = pieces[-1] is _END
        if ended:
            pieces.pop()
        if pieces:
            self._sink.on_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if ended:
            self._complete()

    def _complete(self) -> None:
        sink, self._sink = self._sink, None
        self.fresh = False
        self.deadline = 0.0
        if self.alive and self._reusable:
            self._pool.give_back(self)
        else:
            self.alive = False
            if self.transport is not None:
                self.transport.close()
        if sink is not None:  # it may have given up while the last piece was passed on
            sink.on_done()

    def _fail(self, kind: str, detail: str) -> None:
        sink, self._sink = self._sink, None
        self.alive = False
        if self.transport is not None:
            self.transport.abort()
        if sink is not None:
            sink.on_failure(Failure(kind, detail, not self._started))


_END: Final = bytes(bytearray(b"end"))  # a marker compared by identity


class UpstreamPool:
    """Kept-alive connections by address; the one used last is used first, so that surplus ones age out.

    Args:
        limits: times and the number of idle connections.
        tls: context for ``https`` upstreams; ``None`` makes the system's default one when it is first needed.
    """

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self.limits = limits
        self.connections: set[UpstreamConnection] = set()
        self._free: dict[tuple[str, int, bool], list[UpstreamConnection]] = {}
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    def take_idle(self, address: Address) -> UpstreamConnection | None:
        """A live idle connection, or ``None``."""
        free = self._free.get(address[:3])
        while free:
            connection = free.pop()
            if connection.alive and not connection.transport.is_closing():
                connection.idle_since = 0.0
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request."""
        free = self._free.get(connection.place)
        if free is None:
            free = self._free[connection.place] = []
        elif len(free) >= self.limits.upstream_idle_connections:
            connection.alive = False
            connection.transport.close()
            return
        connection.idle_since = monotonic()
        free.append(connection)

    def connect(self, address: Address, waiter: Connecting) -> asyncio.Task[None]:
        """Open a connection and hand it to ``waiter``, or tell it why not. Cancel the task to give up."""
        task = asyncio.get_running_loop().create_task(self._connect(address, waiter))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, address: Address, waiter: Connecting) -> None:
        loop = asyncio.get_running_loop()
        if address.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self, address),
                    address.host,
                    address.port,
                    ssl=self._tls if address.tls else None,
                )
        except TimeoutError:
            waiter.on_failure(Failure("connect", f"{address.host_header} does not answer", untouched=True))
        except OSError as error:  # ssl.SSLError is one
            waiter.on_failure(Failure("connect", f"{address.host_header}: {error}", untouched=True))
        else:
            waiter.on_connected(connection)

    def sweep(self, now: float) -> None:
        """Run the timers. ``now`` is monotonic seconds."""
        for connection in tuple(self.connections):
            connection.expire(now)
        for key, free in tuple(self._free.items()):
            live = [connection for connection in free if connection.alive]
            if live:
                self._free[key] = live
            else:
                del self._free[key]

    def close(self) -> None:
        """Drop all connections and attempts."""
        for task in tuple(self._tasks):
            task.cancel()
        for connection in tuple(self.connections):
            connection.stop()
        self._free.clear()


class Connecting(Protocol):
    """Who waits for a new connection."""

    def on_connected(self, connection: UpstreamConnection) -> None:
        """It is there, unused."""
        ...

    def on_failure(self, failure: Failure) -> None:
        """It could not be made."""
        ...
