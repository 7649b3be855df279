"""The side that faces clients: HTTP/1.1 requests in, answers out, one at a time per connection.

``RequestReader`` turns bytes into requests; this module adds the order of pipelined requests, timers, flow control,
and how a connection that cannot be trusted any more ends. It talks to a transport and a clock only, so that it runs
under any loop, over TLS, and in tests without a socket.

While an answer is under way at most one further read is kept aside, then the socket waits; a client that pipelines so
far ahead and leaves is noticed when its answer is written. A client that closes its side for sending counts as gone:
that is how leaving looks, and tokens for nobody cost.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Final, Protocol

from tidemill.gateway.answers import Refusal, full_answer
from tidemill.gateway.limits import Limits
from tidemill.gateway.reading import HEAD, IDLE, Request, RequestReader

__all__ = ["Call", "Front", "Handler", "Request"]

_LINGER_S: Final = 1.0
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


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

    def faulted(self, error: Exception) -> None:
        """A step of the answer raised this, and is logged: end the answer."""
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
        self._reader = RequestReader(limits)
        self._stash = b""
        self._call: Call | None = None
        self._busy = False
        self._pumping = False
        self._keep_alive = True
        self._ending = False
        self._slow = False
        self._unsent = 0  # bytes the client had not taken when it was last found slow

    # -- what answers use -------------------------------------------------------------------------------------

    @property
    def stays(self) -> bool:
        """Whether the connection goes on after the present answer."""
        return self._keep_alive and not self.draining

    @property
    def slow(self) -> bool:
        """Whether the client is behind with reading."""
        return self._slow

    @property
    def call(self) -> Call | None:
        """Who answers the present request; ``None`` when nobody attends to it, or not any more."""
        return self._call

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
            self._close()
            return
        reader = self._reader
        if self._slow:
            self.deadline = monotonic() + self._limits.write_timeout_s
        elif reader.stage == IDLE:
            self.deadline = monotonic() + self._limits.idle_timeout_s
        else:
            self._await_client()
        if (reader.ready or self._stash or reader.invite or reader.refusal is not None) and not self._pumping:
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
        if not self._busy and self._reader.stage == IDLE and self.transport is not None:
            self._close()

    def expire(self, now: float) -> None:
        """Act on a timer that has run out. ``now`` is monotonic, in seconds."""
        if not self.deadline or now < self.deadline or self.transport is None:
            return
        self.deadline = 0.0
        if self._slow or self._ending:
            unsent = self.transport.get_write_buffer_size()
            if 0 < unsent < self._unsent:  # it does read, if slowly
                self._unsent = unsent
                self.deadline = now + self._limits.write_timeout_s
            else:
                self.transport.abort()
        elif self._reader.stage != IDLE:
            self._reader.refusal = Refusal(408, "The request did not arrive in time.", "request_timeout", close=True)
            self._answer_refusal(self._reader.refusal)
        else:
            self._close()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start with the timer of a connection that has sent nothing yet."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.client_address = str(peer[0]) if isinstance(peer, tuple) and peer else "local"
        self._fronts.add(self)
        self.deadline = monotonic() + self._limits.header_timeout_s
        if len(self._fronts) > self._limits.client_connections:
            text = f"This worker holds {self._limits.client_connections} connections already. Try again later."
            self._answer_refusal(Refusal(503, text, "too_many_connections", close=True))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
        """Cancel what is in flight: nobody waits for it any more."""
        self._fronts.discard(self)
        self.transport = None
        self._stash = b""
        self._reader.close()
        call, self._call = self._call, None
        if call is not None:
            call.client_left()

    def data_received(self, data: bytes) -> None:
        """Read, or keep aside while an answer is under way."""
        if self._busy or self._slow:  # answers that nobody reads must not pile up either
            self._stash += data
            self.transport.pause_reading()
            return
        reader = self._reader
        if self._ending or reader.refusal is not None:
            return
        request = reader.again(data)
        if request is not None:
            self._busy = True
            self._keep_alive = True
            self.deadline = 0.0
            self._handler.handle(self, request)
            return
        stage = reader.stage
        reader.feed(data)
        if reader.ready and self._start(reader.ready.popleft()):
            return
        if reader.stage != stage:
            self._await_client()
        if reader.ready or reader.invite or reader.refusal is not None:
            self._pump()

    def pause_writing(self) -> None:
        """The client reads slower than the answer arrives."""
        self._slow = True
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = monotonic() + self._limits.write_timeout_s
        if self._call is not None:
            self._call.client_slow()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._slow = False
        if self._busy:
            self.deadline = 0.0
        elif not self._ending:
            self._await_client()
        if self._call is not None:
            self._call.client_ready()
        elif not self._busy and not self._pumping:
            self._pump()

    # -- order ------------------------------------------------------------------------------------------------

    def _await_client(self) -> None:
        """Set the timer for what the client has to send next."""
        stage, limits = self._reader.stage, self._limits
        if stage == IDLE:
            patience_s = limits.idle_timeout_s
        else:
            patience_s = limits.header_timeout_s if stage == HEAD else limits.body_timeout_s
        self.deadline = monotonic() + patience_s

    def _pump(self) -> None:
        """Start what can be started, in order. A loop, for thousands of tiny requests fit one read."""
        self._pumping = True
        reader = self._reader
        while not (self._busy or self._slow or self._ending or self.transport is None):
            if reader.ready:
                self._start(reader.ready.popleft())
            elif reader.refusal is not None:
                self._answer_refusal(reader.refusal)
            elif self._stash:
                data, self._stash = self._stash, b""
                self.transport.resume_reading()
                reader.feed(data)
                self._await_client()
            elif reader.invite:
                reader.invite = False
                self.transport.write(_CONTINUE)
            else:
                break
        self._pumping = False

    def _start(self, request: Request) -> bool:
        """Have a request answered. Returns whether the answer is still under way."""
        self._busy = True
        self._keep_alive = request.keep_alive
        self.deadline = 0.0
        self._handler.handle(self, request)
        return self._busy

    # -- ends -------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Close once all is sent. A client that does not take it is dropped when the timer runs out."""
        self._ending = True
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = monotonic() + self._limits.write_timeout_s
        self.transport.close()

    def _answer_refusal(self, refusal: Refusal) -> None:
        """Say what was wrong and end. The socket stays open for reading a moment, else a reset could eat the answer."""
        self._ending = True
        self._unsent = 0
        self._handler.refused(refusal.status)
        self.transport.write(full_answer(refusal.status, refusal.body(), keep_alive=False))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.deadline = monotonic() + _LINGER_S
