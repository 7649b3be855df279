"""Settlement: what drained spans say was used moves from lent to spent, and leases of the dead are closed.

It keeps nothing itself. The drainer hands over every span before it commits it, at least once; the store of accounts
counts each request once. So neither a killed worker nor a killed control plane forgets or doubles any spending.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.kernel import InvalidInput
from tidemill.ledger.accounts import HOLDER_SUFFIX, ChargedRequest, LeaseStore, SettleReport, charged_request
from tidemill.telemetry import Span
from tidemill.telemetry.reading import hold_if_abandoned

_log = logging.getLogger(__name__)

_SEGMENTS: Final = "*.seg"
#: A request settled longer ago is not handed over again: its segment was drained to the end and removed.
_REMEMBER_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementTotals:
    """Since the start.

    Args:
        requests: settled.
        duplicates: handed over again, and left as they were.
        unleased: charges on leases that were closed before, or never given.
        closed: leases of workers that died.
        unreadable: spans whose charges no worker of this version wrote.
    """

    requests: int = 0
    duplicates: int = 0
    unleased: int = 0
    closed: int = 0
    unreadable: int = 0


class Settlement:
    """Settles one tenant's requests from its segments.

    Args:
        store: the tenant's accounts.
        segments: the folder with one folder for each writer.
        tenant: whose.
        grace_s: a lease is closed at the earliest so long after its end.
        lost_s: likewise where nothing says whether its holder lives: a worker on another host, or one whose mark is
            gone.
    """

    def __init__(
        self, store: LeaseStore, segments: Path, *, tenant: str, grace_s: float = 2.0, lost_s: float = 60.0
    ) -> None:
        self.totals = SettlementTotals()
        self._store = store
        self._segments = segments
        self._tenant = tenant
        self._grace_s = grace_s
        self._lost_s = lost_s

    def settle(self, spans: Sequence[Span]) -> None:
        """Count what spans used; for ``Drainer(settle=…)``.

        Raises:
            Unavailable: the store does not answer; the drainer keeps the batch and comes again.
        """
        requests: list[ChargedRequest] = []
        unreadable = 0
        for span in spans:
            try:
                request = charged_request(span.span_id, span.attributes)
            except InvalidInput as error:
                _log.warning("%s", error)
                unreadable += 1
                continue
            if request is not None:
                requests.append(request)
        report = self._store.settle(requests) if requests else SettleReport()
        self._add(report, unreadable=unreadable)

    def tick(self) -> None:
        """Close leases that died with their workers. Call it after a drain that left nothing to read.

        Raises:
            Unavailable: the store does not answer.
        """
        expired = self._store.expired(self._grace_s)
        gone = [holder for holder, ago_s in expired.items() if self._is_gone(holder, ago_s)]
        if gone:
            closed = self._store.close_expired(gone, self._grace_s)
            for holder in gone:
                self._mark(holder).unlink(missing_ok=True)
            _log.info("%d leases of %d dead workers are closed", closed, len(gone))
            self._add(SettleReport(), closed=closed)
        self._store.tidy(_REMEMBER_S)
        self._sweep()

    def _sweep(self) -> None:
        """Remove marks of the dead that held nothing any more."""
        for mark in self._segments.glob(f"*/*{HOLDER_SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - mark.stat().st_mtime < self._lost_s:
                    continue  # it may hold leases that have not expired yet
                with hold_if_abandoned(mark) as dead:
                    if dead:
                        mark.unlink()

    def _is_gone(self, holder: str, ago_s: float) -> bool:
        """Whether a holder is dead, and all it wrote is drained: then nothing can be charged to its leases any more."""
        mark = self._mark(holder)
        try:
            with hold_if_abandoned(mark) as dead:
                if not dead:
                    return False
        except FileNotFoundError:
            if ago_s < self._lost_s:
                return False
        folder = mark.parent
        return not any(
            _left_to_drain(segment)
            for one in (folder, folder.with_name(f"{folder.name}~{self._tenant}"))
            for segment in one.glob(_SEGMENTS)
        )

    def _mark(self, holder: str) -> Path:
        writer, _, incarnation = holder.partition("/")
        return self._segments / Path(writer).name / f"{Path(incarnation).name}{HOLDER_SUFFIX}"

    def _add(self, report: SettleReport, *, closed: int = 0, unreadable: int = 0) -> None:
        was = self.totals
        self.totals = SettlementTotals(
            requests=was.requests + report.requests,
            duplicates=was.duplicates + report.duplicates,
            unleased=was.unleased + report.unleased,
            closed=was.closed + closed,
            unreadable=was.unreadable + unreadable,
        )


def _left_to_drain(segment: Path) -> bool:
    """Whether nobody writes the segment any more; a drained one would be gone."""
    try:
        with hold_if_abandoned(segment) as abandoned:
            return abandoned
    except FileNotFoundError:
        return False
