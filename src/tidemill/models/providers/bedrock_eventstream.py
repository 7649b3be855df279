"""The binary event stream of AWS services, ``application/vnd.amazon.eventstream``, decoded as its bytes come.

Source: "Event stream encoding", Amazon Transcribe developer guide, and the Smithy specification "Amazon Event Stream".
A message, all integers big-endian::

    4  total length             with everything from here to the last checksum
    4  length of the headers
    4  CRC-32 of the two lengths
    …  headers                  1 name length, name, 1 type, value
    …  payload
    4  CRC-32 of all before it

No byte of a message is believed before its checksum holds.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from tidemill.kernel import InvalidInput

HeaderValue: TypeAlias = bool | int | bytes | str

_PRELUDE: Final = struct.Struct(">III")
_CHECKSUM: Final = struct.Struct(">I")
_OVERHEAD_BYTES: Final = _PRELUDE.size + _CHECKSUM.size
_MAX_HEADERS_BYTES: Final = 128 * 1024
_MAX_MESSAGE_BYTES: Final = 24 * 1024 * 1024 + _MAX_HEADERS_BYTES + _OVERHEAD_BYTES


class BrokenFrame(InvalidInput):
    """Bytes that are no message of the event stream; nothing after them can be read either."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message.

    Args:
        headers: by name, e.g. ``:message-type``, ``:event-type``, ``:content-type``.
        payload: the body's bytes.
    """

    headers: Mapping[str, HeaderValue]
    payload: bytes

    def text(self, header: str) -> str:
        """A header's text; empty when it is absent or no text."""
        value = self.headers.get(header)
        return value if isinstance(value, str) else ""


class EventStreamDecoder:
    """Cuts the stream into frames; the result does not depend on how its bytes arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def incomplete(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes; yield the messages that they complete.

        Raises:
            BrokenFrame: a checksum or a length is wrong; the messages before it have been yielded.
        """
        self._rest += data
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        rest = self._rest
        if len(rest) < _PRELUDE.size:
            return None
        total, headers, checksum = _PRELUDE.unpack_from(rest)
        if zlib.crc32(memoryview(rest)[:8]) != checksum:
            raise BrokenFrame("the event stream is damaged: the checksum of a message's lengths does not hold")
        if not _OVERHEAD_BYTES + headers <= total <= _MAX_MESSAGE_BYTES or headers > _MAX_HEADERS_BYTES:
            raise BrokenFrame(f"the event stream is damaged: a message of {total} bytes with {headers} of headers")
        if len(rest) < total:
            return None
        message = bytes(rest[:total])
        del rest[:total]
        if zlib.crc32(memoryview(message)[:-4]) != _CHECKSUM.unpack_from(message, total - 4)[0]:
            raise BrokenFrame("the event stream is damaged: the checksum of a message does not hold")
        end = _PRELUDE.size + headers
        return Frame(_headers(message[_PRELUDE.size : end]), message[end:-4])


def _headers(block: bytes) -> dict[str, HeaderValue]:
    headers: dict[str, HeaderValue] = {}
    at = 0
    try:
        while at < len(block):
            end = at + 1 + block[at]
            name, kind = block[at + 1 : end].decode(), block[end]
            value, at = _READERS[kind](block, end + 1)
            if name in headers or at > len(block):
                raise BrokenFrame(f"the event stream is damaged: header '{name}'")
            headers[name] = value
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise BrokenFrame(f"the event stream is damaged: its headers cannot be read ({error!r})") from error
    return headers


def _integer(size: int) -> Callable[[bytes, int], tuple[HeaderValue, int]]:
    def read(block: bytes, at: int) -> tuple[HeaderValue, int]:
        return int.from_bytes(block[at : at + size], "big", signed=True), at + size

    return read


def _sized(block: bytes, at: int) -> tuple[bytes, int]:
    start = at + 2
    end = start + int.from_bytes(block[at:start], "big")
    return block[start:end], end


def _text(block: bytes, at: int) -> tuple[HeaderValue, int]:
    value, end = _sized(block, at)
    return value.decode(), end


#: type byte of a header -> how its value is read
_READERS: Final[Mapping[int, Callable[[bytes, int], tuple[HeaderValue, int]]]] = {
    0: lambda _, at: (True, at),
    1: lambda _, at: (False, at),
    2: _integer(1),
    3: _integer(2),
    4: _integer(4),
    5: _integer(8),
    6: _sized,
    7: _text,
    8: _integer(8),  # milliseconds since the epoch
    9: lambda block, at: (block[at : at + 16], at + 16),
}
