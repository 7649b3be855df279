"""Vectors from an OpenAI-compatible ``/v1/embeddings``, over the worker's own upstream connections."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tidemill.gateway.upstream import Address, AnswerHead, Failure, UpstreamConnection, UpstreamPool, Waits
from tidemill.kernel import InvalidInput, Unavailable

_BODY_MOST: Final = 1 << 20
_encode: Final = msgspec.json.encode


class _Vector(msgspec.Struct, gc=False):
    embedding: list[float]


class _Answer(msgspec.Struct, gc=False):
    data: list[_Vector]


_answer: Final = msgspec.json.Decoder(_Answer)


class PooledEmbedder:
    """An ``Embed`` for ``SimilarAnswers``: asks a server for one text's vector.

    Args:
        pool: the worker's connections.
        url: base URL with its version, e.g. ``http://127.0.0.1:8420/v1``.
        model: the embedding model's name there.
        api_key: of the server, if it wants one.
        timeout_s: to connect, for the first byte, and between bytes.

    Raises:
        InvalidInput: the URL or the key cannot be used.
    """

    def __init__(
        self, pool: UpstreamPool, *, url: str, model: str, api_key: str | None = None, timeout_s: float = 5.0
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidInput("the key of the embedding model is not one line of ASCII text")
        self.pool = pool
        self.address = Address.parse(url)
        self.waits = Waits(timeout_s, timeout_s, timeout_s)
        self._model = model
        authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {self.address.base_path}/embeddings HTTP/1.1\r\nhost: {self.address.host_header}\r\n"
            f"{authorization}content-type: application/json\r\naccept: application/json\r\ncontent-length: "
        ).encode()

    async def __call__(self, text: str) -> list[float]:
        """The vector of a text.

        Raises:
            Unavailable: no answer, or one that is no vector.
        """
        body = _encode({"model": self._model, "input": text, "encoding_format": "float"})
        fetch = _Fetch(self, self._head + b"%d\r\n\r\n" % len(body), body)
        fetch.start()
        try:
            answered = await fetch.answer
        finally:
            fetch.stop()
        try:
            return _answer.decode(answered).data[0].embedding
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            raise Unavailable(f"The embedding model gave no vector: {error}") from error


class _Fetch:
    """One call: a sink that gathers the answer, tried once more where a kept connection had just been closed."""

    def __init__(self, embedder: PooledEmbedder, head: bytes, body: bytes) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._embedder = embedder
        self._head = head
        self._body = body
        self._pieces: list[bytes] = []
        self._size = 0
        self._status = 0
        self._retried = False
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take a kept connection, or open one."""
        embedder = self._embedder
        connection = None if self._retried else embedder.pool.take_idle(embedder.address)
        if connection is None:
            self._connecting = embedder.pool.connect(embedder.address, self, embedder.waits)
        else:
            self._send(connection)

    def stop(self) -> None:
        """Nobody waits any more."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.stop()
            self._connection = None

    def on_connected(self, connection: UpstreamConnection) -> None:
        """Send over a new connection."""
        self._connecting = None
        if self.answer.done():
            self._embedder.pool.give_back(connection)
        else:
            self._send(connection)

    def on_head(self, status: int, headers: AnswerHead) -> None:  # noqa: ARG002 - the sink's interface
        """Note the status."""
        self._status = status

    def on_data(self, data: bytes) -> None:
        """Gather the body."""
        self._size += len(data)
        if self._size > _BODY_MOST:
            self.stop()
            self._fail("its answer is too long")
        else:
            self._pieces.append(data)

    def on_done(self) -> None:
        """Hand over the answer."""
        self._connection = None
        if self._status != 200:
            self._fail(f"status {self._status}")
        elif not self.answer.done():
            self.answer.set_result(b"".join(self._pieces))

    def on_fault(self, error: Exception) -> None:
        """The answer could not be taken."""
        if not self.answer.done():
            self.answer.set_exception(Unavailable(f"The embedding model's answer cannot be read: {error!r}"))

    def on_failure(self, failure: Failure) -> None:
        """Try once more where nothing was lost."""
        connection, self._connection, self._connecting = self._connection, None, None
        if connection is not None and not connection.fresh and failure.untouched and not self._retried:
            self._retried = True
            self.start()
        else:
            self._fail(failure.detail)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        connection.start(self, self._head, self._body, self._embedder.waits)

    def _fail(self, why: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(Unavailable(f"The embedding model does not answer: {why}"))
