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
    DRIP_HEADER = "drip_header"  # the head comes in pieces and never ends
    HUGE_HEADER = "huge_header"  # a head that never ends, and fast
    WRONG_LENGTH = "wrong_length"  # fewer bytes than announced
    RATE_LIMIT = "rate_limit"  # 429 with Retry-After
    SERVER_ERROR = "server_error"  # 500 in OpenAI's shape
    BAD_REQUEST = "bad_request"  # 400 in OpenAI's shape
    NOT_JSON = "not_json"  # a whole answer that is no JSON
    ERROR_BODY = "error_body"  # an error inside a whole answer with status 200
    EMPTY_STREAM = "empty_stream"  # a stream of nothing but [DONE]
    CUT_OPENING = "cut_opening"  # a stream that breaks after the role, before it says anything
    STALL_OPENING = "stall_opening"  # a stream that goes silent there
    MALFORMED_OPENING = "malformed_opening"  # an event that is not JSON there
    ERROR_OPENING = "error_opening"  # an error inside a 200 stream there
    RATE_LIMIT_OPENING = "rate_limit_opening"  # a 429 as an event there
    CUT = "cut"  # a stream that breaks inside an event
    STALL_STREAM = "stall_stream"  # a stream that goes silent
    MALFORMED_CHUNK = "malformed_chunk"  # an event that is not JSON
    BAD_FRAMING = "bad_framing"  # a chunk size that is no number
    ERROR_EVENT = "error_event"  # an error inside a 200 stream
    RATE_LIMIT_EVENT = "rate_limit_event"  # a 429 as an event
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
        usage_event: whether a stream that is asked for usage tells it in an event of its own, as OpenAI does.
        by_model: what answers to a request for a model suffer from, before all others.
    """

    words: tuple[str, ...] = ("Hello", " from", " the", " script", ".")
    model: str = "scripted-1"
    extension: dict[str, Any] | None = None
    chunk_pause_s: float = 0.0
    delay_s: float = 0.0
    usage: bool = True
    usage_event: bool = False
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    by_model: dict[str, Fault] = field(default_factory=dict)
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
        body = json.loads(raw) if raw and "multipart" not in headers.get("content-type", "") else raw
        seen = Seen(head[0].split()[1], headers, body, number)
        self.seen.append(seen)
        fault = self.by_model.get(body["model"]) if isinstance(body, dict) and "model" in body else None
        if fault is None:
            fault = self.faults.popleft() if self.faults else self.always
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        try:
            if fault in _BEFORE_ANSWER:
                return await self._break_early(fault, reader, writer, seen)
            if isinstance(body, dict) and body.get("stream") and fault not in _WHOLE:
                return await self._stream(seen, fault, reader, writer)
            self._send_whole(seen, fault, writer)
            await writer.drain()
        except ConnectionError:
            seen.cancelled = True
            raise
        return fault not in {Fault.WRONG_LENGTH, Fault.DROP_IDLE}

    def _send_whole(self, seen: Seen, fault: Fault | None, writer: asyncio.StreamWriter) -> None:
        if fault is Fault.NOT_JSON:
            _send(writer, 200, b"<html>it works</html>")
        elif fault is Fault.ERROR_BODY:
            _send_json(writer, 200, _error("server_error", "overloaded"))
        elif seen.path.endswith("/embeddings"):
            _send_json(writer, 200, {"object": "list", "model": self.model, "data": [_EMBEDDING], "usage": _USAGE})
        elif seen.path.endswith("/moderations"):
            _send_json(writer, 200, {"id": "modr-1", "model": self.model, "results": [_MODERATION]})
        elif seen.path.endswith("/audio/transcriptions"):
            _send_json(writer, 200, {"text": "".join(self.words)})
        elif seen.path.endswith("/audio/speech"):
            _send(writer, 200, b"ID3" + bytes(range(256)) * 8, content_type="audio/mpeg")
        else:
            _send_json(writer, 200, self._whole(seen), short=fault is Fault.WRONG_LENGTH)

    async def _break_early(
        self, fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen
    ) -> bool:
        if fault is Fault.RESET:
            raw_socket = writer.get_extra_info("socket")
            raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault is Fault.STALL:
            await reader.read()  # until the caller gives up
            seen.cancelled = True
            return False
        if fault is Fault.DRIP_HEADER:
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while not reader.at_eof():
                writer.write(b"x-drip: 1\r\n")
                await writer.drain()
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.05)
            seen.cancelled = True
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
        status, kind = _STATUSES[fault] if fault is not None else (500, "overloaded")
        extra = "retry-after: 7\r\n" if status == 429 else ""
        _send_json(writer, status, _error(kind, kind), extra=extra)
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
        if fault in _AT_OPENING:
            if fault is not Fault.EMPTY_STREAM:
                _send_event(writer, self._event({"role": "assistant", "content": ""}))
                await writer.drain()
            return await self._break_stream(fault, seen, reader, writer)
        half = len(self.words) // 2
        for place, word in enumerate(self.words):
            if place == half and fault in _IN_STREAM:
                return await self._break_stream(fault, seen, reader, writer)
            _send_event(writer, self._event({"content": word}))
            await writer.drain()
            await asyncio.sleep(self.chunk_pause_s)
        if fault is not Fault.NO_DONE:
            last = self._event({}, "stop")
            apart = self.usage_event and bool((seen.body.get("stream_options") or {}).get("include_usage"))
            if self.usage and not apart:
                last["usage"] = _USAGE
            if self.extension is not None:
                last["tidemill"] = self.extension
            _send_event(writer, last)
            if self.usage and apart:
                _send_event(writer, {**last, "choices": [], "usage": _USAGE})
            _send_chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return fault is not Fault.DROP_IDLE

    async def _break_stream(
        self, fault: Fault | None, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        events = _BAD_EVENTS.get(fault) if fault is not None else None
        if events is not None:
            for event in events:
                _send_chunk(writer, b"data: %b\n\n" % event)
            writer.write(b"0\r\n\r\n")
            return True
        if fault in {Fault.STALL_STREAM, Fault.STALL_OPENING}:
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


_STATUSES = {
    Fault.RATE_LIMIT: (429, "rate_limit_exceeded"),
    Fault.SERVER_ERROR: (500, "overloaded"),
    Fault.BAD_REQUEST: (400, "context_length_exceeded"),
}
_BEFORE_ANSWER = frozenset(
    (Fault.RESET, Fault.STALL, Fault.HUGE_HEADER, Fault.SLOW_HEADER, Fault.DRIP_HEADER, *_STATUSES)
)
_BROKEN = (b'{"choices": [{"del', b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}', b"[DONE]")
_OVERLOADED = (b'{"error": {"message": "scripted", "type": "server_error", "param": null, "code": "overloaded"}}',)
_LIMITED = (b'{"error": {"message": "scripted", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}',)
_BAD_EVENTS = {
    Fault.EMPTY_STREAM: (b"[DONE]",),
    Fault.MALFORMED_CHUNK: _BROKEN,
    Fault.MALFORMED_OPENING: _BROKEN,
    Fault.ERROR_EVENT: _OVERLOADED,
    Fault.ERROR_OPENING: _OVERLOADED,
    Fault.RATE_LIMIT_EVENT: _LIMITED,
    Fault.RATE_LIMIT_OPENING: _LIMITED,
}
_WHOLE = frozenset((Fault.NOT_JSON, Fault.ERROR_BODY, Fault.WRONG_LENGTH))
_AT_OPENING = frozenset(
    (
        Fault.EMPTY_STREAM,
        Fault.CUT_OPENING,
        Fault.STALL_OPENING,
        Fault.MALFORMED_OPENING,
        Fault.ERROR_OPENING,
        Fault.RATE_LIMIT_OPENING,
    )
)
_IN_STREAM = frozenset(
    (
        Fault.CUT,
        Fault.STALL_STREAM,
        Fault.MALFORMED_CHUNK,
        Fault.BAD_FRAMING,
        Fault.ERROR_EVENT,
        Fault.RATE_LIMIT_EVENT,
    )
)
_USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
_EMBEDDING = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 0.125]}
_MODERATION = {"flagged": False, "categories": {}, "category_scores": {}}


def _error(kind: str, code: str) -> dict[str, Any]:
    return {"error": {"message": "scripted", "type": kind, "param": None, "code": code}}


def _send_json(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any], *, extra: str = "", short: bool = False
) -> None:
    _send(writer, status, json.dumps(body).encode(), extra=extra, short=short)


def _send(
    writer: asyncio.StreamWriter,
    status: int,
    raw: bytes,
    *,
    content_type: str = "application/json",
    extra: str = "",
    short: bool = False,
) -> None:
    head = f"HTTP/1.1 {status} Scripted\r\ncontent-type: {content_type}\r\nx-request-id: req-1\r\n{extra}"
    length = len(raw) + (50 if short else 0)
    writer.write(f"{head}content-length: {length}\r\n\r\n".encode() + raw)


def _send_event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    _send_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def _send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
