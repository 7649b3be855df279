"""Raw sockets and a subprocess worker, for tests below the level of HTTP clients."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.gateway.conftest import KEY


def post(body: Any, *, path: str = "/v1/chat/completions", headers: str = "", key: str = KEY) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n{headers}"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def ask(*, stream: bool = False, **more: Any) -> bytes:
    headers = more.pop("headers", "")
    return post({"model": "desk", "messages": [], "stream": stream, **more}, headers=headers)


class Wire:
    """A client connection that reads whole answers."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def fill(self) -> bool:
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer, by length or by chunks."""
        while b"\r\n\r\n" not in self.buffer:
            assert self.fill(), f"closed before an answer: {self.buffer!r}"
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        found = re.search(rb"content-length: (\d+)", head)
        if found is None:
            return status, self._chunks()
        length = int(found[1])
        while len(self.buffer) < length:
            assert self.fill()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return status, body

    def _chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self.buffer:
                assert self.fill()
            size_line, _, self.buffer = self.buffer.partition(b"\r\n")
            size = int(size_line, 16)
            while len(self.buffer) < size + 2:
                assert self.fill()
            piece, self.buffer = self.buffer[:size], self.buffer[size + 2 :]
            if not size:
                return body
            body += piece

    def closed(self) -> bool:
        """Whether the server ends the connection, reading to its end."""
        try:
            while self.fill():
                pass
        except ConnectionError:
            pass
        return True


def spawn_worker(folder: Path, listener: socket.socket, name: str) -> subprocess.Popen[str]:
    """A worker process that inherits the listening socket, as under the supervisor."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tidemill.gateway", "--fd", str(listener.fileno()), "--project", "demo",
            "--snapshot", str(folder / "routing.json"), "--segments", str(folder / "segments"), "--worker", name,
        ],
        pass_fds=(listener.fileno(),),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    return process
