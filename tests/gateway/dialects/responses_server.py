"""The Responses dialect behind a real socket, in front of a scripted model: what the official client is pointed at.

It does with the dialect what the gateway's exchange does, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from tidemill.gateway.answers import Refusal, full_answer
from tidemill.gateway.conversations import Conversations
from tidemill.gateway.conversations.pages import ConversationPages
from tidemill.gateway.dialects.responses import ResponsesDialect, check_metadata
from tidemill.gateway.dialects.responses_items import read_items
from tidemill.kernel import Overflow
from tidemill.ledger.conversations import ConversationScope

#: What the model answers to a chat request: a whole answer, or the chunks of a stream.
Model = Callable[[dict[str, Any]], dict[str, Any] | list[dict[str, Any] | bytes]]

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def answer(message: dict[str, Any] | str, finish_reason: str = "stop", **choice: Any) -> dict[str, Any]:
    """A whole chat answer."""
    if isinstance(message, str):
        message = {"role": "assistant", "content": message}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "scripted-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, **choice}],
        "usage": USAGE,
    }


def chunks(*deltas: dict[str, Any], finish_reason: str = "stop") -> list[dict[str, Any] | bytes]:
    """A whole chat stream."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "scripted-1"}
    made: list[dict[str, Any] | bytes] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    made.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    made.append({**head, "choices": [], "usage": USAGE})
    return [*made, b"data: [DONE]\n\n"]


def call(call_id: str, name: str, arguments: str, index: int | None = None) -> dict[str, Any]:
    """A tool call of a chat."""
    made = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return made if index is None else {"index": index, **made}


class ResponsesServer:
    """Serves ``/v1/responses`` and the pages of kept things, in a thread of its own.

    Args:
        model: the scripted model.
        conversations: the store, if there is one.
        split: stream bytes reach the dialect in pieces of this size.
    """

    def __init__(self, model: Model, conversations: Conversations | None = None, *, split: int = 1 << 20) -> None:
        self.model = model
        self.conversations = conversations
        self.split = split
        self.context_tokens: int | None = None
        self.overflow = Overflow.PASS
        self.chats: list[dict[str, Any]] = []
        self.port = 0
        self._pages = ConversationPages(conversations, read_items=read_items, read_metadata=check_metadata)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def __enter__(self) -> ResponsesServer:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 26)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports close their sockets in the loop's next turns
        if self.conversations is not None:
            await self.conversations.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head[1:] if b": " in line)
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        method, target, _ = head[0].split(b" ")
        key = headers.get(b"authorization", b"bearer none").partition(b" ")[2].decode()
        scope = ConversationScope("demo", "default", key)
        try:
            if target == b"/v1/responses" and method == b"POST":
                await self._respond(body, scope, writer)
            else:
                writer.write(full_answer(200, await self._pages.answer(method, target, body, scope)))
        except Refusal as refusal:
            writer.write(full_answer(refusal.status, refusal.body()))
        await writer.drain()

    async def _respond(self, body: bytes, scope: ConversationScope, writer: asyncio.StreamWriter) -> None:
        dialect = ResponsesDialect(self.conversations, scope)
        dialect.request(body)
        pivot = await dialect.prepare(context_tokens=self.context_tokens, overflow=self.overflow, ask=self._ask)
        said = self._said(pivot)
        if isinstance(said, dict):
            if "error" in said:
                writer.write(full_answer(429, dialect.error(429, json.dumps(said).encode())))
                return
            writer.write(full_answer(200, await dialect.keep(dialect.answer(json.dumps(said).encode()))))
            return
        raw = b"".join(one if isinstance(one, bytes) else b"data: %b\n\n" % json.dumps(one).encode() for one in said)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        stream = dialect.stream()
        for start in range(0, len(raw), self.split):
            _write_chunk(writer, stream.feed(raw[start : start + self.split]))
        _write_chunk(writer, await dialect.keep(stream.finish()))
        writer.write(b"0\r\n\r\n")

    def _said(self, pivot: bytes) -> dict[str, Any] | list[dict[str, Any] | bytes]:
        chat = json.loads(pivot)
        self.chats.append(chat)
        return self.model(chat)

    async def _ask(self, pivot: bytes) -> bytes:
        return json.dumps(self._said(pivot)).encode()


def _write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    if data:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
