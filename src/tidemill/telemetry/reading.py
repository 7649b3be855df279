"""The read side of the segment log: records in order, damage reported, nothing guessed.

After damage the reader looks for the next marker whose whole frame verifies. That is safe because markers never occur
in UTF-8, sealed content is unpredictable and each segment seeds its checksums with a random number of its own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.telemetry.frames import (
    FORMAT_VERSION,
    FRAME,
    FRAME_BYTES,
    KIND_END,
    KIND_FINISHED,
    KIND_INTENT,
    KIND_RECEIVED,
    KIND_SCORE,
    MAGIC,
    MARKER,
    MAX_PAYLOAD_BYTES,
    PREFIX,
    SCHEMA_VERSION,
    End,
    SegmentHeader,
    checksum_start,
)
from tidemill.telemetry.receipts import Received, ReceivedWire
from tidemill.telemetry.records import Content, Intent, Score, Span
from tidemill.telemetry.sealing import Opener, read_secret
from tidemill.telemetry.segments import KEY_SUFFIX, FinishedWire, ScoreWire

_WINDOW_BYTES: Final = 4 << 20
_MAX_HEADER_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished span with its content.

    Args:
        span: the span.
        content: what was said, decrypted but not masked; ``None`` where none was kept.
        content_lost: content was kept but cannot be decrypted any more.
    """

    span: Span
    content: Content | None = None
    content_lost: bool = False


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Bytes between ``start`` and ``end`` that are no record this version can read."""

    start: int
    end: int
    reason: str


Record = Intent | Finished | Score | Received | Corrupt | End


def read_header(path: Path) -> tuple[SegmentHeader, int]:
    """Read who wrote a segment and where its first frame begins.

    Raises:
        InvalidInput: not a segment, a damaged header, or a newer format than this version reads.
        FileNotFoundError: it is gone.
    """
    with path.open("rb") as file:
        head = file.read(PREFIX.size)
        if len(head) < PREFIX.size or head[:8] != MAGIC:
            raise InvalidInput(f"{path} is not a Tidemill segment")
        _, version, length, checksum = PREFIX.unpack(head)
        if version != FORMAT_VERSION:
            raise InvalidInput(f"{path} has segment format {version}; this version of Tidemill reads {FORMAT_VERSION}")
        body = file.read(min(length, _MAX_HEADER_BYTES))
    if len(body) != length or crc32(body) != checksum:
        raise InvalidInput(f"the header of {path} is damaged")
    try:
        return msgspec.msgpack.decode(body, type=SegmentHeader), PREFIX.size + length
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the header of {path} is damaged: {error}") from error


def read_segment(path: Path, offset: int = 0, *, decrypt: bool = True) -> Iterator[tuple[Record, int]]:
    """Read records from a byte offset on, as far as the file is whole.

    A frame that is not complete ends the reading without a word: it is the torn tail of a dead writer, or what a live
    one is writing. A damaged frame with a good one behind it is reported as ``Corrupt`` and skipped.

    Args:
        path: the segment file.
        offset: where to begin; 0 for the first record, else an offset this function gave.
        decrypt: whether to bring content along.

    Yields:
        The record and the offset behind it, which is where reading may go on.

    Raises:
        InvalidInput: the header cannot be read.
    """
    header, first = read_header(path)
    decode = _Decoder(read_secret(path.with_suffix(KEY_SUFFIX)) if decrypt else None)
    window = _Window(path, header.seed)
    try:
        at = max(offset, first)
        while True:
            frame = window.frame(at)
            if frame is None:
                found = window.next_frame(at + 1)
                if found is None:
                    return
                yield Corrupt(at, found, "the checksum does not fit"), found
                at = found
                continue
            kind, schema, payload = frame
            end = at + FRAME_BYTES + len(payload)
            yield decode(kind, schema, payload, at, end), end
            at = end
    finally:
        window.close()


@dataclass(frozen=True, slots=True)
class Remains:
    """What a whole segment leaves to do when its writer has let go of it.

    Args:
        open_intents: intents without a finished record in this segment, unless the writer took them to the next one.
        corrupt: stretches that could not be read.
        torn_bytes: bytes of a last record that was never completed.
        damaged_tail: the last record is there to its end, and its checksum does not fit.
    """

    open_intents: tuple[Intent, ...]
    corrupt: int
    torn_bytes: int
    damaged_tail: bool = False


def inspect_segment(path: Path) -> Remains:
    """Read a segment from its beginning and say what it leaves to do. Content is not decrypted."""
    open_intents: dict[tuple[str, str], Intent] = {}
    corrupt = end = 0
    rotated = False
    for record, after in read_segment(path, decrypt=False):
        end = after
        match record:
            case Intent():
                open_intents[record.trace_id, record.span_id] = record
            case Finished():
                open_intents.pop((record.span.trace_id, record.span.span_id), None)
            case Corrupt():
                corrupt += 1
            case End():
                rotated = record.rotated
            case _:
                pass
    size = path.stat().st_size
    end = end or read_header(path)[1]
    whole = size > end and _is_whole(path, end)
    return Remains(() if rotated else tuple(open_intents.values()), corrupt, size - end, damaged_tail=whole)


def _is_whole(path: Path, at: int) -> bool:
    """Whether a frame's head and length at this offset fit the file, so that it was not cut short but altered."""
    with path.open("rb") as file:
        file.seek(at)
        head = file.read(FRAME_BYTES)
        if len(head) < FRAME_BYTES:
            return False
        marker, _, length, _, _ = FRAME.unpack(head)
        return bool(marker != MARKER or at + FRAME_BYTES + length <= path.stat().st_size)


@contextmanager
def hold_if_abandoned(path: Path) -> Iterator[bool]:
    """Whether the segment's writer has let go of it; if so, the lock is held while the block runs.

    Raises:
        FileNotFoundError: the segment is gone.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        free = False
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        yield free
    finally:
        os.close(descriptor)


class _Window:
    """A part of a segment file in memory, moved along as frames are asked for."""

    def __init__(self, path: Path, seed: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._seed = seed
        self._start = 0
        self._data = b""

    def close(self) -> None:
        os.close(self._descriptor)

    def _load(self, start: int, size: int) -> None:
        self._data = os.pread(self._descriptor, size, start)
        self._start = start

    def frame(self, at: int) -> tuple[int, int, bytes] | None:
        """Kind, schema and payload of the frame that begins at a byte offset, or ``None`` if no good one does."""
        place = at - self._start
        if place < 0 or place + FRAME_BYTES > len(self._data):
            self._load(at, _WINDOW_BYTES)
            place = 0
            if len(self._data) < FRAME_BYTES:
                return None
        marker, checksum, length, kind, schema = FRAME.unpack_from(self._data, place)
        if marker != MARKER or length > MAX_PAYLOAD_BYTES:
            return None
        if place + FRAME_BYTES + length > len(self._data):
            self._load(at, max(_WINDOW_BYTES, FRAME_BYTES + length))
            place = 0
            if FRAME_BYTES + length > len(self._data):
                return None
        end = place + FRAME_BYTES + length
        payload = self._data[place + FRAME_BYTES : end]
        if crc32(payload, checksum_start(kind, schema, self._seed) ^ length) != checksum:
            return None
        return kind, schema, payload

    def next_frame(self, at: int) -> int | None:
        """Offset of the next good frame at or behind a byte offset, or ``None`` if the file has no more."""
        while True:
            self._load(at, _WINDOW_BYTES)
            data, start = self._data, self._start
            place = data.find(MARKER)
            while place >= 0:
                if self.frame(start + place) is not None:
                    return start + place
                place = data.find(MARKER, place + 1)
            if len(data) < _WINDOW_BYTES:
                return None
            # A marker may lie across the edge of two windows.
            at = start + len(data) - len(MARKER) + 1


class _Decoder:
    """Turns payloads into records."""

    def __init__(self, key: bytes | None) -> None:
        self._opener = Opener(key)
        self._finished = msgspec.msgpack.Decoder(FinishedWire)
        self._score = msgspec.msgpack.Decoder(ScoreWire)
        self._received = msgspec.msgpack.Decoder(ReceivedWire)
        self._content = msgspec.msgpack.Decoder(Content)
        self._texts = msgspec.msgpack.Decoder(tuple[str | None, str | None])
        self._readers: dict[int, Callable[[bytes], Record]] = {
            KIND_FINISHED: self._read_finished,
            KIND_INTENT: msgspec.msgpack.Decoder(Intent).decode,
            KIND_SCORE: self._read_score,
            KIND_END: msgspec.msgpack.Decoder(End).decode,
            KIND_RECEIVED: self._read_received,
        }

    def __call__(self, kind: int, schema: int, payload: bytes, start: int, end: int) -> Record:
        if schema > SCHEMA_VERSION:
            return Corrupt(start, end, f"record schema {schema} is newer than this version's {SCHEMA_VERSION}")
        try:
            read = self._readers.get(kind)
            return read(payload) if read else Corrupt(start, end, f"unknown record kind {kind}")
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            return Corrupt(start, end, f"the record cannot be decoded: {error}")

    def _read_finished(self, payload: bytes) -> Finished:
        wire = self._finished.decode(payload)
        if wire.sealed is None:
            return Finished(wire.span, wire.plain)
        plain = self._opener.open(wire.count, wire.sealed, (wire.span.trace_id + wire.span.span_id).encode())
        if plain is None:
            return Finished(wire.span, None, content_lost=True)
        return Finished(wire.span, self._content.decode(plain))

    def _read_score(self, payload: bytes) -> Score:
        wire = self._score.decode(payload)
        if wire.sealed is None:
            return wire.score
        plain = self._opener.open(wire.count, wire.sealed, wire.score.score_id.encode())
        if plain is None:
            return wire.score
        comment, correction = self._texts.decode(plain)
        return msgspec.structs.replace(wire.score, comment=comment, correction=correction)

    def _read_received(self, payload: bytes) -> Received:
        wire = self._received.decode(payload)
        return Received(wire.receipt, self._opener.open(wire.count, wire.sealed, wire.receipt.about))
