"""Guardrails around one request's answer: what they hold back, and what they let go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tidemill.gateway.guardrails import Blocked, StreamGuard, Watch

if TYPE_CHECKING:
    from tidemill.gateway.guardrails import Plan


class Guarding:
    """One request under guard.

    Args:
        plan: the route's guardrails.
        operation: what is asked.
        blocked: told of a block, after which nothing more is called.
    """

    def __init__(self, plan: Plan, operation: str, blocked: Callable[[Blocked], None]) -> None:
        self.watch: Watch = plan.watch(operation)
        self._plan = plan
        self._blocked = blocked
        self._guard: StreamGuard | None = None
        self._passing: Callable[[bytes], None] | None = None
        self._ended: Callable[[], None] | None = None
        self._held: list[bytes] = []
        self._clear = False
        self._finished = False

    def alongside(self, body: bytes) -> None:
        """The upstream is asked: start those that rule meanwhile."""
        if self._plan.parallel:
            self.watch.alongside(body, self._blocked)

    def whole(self, body: bytes, then: Callable[[bytes], None]) -> None:
        """Let a whole answer go when all have passed it, perhaps changed."""
        self.watch.clear(lambda: self.watch.after(body, then, self._blocked))

    def begin(self, passing: Callable[[bytes], None], ended: Callable[[], None], *, events: bool) -> None:
        """A stream opens.

        Args:
            passing: called with what may leave.
            ended: called when all has left.
            events: whether it is one of events, which can be ruled on as it comes; other bytes pass once the parallel
                guardrails have.
        """
        self._passing, self._ended = passing, ended
        if events and self._plan.guards_streams:
            self._guard = StreamGuard(self.watch, released=passing, blocked=self._blocked, ended=ended)
        self.watch.clear(self._cleared)

    @property
    def full(self) -> bool:
        """Whether so much is held back that the upstream should wait."""
        return self._guard is not None and self._guard.full

    def feed(self, data: bytes) -> None:
        """Take what came."""
        if not self._clear:
            self._held.append(data)
        elif self._guard is not None:
            self._guard.feed(data)
        elif self._passing is not None:
            self._passing(data)

    def finish(self) -> None:
        """The stream came to its proper end."""
        if self._finished:
            return
        self._finished = True
        if self._clear:
            self._finish()

    def stop(self) -> None:
        """Nobody waits any more."""
        if self._guard is not None:
            self._guard.abandon()
        self.watch.cancel()

    def _cleared(self) -> None:
        self._clear = True
        held, self._held = self._held, []
        for data in held:
            self.feed(data)
        if self._finished:
            self._finish()

    def _finish(self) -> None:
        if self._guard is not None:
            self._guard.finish()
        elif self._ended is not None:
            self._ended()
