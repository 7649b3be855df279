"""Clients of every kind, over raw sockets, that judge each answer as they get it."""

from __future__ import annotations

import json
import random
import secrets
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

STATUSES = frozenset((200, 400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504))
MAIL = "anna.meyer@example.com"
PATIENCE_S = 60.0
CHAT = "/v1/chat/completions"
#: What an upstream says under Fault.SLOW_HEADER: an answer in good order that says nothing.
EMPTY = b"{}"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
#: What a stream's last words are when it went well, and what says that it did not.
ENDS = {
    CHAT: (b"data: [DONE]\n\n", b'"error"'),
    "/v1/messages": (b"message_stop", b"event: error"),
    "/v1/responses": (b"response.completed", b"response.failed"),
}


class Cut(Exception):
    """The connection ended inside an answer, or before it."""


@dataclass
class Diary:
    """What all clients saw.

    Args:
        asked, statuses, spent_s: by kind; by kind and status; seconds by kind.
        cut: when connections ended early: from the question to the end, monotonic.
        whole: trace ids of answers that came whole, with the status.
        wrong: sentences about what must never happen.
    """

    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    spent_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    broken_streams: int = 0
    hits: int = 0
    cut: list[tuple[float, float, str]] = field(default_factory=list)
    whole: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Diary) -> None:
        self.asked += other.asked
        self.statuses += other.statuses
        for kind, spent_s in other.spent_s.items():
            self.spent_s[kind] += spent_s
        self.broken_streams += other.broken_streams
        self.hits += other.hits
        self.cut += other.cut
        self.whole |= other.whole
        self.wrong += other.wrong


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


class Line:
    """One connection."""

    def __init__(self, port: int, *, receive_bytes: int | None = None, pause_s: float = 0.0) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self.pause_s = pause_s
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = headers.get("content-length")
        body = self._exactly(int(length)) if length is not None else self._chunks()
        return Answer(int(head[0].split()[1]), headers, body)

    def fill(self) -> None:
        if self.pause_s:
            time.sleep(self.pause_s)
        data = self.socket.recv(65536)
        if not data:
            raise Cut
        self._buffer += data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self.fill()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self.fill()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _chunks(self) -> bytes:
        pieces = []
        while size := int(self._until(b"\r\n"), 16):
            pieces.append(self._exactly(size))
            self._exactly(2)
        self._exactly(2)
        return b"".join(pieces)


class Caller:
    """One client: asks until told to stop, in turns of every kind.

    Args:
        port: the gateway's.
        tenant, key: who asks.
        seed: of its choices.
    """

    def __init__(self, port: int, tenant: str, key: str, seed: int) -> None:
        self.diary = Diary()
        self.tenant = tenant
        self.responses: list[str] = []
        self.foreign: list[str] = []  # response ids of another tenant, put here by the test
        self._port, self._key = port, key
        self._random = random.Random(seed)
        self._line: Line | None = None
        self._kinds: dict[str, Callable[[], None]] = {
            "whole": lambda: self._chat(stream=False),
            "stream": lambda: self._chat(stream=True),
            "tools": lambda: self._chat(stream=True, tools=[TOOL]),
            "same": lambda: self._chat(
                stream=self._random.random() < 0.5, text=f"Question {self._random.randrange(4)}"
            ),
            "guarded": lambda: self._chat(stream=True, model="guarded", text=f"I am {MAIL}."),
            "embeddings": self._embeddings,
            "messages": lambda: self._messages(stream=False),
            "messages stream": lambda: self._messages(stream=True),
            "responses": lambda: self._responses(stream=False),
            "responses stream": lambda: self._responses(stream=True),
            "another's response": self._another,
            "broken JSON": lambda: self._refused(self._raw(CHAT, b'{"model": "desk", "messages": [}'), {400}),
            "wrong types": lambda: self._refused(self._post(CHAT, {"model": 7, "messages": "x"}), {400}),
            "unknown model": lambda: self._refused(self._post(CHAT, {"model": "no", "messages": []}), {404}),
            "wrong key": lambda: self._refused(self._post(CHAT, {"model": "desk"}, key="tm_nobody"), {401}),
            "unknown page": lambda: self._refused(self._post("/v1/nothing", {}), {404}),
            "models": lambda: self._refused(self._raw("/v1/models", b"", method="GET"), {200}),
            "leaves": self._leave,
            "resets": lambda: self._leave(reset=True),
            "reads slowly": self._slow,
            "pipelines": self._pipeline,
        }

    def run(self, stop: threading.Event) -> None:
        """Ask until ``stop``."""
        names = list(self._kinds)
        while not stop.is_set():
            kind = self._random.choice(names)
            self.diary.asked[kind] += 1
            begun = time.monotonic()
            try:
                self._kinds[kind]()
            except TimeoutError:
                self._hang_up()
                self.diary.wrong.append(f"{kind}: no answer in {PATIENCE_S:g} s")
            except (Cut, ConnectionError):
                self._hang_up()
                self.diary.cut.append((begun, time.monotonic(), kind))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                self._hang_up()
                self.diary.wrong.append(f"{kind}: an answer that cannot be read: {error!r}")
            self.diary.spent_s[kind] += time.monotonic() - begun
        self._hang_up()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.socket.close()
            self._line = None

    @contextmanager
    def _new_line(self, **more: Any) -> Iterator[Line]:
        line = Line(self._port, **more)
        try:
            yield line
        finally:
            line.socket.close()

    def _raw(self, path: str, body: bytes, *, method: str = "POST", key: str | None = None) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key or self._key}\r\n"
        trace = f"traceparent: 00-{secrets.token_hex(16)}-{'1' * 16}-01\r\n"
        return f"{head}{trace}content-length: {len(body)}\r\n\r\n".encode() + body

    def _post(self, path: str, body: Any, *, key: str | None = None) -> bytes:
        return self._raw(path, json.dumps(body).encode(), key=key)

    def _ask(self, request: bytes, kind: str) -> Answer:
        """On a connection that lasts while both sides like it; a fresh one now and then."""
        if self._line is not None and self._random.random() < 0.2:
            self._hang_up()
        kept = self._line is not None
        if self._line is None:
            self._line = Line(self._port)
        try:
            self._line.send(request)
            answer = self._line.answer()
        except (Cut, ConnectionError):
            self._hang_up()
            if not kept:
                raise
            return self._ask(request.replace(b"traceparent: 00-", b"x-second-try: 00-", 1), kind)
        if answer.headers.get("connection") == "close":
            self._hang_up()
        self._judge(answer, kind)
        return answer

    def _judge(self, answer: Answer, kind: str) -> None:
        diary = self.diary
        diary.statuses[kind, answer.status] += 1
        trace_id = answer.headers.get("x-tidemill-trace-id")
        if trace_id is not None:
            if trace_id in diary.whole:
                diary.wrong.append(f"{kind}: trace id {trace_id} a second time")
            diary.whole[trace_id] = answer.status
        diary.hits += answer.headers.get("x-tidemill-cache") == "hit"
        if answer.status not in STATUSES:
            diary.wrong.append(f"{kind}: status {answer.status}: {answer.body[:200]!r}")
        if answer.status != 200 and not is_error(answer.body, anthropic=kind.startswith("messages")):
            diary.wrong.append(f"{kind}: status {answer.status} with {answer.body[:300]!r}")

    def _says(self, text: str, kind: str) -> None:
        """Every word must come from one target, of the caller's tenant."""
        words = set(text.split())
        if len(words) > 1 or not all(word.startswith(f"{self.tenant}-") for word in words):
            self.diary.wrong.append(f"{kind}: {self.tenant} was told {sorted(words)}")

    def _stream_says(self, answer: Answer, path: str, kind: str) -> None:
        good, bad = ENDS[path]
        ended, failed = good in answer.body[-4096:], bad in answer.body
        if ended == failed:
            self.diary.wrong.append(f"{kind}: ended={ended}, failed={failed}: {answer.body[-300:]!r}")
        self.diary.broken_streams += failed
        self._says(stream_text(answer.body, path), kind)

    def _chat(self, *, stream: bool, model: str = "desk", text: str | None = None, **more: Any) -> None:
        kind = model if text else "stream" if stream else "whole"
        content = text or secrets.token_hex(8)
        body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream, "temperature": 0}
        answer = self._ask(self._post(CHAT, {**body, "max_tokens": 20, **more}), kind)
        if answer.status == 200 and stream and answer.streamed:
            self._stream_says(answer, CHAT, kind)
        elif answer.status == 200 and answer.body != EMPTY:
            self._says(json.loads(answer.body)["choices"][0]["message"]["content"], kind)

    def _again(self) -> None:
        """What all tenants ask in the same words."""
        self._chat(stream=self._random.random() < 0.5, text=f"Question {self._random.randrange(4)}")

    def _embeddings(self) -> None:
        # Long enough that what the scripted upstream says it used is within the bound that was reserved.
        body = {"model": "desk", "input": secrets.token_hex(64)}
        answer = self._ask(self._post("/v1/embeddings", body), "embeddings")
        if answer.status == 200 and answer.body != EMPTY and not json.loads(answer.body)["data"]:
            self.diary.wrong.append("embeddings: nothing")

    def _messages(self, *, stream: bool) -> None:
        content = [{"role": "user", "content": secrets.token_hex(8)}]
        body = {"model": "desk", "max_tokens": 20, "messages": content, "stream": stream}
        answer = self._ask(self._post("/v1/messages", body), "messages")
        if answer.status == 200 and stream:
            self._stream_says(answer, "/v1/messages", "messages")
        elif answer.status == 200:
            self._says(json.loads(answer.body)["content"][0]["text"], "messages")

    def _responses(self, *, stream: bool) -> None:
        body: dict[str, Any] = {"model": "desk", "input": secrets.token_hex(8), "stream": stream}
        if self.responses and self._random.random() < 0.5:
            body["previous_response_id"] = self._random.choice(self.responses[-20:])
        answer = self._ask(self._post("/v1/responses", body), "responses")
        if answer.status == 200 and stream:
            self._stream_says(answer, "/v1/responses", "responses")
        elif answer.status == 200:
            said = json.loads(answer.body)
            self._says(said["output"][-1]["content"][0]["text"], "responses")
            self.responses.append(said["id"])

    def _another(self) -> None:
        if not self.foreign:
            return
        chosen = self._random.choice(self.foreign[-20:])
        self._refused(self._raw(f"/v1/responses/{chosen}", b"", method="GET"), {404})
        body = {"model": "desk", "input": "Go on.", "previous_response_id": chosen}
        self._refused(self._post("/v1/responses", body), {400, 404, 429})

    def _refused(self, request: bytes, expected: set[int]) -> None:
        answer = self._ask(request, "refused")
        if answer.status not in expected:
            self.diary.wrong.append(f"{request[:60]!r}: {answer.status} {answer.body[:200]!r}")

    def _leave(self, *, reset: bool = False) -> None:
        """Go away before the answer, or inside it."""
        with self._new_line() as line:
            body = {"model": "desk", "messages": [{"role": "user", "content": secrets.token_hex(8)}], "stream": True}
            line.send(self._post(CHAT, body | {"max_tokens": 20}))
            if self._random.random() < 0.7:
                line.fill()
            if reset:
                line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _slow(self) -> None:
        with self._new_line(receive_bytes=8192, pause_s=0.002) as line:
            body = {"model": "bulk", "messages": [{"role": "user", "content": secrets.token_hex(8)}], "stream": True}
            line.send(self._post(CHAT, body))
            answer = line.answer()
            self._judge(answer, "bulk")
            if answer.status == 200 and answer.streamed:
                self._stream_says(answer, CHAT, "bulk")

    def _pipeline(self) -> None:
        with self._new_line() as line:
            body = {"model": "desk", "messages": [{"role": "user", "content": "Pipelined"}], "max_tokens": 20}
            line.send(self._post(CHAT, body) + self._raw("/v1/models", b"", method="GET") + self._post(CHAT, body))
            for kind in ("desk", "models", "desk"):
                answer = line.answer()
                self._judge(answer, kind)
                if answer.status == 200 and answer.body != EMPTY and (b'"choices"' in answer.body) != (kind == "desk"):
                    self.diary.wrong.append(f"pipelining: {kind} got {answer.body[:200]!r}")
                if answer.headers.get("connection") == "close":
                    return


def is_error(body: bytes, *, anthropic: bool) -> bool:
    """Whether a body is an error in OpenAI's shape, or Anthropic's."""
    try:
        said = json.loads(body)
        error = said["error"]
        message, kind = error["message"], error["type"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(message) and bool(kind) and (said.get("type") == "error" if anthropic else True)


def stream_text(body: bytes, path: str) -> str:
    """What a stream said."""
    found = []
    for line in body.splitlines():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if path == CHAT:
            found += [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
        elif event.get("type") == "content_block_delta":
            found.append(event["delta"].get("text", ""))
        elif event.get("type") == "response.output_text.delta":
            found.append(event["delta"])
    return "".join(found)
