"""How long telemetry is kept: days that are over go to the cold tier, and what is too old is erased."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import Clock, SystemClock
from tidemill.loop.erasing import ErasureOrder, carry_out
from tidemill.loop.kept import kept_json
from tidemill.telemetry import Erasure, SpanQuery

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidemill.loop.project import Project
    from tidemill.telemetry import SpanStore

ACTOR: Final = "retention"
DAY_NS: Final = 86_400 * 10**9
_SETTLE_S: Final = 15.0
_EVERY_S: Final = 600.0
_SAMPLES: Final = 1000


class Keeping:
    """Moves and erases what the settings say, and erases what people ask for; one of these at a time.

    A day moves once, when it has become old enough, and once more with what came late after a restart or on the day
    after: each move makes a file, and small ones add up.

    Args:
        project: the settings say how long; the ledger keeps what was erased.
        store: its span store.
        drain: brings finished records into the store.
        clock: where the time comes from.
    """

    def __init__(
        self, project: Project, store: SpanStore, drain: Callable[[], None], clock: Clock | None = None
    ) -> None:
        self._project = project
        self._store = store
        self._drain = drain
        self._clock = clock or SystemClock()
        self._retention = project.settings.telemetry.retention
        self._busy = threading.Lock()  # a compaction's new file must not be swept by an erasure beside it
        self._due_s = self._clock.monotonic_s() + _SETTLE_S
        self._moved_ns: int | None = None
        self._erased_ns: int | None = None
        self._last: dict[str, Any] = {"at": None, "took_s": None, "error": None, "compacted": None, "erased": None}
        self.erasing = False
        """Whether an erasure holds the store: commits wait for it, so nobody should drain meanwhile."""

    def look(self) -> None:
        """Do a turn if it is time to: first when the start has settled, then every ten minutes."""
        now_s = self._clock.monotonic_s()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _EVERY_S
        self.turn()

    def turn(self) -> None:
        """Erase what is too old and move days that are over, now. What failed is tried again at the next turn.

        One that fails does not hold up the other; its error is raised when both are done.
        """
        begun_s, at = self._clock.monotonic_s(), self._clock.now()
        failed: Exception | None = None
        for step in (self._expire, self._compact):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - raised below
                failed = failed or error
        self._last |= {
            "at": at.isoformat(timespec="seconds"),
            "took_s": round(self._clock.monotonic_s() - begun_s, 3),
            "error": None if failed is None else f"{type(failed).__name__}: {failed}",
        }
        if failed is not None:
            raise failed

    def erase(self, order: ErasureOrder) -> dict[str, Any]:
        """Carry out an erasure; see ``loop.erasing.carry_out``. What is finished is drained first."""
        with self._busy:
            self._drain()
            self.erasing = True
            try:
                return carry_out(order, self._project.ledger, self._store)
            finally:
                self.erasing = False

    def kept(self) -> dict[str, Any]:
        """What is kept in which tier, how long, and how the last turn ended."""
        return {**kept_json(self._store, self._retention), "last_turn": dict(self._last)}

    def _compact(self) -> None:
        before_ns = self._day(self._retention.hot_days)
        if before_ns == self._moved_ns:
            return
        with self._busy:
            moved = self._store.compact(before_ns)
        self._moved_ns = before_ns
        self._last |= {"compacted": {"partitions": moved.partitions, "spans": moved.spans, "bytes": moved.bytes}}

    def _expire(self) -> None:
        if self._retention.days is None:
            return
        before_ns = self._day(self._retention.days)
        if before_ns == self._erased_ns:
            return
        if self._holds_older(before_ns):
            reason = f"telemetry.retention.days is {self._retention.days:g}."
            erasure = Erasure(before_ns=before_ns)
            order = ErasureOrder(erasure=erasure, by="age", asked=before_ns, actor=ACTOR, reason=reason)
            self._last |= {"erased": self.erase(order)}
        self._erased_ns = before_ns

    def _holds_older(self, before_ns: int) -> bool:
        """Erasing nothing would write the hot tier anew all the same."""
        query = SpanQuery(until_ns=before_ns, limit=1, with_references=False)
        if self._store.spans(query):
            return True
        return any(one.at_ns < before_ns for one in self._store.set_aside(limit=_SAMPLES).samples)

    def _day(self, days: float) -> int:
        """Midnight (UTC) before the moment so many days ago, nanoseconds since 1970."""
        now_ns = int(self._clock.now().timestamp()) * 10**9
        return (now_ns - int(days * DAY_NS)) // DAY_NS * DAY_NS
