"""A scripted model server: OpenAI-compatible over real sockets, with faults on demand. For tests and benchmarks."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Fault(StrEnum):
    """What the next answer suffers from."""

    RESET = "reset"  # a TCP reset instead of an answer
    STALL = "stall"  # no byte of an answer
    SLOW_HEADER = "slow_header"  # the head comes in pieces
    HUGE_HEADER = "huge_header"  # a head that never ends
    WRONG_LENGTH = "wrong_length"  # fewer bytes than announced
    RATE_LIMIT = "rate_limit"  # 429 with Retry-After
    SERVER_ERROR = "server_error"  # 500 in OpenAI's shape
    CUT = "cut"  # a stream that breaks inside an event
    STALL_STREAM = "stall_stream"  # a stream that goes silent
    MALFORMED_CHUNK = "malformed_chunk"  # an event that is not JSON
    BAD_FRAMING = "bad_framing"  # a chunk size that is no number
    ERROR_EVENT = "error_event"  # an error inside a 200 stream
    NO_DONE = "no_done"  # a stream that ends without finish reason or [DONE]
    DROP_IDLE = "drop_idle"  # a good answer, then the kept-alive connection is closed unannounced


@dataclass
class Seen:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any
    connection: int
    cancelled: bool = False


@dataclass
class ScriptedUpstream:
    """Answers chat, completion and embedding requests from a script, in a thread of its own.

    Args:
        words: the answer, one word a chunk when streamed.
        extension: put under ``tidemill`` in the body or the last event, as serving processes do.
        chunk_pause_s: between two events of a stream.
        delay_s: before each answer.
        usage: whether token usage is told.
    """

    words: tuple[str, ...] = ("Hello", " from", " the", " script", ".")
    model: str = "scripted-1"
    extension: dict[str, Any] | None = None
    chunk_pause_s: float = 0.0
    delay_s: float = 0.0
    usage: bool = True
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._connections = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Base URL for routing targets."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ScriptedUpstream:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()
        writers: set[asyncio.StreamWriter] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            task = asyncio.get_running_loop().create_task(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, limit=1 << 26)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # transports close their sockets in the loop's next turns

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer, number):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(head[0].split()[1], headers, json.loads(raw) if raw else None, number)
        self.seen.append(seen)
        fault = self.faults.popleft() if self.faults else self.always
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        try:
            if fault in _BEFORE_ANSWER:
                return await self._break_early(fault, reader, writer)
            if seen.path.endswith("/embeddings"):
                _send_json(writer, 200, {"object": "list", "model": self.model, "data": [_EMBEDDING], "usage": _USAGE})
            elif seen.body.get("stream"):
                return await self._stream(seen, fault, reader, writer)
            else:
                _send_json(writer, 200, self._whole(seen), short=fault is Fault.WRONG_LENGTH)
            await writer.drain()
        except ConnectionError:
            seen.cancelled = True
            raise
        return fault not in {Fault.WRONG_LENGTH, Fault.DROP_IDLE}

    async def _break_early(
        self, fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if fault is Fault.RESET:
            raw_socket = writer.get_extra_info("socket")
            raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault is Fault.STALL:
            await reader.read()  # until the caller gives up
            return False
        if fault is Fault.HUGE_HEADER:
            writer.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(200):
                writer.write(b"x-filler: " + b"a" * 1000 + b"\r\n")
                await writer.drain()
            await reader.read()
            return False
        if fault is Fault.SLOW_HEADER:
            for piece in (
                b"HTTP/1.1 200 OK\r\nconte",
                b"nt-type: application/json\r\ncontent-le",
                b"ngth: 2\r\n\r\n{}",
            ):
                writer.write(piece)
                await asyncio.sleep(0.05)
            return True
        status = 429 if fault is Fault.RATE_LIMIT else 500
        kind = "rate_limit_exceeded" if status == 429 else "overloaded"
        error = {"error": {"message": "scripted", "type": kind, "param": None, "code": kind}}
        _send_json(writer, status, error, extra="retry-after: 7\r\n")
        return True

    def _whole(self, seen: Seen) -> dict[str, Any]:
        text = "".join(self.words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if seen.path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        body: dict[str, Any] = {
            "id": "cmpl-1",
            "object": "chat.completion" if "message" in choice else "text_completion",
            "created": 1700000000,
            "model": self.model,
            "choices": [choice],
        }
        if self.usage:
            body["usage"] = _USAGE
        if self.extension is not None:
            body["tidemill"] = self.extension
        return body

    async def _stream(
        self, seen: Seen, fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        half = len(self.words) // 2
        for place, word in enumerate(self.words):
            if place == half and fault in _IN_STREAM:
                return await self._break_stream(fault, seen, reader, writer)
            _send_event(writer, self._event({"content": word}))
            await writer.drain()
            await asyncio.sleep(self.chunk_pause_s)
        if fault is not Fault.NO_DONE:
            last = self._event({}, "stop")
            if self.usage:
                last["usage"] = _USAGE
            if self.extension is not None:
                last["tidemill"] = self.extension
            _send_event(writer, last)
            _send_chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return fault is not Fault.DROP_IDLE

    async def _break_stream(
        self, fault: Fault | None, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if fault is Fault.MALFORMED_CHUNK:
            _send_chunk(writer, b'data: {"choices": [{"del\n\n')
            _send_event(writer, self._event({}, "stop"))
            _send_chunk(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
            return True
        if fault is Fault.ERROR_EVENT:
            _send_event(writer, {"error": {"message": "scripted", "type": "server_error", "code": "overloaded"}})
            writer.write(b"0\r\n\r\n")
            return True
        if fault is Fault.STALL_STREAM:
            await reader.read()  # until the caller goes
            seen.cancelled = True
            return False
        if fault is Fault.BAD_FRAMING:
            writer.write(b"zz\r\nnonsense\r\n")
            await writer.drain()
            return False
        writer.write(b'40\r\ndata: {"choices": [{"del')  # CUT: fewer bytes than the chunk announced
        await writer.drain()
        return False

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "id": "cmpl-1",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }


_BEFORE_ANSWER = frozenset(
    (Fault.RESET, Fault.STALL, Fault.HUGE_HEADER, Fault.SLOW_HEADER, Fault.RATE_LIMIT, Fault.SERVER_ERROR)
)
_IN_STREAM = frozenset((Fault.CUT, Fault.STALL_STREAM, Fault.MALFORMED_CHUNK, Fault.BAD_FRAMING, Fault.ERROR_EVENT))
_USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
_EMBEDDING = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 0.125]}


def _send_json(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any], *, extra: str = "", short: bool = False
) -> None:
    raw = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\nx-request-id: req-1\r\n{extra}"
    length = len(raw) + (50 if short else 0)
    writer.write(f"{head}content-length: {length}\r\n\r\n".encode() + raw)


def _send_event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    _send_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def _send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
