"""The HTTP core without sockets: a transport in memory, a handler that collects, and h11 on the same bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h11
from hypothesis import strategies as st

from tidemill.gateway import Limits
from tidemill.gateway.front import Front, Request
from tidemill.gateway.upstream import AnswerHead, Failure


class Pipe:
    """A transport that keeps what is written. ``high_water`` makes the peer slow: it takes bytes only by ``drain``."""

    def __init__(self, high_water: int | None = None) -> None:
        self.written = bytearray()
        self.open = True
        self.aborted = False
        self.half_closed = False
        self.reading = True
        self.unread = 0
        self.protocol: Any = None
        self._high_water = high_water
        self._full = False

    def attach(self, protocol: Any) -> Any:
        self.protocol = protocol
        protocol.connection_made(self)
        return protocol

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        assert self.open, "a write after the end"
        self.written += data
        if self._high_water is None:
            return
        self.unread += len(data)
        if not self._full and self.unread > self._high_water:
            self._full = True
            self.protocol.pause_writing()

    def drain(self) -> None:
        self.unread = 0
        if self._full:
            self._full = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.unread

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return not self.open

    def close(self) -> None:
        self.open = False

    def abort(self) -> None:
        self.open = False
        self.aborted = True

    def take(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        return data


class Collected:
    """A handler that keeps requests, and answers each at once unless it is told to wait."""

    def __init__(self, *, wait: bool = False, body: bytes = b"") -> None:
        self.requests: list[Request] = []
        self.refusals: list[int] = []
        self.calls: list[str] = []
        self._wait = wait
        self._body = body

    def handle(self, front: Front, request: Request) -> None:
        self.requests.append(request)
        if self._wait:
            front.attend(self)
        else:
            front.answer(200, self._body)

    def refused(self, status: int) -> None:
        self.refusals.append(status)

    def client_left(self) -> None:
        self.calls.append("left")

    def client_slow(self) -> None:
        self.calls.append("slow")

    def client_ready(self) -> None:
        self.calls.append("ready")


@dataclass
class Taken:
    """A sink that keeps an answer."""

    status: int = 0
    head: AnswerHead | None = None
    body: bytes = b""
    done: bool = False
    failure: Failure | None = None
    told: Callable[[], None] = field(default=lambda: None)

    def on_head(self, status: int, headers: AnswerHead) -> None:
        assert not self.status, "a second head"
        self.status, self.head = status, headers
        self.told()

    def on_data(self, data: bytes) -> None:
        assert data
        assert not self.done
        self.body += data
        self.told()

    def on_done(self) -> None:
        assert not self.done
        assert self.failure is None
        self.done = True
        self.told()

    def on_failure(self, failure: Failure) -> None:
        assert not self.done
        assert self.failure is None
        self.failure = failure
        self.told()


def front(handler: Any, limits: Limits | None = None, **more: Any) -> tuple[Front, Pipe]:
    pipe = Pipe(**more)
    return pipe.attach(Front(handler, limits or Limits(), set())), pipe


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Data in parts, cut at the places given."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


Message = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]


def by_gateway(data: bytes, cuts: list[int]) -> tuple[list[Message], bool]:
    """What the gateway takes for requests: method, target, headers, body; and whether it refused something."""
    handler = Collected()
    connection, pipe = front(handler)
    for piece in pieces(data, cuts):
        if pipe.open:
            connection.data_received(piece)
    found = [
        (one.method, one.target, [(name.lower(), value.strip(b" \t")) for name, value in one.headers], one.body)
        for one in handler.requests
    ]
    return found, bool(handler.refusals)


def by_h11(data: bytes) -> list[Message]:
    """What h11 takes for requests, up to the first it refuses. Empty lines before a request pass, as RFC 9112 wants."""
    found: list[Message] = []
    begun, body, ended = None, b"", True
    connection = h11.Connection(h11.SERVER)
    try:
        while True:
            if ended:
                data = data.lstrip(b"\r\n")
                if not data:  # to h11, no bytes are the end of the connection
                    return found
                connection, body, ended = h11.Connection(h11.SERVER), b"", False
                connection.receive_data(data)
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return found
            if isinstance(event, h11.Request):
                begun = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert begun is not None
                headers = [(bytes(name), bytes(value)) for name, value in begun.headers]
                found.append((bytes(begun.method), bytes(begun.target), headers, body))
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return found
                data, ended = connection.trailing_data[0], True
    except h11.RemoteProtocolError:
        return found


MARKS = b'\r\n\t :;,="#?/\x00\x01\x7f\x80\xff+-_0123456789aAgGxXzZ'


@st.composite
def mutated(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """A good message with a few bytes lost, put in, replaced or doubled."""
    data = bytearray(draw(seeds))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["drop", "insert", "replace", "double"]))
        mark = draw(st.sampled_from(MARKS))
        if change == "insert":
            data[place:place] = bytes([mark]) * draw(st.sampled_from([1, 1, 2]))
        elif change == "drop":
            del data[place : place + draw(st.sampled_from([1, 1, 2]))]
        elif change == "replace":
            data[place : place + 1] = bytes([mark])
        else:
            end = min(len(data), place + draw(st.integers(1, 30)))
            data[place:place] = data[place:end]
    return bytes(data)
