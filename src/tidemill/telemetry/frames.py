"""The segment log's bytes: file header, frames, sealed content. ``docs/reference/segment-log.md`` is its description.

A frame is ``marker | checksum | length | kind | schema | payload``. The checksum is CRC-32 seeded with the segment's
random id, so neither bytes of another segment nor text that a user sent can pass for a frame; the marker holds bytes
that never occur in UTF-8, so a reader may look for it after damage. What the checksum starts from holds kind, schema
and length, so that writing a frame takes one pass over its payload and nothing else.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

import msgspec

MAGIC: Final = b"TMSEGLOG"
FORMAT_VERSION: Final = 2
SCHEMA_VERSION: Final = 2

MARKER: Final = b"\xff\xfeTM"
FRAME: Final = struct.Struct("<4sIIBB")
"""marker, checksum, payload length, kind, schema version."""
FRAME_BYTES: Final = FRAME.size
_pack_head: Final = FRAME.pack
PREFIX: Final = struct.Struct("<8sHII")
"""Of the file: magic, format version, header length, header checksum."""

MAX_PAYLOAD_BYTES: Final = 32 << 20

KIND_INTENT: Final = 1
KIND_FINISHED: Final = 2
KIND_SCORE: Final = 3
KIND_END: Final = 4
KIND_RECEIVED: Final = 5


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Who wrote a segment, for whom and when.

    Args:
        segment_id: 32 random hexadecimal digits; never reused, unlike the file's name.
        schema: schema version of the records.
        capture: what is kept of content.
        created_ns: nanoseconds since 1970.
    """

    segment_id: str
    schema: int
    writer: str
    project: str
    tenant: str
    capture: str
    created_ns: int

    @property
    def seed(self) -> int:
        """What the checksums of this segment start from."""
        return int(self.segment_id[:8], 16)


class End(msgspec.Struct, frozen=True, array_like=True):
    """The last frame of a segment that was closed in order.

    Args:
        rotated: the writer went on to a next segment and took the open intents with it.
        records: how many frames come before this one.
    """

    rotated: bool
    records: int


def encode_header(header: SegmentHeader) -> bytes:
    """The bytes a segment file begins with."""
    body = msgspec.msgpack.encode(header)
    return PREFIX.pack(MAGIC, FORMAT_VERSION, len(body), crc32(body)) + body


def checksum_start(kind: int, schema: int, seed: int) -> int:
    """What the checksums of one kind of record start from, before the length is XORed in: the same all segment long."""
    return crc32(bytes((kind, schema)), seed)


def frame_head(kind: int, payload: bytes, start: int) -> bytes:
    """The bytes of a frame that come before its payload.

    Args:
        kind: of the record.
        payload: the record, encoded.
        start: the segment's ``checksum_start`` for this kind and ``SCHEMA_VERSION``.
    """
    length = len(payload)
    return _pack_head(MARKER, crc32(payload, start ^ length), length, kind, SCHEMA_VERSION)
