"""How an answer reaches the client: its head, its pieces in order, and how it ends when it breaks.

The finished record is written before the client's last byte. For a stream the last byte is what completes
``data: [DONE]``, for that is where clients stop reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from tidemill.gateway.answers import status_line
from tidemill.gateway.streams import DONE, DONE_WITHIN, without_usage

if TYPE_CHECKING:
    from tidemill.gateway.front import Call
    from tidemill.models.providers import StreamTranslator


class Client(Protocol):
    """Where an answer goes: a connection, or what stands for one."""

    client_address: str

    @property
    def stays(self) -> bool:
        """Whether the connection goes on after the present answer."""
        ...

    @property
    def slow(self) -> bool:
        """Whether the client is behind with reading."""
        ...

    @property
    def call(self) -> Call | None:
        """Who answers the present request; ``None`` when nobody attends to it, or not any more."""
        ...

    def attend(self, call: Call) -> None:
        """Name who answers, and is told when the client leaves."""
        ...

    def answer(
        self, status: int, body: bytes, *, headers: bytes = b"", content_type: bytes = b"application/json"
    ) -> None:
        """Write a whole answer."""
        ...

    def write(self, data: bytes) -> None:
        """Send bytes of an answer."""
        ...

    def finished(self, *, stays: bool) -> None:
        """The answer is complete; ``stays`` is what its head announced."""
        ...

    def cut(self) -> None:
        """End the connection at once."""
        ...


def head_of(status: int, content_type: bytes, framing: bytes, lines: bytes, *, stays: bool) -> bytes:
    """The head of an answer.

    Args:
        status: HTTP status.
        content_type: of the body.
        framing: header line without its end that says how the body ends; may be empty.
        lines: further header lines, each with its end.
        stays: whether the connection goes on.
    """
    return b"%bcontent-type: %b%b\r\n%b%b" % (
        status_line(status),
        content_type,
        framing,
        lines,
        b"\r\n" if stays else b"connection: close\r\n\r\n",
    )


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; nothing for nothing, for an empty chunk is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Passing:
    """An answer that is passed on as it comes.

    Args:
        front: the client's connection.
        head: the head, which leaves with the first piece.
        sse: whether it is a stream of events.
        chunked: whether the body is chunked.
        strip_usage: whether events that only tell usage are left out.
        translator: into the client's dialect.
    """

    __slots__ = (
        "_chunked", "_done", "_ended", "_front", "_head", "_held", "_over", "_recorded", "_sse", "_strip_usage",
        "_translator",
    )  # fmt: skip

    def __init__(
        self,
        front: Client,
        head: bytes,
        *,
        sse: bool,
        chunked: bool,
        strip_usage: bool = False,
        translator: StreamTranslator | None = None,
    ) -> None:
        self._front = front
        self._head = head
        self._sse = sse
        self._chunked = chunked
        self._strip_usage = strip_usage
        self._translator = translator
        self._held = b""  # waits for the record
        self._done = self._recorded = self._ended = self._over = False

    @property
    def begun(self) -> bool:
        """Whether anything has left."""
        return not self._head

    def events(self, data: bytes) -> bool:
        """Pass whole events on. Returns whether they hold the end, which then waits for ``recorded``."""
        if self._done:
            return False  # nothing counts after the end
        data_out = self._translated(data)
        if DONE in data[DONE_WITHIN:]:
            self._done = True
            self._held = data_out
            return True
        if data_out or self._head:
            self._write(chunk(data_out) if self._chunked else data_out)
        return False

    def forwarder(self, keep: Callable[[bytes], None]) -> Callable[[bytes, msgspec.Raw], None]:
        """What passes one event on that is good and not the last.

        Args:
            keep: called with each event, for the record.
        """
        write, chunked, strips, translator = self._front.write, self._chunked, self._strip_usage, self._translator

        def forward(data: bytes, usage: msgspec.Raw) -> None:
            keep(data)
            if translator is not None or (strips and usage and bytes(usage) != b"null"):
                self.events(data)
            else:
                write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

        return forward

    def finish(self) -> bytes:
        """What the client's dialect has to say at the end; it waits for the record: see ``add``."""
        self._done = True
        return b"" if self._translator is None else self._translator.finish()

    def add(self, data: bytes) -> None:
        """Hold further bytes until the record is written."""
        self._held += data

    def piece(self, data: bytes) -> None:
        """Pass bytes on, one piece late, so that the last one waits for the record."""
        held, self._held = self._held, data
        if held:
            self._write(chunk(held) if self._chunked else held)

    def recorded(self) -> None:
        """The record is in the segment: what was held back may leave."""
        self._recorded = True
        data, self._held = self._held, b""
        if self._ended:
            self._end(data)
        elif data or self._head:
            self._write(chunk(data) if self._chunked else data)

    def ended(self) -> bool:
        """The upstream has nothing more. Returns whether the answer is complete, which it is not before its record."""
        self._ended = True
        if self._recorded:
            self._end(b"")
        return self._recorded

    def _end(self, data: bytes) -> None:
        if self._over:
            return
        self._over = True
        if self._chunked:
            data = chunk(data) + b"0\r\n\r\n"
        if data or self._head:
            self._write(data)
        self._front.finished(stays=self._front.stays)

    def broken_off(self, error: bytes) -> None:
        """End an answer whose beginning was sent, so that nobody takes it for a whole one.

        Args:
            error: OpenAI's error JSON. A stream gets it as its last event; anything else is cut.
        """
        if self._over:
            return
        self._over = True
        if not self._sse:
            self._front.cut()
            return
        event = b"data: %b\n\n" % error
        if self._translator is not None:
            event = self._translator.feed(event)
        self._write(chunk(event) + b"0\r\n\r\n" if self._chunked else event)
        self._front.finished(stays=self._front.stays)

    def _translated(self, data: bytes) -> bytes:
        if self._strip_usage:
            data = without_usage(data)
        return data if self._translator is None else self._translator.feed(data)

    def _write(self, data: bytes) -> None:
        head, self._head = self._head, b""
        self._front.write(head + data)
