"""The short queue before an endpoint: who waits, who is let in next, who is turned away.

* Interactive calls go before batch calls. Shadow calls never wait: what is left for them is what nobody needs.
* Within a class the oldest goes first, until the queue has not been empty for a quarter of the longest wait: then the
  newest goes first. Under lasting overload somebody times out anyway, and this way it is those who have waited longest
  and are the most likely to have left, while the others are served at once (adaptive LIFO; Maurer, "Fail at scale",
  ACM Queue 2015).
* A call that finds the queue full takes the place of the newest waiting call of a lower class, if there is one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from tidemill.kernel.routing_policy import Priority

_CLASSES: Final = (Priority.INTERACTIVE, Priority.BATCH)
_STANDING_SHARE: Final = 0.25


class Entry:
    """A place in a queue.

    Args:
        priority: interactive or batch.
        key: name of the caller's key, for caps per key.
        since_s: when it began to wait.
        let_in, refuse: what to call when its turn has come, or never comes; ``refuse`` with the reason, a code.
    """

    __slots__ = ("key", "let_in", "priority", "refuse", "since_s")

    def __init__(
        self,
        priority: Priority,
        key: str,
        since_s: float,
        let_in: Callable[[], None],
        refuse: Callable[[str], None],
    ) -> None:
        self.priority = priority
        self.key = key
        self.since_s = since_s
        self.let_in = let_in
        self.refuse = refuse


class WaitingQueue:
    """The calls that wait for one endpoint.

    Args:
        most: places.
        timeout_s: longest wait.
    """

    __slots__ = ("_classes", "_standing_since_s", "most", "timeout_s")

    def __init__(self, most: int, timeout_s: float) -> None:
        self.most = most
        self.timeout_s = timeout_s
        self._classes: dict[Priority, deque[Entry]] = {priority: deque() for priority in _CLASSES}
        self._standing_since_s = math.inf

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    @property
    def empty(self) -> bool:
        """Whether nobody waits."""
        return self._standing_since_s == math.inf

    def offer(self, entry: Entry) -> Entry | None:
        """Let a call wait.

        Returns:
            Whom that turned away: ``None``, a call of a lower class, or ``entry`` itself.
        """
        if entry.priority not in self._classes or self.most <= 0:
            return entry
        displaced: Entry | None = None
        count = len(self)
        if count >= self.most:
            lower = _CLASSES[_CLASSES.index(entry.priority) + 1 :]
            found = next((self._classes[priority] for priority in reversed(lower) if self._classes[priority]), None)
            if found is None:
                return entry
            displaced = found.pop()
        elif not count:  # which also makes it no longer ``empty``
            self._standing_since_s = entry.since_s
        self._classes[entry.priority].append(entry)
        return displaced

    def take(self, now_s: float, fits: Callable[[Entry], bool]) -> Entry | None:
        """Take out the call whose turn it is among those that ``fits`` accepts."""
        standing = now_s - self._standing_since_s > _STANDING_SHARE * self.timeout_s
        for waiting in self._classes.values():
            for entry in reversed(waiting) if standing else waiting:
                if fits(entry):
                    self.remove(entry)
                    return entry
        return None

    def remove(self, entry: Entry) -> bool:
        """Take a call out. Returns whether it was there."""
        waiting = self._classes[entry.priority]
        if entry not in waiting:
            return False
        waiting.remove(entry)
        if not len(self):
            self._standing_since_s = math.inf
        return True

    def expired(self, now_s: float) -> list[Entry]:
        """Take out the calls that have waited for too long."""
        latest_s = now_s - self.timeout_s
        late = [entry for waiting in self._classes.values() for entry in waiting if entry.since_s <= latest_s]
        for entry in late:
            self.remove(entry)
        return late

    def everyone(self) -> list[Entry]:
        """Take out all calls, in turn."""
        entries = [entry for waiting in self._classes.values() for entry in waiting]
        for waiting in self._classes.values():
            waiting.clear()
        self._standing_since_s = math.inf
        return entries
