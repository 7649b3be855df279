"""The HTTP face of the runtime: OpenAI's routes over the chat engine and the embedder.

Chat and completion requests are passed to the engine's listener byte for byte once their model is known; embeddings
are computed here, one batch at a time, so that a query does not wait for somebody's thousand documents.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tidemill.models.embedder import Embedding, LocalEmbedder
from tidemill.models.runtime.engine import ChatEngine

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
_MAX_BODY_BYTES: Final = 8 << 20
_MAX_TEXTS: Final = 2048
_ENGINE_TIMEOUT_S: Final = 600.0


class RequestRefused(Exception):
    """A request that is answered with an OpenAI-style error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": "invalid_request_error", "param": param, "code": code},
        }


def create_app(
    *, chat: ChatEngine | None, embedder: tuple[str, LocalEmbedder] | None, hosts: frozenset[str] = frozenset()
) -> Starlette:
    """Make the ASGI application.

    Args:
        chat: the engine of the chat model, if one is served.
        embedder: the embedding model's name and its embedder, if one is served.
        hosts: names that requests may address it by, besides loopback ones; ``*`` allows all.
    """
    runtime = _Runtime(chat, embedder, hosts | _LOOPBACK)
    routes = [
        Route("/health", runtime.guarded(runtime.health), methods=["GET"]),
        Route("/v1/models", runtime.guarded(runtime.models), methods=["GET"]),
        Route("/v1/chat/completions", runtime.guarded(runtime.chat), methods=["POST"]),
        Route("/v1/completions", runtime.guarded(runtime.completions), methods=["POST"]),
        Route("/v1/embeddings", runtime.guarded(runtime.embeddings), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=runtime.lifespan, exception_handlers={HTTPException: _no_such_route})


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(RequestRefused(error.status_code, message).body, error.status_code)


_Handler = Callable[[Request], Awaitable[Response]]


class _Runtime:
    def __init__(
        self, chat: ChatEngine | None, embedder: tuple[str, LocalEmbedder] | None, hosts: frozenset[str]
    ) -> None:
        self._chat = chat
        self._embedder = embedder
        self._hosts = hosts
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._client = httpx2.AsyncClient(
            base_url=chat.url if chat else "",
            headers={"authorization": f"Bearer {chat.api_key}"} if chat else {},
            timeout=httpx2.Timeout(_ENGINE_TIMEOUT_S, connect=5.0),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._client.aclose()
            self._worker.shutdown(wait=False, cancel_futures=True)

    def guarded(self, handler: _Handler) -> _Handler:
        """Refuse pages of other sites: a browser sends them here under a foreign Host or Origin."""

        async def handle(request: Request) -> Response:
            try:
                host = request.headers.get("host", "").rsplit(":", 1)[0]
                if "*" not in self._hosts and (host not in self._hosts or "origin" in request.headers):
                    raise RequestRefused(403, f"requests for host '{host}' or from web pages are not served here")
                return await handler(request)
            except RequestRefused as refusal:
                return JSONResponse(refusal.body, refusal.status)

        return handle

    async def health(self, _: Request) -> Response:
        if self._chat is not None:
            try:
                answer = await self._client.get("/health", timeout=5.0)
            except httpx2.HTTPError as error:
                return JSONResponse({"status": "error", "reason": f"chat engine: {error}"}, 503)
            if answer.status_code != 200:
                return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ok", "models": self._names()})

    async def models(self, _: Request) -> Response:
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "tidemill"} for name in self._names()]
        return JSONResponse({"object": "list", "data": rows})

    async def chat(self, request: Request) -> Response:
        raw, body = await _json_body(request)
        self._check_model(body, self._chat.options.name if self._chat else None)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise RequestRefused(400, "'messages' must be a list with at least one message", param="messages")
        return await self._pass_on(request, raw, body)

    async def completions(self, request: Request) -> Response:
        raw, body = await _json_body(request)
        self._check_model(body, self._chat.options.name if self._chat else None)
        if "prompt" not in body:
            raise RequestRefused(400, "'prompt' is required", param="prompt")
        return await self._pass_on(request, raw, body)

    async def embeddings(self, request: Request) -> Response:
        _, body = await _json_body(request)
        name, embedder = self._embedder or (None, None)
        self._check_model(body, name)
        assert embedder is not None
        texts = _texts(body)
        if body.get("dimensions") not in (None, embedder.dimensions):
            message = f"'{name}' gives vectors of {embedder.dimensions} dimensions and no other"
            raise RequestRefused(400, message, param="dimensions")
        form = body.get("encoding_format", "float")
        if form not in ("float", "base64"):
            raise RequestRefused(400, "'encoding_format' must be float or base64", param="encoding_format")
        embedding = await self._embed(embedder, texts)
        rows = [
            {"object": "embedding", "index": at, "embedding": _encoded(vector, form)}
            for at, vector in enumerate(embedding.vectors)
        ]
        usage = {"prompt_tokens": embedding.tokens, "total_tokens": embedding.tokens}
        return JSONResponse({"object": "list", "data": rows, "model": name, "usage": usage})

    async def _embed(self, embedder: LocalEmbedder, texts: Sequence[str]) -> Embedding:
        loop = asyncio.get_running_loop()
        batches = await loop.run_in_executor(self._worker, embedder.batches, texts)
        vectors = np.zeros((len(texts), embedder.dimensions), np.float32)
        for batch in batches:
            vectors[batch.places] = await loop.run_in_executor(self._worker, embedder.run, batch)
        return Embedding(vectors, sum(batch.tokens for batch in batches))

    def _names(self) -> list[str]:
        chat = [self._chat.options.name] if self._chat else []
        return chat + ([self._embedder[0]] if self._embedder else [])

    def _check_model(self, body: Mapping[str, Any], served: str | None) -> None:
        asked = body.get("model")
        if not isinstance(asked, str):
            raise RequestRefused(400, "you must name a 'model'", param="model")
        if asked != served:
            message = f"The model '{asked}' does not exist here for this route; it serves {served or 'none'}."
            raise RequestRefused(404, message, param="model", code="model_not_found")

    async def _pass_on(self, request: Request, raw: bytes, body: Mapping[str, Any]) -> Response:
        """Send the request to the engine; when the client goes away, so does the request, and its slot is freed."""
        outgoing = self._client.build_request(
            "POST", request.url.path, content=raw, headers={"content-type": "application/json"}
        )
        sending = asyncio.ensure_future(self._client.send(outgoing, stream=bool(body.get("stream"))))
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                return Response(status_code=499)  # nobody reads it
            answer = sending.result()
        except httpx2.HTTPError as error:
            engine = {"message": f"chat engine: {error!r}", "type": "server_error", "param": None, "code": None}
            return JSONResponse({"error": engine}, 502)
        finally:
            leaving.cancel()
            sending.cancel()
        kind = answer.headers.get("content-type", "application/json")
        if answer.is_stream_consumed:
            return Response(answer.content, answer.status_code, media_type=kind)
        return StreamingResponse(_relayed(answer), answer.status_code, media_type=kind)


async def _relayed(answer: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for data in answer.aiter_raw():
            yield data
    except httpx2.HTTPError as error:
        # The status is sent: an error event, and no [DONE], is what is left to say it with.
        event = {"error": {"message": f"chat engine: {error!r}", "type": "server_error", "code": 502}}
        yield b"data: " + json.dumps(event).encode() + b"\n\n"
    finally:
        await answer.aclose()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _json_body(request: Request) -> tuple[bytes, dict[str, Any]]:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > _MAX_BODY_BYTES:
            raise RequestRefused(413, f"the request is longer than {_MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    raw = b"".join(chunks)
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RequestRefused(400, f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestRefused(400, "the request must be a JSON object")
    return raw, body


def _texts(body: Mapping[str, Any]) -> list[str]:
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RequestRefused(400, "'input' must be a text or a list of texts that is not empty", param="input")
    if len(texts) > _MAX_TEXTS:
        raise RequestRefused(400, f"'input' holds {len(texts)} texts; at most {_MAX_TEXTS} are taken", param="input")
    return texts


def _encoded(vector: np.ndarray, form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
