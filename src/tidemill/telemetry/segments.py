"""The write side of the segment log: what a gateway worker or a serving process appends its records with.

Every call is one encode and one ``os.write``, so an acknowledged record survives the death of the process; a tending
thread brings it to the disk in groups. The writer holds an exclusive ``flock`` on the segment it writes: whoever can
take that lock knows that the writer is gone.

An open intent that is still open when its segment is full is written again at the head of the next one before the old
segment gets its end record, so each segment tells by itself which calls a dead writer left unfinished.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from tidemill.kernel import Clock, InvalidInput, SystemClock, Unavailable
from tidemill.telemetry.frames import (
    KIND_END,
    KIND_FINISHED,
    KIND_INTENT,
    KIND_SCORE,
    MAX_PAYLOAD_BYTES,
    SCHEMA_VERSION,
    End,
    SegmentHeader,
    checksum_start,
    encode_header,
    frame_head,
)
from tidemill.telemetry.records import Capture, Content, Intent, Score, Span
from tidemill.telemetry.sealing import KEY_BYTES, Sealer, create_secret, hashed, shared_secret

Fsync = Literal["never", "interval", "always"]

SEGMENT_SUFFIX: Final = ".seg"
KEY_SUFFIX: Final = ".key"
HASH_KEY_NAME: Final = "hash.key"

_TEND_INTERVAL_S: Final = 1.0


class FinishedWire(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Payload of a finished record as it is read: the span, and its content sealed or hashed.

    It is written as a plain tuple, cut short where there is no content.
    """

    span: Span
    count: int = 0
    sealed: bytes | None = None
    plain: Content | None = None


class ScoreWire(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Payload of a score: its comment and correction are sealed apart."""

    score: Score
    count: int = 0
    sealed: bytes | None = None


class _OpenSegment:
    """A segment file this process writes: descriptor (locked), sealer and counters."""

    __slots__ = ("descriptor", "ends_s", "path", "records", "sealer", "size", "starts")

    def __init__(self, path: Path, descriptor: int, header: SegmentHeader, key: bytes, ends_s: float) -> None:
        self.path = path
        self.descriptor = descriptor
        self.starts = tuple(checksum_start(kind, SCHEMA_VERSION, header.seed) for kind in range(KIND_END + 1))
        self.sealer = Sealer(key)
        self.size = len(encode_header(header))
        self.records = 0
        self.ends_s = ends_s


class SegmentWriter:
    """Appends records to segment files of one writer. Thread-safe. A context manager.

    No file exists before the first record, so idle writers leave nothing behind. Make it after a fork, not before: a
    lock shared with a child would keep the segment looking alive when this process has died.

    Args:
        folder: the writer's own folder, ``segments/<writer>``; made if missing. Its name is the writer's name.
        project, tenant: whose records these are; a record of anybody else is refused.
        capture: ``masked`` keeps content, encrypted; ``hashed`` keeps keyed hashes of it; ``none`` keeps nothing.
        max_segment_bytes: a segment that would grow beyond is followed by a new one.
        max_segment_age_s: so is a segment older than this, that its key may be destroyed in time.
        fsync: ``always`` before each call returns, ``interval`` once a second, ``never`` leaves it to the system.
            All three survive SIGKILL; the difference shows when the machine loses power.
        clock: where the time comes from.

    Raises:
        Unavailable: the folder or a segment cannot be written (no space, no permission).
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        tenant: str,
        capture: Capture = "masked",
        max_segment_bytes: int = 64 << 20,
        max_segment_age_s: float = 600.0,
        fsync: Fsync = "interval",
        clock: Clock | None = None,
    ) -> None:
        self._folder = folder
        self._project = project
        self._tenant = tenant
        self._capture = capture
        self._max_bytes = max_segment_bytes
        self._max_age_s = max_segment_age_s
        self._fsync = fsync
        self._clock = clock or SystemClock()
        self._monotonic_s = self._clock.monotonic_s
        self._lock = threading.Lock()
        self._encode = msgspec.msgpack.Encoder().encode
        self._segment: _OpenSegment | None = None
        self._retired: list[_OpenSegment] = []
        self._open_intents: dict[tuple[str, str], Intent] = {}
        self._dirty = False
        self._closed = False
        self._stop = threading.Event()
        self._tender: threading.Thread | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._hash_key = shared_secret(folder.parent / HASH_KEY_NAME) if capture == "hashed" else b""
        except OSError as error:
            raise _cannot_write(folder, error) from error

    def intent(self, intent: Intent) -> None:
        """Note that a call is about to be made. Call ``finished`` with the same ids when it has ended."""
        self.write_all((intent,))

    def finished(self, span: Span, content: Content | None = None) -> None:
        """Write a finished span and what was said. When this returns, the span survives the death of the process."""
        self.write_all(((span, content),))

    def write_all(self, entries: Sequence[Intent | tuple[Span, Content | None]]) -> None:
        """Write intents and finished spans in this order, all with one ``os.write``: all of them, or none.

        What ``intent`` and ``finished`` promise, at the price of one system call for requests that coincide.
        """
        if not entries:
            return
        encode, payload_of, open_intents = self._encode, self._payload, self._open_intents
        parts: list[bytes] = []
        with self._lock:
            segment = self._ready()
            starts, sealer = segment.starts, segment.sealer
            for entry in entries:
                if isinstance(entry, tuple):
                    payload = payload_of(sealer, entry[0], entry[1])
                    parts.append(frame_head(KIND_FINISHED, payload, starts[KIND_FINISHED]))
                else:
                    payload = encode(entry)
                    parts.append(frame_head(KIND_INTENT, payload, starts[KIND_INTENT]))
                parts.append(payload)
            self._write(segment, b"".join(parts), len(entries))
            for entry in entries:
                if isinstance(entry, tuple):
                    span = entry[0]
                    open_intents.pop((span.trace_id, span.span_id), None)
                else:
                    open_intents[entry.trace_id, entry.span_id] = entry

    def score(self, score: Score) -> None:
        """Write a score, e.g. a user's feedback."""
        if score.project != self._project or score.tenant != self._tenant:
            raise self._foreign(score.project, score.tenant)
        with self._lock:
            segment = self._ready()
            sealed: tuple[()] | tuple[int, bytes] = ()
            if score.comment is not None or score.correction is not None:
                if self._capture == "masked":
                    plain = self._encode((_encodable(score.comment), _encodable(score.correction)))
                    sealed = segment.sealer.seal(plain, score.score_id.encode())
                score = msgspec.structs.replace(score, comment=None, correction=None)
            self._append(KIND_SCORE, ScoreWire(score, *sealed), segment)

    def close(self) -> None:
        """Finish the current segment. Calls still open are reported as interrupted by the drainer."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop.set()
            segment, self._segment = self._segment, None
            self._end(segment, rotated=False)
        if self._tender is not None:
            self._tender.join()
        self._settle()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _foreign(self, project: str, tenant: str) -> InvalidInput:
        return InvalidInput(
            f"a record of {project}/{tenant} cannot be written to the segments of {self._project}/{self._tenant}"
        )

    def _payload(self, sealer: Sealer, span: Span, content: Content | None) -> bytes:
        """A finished record, encoded."""
        if span.tenant != self._tenant or span.project != self._project:
            raise self._foreign(span.project, span.tenant)
        encode = self._encode
        if content is None or self._capture == "none":
            return encode((span,))
        if self._capture == "hashed":
            key = self._hash_key
            return encode((span, 0, None, Content(hashed(content.input, key), hashed(content.output, key))))
        try:
            plain = encode(content)
        except UnicodeEncodeError:
            plain = encode(Content(_encodable(content.input) or "", _encodable(content.output) or ""))
        if len(plain) > MAX_PAYLOAD_BYTES // 2:
            # The span counts more than its text: a reader refuses frames of any size as damage.
            dropped = span.attributes | {"tidemill.content_dropped_bytes": len(plain)}
            return encode((msgspec.structs.replace(span, attributes=dropped),))
        return encode((span, *sealer.seal(plain, (span.trace_id + span.span_id).encode())))

    def _append(self, kind: int, record: msgspec.Struct, segment: _OpenSegment) -> None:
        payload = self._encode(record)
        self._write(segment, frame_head(kind, payload, segment.starts[kind]) + payload, 1)

    def _write(self, segment: _OpenSegment, frames: bytes, count: int) -> None:
        """Append frames whole, or leave the segment as it was."""
        size = len(frames)
        try:
            written = os.write(segment.descriptor, frames)
            while written < size:
                written += os.write(segment.descriptor, frames[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(segment.descriptor, segment.size)
            raise _cannot_write(segment.path, error) from error
        segment.size += size
        segment.records += count
        if self._fsync == "always":
            os.fdatasync(segment.descriptor)
        else:
            self._dirty = True

    def _ready(self) -> _OpenSegment:
        """The segment the next record goes to: the current one, or a new one if that is full, old or not there."""
        segment = self._segment
        if segment is not None:
            if segment.size < self._max_bytes and self._monotonic_s() < segment.ends_s:
                return segment
            self._rotate()
        elif self._closed:
            raise InvalidInput(f"the segment writer of {self._folder} is closed")
        if self._segment is None:
            self._segment = self._begin()
        return self._segment

    def _rotate(self) -> None:
        """End the current segment; the next one begins at once only if open intents must move to it."""
        old, fresh = self._segment, None
        if self._open_intents:
            fresh = self._begin()
            try:
                for intent in self._open_intents.values():
                    self._append(KIND_INTENT, intent, fresh)
            except Unavailable:
                self._retired.append(fresh)
                raise
        self._segment = fresh
        self._end(old, rotated=True)

    def _end(self, segment: _OpenSegment | None, *, rotated: bool) -> None:
        if segment is None:
            return
        self._retired.append(segment)
        # Without its end record a segment reads like a dead writer's, which costs placeholders but no record.
        with suppress(Unavailable):
            self._append(KIND_END, End(rotated, segment.records), segment)

    def _begin(self) -> _OpenSegment:
        try:
            segment = create_segment(
                self._folder,
                project=self._project,
                tenant=self._tenant,
                capture=self._capture,
                max_age_s=self._max_age_s,
                clock=self._clock,
            )
            if self._fsync == "always":
                _sync_new(segment.path)
        except OSError as error:
            raise _cannot_write(self._folder, error) from error
        if self._tender is None and not self._closed:
            self._tender = threading.Thread(target=self._tend, name="segment-tender", daemon=True)
            self._tender.start()
        return segment

    def _tend(self) -> None:
        synced: Path | None = None
        while not self._stop.wait(_TEND_INTERVAL_S):
            with self._lock:
                segment = self._segment
                if segment is not None and self._monotonic_s() >= segment.ends_s:
                    # No space left: the segment stays as it is, and the next record's caller is told.
                    with suppress(Unavailable):
                        self._rotate()
                segment, dirty = self._segment, self._dirty
                self._dirty = False
            # Only this thread closes descriptors while it runs, so they are good outside the lock.
            self._settle()
            if segment is not None and dirty and self._fsync == "interval":
                # A failing disk is reported by the writes themselves; here nobody could be told.
                with suppress(OSError):
                    os.fdatasync(segment.descriptor)
                    if segment.path != synced:
                        _sync_new(segment.path)
                        synced = segment.path

    def _settle(self) -> None:
        """Bring retired segments to the disk and let go of their locks."""
        with self._lock:
            retired, self._retired = self._retired, []
        for segment in retired:
            if self._fsync != "never":
                with suppress(OSError):
                    os.fdatasync(segment.descriptor)
            os.close(segment.descriptor)


def create_segment(
    folder: Path, *, project: str, tenant: str, capture: Capture, max_age_s: float, clock: Clock
) -> _OpenSegment:
    """Make the next segment file of a folder, locked before anyone can see it, with its key beside it."""
    header = SegmentHeader(
        segment_id=os.urandom(16).hex(),
        schema=SCHEMA_VERSION,
        writer=folder.name,
        project=project,
        tenant=tenant,
        capture=capture,
        created_ns=int(clock.now().timestamp() * 1e9),
    )
    draft = folder / f".{header.segment_id}.tmp"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, encode_header(header))
        path, key = _publish(draft, folder)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        draft.unlink()
    return _OpenSegment(path, descriptor, header, key, clock.monotonic_s() + max_age_s)


def _publish(draft: Path, folder: Path) -> tuple[Path, bytes]:
    """Link a draft to the next free number. The key file claims the number, so two writers never share one."""
    number = 1 + max((int(entry.stem) for entry in folder.iterdir() if entry.stem.isdecimal()), default=0)
    while True:
        path = folder / f"{number:08d}{SEGMENT_SUFFIX}"
        number += 1
        key_path = path.with_suffix(KEY_SUFFIX)
        try:
            key = create_secret(key_path)
        except FileExistsError:
            continue
        try:
            os.link(draft, path)
        except FileExistsError:
            key_path.unlink()
            continue
        # A cleaner may have taken the key of a process that was stopped for long between the two steps.
        if key_path.exists() and key_path.stat().st_size == KEY_BYTES:
            return path, key
        path.unlink()


def _encodable(text: str | None) -> str | None:
    """The text with half surrogate pairs replaced: JSON may carry them, UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode() if text else text


def _sync_new(path: Path) -> None:
    """Bring a new segment's directory entry and its key to the disk."""
    for target in (path.with_suffix(KEY_SUFFIX), path.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"telemetry cannot be written to {path}: {error.strerror}",
        hint="Free space on that disk or mend the folder's permissions; the call itself was not lost.",
    )
