"""A scripted model server, for tests of whatever asks a model: deterministic, offline, and quick.

``ScriptedModel`` stands in for ``ModelClient`` in process; ``ScriptedServer`` serves one on a real socket.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tidemill.models.transport import UpstreamError
from tidemill.retrieval import terms

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Messages = Sequence[Mapping[str, Any]]


def hash_embeddings(texts: Sequence[str], dimension: int = 64) -> np.ndarray:
    """Embed texts by hashing their words: texts that share words lie near each other.

    Args:
        texts: any texts.
        dimension: length of the vectors.

    Returns:
        float32 of shape (texts, dimension), L2-normalised; a text without words is the first unit vector.
    """
    vectors = np.zeros((len(texts), dimension), np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in terms(text):
            drawn = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
            row[drawn % dimension] += 1.0 if drawn >> 63 else -1.0
        if not row.any():
            row[0] = 1.0
    normalised: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def echo(messages: Messages) -> str:
    """The default script: the first line of the last message."""
    return str(messages[-1]["content"]).split("\n", 1)[0]


class ScriptedModel:
    """A model that says what a function tells it to.

    Args:
        script: messages to answer.
        delay_s: how long each call takes.
        failures: raised one by one by the first calls.
        cut_after: break a stream off after so many pieces.

    Every request is kept in ``requests``, its headers in ``headers``.
    """

    def __init__(
        self,
        script: Callable[[Messages], str] = echo,
        *,
        delay_s: float = 0.0,
        failures: Sequence[UpstreamError] = (),
        cut_after: int | None = None,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.embedded: list[str] = []
        self.cancelled = 0
        self._script = script
        self._delay_s = delay_s
        self._failures = list(failures)
        self._cut_after = cut_after

    async def chat(self, request: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The whole answer."""
        text = await self._answer(request, headers)
        message = {"role": "assistant", "content": text}
        return {
            **_identity(request, "chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _usage(request, text),
        }

    async def stream(
        self, request: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The answer word by word, then its usage if asked for."""
        text = await self._answer(request, headers)
        identity = _identity(request, "chat.completion.chunk")
        try:
            for number, piece in enumerate(_pieces(text)):
                if number == self._cut_after:
                    raise UpstreamError(None, "truncated", "the stream ended before [DONE]", retryable=True)
                yield {**identity, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
                await asyncio.sleep(self._delay_s)
            yield {**identity, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            if (request.get("stream_options") or {}).get("include_usage"):
                yield {**identity, "choices": [], "usage": _usage(request, text)}
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise

    async def embed(self, texts: Sequence[str], model: str) -> np.ndarray:
        """Hash embeddings; the model's name is not looked at."""
        del model
        self.embedded.extend(texts)
        return hash_embeddings(texts)

    async def _answer(self, request: Mapping[str, Any], headers: Mapping[str, str] | None) -> str:
        self.requests.append(dict(request))
        self.headers.append(dict(headers or {}))
        await asyncio.sleep(self._delay_s)
        if self._failures:
            raise self._failures.pop(0)
        return self._script(request["messages"])


class ScriptedServer:
    """Serves a scripted model as an OpenAI-compatible server on a free loopback port. A context manager.

    Args:
        model: what it serves.
    """

    def __init__(self, model: ScriptedModel | None = None) -> None:
        self.model = model or ScriptedModel()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        import uvicorn

        config = uvicorn.Config(
            _scripted_app(self.model), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()


def _scripted_app(model: ScriptedModel) -> Starlette:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        body = await request.json()
        headers = dict(request.headers)
        try:
            if not body.get("stream"):
                return JSONResponse(await model.chat(body, headers))
            chunks = model.stream(body, headers)
            first = await anext(chunks)
        except UpstreamError as error:
            document = {"error": {"message": error.message, "type": error.type}}
            return JSONResponse(document, status_code=error.status or 500)
        return StreamingResponse(_lines(first, chunks), media_type="text/event-stream")

    async def embeddings(request: Request) -> Response:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = await model.embed(texts, body["model"])
        coded = body.get("encoding_format") == "base64"
        data = [
            {"index": at, "embedding": base64.b64encode(row.tobytes()).decode() if coded else row.tolist()}
            for at, row in enumerate(vectors)
        ]
        return JSONResponse({"object": "list", "model": body["model"], "data": data})

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
    ]
    return Starlette(routes=routes)


async def _lines(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        yield _line(first)
        async for chunk in rest:
            yield _line(chunk)
    except UpstreamError:
        # Ends without the closing mark, as a server does that breaks off.
        return
    yield b"data: [DONE]\n\n"


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _identity(request: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "object": kind, "created": 0, "model": request.get("model", "")}


def _pieces(text: str) -> list[str]:
    words = text.split(" ")
    return [word if at == 0 else f" {word}" for at, word in enumerate(words)]


def _usage(request: Mapping[str, Any], text: str) -> dict[str, int]:
    read = sum(len(str(message["content"]).split()) for message in request["messages"])
    written = len(text.split())
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
