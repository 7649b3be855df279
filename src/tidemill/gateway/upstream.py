"""The side that faces upstreams: kept-alive HTTP/1.1 connections, one request at a time on each.

The caller hands over a finished request (head and body as bytes) and a sink; ``AnswerReader`` reads the answer, and the
connection passes it on in pieces, one per read. A connection is used again only after an answer that ended where HTTP
says it ends, with nothing behind it, to a request that was taken whole.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from tidemill.gateway.answer_reading import AnswerHead, AnswerReader, is_passed
from tidemill.gateway.known_heads import KnownAnswers, WholeAnswer
from tidemill.gateway.limits import Limits
from tidemill.gateway.tls import ClientContexts, Trust, tls_problem
from tidemill.kernel import InvalidInput, UserError

__all__ = ["Address", "AnswerHead", "Connecting", "Failure", "Sink", "UpstreamConnection", "UpstreamPool", "Waits"]

_log = logging.getLogger(__name__)

_SHORT_S: Final = 5.0  # waits below get an alarm of their own; the sweep, which comes twice a second, sees to the rest
_SYSTEM: Final = Trust()


@dataclass(frozen=True, slots=True)
class Address:
    """Where an upstream listens, the path its API begins with, and whom to trust there.

    Args:
        trust: for ``https``: own authorities and a client certificate; ``None`` takes the system's authorities.

    Attributes:
        place: what connections are kept by.
    """

    host: str
    port: int
    tls: bool
    base_path: str
    trust: Trust | None = None
    place: tuple[str, int, bool, Trust | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", (self.host, self.port, self.tls, self.trust))

    @classmethod
    def parse(cls, url: str, trust: Trust | None = None) -> Address:
        """Read a base URL such as ``http://127.0.0.1:8431/v1``.

        Raises:
            InvalidInput: not an http or https URL with a host and without user name, query or fragment.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # a port that is no number, half a bracket
            raise InvalidInput(f"upstream URL {url!r} cannot be read: is its port a number?") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidInput(f"upstream URL {url!r} is not http://HOST[:PORT]/… or https://…")
        if parts.username is not None or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
            raise InvalidInput(f"upstream URL {parts.scheme}://{parts.hostname}… has more than host, port and path")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"), trust)

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Waits(NamedTuple):
    """How long a call waits for its upstream, in seconds.

    Args:
        connect_timeout_s: for name resolution, connection and TLS handshake together.
        first_byte_timeout_s: from the request's first byte to the end of the answer's head.
        chunk_timeout_s: between two reads of the answer's body, while the client keeps up.
    """

    connect_timeout_s: float
    first_byte_timeout_s: float
    chunk_timeout_s: float


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

    def on_fault(self, error: Exception) -> None:
        """One of the other methods raised this, and is logged. There will be no more."""
        ...


class WholeSink(Sink, Protocol):
    """Who can take a plain answer at once."""

    def on_whole(self, answer: WholeAnswer) -> None:
        """Instead of all other calls: a good answer came whole."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream. Made by ``UpstreamPool``; ``stop`` and the flow methods are for its user."""

    def __init__(self, pool: UpstreamPool, address: Address) -> None:
        self.transport: Any = None
        self.address = address
        self.alive = True
        self.fresh = True  # no answer has come over it yet
        self.idle_since = 0.0
        self.deadline = 0.0
        self.place = address.place
        self._pool = pool
        self._sink: Sink | None = None
        self._whole: WholeSink | None = None  # the sink, until something has come, if it can take a whole answer
        self._reader = AnswerReader(pool.limits.response_header_bytes)
        self._known = KnownAnswers(pool.limits.response_header_bytes, is_passed)
        self._chunk_timeout_s = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    def start(self, sink: Sink, data: bytes, body: bytes = b"", waits: Waits | None = None) -> None:
        """Send a request and pass its answer to ``sink``.

        Args:
            sink: told of everything that comes, until the end or a failure, exactly one of which it is told.
            data: the head of the request, or the whole of it.
            body: the rest; large ones are cheaper here, for nothing is joined.
            waits: instead of the pool's.
        """
        if waits is None:
            waits = self._pool.waits
        self._sink = sink
        self._whole = None
        reader = self._reader
        if reader.started:
            reader.expect()
        self.idle_since = 0.0
        self._chunk_timeout_s = waits.chunk_timeout_s
        self.deadline = monotonic() + waits.first_byte_timeout_s
        if waits.first_byte_timeout_s < _SHORT_S:
            self._watch()
        self.transport.write(data)
        if body:
            self.transport.write(body)

    def ask(self, sink: WholeSink, data: bytes, body: bytes, waits: Waits) -> None:
        """Like ``start``, for a sink that can take a plain answer at once."""
        self._sink = self._whole = sink
        if self._reader.started:
            self._reader.expect()
        self.idle_since = 0.0
        self._chunk_timeout_s = waits.chunk_timeout_s
        self.deadline = monotonic() + waits.first_byte_timeout_s
        if waits.first_byte_timeout_s < _SHORT_S:
            self._watch()
        self.transport.write(data)
        if body:
            self.transport.write(body)

    def hand_over(self, sink: Sink) -> None:
        """Another sink is told of what is still to come."""
        self._sink = sink
        self._whole = None

    def stop(self) -> None:
        """Forget the sink and drop the connection: its answer is not wanted any more."""
        self._sink = self._whole = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """Read nothing for now (the client is slow). The wait does not count as the upstream's."""
        self.deadline = 0.0
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.deadline = monotonic() + self._chunk_timeout_s
        if self._chunk_timeout_s < _SHORT_S:
            self._watch()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def expire(self, now: float) -> None:
        """Fail an answer that takes too long, close a connection idle too long. ``now`` is monotonic seconds."""
        if self._sink is None:
            if self.idle_since and now - self.idle_since > self._pool.limits.upstream_idle_s:
                self.alive = False
                self.transport.close()
        elif self.deadline and now >= self.deadline:
            text = "no byte came in time" if self._reader.status else "the answer's head did not come in time"
            self._fail("timeout", text)

    # -- short waits ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """See that ``expire`` is called at the deadline. An alarm that is set rings in time, or rings and is set anew.

        So a stream moves its deadline with every piece and its alarm once per wait at most.
        """
        if self._alarm is not None:
            if self._alarm_at <= self.deadline:
                return
            self._alarm.cancel()
        self._alarm_at = self.deadline
        self._alarm = asyncio.get_running_loop().call_later(self.deadline - monotonic(), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._sink is None or not self.deadline:
            return
        self.expire(monotonic())
        if self._sink is not None and self.deadline - monotonic() < _SHORT_S:
            self._watch()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the pool's sweep; who asked for the connection may have given up meanwhile."""
        self.transport = transport
        self.idle_since = monotonic()
        self._pool.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report it, unless the end of the connection is the end of the answer."""
        self.alive = False
        self._pool.connections.discard(self)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._sink is not None:
            if exc is None and self._reader.end():
                self._complete()
            else:
                self._fail("lost", f"the connection broke: {exc or 'closed by the upstream'}")
        self._reader.close()
        self.transport = None

    def data_received(self, data: bytes) -> None:  # noqa: C901 - a call for each part would cost more than the part
        """Read, and pass on what this read brought, as one piece."""
        sink, reader = self._sink, self._reader
        if sink is None:  # bytes nobody asked for: what follows cannot be trusted
            self.alive = False
            self.transport.abort()
            return
        try:
            if self._whole is not None and self._take_whole(self._whole, data):
                return
            headed = reader.status
            problem = reader.feed(data)
            if reader.status:
                self.deadline = monotonic() + self._chunk_timeout_s
                if not headed:
                    if self._chunk_timeout_s < _SHORT_S:
                        self._watch()
                    sink.on_head(reader.status, reader.head)
                    sink = self._sink or sink
                piece = reader.take()
                if piece and self._sink is not None:
                    sink.on_data(piece)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for what will not come
            self.stop()
            _faulted(sink, error)
            return
        if self._sink is None:  # it has given up while it was told
            return
        if reader.ended:
            self._complete()
        elif problem is not None:
            self._fail("malformed", problem)

    def _take_whole(self, whole: WholeSink, data: bytes) -> bool:
        self._whole = None
        answer = self._known.take(data)
        if answer is None:
            return False
        self._sink = None
        if self.alive and not self.transport.get_write_buffer_size():
            self.fresh = False
            self.deadline = 0.0
            self._pool.give_back(self)
        else:
            self._release(reusable=True)
        whole.on_whole(answer)
        return True

    # -- ends -------------------------------------------------------------------------------------------------

    def _complete(self) -> None:
        sink, self._sink = self._sink, None
        self._release(reusable=self._reader.reusable)
        if sink is not None:
            try:
                sink.on_done()
            except Exception as error:  # noqa: BLE001 - likewise
                _faulted(sink, error)

    def _release(self, *, reusable: bool) -> None:
        """The answer is complete: the connection is kept or closed."""
        self.fresh = False
        self.deadline = 0.0
        # An upstream that answers before it has read the request whole may never read the rest.
        if self.alive and reusable and not self.transport.get_write_buffer_size():
            self._pool.give_back(self)
        else:
            self.alive = False
            if self.transport is not None:
                self.transport.close()

    def _fail(self, kind: str, detail: str) -> None:
        sink, self._sink = self._sink, None
        self._whole = None
        self.alive = False
        if self.transport is not None:
            self.transport.abort()
        if sink is not None:
            _tell(sink, Failure(kind, detail, not self._reader.started))


class UpstreamPool:
    """Kept-alive connections by address; the one used last is used first, so that surplus ones age out.

    Args:
        limits: times and the number of idle connections.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waits = Waits(limits.connect_timeout_s, limits.first_byte_timeout_s, limits.chunk_timeout_s)
        self.connections: set[UpstreamConnection] = set()
        self._free: dict[tuple[str, int, bool, Trust | None], list[UpstreamConnection]] = {}
        self._contexts = ClientContexts()
        self._tasks: set[asyncio.Task[None]] = set()

    def take_idle(self, address: Address) -> UpstreamConnection | None:
        """A live idle connection, or ``None``."""
        free = self._free.get(address.place)
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

    def connect(self, address: Address, waiter: Connecting, waits: Waits | None = None) -> asyncio.Task[None]:
        """Open a connection and hand it to ``waiter``, or tell it why not. Cancel the task to give up.

        Args:
            address: where to.
            waiter: told of the connection or of the failure.
            waits: instead of the pool's.
        """
        timeout_s = (waits or self.waits).connect_timeout_s
        task = asyncio.get_running_loop().create_task(self._connect(address, waiter, timeout_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, address: Address, waiter: Connecting, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            context = self._contexts.get(address.trust or _SYSTEM) if address.tls else None
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self, address), address.host, address.port, ssl=context
                )
        except TimeoutError:
            text = f"{address.host_header} does not answer within {timeout_s:g} s"
            _tell(waiter, Failure("connect", text, untouched=True))
        except ssl.SSLError as error:
            text = f"{address.host_header}: {tls_problem(error)}"
            _tell(waiter, Failure("connect", text, untouched=True))
        except (OSError, UserError) as error:
            _tell(waiter, Failure("connect", f"{address.host_header}: {error}", untouched=True))
        else:
            try:
                waiter.on_connected(connection)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for what will not come
                connection.stop()
                _faulted(waiter, error)

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

    def on_fault(self, error: Exception) -> None:
        """See ``Sink``."""
        ...

    def on_failure(self, failure: Failure) -> None:
        """It could not be made."""
        ...


def _tell(listener: Sink | Connecting, failure: Failure) -> None:
    try:
        listener.on_failure(failure)
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for what will not come
        _faulted(listener, error)


def _faulted(listener: Sink | Connecting, error: Exception) -> None:
    _log.error("an answer could not be taken", exc_info=error)
    listener.on_fault(error)
