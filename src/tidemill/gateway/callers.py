"""Who makes attempts: what an attempt needs of its caller, and what it tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from tidemill.gateway.attempts import Attempt
    from tidemill.gateway.failures import Failed
    from tidemill.gateway.operations import Operation
    from tidemill.gateway.payloads import Heard
    from tidemill.gateway.snapshots import Lane

Forward = Callable[[bytes, msgspec.Raw], None]


class Caller(Protocol):
    """Who wants an answer, and is told how each attempt goes."""

    operation: Operation
    streamed: bool

    def message(self, lane: Lane) -> tuple[bytes, bytes]:
        """Head and body of the call as this target wants it.

        Raises:
            UserError: it cannot serve the request.
        """
        ...

    def pivot_body(self) -> bytes:
        """The request in the pivot's format, for a dialect that needs it to read the answer."""
        ...

    def opened(self, attempt: Attempt) -> Forward | None:
        """It has begun to answer; the next calls bring what it says.

        Returns:
            What may be called instead of ``events`` with one event that is good and not the last, and its usage.
        """
        ...

    def events(self, attempt: Attempt, data: bytes) -> None:
        """Whole events of an opened stream, each of them good."""
        ...

    def piece(self, attempt: Attempt, data: bytes) -> None:
        """Bytes of an opened answer that is no stream of events."""
        ...

    def ended(self, attempt: Attempt) -> None:
        """The opened answer ended as HTTP says it should."""
        ...

    def answered(self, attempt: Attempt, body: bytes, heard: Heard) -> None:
        """A whole answer with a good status, and what it says."""
        ...

    def failed(self, attempt: Attempt, failed: Failed) -> None:
        """There will be nothing, or nothing more."""
        ...

    def faulted(self, error: Exception) -> None:
        """Being told of the answer, the caller raised this: it ends here."""
        ...
