# ruff: noqa: ARG002
"""CPU of the HTTP core alone, without sockets: one request through ``Front``, one answer and one stream through
``UpstreamConnection``, against transports that swallow what is written. For comparing two trees on one machine.

Usage: PYTHONPATH=TREE/src python benchmarks/gateway/http_core.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from tidemill.gateway.front import Front
from tidemill.gateway.limits import Limits
from tidemill.gateway.upstream import Address, UpstreamConnection, UpstreamPool

BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"' + b"a" * 900 + b'"}]}'
HEADERS = (
    b"Host: 127.0.0.1:8080\r\nAuthorization: Bearer tm_benchmark\r\nContent-Type: application/json\r\n"
    b"Accept: application/json\r\nUser-Agent: OpenAI/Python 3.54.0\r\nAccept-Encoding: gzip, deflate\r\n"
    b"X-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\nConnection: keep-alive\r\n"
)
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (HEADERS, len(BODY), BODY)
ANSWER = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + b"b" * 1000
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Swallow:
    """A transport nobody reads from."""

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Answering:
    """A handler that has the answer ready."""

    def handle(self, front: Front, request: Any) -> None:
        front.answer(200, b"{}")

    def refused(self, status: int) -> None:
        raise AssertionError(status)


class Taking:
    """A sink that keeps nothing."""

    def on_head(self, status: int, headers: Any) -> None:
        return None

    def on_data(self, data: bytes) -> None:
        return None

    def on_done(self) -> None:
        return None

    def on_failure(self, failure: Any) -> None:
        raise AssertionError(failure)


def parts() -> dict[str, Callable[[], None]]:
    front = Front(Answering(), Limits(), set())
    front.connection_made(Swallow())  # type: ignore[arg-type]
    pool = UpstreamPool(Limits())
    address = Address.parse("http://127.0.0.1:1/v1")
    connection = UpstreamConnection(pool, address)
    connection.connection_made(Swallow())  # type: ignore[arg-type]
    pool.give_back(connection)
    sink = Taking()

    def request() -> None:
        front.data_received(REQUEST)

    def answer() -> None:
        taken = pool.take_idle(address)
        assert taken is not None
        taken.start(sink, REQUEST)
        taken.data_received(ANSWER)

    def stream() -> None:
        taken = pool.take_idle(address)
        assert taken is not None
        taken.start(sink, REQUEST)
        taken.data_received(STREAM_HEAD)
        for _ in range(50):
            taken.data_received(CHUNK)
        taken.data_received(b"0\r\n\r\n")

    return {"request in, answer out": request, "upstream answer": answer, "upstream stream of 50": stream}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for name, run in parts().items():
        count = 400 if "stream" in name else 10_000
        best = float("inf")
        for _ in range(rounds):
            begin = time.process_time()
            for _ in range(count):
                run()
            best = min(best, (time.process_time() - begin) / count)
        print(f"{name:24} {best * 1e6:8.2f} us")


if __name__ == "__main__":
    main()
