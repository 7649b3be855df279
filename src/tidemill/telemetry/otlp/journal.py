"""Where received requests are written before they are acknowledged: segments of their own, synced in groups.

Requests that come while the disk is busy share the next write and the next sync, so a hundred senders cost one sync.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from tidemill.kernel import Clock, InvalidInput, SystemClock, Unavailable
from tidemill.telemetry.frames import (
    KIND_END,
    KIND_FINISHED,
    KIND_RECEIVED,
    KIND_SCORE,
    MAX_PAYLOAD_BYTES,
    SCHEMA_VERSION,
    End,
    checksum_start,
    frame_head,
)
from tidemill.telemetry.reading import read_header
from tidemill.telemetry.receipts import Receipt
from tidemill.telemetry.records import Capture, Content, Score, Span
from tidemill.telemetry.sealing import Sealer
from tidemill.telemetry.segments import create_segment

BODY_BYTES_MOST: Final = MAX_PAYLOAD_BYTES - (1 << 16)
"""A larger request fits no frame."""
_LOOK_EVERY_S: Final = 1.0

_encode = msgspec.msgpack.Encoder().encode
Entry = tuple[Receipt, bytes] | tuple[Span, Content | None] | Score


class Journal:
    """Appends requests and records to segments; what it has acknowledged is on the disk. Thread-safe.

    Args:
        folder: ``segments/<writer>``, made if missing; nobody else may write there.
        project, tenant: whose records these are.
        capture: noted in the segments' headers: of ``masked`` the drainer masks the content.
        max_segment_bytes, max_segment_age_s: when a segment is followed by the next one.
        group_commit_s: how long a sync waits for more requests to join.
        clock: where the time comes from.
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
        group_commit_s: float = 0.005,
        clock: Clock | None = None,
    ) -> None:
        self._folder = folder
        self._project = project
        self._tenant = tenant
        self._capture: Capture = capture
        self._max_bytes = max_segment_bytes
        self._max_age_s = max_segment_age_s
        self._group_s = group_commit_s
        self._clock = clock or SystemClock()
        self._segment: _Segment | None = None
        self._waiting: list[tuple[tuple[Entry, ...], Future[None]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def append(self, *entries: Entry) -> Future[None]:
        """Write entries, all of them or none.

        Returns:
            Done when they are on the disk; ``Unavailable`` where they cannot be written.

        Raises:
            InvalidInput: the journal is closed, or a request is larger than ``BODY_BYTES_MOST``.
        """
        for entry in entries:
            if isinstance(entry, tuple) and isinstance(entry[1], bytes) and len(entry[1]) > BODY_BYTES_MOST:
                raise InvalidInput(f"a request of {len(entry[1])} bytes is larger than {BODY_BYTES_MOST}")
        future: Future[None] = Future()
        with self._changed:
            if self._closed:
                raise InvalidInput(f"the journal {self._folder} is closed")
            self._waiting.append((entries, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="otlp-journal", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Write what waits and end the segment. Calling it twice does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._closed:
                    self._changed.wait(_LOOK_EVERY_S)
                if self._waiting and not self._closed and self._group_s:
                    self._changed.wait(self._group_s)
                waiting, self._waiting = self._waiting, []
                closed = self._closed
            try:
                if waiting:
                    self._write(waiting)
                self._retire(closed and not waiting)
            except Exception as error:  # noqa: BLE001 - told to whoever waits; the next request tries anew
                self._abandon()
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(_unavailable(self._folder, error))
            if closed and not waiting:
                return

    def _write(self, waiting: list[tuple[tuple[Entry, ...], Future[None]]]) -> None:
        segment = self._segment
        if segment is None:
            segment = self._segment = _Segment(
                self._folder, self._project, self._tenant, self._capture, self._max_age_s, self._clock
            )
        segment.put([frame for entries, _ in waiting for entry in entries for frame in segment.frames(entry)])
        for _, future in waiting:
            future.set_result(None)

    def _retire(self, closing: bool) -> None:
        """End a segment that is full or old, so that it is drained and its key destroyed."""
        segment = self._segment
        if segment is None:
            return
        if closing or segment.size >= self._max_bytes or self._clock.monotonic_s() >= segment.ends_s:
            self._segment = None
            segment.end()

    def _abandon(self) -> None:
        """After a failed write nobody knows what the disk holds of it: the segment ends before it."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()


class _Segment:
    """A segment being written."""

    def __init__(
        self, folder: Path, project: str, tenant: str, capture: Capture, max_age_s: float, clock: Clock
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = create_segment(folder, project=project, tenant=tenant, capture=capture, max_age_s=max_age_s, clock=clock)
        self._descriptor = made.descriptor
        try:
            self._sealer: Sealer = made.sealer
            self.ends_s = made.ends_s
            self.size = made.size
            self._records = 0
            seed = read_header(made.path)[0].seed
            self._starts = [checksum_start(kind, SCHEMA_VERSION, seed) for kind in range(KIND_RECEIVED + 1)]
            for path in (made.path.with_suffix(".key"), folder, folder.parent):
                _sync(path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def frames(self, entry: Entry) -> tuple[bytes, bytes]:
        """Head and payload of an entry's frame."""
        if isinstance(entry, Score):
            kind, payload = KIND_SCORE, _encode((entry,))
        elif isinstance(entry[0], Span):
            kind, payload = KIND_FINISHED, _encode(self._finished(entry[0], entry[1]))
        else:
            receipt, body = entry
            assert isinstance(body, bytes)
            kind = KIND_RECEIVED
            payload = _encode((receipt, *self._sealer.seal(body, receipt.about)))
        self._records += 1
        return frame_head(kind, payload, self._starts[kind]), payload

    def _finished(self, span: Span, content: Content | None) -> tuple[object, ...]:
        # Hashes need no sealing; text that is still to be masked comes as a whole request only.
        return (span,) if content is None else (span, 0, None, content)

    def put(self, frames: Iterable[bytes]) -> None:
        """Write frames and bring them to the disk; a write that fails leaves the file as it was."""
        data = b"".join(frames)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fdatasync(self._descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)

    def end(self) -> None:
        """Write the end record and let go of the file. Without it the segment reads like a dead writer's."""
        with suppress(OSError):
            payload = _encode(End(rotated=True, records=self._records))
            self.put((frame_head(KIND_END, payload, self._starts[KIND_END]), payload))
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unavailable(folder: Path, error: Exception) -> Unavailable:
    why = error.strerror if isinstance(error, OSError) else error
    return Unavailable(
        f"received telemetry cannot be written to {folder}: {why}",
        hint="Free space on that disk or mend the folder's permissions; senders try again.",
    )
