"""A guarded stream whose upstream says [DONE] first and ends its answer later."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from tests.gateway.conftest import RunningGateway, target
from tests.gateway.wire import Wire, ask
from tidemill.kernel import Route
from tidemill.kernel.routing_policy import RoutePolicy

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORD = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"Hello."},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def test_the_client_gets_the_end_that_comes_after_the_record(start: Callable[..., RunningGateway]) -> None:
    recorded = threading.Event()

    def upstream(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            connection.sendall(HEAD + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (WORD, DONE)))
            recorded.wait(30)
            connection.sendall(b"0\r\n\r\n")
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=upstream, args=(listener,))
        thread.start()
        release = target(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        gateway = start(Route("desk", "default", (release,), policy=RoutePolicy(guardrails=("pii",))))
        with Wire(gateway.port) as wire:
            wire.socket.settimeout(30)
            wire.send(ask(stream=True))
            while b"[DONE]" not in wire.buffer:
                assert wire.fill()
            recorded.set()
            status, body = wire.answer()
            assert status == 200
            assert body.endswith(DONE)
        gateway.wait(lambda: gateway.gateway.metrics.in_flight == 0)
        gateway.close()
        thread.join(30)
