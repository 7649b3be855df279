"""A raw client that costs little. Prints one JSON object {n, errors, p50_ms, p99_ms}.

Usage: load.py PORT BODY_FILE KEY closed CONCURRENCY SECONDS
       load.py PORT BODY_FILE KEY open REQUESTS_PER_S SECONDS
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

PORT, BODY, KEY, MODE, AMOUNT, SECONDS = (
    int(sys.argv[1]), Path(sys.argv[2]).read_bytes(), sys.argv[3], sys.argv[4], int(sys.argv[5]), float(sys.argv[6]),
)  # fmt: skip
REQUEST = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nAuthorization: Bearer {KEY}\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY
#: Each request has another number in its text, so that a cache never hits.
BEFORE, _, AFTER = REQUEST.partition(b"@@@@@@@@")
NUMBERS = itertools.count(int.from_bytes(os.urandom(3), "big"))


class Client(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.answer: asyncio.Future[bool] | None = None
        self.reset()

    def reset(self) -> None:
        self.tail = b""
        self.size = 0
        self.need = -1

    def ask(self) -> asyncio.Future[bool]:
        self.reset()
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(b"%b%08d%b" % (BEFORE, next(NUMBERS), AFTER))
        return self.answer

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(False)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if self.need < 0 and self.size == len(data):
            head, _, _ = data.partition(b"\r\n\r\n")
            at = head.lower().find(b"content-length:")
            self.good = head.startswith(b"HTTP/1.1 200")
            self.need = len(head) + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        self.tail = (self.tail + data)[-8:]
        done = self.size >= self.need if self.need else self.tail.endswith(b"0\r\n\r\n")
        if done and self.answer is not None and not self.answer.done():
            self.answer.set_result(self.good)


async def connect() -> Client:
    return (await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", PORT))[1]


async def closed(times: list[float]) -> int:
    errors = 0
    end = time.perf_counter() + SECONDS

    async def worker() -> None:
        nonlocal errors
        client = await connect()
        while time.perf_counter() < end:
            start = time.perf_counter()
            errors += not await client.ask()
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(worker() for _ in range(AMOUNT)))
    return errors


async def opened(times: list[float]) -> int:
    errors = 0
    free = [await connect() for _ in range(32)]
    tasks: set[asyncio.Task[None]] = set()

    async def one() -> None:
        nonlocal errors
        client = free.pop() if free else await connect()
        start = time.perf_counter()
        errors += not await client.ask()
        times.append(time.perf_counter() - start)
        free.append(client)

    begin = time.perf_counter()
    for place in range(int(AMOUNT * SECONDS)):
        await asyncio.sleep(max(0.0, begin + place / AMOUNT - time.perf_counter()))
        task = asyncio.get_running_loop().create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=10)
    return errors


async def main() -> None:
    times: list[float] = []
    errors = await (closed(times) if MODE == "closed" else opened(times))
    times.sort()
    found = {"n": len(times), "errors": errors}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        found[name] = times[min(len(times) - 1, int(len(times) * share))] * 1000
    print(json.dumps(found))


uvloop.run(main())
