"""An upstream as cheap as Python makes it: 50 events when the request asks for a stream, else one JSON answer.
A request that says FAIL gets a 500.

Usage: stream_upstream.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

CHUNKS = 50
ANSWER = json.dumps(
    {
        "id": "chatcmpl-123",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 640},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 190, "completion_tokens": 130, "total_tokens": 320},
    }
).encode()


def _event(place: int) -> bytes:
    last = place == CHUNKS - 1
    event: dict[str, Any] = {
        "id": "chatcmpl-123",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-mini",
        "system_fingerprint": "fp_44709d6fcb",
        "choices": [
            {
                "index": 0,
                "delta": {} if last else {"content": f" token{place}"},
                "logprobs": None,
                "finish_reason": "stop" if last else None,
            }
        ],
    }
    data = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
    if last:
        data += b"data: [DONE]\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


EVENTS = [_event(place) for place in range(CHUNKS)]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
FAILED = b'{"error":{"message":"as was asked"}}'
FAILURE = b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(FAILED), FAILED)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        self.buffer = b""
        if b"FAIL" in rest:
            self.transport.write(FAILURE)
        elif b'"stream":true' in rest:
            self.send(0)
        else:
            self.transport.write(WHOLE)

    def send(self, place: int) -> None:
        """One event per turn of the loop, so that each is a write of its own, as from a real model."""
        if self.transport.is_closing():
            return
        self.transport.write(HEAD + EVENTS[0] if place == 0 else EVENTS[place])
        if place + 1 < CHUNKS:
            asyncio.get_running_loop().call_soon(self.send, place + 1)
        else:
            self.transport.write(b"0\r\n\r\n")


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


uvloop.run(main())
