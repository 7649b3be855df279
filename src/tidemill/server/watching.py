"""Everything that follows what is stored: monitors, objectives and metrics, with one state file between them.

The file holds what each has seen and the place it has reached. It is written every few seconds, not with each span: a
crash in between is made good by reading the spans since then once more, and alarms found twice are recorded once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import Clock, SystemClock
from tidemill.loop.feed import SpanFeed, load_state, state_document, state_file, store_identity
from tidemill.loop.monitors import MonitorDriver
from tidemill.loop.slos import SloDriver, slo_of
from tidemill.server.files import write_json
from tidemill.server.spanmetrics import SpanMetrics
from tidemill.telemetry import SpanStore

if TYPE_CHECKING:
    from tidemill.loop.project import Project

_SAVE_EVERY_S: Final = 10.0


class Watching:
    """Drives those who follow the stored spans.

    Args:
        project: the opened project.
        store: its span store.
        clock: where the time comes from.

    Raises:
        InvalidInput: an objective of the project file that makes no sense.
    """

    def __init__(self, project: Project, store: SpanStore, clock: Clock | None = None) -> None:
        settings = project.settings
        self._path = state_file(project.places.state)
        self._identity = store_identity(project.places.spans, settings.telemetry.store)
        self._feed = SpanFeed(store)
        kept = load_state(self._path, identity=self._identity)
        self.monitors = MonitorDriver(project.ledger, self._feed, kept.get("monitors"))
        slos = [slo_of(name, section) for name, section in settings.slos.items()]
        self.slos = SloDriver(slos, project.ledger, store, self._feed, clock or SystemClock(), kept.get("slos"))
        self.spans = SpanMetrics(settings.telemetry.metric_names, endpoints=tuple(settings.endpoints))
        self._spans_seq = int(kept.get("metrics_seq", 0))
        self._saved: dict[str, Any] | None = None
        self._saved_s = 0.0

    def tick(self) -> None:
        """Look at what is new, once, and keep the state if it is time to.

        One that fails does not hold up the others; its error is raised when they are done.
        """
        failed: Exception | None = None
        for look in (self.monitors.tick, self.slos.tick, self._count):
            try:
                look()
            except Exception as error:  # noqa: BLE001 - raised below
                failed = failed or error
        if failed is not None:
            raise failed
        if time.monotonic() - self._saved_s >= _SAVE_EVERY_S:
            self.save()

    def _count(self) -> None:
        for stored in self._feed.after(self._spans_seq):
            self.spans.take(stored)
            self._spans_seq = stored[-1].ingest_seq

    def save(self) -> None:
        """Keep the state now, if it has changed.

        Not while an alarm waits to be recorded: after a crash it must be found again.
        """
        if self.monitors.behind or self.slos.behind:
            return
        states = {"monitors": self.monitors.kept(), "slos": self.slos.kept(), "metrics_seq": self._spans_seq}
        self._saved_s = time.monotonic()
        if states == self._saved:
            return
        write_json(self._path, state_document(states, identity=self._identity))
        self._saved = states
