"""A request that the gateway makes of itself: a summary of what was said, asked of the endpoint that needs it.

It goes the whole way of a client's request, so that it is admitted, recorded and charged as a call of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tidemill.gateway.answers import Refusal
from tidemill.gateway.front import Call, Request
from tidemill.gateway.operations import CHAT
from tidemill.gateway.payloads import read_request

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.exchange import Exchange


class InnerFront:
    """Takes the place of the client's connection."""

    stays = True
    slow = False
    client_address = "inner"

    def __init__(self) -> None:
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._call: Call | None = None
        self._written: list[bytes] = []

    @property
    def call(self) -> Call | None:
        """Who answers."""
        return self._call

    def attend(self, call: Call) -> None:
        """Remember who answers."""
        self._call = call

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        headers: bytes = b"",  # noqa: ARG002 - the front's interface
        content_type: bytes = b"application/json",  # noqa: ARG002 - the front's interface
    ) -> None:
        """Take the answer."""
        self._call = None
        if self.done.done():
            return
        if status == 200:
            self.done.set_result(body)
        else:
            text = "The conversation could not be summarised: the model gave no answer."
            self.done.set_exception(Refusal(502, text, "summary_failed"))

    def write(self, data: bytes) -> None:
        """Take a piece of an answer with its head."""
        self._written.append(data)

    def finished(self, *, stays: bool) -> None:  # noqa: ARG002 - the front's interface
        """Take the end of what was written: an HTTP/1.0 request gets no chunks."""
        head, _, body = b"".join(self._written).partition(b"\r\n\r\n")
        status = head[9:12]
        self.answer(int(status) if status.isdigit() else 502, body)

    def cut(self) -> None:
        """The answer broke off."""
        self.answer(502, b"")

    def leave(self) -> None:
        """Nobody waits any more."""
        call, self._call = self._call, None
        if call is not None:
            call.client_left()


def inner_ask(gateway: Gateway, outer: Exchange) -> Callable[[bytes], Awaitable[bytes]]:
    """What asks the same endpoint, for the same key and session, without the history.

    Args:
        gateway: the worker's parts.
        outer: the request on whose behalf.
    """

    async def ask(body: bytes) -> bytes:
        from tidemill.gateway.exchange import Exchange

        front = InnerFront()
        request = Request()
        request.modern = False
        request.session = outer.request.session
        request.traceparent = outer.request.traceparent
        Exchange(gateway, front, request, read_request(body), body, outer.key, outer.junction, CHAT).start()
        try:
            return await front.done
        finally:
            front.leave()

    return ask
