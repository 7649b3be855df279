"""Takes export requests: looks into them, writes them down, and says what became of them. Whatever carries them.

An answer of success means that the request is on the disk. What a policy forbids to keep never gets there: such
requests are decoded and stripped first.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.kernel import InvalidInput, Unavailable
from tidemill.telemetry.otlp.decoding import Decoder, Survey, survey
from tidemill.telemetry.otlp.journal import BODY_BYTES_MOST, Entry, Journal
from tidemill.telemetry.otlp.mapping import SpanMapper
from tidemill.telemetry.otlp.packing import Packing, TooLarge, repacked, unpack
from tidemill.telemetry.otlp.policy import CapturePolicy
from tidemill.telemetry.otlp.refusal import REASONS
from tidemill.telemetry.otlp.wire import Encoding, Group, Signal, split
from tidemill.telemetry.receipts import Receipt
from tidemill.telemetry.store import SetAside

WRITER: Final = "otlp"
"""Folder of what is received as it came; ``otlp~stripped`` holds what was stripped first."""
_MOST_REFUSED: Final = 1000
_LOOK_EVERY_S: Final = 0.5


class Busy(Unavailable):
    """No more is taken for the moment; ``retry_after_s`` says when to come again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sender is told: records that were refused, and why; empty if none were."""

    signal: Signal
    rejected: int = 0
    message: str = ""


@dataclass(slots=True)
class Received:
    """Counts since the start, for metrics.

    Args:
        requests: by outcome: ``ok``, ``invalid``, ``too_large``, ``busy``, ``unavailable``.
        records: acknowledged, by signal.
        rejected: records refused, by reason.
        bytes: of acknowledged bodies as they came.
    """

    requests: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much a receiver takes.

    Args:
        request_bytes_most: of a body, as it comes and unpacked.
        backlog_bytes_most: written and not stored yet; above it senders are told to wait.
        group_commit_s: how long a sync waits for more requests to join.
    """

    request_bytes_most: int = 64 << 20
    backlog_bytes_most: int = 2 << 30
    group_commit_s: float = 0.005


class Receiver:
    """Receives for one scope. Thread-safe.

    Args:
        segments: folder with one folder for each writer.
        project, tenant: whose telemetry it is.
        policy: what is kept of content.
        mapper: maps spans that must be stripped before they are written; used by one thread at a time.
        bounds: how much is taken.
        waiting_bytes: how much is written and not stored yet.
        now_ns: nanoseconds since 1970.
    """

    def __init__(
        self,
        segments: Path,
        *,
        project: str,
        tenant: str,
        policy: CapturePolicy,
        mapper: SpanMapper,
        bounds: Bounds | None = None,
        waiting_bytes: Callable[[], int] = lambda: 0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.totals = Received()
        bounds = bounds or Bounds()
        self.request_bytes_most = bounds.request_bytes_most
        self._policy = policy
        self._masks_all = policy.default == "masked" and set(policy.of.values()) <= {"masked"}
        self._backlog_most = bounds.backlog_bytes_most
        self._waiting_bytes = waiting_bytes
        self._now_ns = now_ns
        self._stripper = Decoder(mapper, bytes_most=bounds.request_bytes_most)
        self._journal = Journal(segments / WRITER, project=project, tenant=tenant, group_commit_s=bounds.group_commit_s)
        self._stripped = Journal(
            segments / f"{WRITER}~stripped",
            project=project,
            tenant=tenant,
            capture="none",
            group_commit_s=bounds.group_commit_s,
        )
        self._lock = threading.Lock()
        self._stripping = threading.Lock()
        self._refused: list[SetAside] = []
        self._in_flight_bytes = 0
        self._backlog = (0.0, 0)

    def close(self) -> None:
        """Write what waits, and end the segments."""
        self._journal.close()
        self._stripped.close()

    def admit(self, size: int) -> None:
        """Whether a body of this size is taken now; pair it with ``release``.

        Raises:
            Busy: too much waits to be stored, or is being received.
            TooLarge: no body of this size is ever taken.
        """
        if size > self.request_bytes_most:
            self._note("too_large", "too_large", f"a body of {size} bytes")
            raise TooLarge(f"The body is larger than {self.request_bytes_most} bytes.", hint="Send smaller batches.")
        with self._lock:
            if self._in_flight_bytes + size > 2 * self.request_bytes_most:
                self.totals.requests["busy"] += 1
                raise Busy("Too many requests are being received at once.", 1.0)
            if self._waiting() > self._backlog_most:
                self.totals.requests["busy"] += 1
                raise Busy(f"More than {self._backlog_most} bytes wait to be stored.", 5.0)
            self._in_flight_bytes += size

    def release(self, size: int) -> None:
        """A body that was admitted is done with."""
        with self._lock:
            self._in_flight_bytes -= size

    def receive(
        self, signal: Signal, encoding: Encoding, body: bytes, packing: Packing = ""
    ) -> tuple[Taken, Future[None]]:
        """Take a request.

        Args:
            signal: which of OTLP's requests it is.
            encoding: how it is written.
            body: as it came.
            packing: how it is compressed.

        Returns:
            What to tell the sender, and a future to wait for before telling it: done when all is on the disk, failed
            with ``Unavailable`` if it cannot be.

        Raises:
            TooLarge: unpacked it is larger than allowed.
            InvalidInput: nothing of it can be read.
        """
        received_ns = self._now_ns()
        try:
            whole = unpack(body, packing, self.request_bytes_most)
            found = survey(signal, encoding, whole, received_ns, bare=self._masks_all)
            futures = self._write(signal, encoding, body, packing, found, received_ns)
        except TooLarge as error:
            self._note("too_large", "too_large", error.message)
            raise
        except InvalidInput as error:
            self._note("invalid", f"wrong_{encoding}", error.message)
            raise
        future = _all(futures)
        future.add_done_callback(lambda done: self._count(done, signal, found, len(body)))
        return Taken(signal, sum(found.refused.values()), _message(found.refused)), future

    def refused(self) -> list[SetAside]:
        """What was refused since this was asked last, for the store to set aside. All is counted in ``totals``."""
        with self._lock:
            refused, self._refused = self._refused, []
        return refused

    def note_invalid(self, reason: str, why: str) -> None:
        """Count a request that was refused before it came here, e.g. for its content type."""
        self._note("invalid", reason, why)

    def _write(
        self, signal: Signal, encoding: Encoding, body: bytes, packing: Packing, found: Survey, received_ns: int
    ) -> list[Future[None]]:
        private = [signal != "metrics" and not self._is_masked(group) for group in found.groups]
        written: list[Future[None]] = []
        if not all(private):
            records = found.records
            if any(private):
                whole = unpack(body, packing, self.request_bytes_most)
                body, packing = split(signal, encoding, whole, self._masks), ""
                records = sum(found.counts[place] for place, strip in enumerate(private) if not strip)
            kept, packed = repacked(body, packing, BODY_BYTES_MOST)
            written.append(self._journal.append((Receipt(signal, encoding, packed, received_ns, records), kept)))
        if any(private):
            written += self._write_stripped(found.only(private), received_ns)
        return written

    def _masks(self, service: object) -> bool:
        return self._policy.of_service(service if isinstance(service, str) else None) == "masked"

    def _is_masked(self, group: Group) -> bool:
        return self._masks(group.resource.get("service.name"))

    def _write_stripped(self, found: Survey, received_ns: int) -> list[Future[None]]:
        """Decode first, and write only what may be kept."""
        with self._stripping:
            decoded = self._stripper.decode_survey(found, received_ns)
        with self._lock:
            self._refused += decoded.rejected[: _MOST_REFUSED - len(self._refused)]
        entries: list[Entry] = [(span, decoded.contents.get((span.trace_id, span.span_id))) for span in decoded.spans]
        entries += decoded.scores
        return [self._stripped.append(*entries)] if entries else []

    def _waiting(self) -> int:
        now_s, known = time.monotonic(), self._backlog
        if now_s - known[0] > _LOOK_EVERY_S:
            known = self._backlog = (now_s, self._waiting_bytes())
        return known[1]

    def _note(self, outcome: str, reason: str, why: str) -> None:
        with self._lock:
            self.totals.requests[outcome] += 1
            self.totals.rejected[reason] += 1
            if len(self._refused) < _MOST_REFUSED:
                self._refused.append(SetAside(reason=reason, at_ns=self._now_ns(), source="otlp", detail=why[:2000]))

    def _count(self, done: Future[None], signal: str, found: Survey, size: int) -> None:
        with self._lock:
            if done.exception() is not None:
                self.totals.requests["unavailable"] += 1
                return
            self.totals.requests["ok"] += 1
            self.totals.records[signal] += found.accepted
            self.totals.rejected.update(found.refused)
            self.totals.bytes += size


def _all(futures: list[Future[None]]) -> Future[None]:
    """Done when all are; failed as the first that failed."""
    if len(futures) == 1:
        return futures[0]
    whole: Future[None] = Future()
    left = len(futures)
    lock = threading.Lock()

    def look(done: Future[None]) -> None:
        nonlocal left
        with lock:
            left -= 1
            error = done.exception()
            if error is not None and not whole.done():
                whole.set_exception(error)
            elif not left and not whole.done():
                whole.set_result(None)

    for future in futures:
        future.add_done_callback(look)
    if not futures:
        whole.set_result(None)
    return whole


def _message(refused: Counter[str]) -> str:
    return "; ".join(f"{count} x {reason}: {REASONS[reason]}" for reason, count in sorted(refused.items()))
