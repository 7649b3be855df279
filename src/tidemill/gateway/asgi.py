"""The gateway as a bare ASGI 3 application, for those who bring their own server or mount it in an application.

The same handlers answer as behind ``Front``: ``AsgiFront`` has its interface, takes the answer's bytes apart into what
``send`` wants, and makes the server's waiting the client's slowness. Requests look like HTTP/1.0 to the handlers, so
that they do not chunk; framing and keep-alive are the server's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import quote

from tidemill.gateway.answers import Refusal, full_answer
from tidemill.gateway.front import Call, Front
from tidemill.gateway.limits import Limits
from tidemill.gateway.reading import Request, keep_fields
from tidemill.gateway.snapshots import SecretResolver
from tidemill.gateway.worker import Worker, WorkerOptions
from tidemill.kernel import Unavailable, UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HIGH_WATER: Final = 64 * 1024  # bytes the server has not taken yet, from which the upstream waits


class AsgiGateway:
    """A gateway worker without a listener, as an ASGI application.

    As the server's own application it starts and stops with the lifespan. Mounted below a path in another application,
    whose framework keeps the lifespan to itself, it runs inside ``async with gateway.running():``.

    Args:
        options: as for a worker of the gateway's own server.
        loopback: whether the server is reachable from this machine only; then the Host header must name it.
        resolve_secret: turns secret references of upstreams into secrets; ``None`` takes the kernel's own way.
    """

    def __init__(
        self, options: WorkerOptions, *, loopback: bool = False, resolve_secret: SecretResolver | None = None
    ) -> None:
        self._options = options
        self._loopback = loopback
        self._resolve_secret = resolve_secret
        self.worker: Worker | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the gateway open; on the way out, finish what is in flight (bounded).

        Raises:
            Unavailable: state or segments cannot be written.
            SettingsError: the guardrails that the options name cannot be loaded.
        """
        worker = Worker(self._options, self._resolve_secret)
        worker.open(loopback=self._loopback)
        self.worker = worker
        try:
            yield
        finally:
            await worker.stop()
            self.worker = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            raise Unavailable(f"The gateway speaks HTTP, not {scope['type']}.")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except UserError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        worker = self.worker
        if worker is None or worker.gateway is None:
            raise Unavailable(
                "The gateway was asked before it was started.",
                hint="Let the server run the lifespan, or mount it inside 'async with gateway.running():'.",
            )
        limits, gateway = self._options.limits, worker.gateway
        client = scope.get("client")
        front = AsgiFront(str(client[0]) if client else "local", limits)
        fronts = cast("set[Any]", worker.fronts)
        fronts.add(front)
        watching: asyncio.Task[None] | None = None
        try:
            try:
                request = await _read(scope, receive, limits)
            except Refusal as refusal:
                gateway.refused(refusal.status)
                front.answer(refusal.status, refusal.body())
            else:
                if request is None:  # the client has left
                    return
                watching = asyncio.create_task(_watch(receive, front))
                gateway.handle(cast("Front", front), request)
            await front.deliver(send)
        finally:
            fronts.discard(front)
            if watching is not None:
                watching.cancel()
            front.leave()


class AsgiFront:
    """One request under way through an ASGI server: the interface of ``Front``.

    Args:
        client_address: of the peer, as the server tells it.
        limits: for the time a client may leave an answer unread.
    """

    stays = False  # whether the connection goes on is the server's to say

    def __init__(self, client_address: str, limits: Limits) -> None:
        self.client_address = client_address
        self.draining = False
        self._limits = limits
        self._call: Call | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._slow = self._complete = self._broken = self._begun = False
        self._changed = asyncio.Event()

    @property
    def slow(self) -> bool:
        """Whether the client is behind with reading."""
        return self._slow

    @property
    def call(self) -> Call | None:
        """Who answers the request."""
        return self._call

    def attend(self, call: Call) -> None:
        """Name who answers the request, and is told when the client leaves."""
        self._call = call

    def answer(
        self, status: int, body: bytes, *, headers: bytes = b"", content_type: bytes = b"application/json"
    ) -> None:
        """Write a whole answer."""
        self.write(full_answer(status, body, content_type=content_type, headers=headers))
        self.finished(stays=False)

    def write(self, data: bytes) -> None:
        """Send bytes of an answer, of which the head comes first."""
        if self._broken:
            return
        self._pieces.append(data)
        self._size += len(data)
        self._changed.set()
        if self._size > _HIGH_WATER and not self._slow:
            self._slow = True
            if self._call is not None:
                self._call.client_slow()

    def finished(self, *, stays: bool) -> None:  # noqa: ARG002 - the interface of Front
        """The answer is complete."""
        self._call = None
        self._complete = True
        self._changed.set()

    def cut(self) -> None:
        """End the answer where it is, so that the client sees it is incomplete."""
        self._call = None
        self._broken = True
        self._changed.set()

    def drain(self) -> None:
        """Nothing to do: a front lives as long as its one request."""
        self.draining = True

    def expire(self, now: float) -> None:
        """Nothing to do: ``deliver`` keeps the time."""

    def leave(self) -> None:
        """The client is gone; tell whoever still answers it."""
        self._broken = True
        self._changed.set()
        call, self._call = self._call, None
        if call is not None:
            call.client_left()

    async def deliver(self, send: Send) -> None:
        """Hand everything to the server as it takes it, until the answer ends or breaks off."""
        while not self._broken:
            await self._changed.wait()
            self._changed.clear()
            while self._pieces and not self._broken:
                data = b"".join(self._pieces)
                self._pieces.clear()
                if not await self._pass(send, data):
                    return
                self._size = sum(map(len, self._pieces))
                self._catch_up()
            if self._complete and not self._pieces:
                if not self._broken:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                return

    async def _pass(self, send: Send, data: bytes) -> bool:
        try:
            async with asyncio.timeout(self._limits.write_timeout_s):
                if not self._begun:
                    self._begun = True
                    head, _, data = data.partition(b"\r\n\r\n")
                    await send(_start(head))
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except (TimeoutError, OSError):  # OSError is what servers raise for a client that has left
            self.leave()
            return False
        return True

    def _catch_up(self) -> None:
        if self._slow and self._size <= _HIGH_WATER // 4:
            self._slow = False
            if self._call is not None:
                self._call.client_ready()


def _start(head: bytes) -> dict[str, Any]:
    line, *lines = head.split(b"\r\n")
    headers = [(name.lower(), value) for name, _, value in (one.partition(b": ") for one in lines)]
    kept = [(name, value) for name, value in headers if name not in {b"connection", b"transfer-encoding"}]
    return {"type": "http.response.start", "status": int(line.split(b" ", 2)[1]), "headers": kept}


async def _watch(receive: Receive, front: AsgiFront) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    front.leave()


async def _read(scope: Scope, receive: Receive, limits: Limits) -> Request | None:
    """The request, or ``None`` when the client leaves before it is complete.

    Raises:
        Refusal: it is too large, too slow or ambiguous.
    """
    request = Request()
    request.method = scope["method"].encode()
    request.target = _target(scope)
    request.modern = request.keep_alive = False
    twice = keep_fields(request, [(bytes(name), bytes(value)) for name, value in scope["headers"]])
    if twice is not None:
        raise Refusal(400, f"The header {twice} is given twice.", "duplicate_header")
    if len(request.target) > limits.url_bytes:
        raise Refusal(414, f"The request target is longer than {limits.url_bytes} bytes.", "uri_too_long")
    if request.length is not None and request.length.isdigit() and int(request.length) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await _body(receive, limits)
    except TimeoutError:
        raise Refusal(408, "The request did not arrive in time.", "request_timeout") from None
    if body is None:
        return None
    request.body = body
    return request


async def _body(receive: Receive, limits: Limits) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The request body is larger than {limits.body_bytes} bytes.", "body_too_large")


def _target(scope: Scope) -> bytes:
    """Path below the mount, and query."""
    root = quote(scope.get("root_path", "")).encode()
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    if root and path.startswith(root):
        path = path[len(root) :] or b"/"
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path
