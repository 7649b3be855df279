"""Clients that know what became of each of their requests. Prints one JSON object when its time is up or on SIGTERM.

A connection that the server announced to close (``connection: close``), or closed while nothing was asked on it, is
opened anew, as every HTTP client does. A request is *failed* when it was sent and no whole answer of status 200 came.
The trace ids of answered requests are written to a file, to be looked for in the segments.

Usage: careful.py PORT BODY_FILE KEY CONNECTIONS SECONDS TRACES_FILE [MIX]
MIX: plain (default), or mixed: also streams, streams broken off, unknown models, broken JSON and failing upstreams.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import uvloop

PORT, BODY, KEY, CONNECTIONS, SECONDS, TRACES = (
    int(sys.argv[1]), Path(sys.argv[2]).read_bytes(), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), sys.argv[6],
)  # fmt: skip
MIXED = len(sys.argv) > 7 and sys.argv[7] == "mixed"
PLACE = b"@@@@@@@@"


def body_of(kind: str, number: int) -> bytes:
    body = BODY.replace(PLACE, b"%08d" % (number % 100_000_000))
    if kind in {"stream", "leave"}:
        return body[:-1] + b',"stream":true}'
    if kind == "unknown":
        return body.replace(b"gpt-4o-mini", b"no-such-model")
    if kind == "broken":
        return body[:-3]
    return body.replace(b"You are a helpful", b"FAIL You are a helpful") if kind == "fail" else body


def request_of(kind: str, number: int) -> bytes:
    body = body_of(kind, number)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
    )


EXPECTED = {"plain": b"200", "stream": b"200", "leave": b"200", "unknown": b"404", "broken": b"400", "fail": b"50"}


class Closed(Exception):
    """The connection ended before the answer did."""


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, number: int
) -> tuple[bytes, str, bool]:
    """(status, trace id, whether the connection stays)."""
    writer.write(request_of(kind, number))
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Closed from error
    lines = head.lower().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
    status, trace = lines[0].split()[1], fields.get(b"x-tidemill-trace-id", b"").decode()
    stays = fields.get(b"connection") != b"close"
    try:
        if b"content-length" in fields:
            await reader.readexactly(int(fields[b"content-length"]))
        else:
            while True:
                size = int(await reader.readuntil(b"\r\n"), 16)
                await reader.readexactly(size + 2)
                if kind == "leave":
                    return status, "", False
                if size == 0:
                    break
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Closed from error
    return status, trace, stays


async def client(found: Counter[str], traces: list[str], end: float, seed: int) -> None:
    rng = random.Random(seed)
    number, writer, reader = seed * 1_000_000, None, None
    while time.monotonic() < end and not found["stop"]:
        kind = "plain"
        if MIXED:
            kind = rng.choices(list(EXPECTED), (84, 8, 3, 2, 1, 2))[0]
        number += 1
        if writer is None or reader is None or reader.at_eof() or writer.is_closing():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            except OSError:
                found["refused"] += 1
                await asyncio.sleep(0.01)
                continue
        try:
            status, trace, stays = await ask(reader, writer, kind, number)
        except Closed:
            found["failed"] += 1
            stays = False
        else:
            good = status.startswith(EXPECTED[kind])
            found["answered" if good else "unexpected"] += 1
            if not good:
                found[f"{kind}_{status.decode()}"] += 1
            if trace and status == b"200":
                traces.append(trace)
        if not stays:
            writer.close()
            writer = None


async def main() -> None:
    found: Counter[str] = Counter()
    traces: list[str] = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: found.update(stop=1))
    end = time.monotonic() + SECONDS
    await asyncio.gather(*(client(found, traces, end, seed) for seed in range(CONNECTIONS)))
    Path(TRACES).write_text("\n".join(traces))
    print(json.dumps(found))


uvloop.run(main())
