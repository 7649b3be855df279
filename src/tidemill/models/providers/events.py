"""Server-sent events: reading a provider's, in any split of bytes, and writing the pivot's chunks."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from tidemill.kernel import InvalidInput

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a complete pivot stream."""

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""A single event longer than this is an error of the source, not an answer."""

_encode: Final = msgspec.json.encode


class Event(NamedTuple):
    """One server-sent event: its name (empty when it has none), and its data lines joined by line feeds."""

    name: bytes
    data: bytes


class EventSplitter:
    r"""Cuts bytes into server-sent events (WHATWG HTML, section 9.2); comments and ids are skipped.

    Lines end with ``\n``, ``\r\n`` or ``\r``. Any split of the same bytes gives the same events.
    """

    __slots__ = ("_data", "_held", "_held_bytes", "_name", "_size", "_skip_feed", "_started")

    def __init__(self) -> None:
        self._held: list[bytes] = []  # an unfinished line, in the pieces it came in
        self._held_bytes = 0
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._skip_feed = False  # the last line ended with \r: a \n that follows belongs to it
        self._started = False

    @property
    def empty(self) -> bool:
        """Whether no event is half read."""
        return not (self._held or self._data or self._name)

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete.

        Raises:
            InvalidInput: one event is longer than ``MAX_EVENT_BYTES``.
        """
        if self._skip_feed and data:
            self._skip_feed = False
            if data[:1] == b"\n":
                data = data[1:]
        if not data:
            return []
        if b"\n" not in data and b"\r" not in data:
            self._hold(data)
            return []
        text = b"".join((*self._held, data)) if self._held else data
        lines = text.split(b"\n") if b"\r" not in text else self._lines(text)
        self._held, self._held_bytes = [], 0
        self._hold(lines.pop())
        if not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        return self._read(lines)

    def _read(self, lines: list[bytes]) -> list[Event]:
        found: list[Event] = []
        for line in lines:
            if not line:
                if self._data:
                    found.append(Event(self._name, b"\n".join(self._data)))
                    self._data, self._size = [], 0
                self._name = b""
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._size += len(value)
                self._check(self._size)
                self._data.append(value)
            elif line.startswith(b"event:"):
                self._name = line[7:] if line[6:7] == b" " else line[6:]
            elif line == b"data":  # a field without a colon has an empty value
                self._data.append(b"")
        return found

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._held.append(piece)
            self._held_bytes += len(piece)
            self._check(self._size + self._held_bytes)

    @staticmethod
    def _check(size_bytes: int) -> None:
        if size_bytes > MAX_EVENT_BYTES:
            raise InvalidInput("The provider sent a single event that is too long to be an answer.")

    def _lines(self, text: bytes) -> list[bytes]:
        if text[-1:] == b"\r":
            self._skip_feed = True
        return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


class ChunkWriter:
    """Writes the chunks of one pivot stream.

    Args:
        model: the model's name in each chunk.
        identity: the answer's ``id``.
        created_s: Unix time of the answer.
        include_usage: the request's ``stream_options.include_usage``. Asked for, usage is an event of its own after
            the last choice, as OpenAI sends it; else it rides on the chunk with the finish reason, where a client
            that did not ask for it does not stumble over an event without choices.
    """

    __slots__ = ("_head", "_named", "created_s", "identity", "include_usage", "model", "service_tier")

    def __init__(self, model: str, identity: str, created_s: int, *, include_usage: bool) -> None:
        self.model = model
        self.identity = identity
        self.created_s = created_s
        self.include_usage = include_usage
        self.service_tier: str | None = None
        self._named: tuple[str, str, str | None] | None = None  # what _head was written for
        self._head = b""

    def delta(self, delta: dict[str, Any], *, index: int = 0, logprobs: Any = None) -> bytes:
        """A chunk that adds to one choice."""
        extra = b"" if logprobs is None else b',"logprobs":%b' % _encode(logprobs)
        return b'%b"choices":[{"index":%d,"delta":%b,"finish_reason":null%b}]}\n\n' % (
            self._opening(),
            index,
            _encode(delta),
            extra,
        )

    def end(self, reasons: dict[int, str], usage: dict[str, Any] | None) -> bytes:
        """The last chunks: the finish reason of each choice, and the usage."""
        choices = [{"index": index, "delta": {}, "finish_reason": reason} for index, reason in reasons.items()]
        if usage is None:
            return self._chunk(choices, b"")
        told = b',"usage":%b' % _encode(usage)
        if self.include_usage:
            return self._chunk(choices, b"") + self._chunk([], told)
        return self._chunk(choices, told)

    def _chunk(self, choices: list[dict[str, Any]], told: bytes) -> bytes:
        return b'%b"choices":%b%b}\n\n' % (self._opening(), _encode(choices), told)

    def _opening(self) -> bytes:
        """What all chunks of a stream begin with, written once."""
        named = (self.identity, self.model, self.service_tier)
        if named != self._named:
            self._named = named
            head: dict[str, Any] = {
                "id": self.identity,
                "object": "chat.completion.chunk",
                "created": self.created_s,
                "model": self.model,
            }
            if self.service_tier is not None:
                head["service_tier"] = self.service_tier
            self._head = b"data: %b," % _encode(head)[:-1]
        return self._head


def error_event(error_json: bytes) -> bytes:
    """An in-band error of a pivot stream; nothing follows it.

    Args:
        error_json: OpenAI's error JSON, on one line.
    """
    return b"data: %b\n\n" % error_json
