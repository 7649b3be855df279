"""Trace identity (W3C Trace Context, level 1) and the journal a worker writes its records to."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from tidemill.gateway.known_traces import KnownTraces
from tidemill.kernel import UserError
from tidemill.telemetry.records import Capture, Content, Intent, Score, Span
from tidemill.telemetry.segments import SegmentWriter

_log = logging.getLogger(__name__)

Entry = Intent | tuple[Span, Content | None]
Continuation = Callable[[bool], None]
"""What waits for a record; told whether it was written."""


class Owner(Protocol):
    """Whose record it is."""

    def faulted(self, error: Exception) -> None:
        """What waited for the record raised this, and is logged: end the call, for nothing more will come."""
        ...


_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_ZERO_TRACE: Final = b"0" * 32
_ZERO_SPAN: Final = b"0" * 16
_ENTROPY_BYTES: Final = 6144


class Identity(msgspec.Struct, frozen=True, gc=False):
    """The ids of one gateway span.

    Args:
        flags: the caller's trace flags, two hexadecimal digits.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None
    flags: str


class IdSource:
    """Makes trace and span ids from the system's randomness, drawn in blocks to spare system calls."""

    def __init__(self) -> None:
        self._block = ""
        self._at = 0

    def _take(self, digits: int) -> str:
        at = self._at
        end = at + digits
        if end > len(self._block):
            self._block = os.urandom(_ENTROPY_BYTES).hex()
            at, end = 0, digits
        self._at = end
        return self._block[at:end]

    def identify(self, traceparent: bytes | None) -> Identity:
        """Join the caller's trace if it sent a valid ``traceparent``, else begin one."""
        if traceparent is not None:
            match = _TRACEPARENT.fullmatch(traceparent)
            if match is not None and match[1] != _ZERO_TRACE and match[2] != _ZERO_SPAN:
                return Identity(match[1].decode(), self._take(16), match[2].decode(), match[3].decode())
        ids = self._take(48)
        return Identity(ids[:32], ids[32:], None, "01")

    def span_id(self) -> str:
        """A fresh span id."""
        return self._take(16)


class Journal:
    """The worker's records, appended to segments before anything that depends on them happens.

    Records that fall into one turn of the event loop are written with one system call; what waits for them (the
    upstream call, the client's last bytes) follows in the same order. Each tenant has a writer of its own, made with
    its first record.

    Args:
        folder: ``segments/<writer>`` of the worker's own tenant; other tenants' stand beside it.
        project: whose records.
        tenant: the worker's own tenant.
        capture: what is kept of content; ``set_capture`` changes it when a snapshot says so.
        known: takes a note of every trace whose span is written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        tenant: str,
        capture: Capture = "masked",
        known: KnownTraces | None = None,
    ) -> None:
        self.lost = 0
        self._known = known
        self._folder = folder
        self._project = project
        self._tenant = tenant
        self._capture: Capture = capture
        self._writers: dict[str, SegmentWriter] = {}
        self._pending: dict[str, list[Entry]] = {}  # by tenant
        self._waiting: list[tuple[Entry, Continuation, Owner | None]] = []

    def set_capture(self, capture: Capture) -> None:
        """Follow the snapshot: with another policy, segments begin anew."""
        if capture != self._capture:
            self.close()
            self._capture = capture

    def add(self, tenant: str, entry: Entry, then: Continuation, owner: Owner | None = None) -> None:
        """Write an intent or a finished span in this turn of the loop, then call ``then``.

        Args:
            tenant: whose record.
            entry: an intent, or a span with its content.
            then: called with whether the record is in the segment.
            owner: told when ``then`` raises.
        """
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append((entry, then, owner))
        entries = self._pending.get(tenant)
        if entries is None:
            self._pending[tenant] = [entry]
        else:
            entries.append(entry)

    def flush(self) -> None:
        """Write what is pending and let go what waits for it."""
        pending, self._pending = self._pending, {}
        waiting, self._waiting = self._waiting, []
        unwritten: set[int] = set()
        for tenant, entries in pending.items():
            if self._known is not None:
                self._known.remember(tenant, [entry[0].trace_id for entry in entries if type(entry) is tuple])
            if not self._write(tenant, entries):
                # Perhaps only one of them cannot be written, and the others must not suffer for it.
                unwritten.update(id(entry) for entry in entries if not self._write(tenant, [entry]))
        self.lost += len(unwritten)
        for entry, then, owner in waiting:
            try:
                then(not unwritten or id(entry) not in unwritten)
            except Exception as error:  # noqa: BLE001 - a fault in one call must not strand the others of its turn
                _log.exception("a call could not be continued")
                if owner is not None:
                    owner.faulted(error)

    def knows(self, tenant: str, trace_id: str) -> bool:
        """Whether the workers of this host remember a trace of a tenant; see ``KnownTraces``."""
        return self._known is not None and self._known.knows(tenant, trace_id)

    def score(self, score: Score) -> None:
        """Write a score.

        Raises:
            Unavailable: it could not be written.
        """
        self._writer(score.tenant).score(score)

    def close(self) -> None:
        """Write what is pending and finish all segments."""
        self.flush()
        writers, self._writers = self._writers, {}
        for writer in writers.values():
            writer.close()

    def _write(self, tenant: str, entries: list[Entry]) -> bool:
        try:
            self._writer(tenant).write_all(entries)
        except (UserError, ValueError, TypeError) as error:  # no space; or a record that cannot be encoded
            # New calls are refused; answers already paid for are served, and the gap is shouted about.
            _log.error("%d records could not be written (%d lost before): %s", len(entries), self.lost, error)
            return False
        return True

    def _writer(self, tenant: str) -> SegmentWriter:
        writer = self._writers.get(tenant)
        if writer is None:
            folder = self._folder
            if tenant != self._tenant:
                folder = folder.with_name(f"{folder.name}~{tenant}")
            writer = SegmentWriter(folder, project=self._project, tenant=tenant, capture=self._capture)
            self._writers[tenant] = writer
        return writer
