"""The HTTP client for any model server: the local runtime, a gateway, a hosted provider.

Callers speak OpenAI's format to all of them. A server that speaks it too gets a request's JSON as given, and its
answer's JSON comes back as given; for any other its dialect (``models.providers``) translates both. Every failure is
one ``UpstreamError`` that says whether trying again, here or elsewhere, can help. It never retries by itself: whoever
holds the deadline decides.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from tidemill.kernel import InvalidInput, Unavailable

if TYPE_CHECKING:
    import httpx2
    import numpy as np

    from tidemill.models.providers import Credentials, Dialect, StreamTranslator

Embed: TypeAlias = "Callable[[Sequence[str]], np.ndarray]"
"""Texts to unit vectors: ``(n, dimensions)`` float32, one row a text, in order."""

_RETRYABLE: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_EMBED_BATCH: Final = 128
_CONNECT_TIMEOUT_S: Final = 5.0
_OPENAI: Final = "openai"
_NO_OPTIONS: Final[Mapping[str, str]] = MappingProxyType({})
_PATHS: Final[Mapping[str, str]] = {"chat": "/chat/completions", "embeddings": "/embeddings"}
#: type of an error inside a stream -> the status it would have had before it; any other is the server's failure
_STATUSES: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
}


class UpstreamError(Unavailable):
    """A model server could not be reached, refused the request or broke off.

    Args:
        status: the HTTP status, or ``None`` when no answer came.
        type: the server's own error type (``invalid_request_error``), or ours: ``connection``, ``timeout``,
            ``truncated``, ``malformed``.
        message: what the server said, one line.
        retryable: whether the same request may succeed later or elsewhere.
    """

    def __init__(self, status: int | None, type: str, message: str, *, retryable: bool) -> None:  # noqa: A002 - the field's name in every OpenAI-style error body
        super().__init__(message)
        self.status = status
        self.type = type
        self.retryable = retryable


class ModelClient:
    """Asynchronous client of one base URL; connections are kept and shared by concurrent calls.

    Args:
        base_url: up to and including the version, e.g. ``http://127.0.0.1:8431/v1``.
        api_key: the server's key; a bearer token where it speaks OpenAI's format.
        dialect: what the server speaks, a word of ``models.providers.DIALECTS``.
        credentials: secrets, for a provider that takes more than a key; they replace ``api_key``.
        options: the dialect's own, e.g. ``region`` or ``api_version``.
        timeout_s: longest wait for an answer's next byte; connecting takes at most five seconds of it.
        max_connections: calls beyond so many wait for a free connection.

    Raises:
        NotFound: there is no such dialect.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        dialect: str = _OPENAI,
        credentials: Credentials | None = None,
        options: Mapping[str, str] = _NO_OPTIONS,
        timeout_s: float = 60.0,
        max_connections: int = 100,
    ) -> None:
        import httpx2

        self.base_url = base_url.rstrip("/")
        self._provider = None
        if dialect != _OPENAI:
            self._provider = _provider(self.base_url, dialect, credentials, api_key, options)
        elif credentials is not None:
            api_key = credentials.api_key
        self._timeout_s = timeout_s
        self._client = httpx2.AsyncClient(
            headers=_headers(api_key) if self._provider is None else {},
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
            limits=httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            trust_env=False,  # a proxy variable of the shell must not see loopback traffic
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the kept connections."""
        await self._client.aclose()

    async def chat(self, request: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Ask for a chat completion and return the whole answer's JSON.

        Args:
            request: OpenAI's chat request.
            headers: sent besides those the server needs.

        Raises:
            UpstreamError: no answer, an error status, or an answer that is not a JSON object.
            UnsupportedField: the provider has no place for a field of the request.
        """
        return await self._post("chat", {**request, "stream": False}, headers)

    async def models(self) -> list[str]:
        """The model names the server offers.

        Raises:
            UpstreamError: no answer, an error status, or an answer of another shape.
            UnsupportedOperation: the server does not speak OpenAI's format.
        """
        import httpx2

        if self._provider is not None:
            from tidemill.models.providers import UnsupportedOperation

            raise UnsupportedOperation("models", self._provider.dialect.name)
        try:
            response = await self._client.get(self.base_url + "/models")
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        body = _body(response.status_code, response.content)
        return [str(model["id"]) for model in body.get("data", [])]

    async def stream(
        self, request: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Ask for a streamed chat completion and yield each chunk's JSON as it comes.

        Close the iterator early to cancel the generation: the connection is closed with it.

        Args:
            request: OpenAI's chat request.
            headers: sent besides those the server needs.

        Raises:
            UpstreamError: no answer, an error status, an error in the stream, bytes that are no stream of this server
                (type ``malformed``), or a stream that ends before its closing ``[DONE]`` (type ``truncated``).
            UnsupportedField: the provider has no place for a field of the request.
        """
        import httpx2

        call = self._call("chat", {**request, "stream": True}, headers)
        translator, decoder = self._translator(call), EventDecoder()
        try:
            async with self._client.stream("POST", call.url, content=call.body, headers=call.headers) as response:
                if response.status_code >= 400:
                    raise self._refused(response.status_code, await response.aread())
                async for data in response.aiter_bytes():
                    for event in decoder.feed(translator.feed(data)):
                        if event == "[DONE]":
                            return
                        yield _chunk(event)
                for event in decoder.feed(translator.finish()):
                    if event == "[DONE]":
                        return
                    yield _chunk(event)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        except InvalidInput as error:
            raise UpstreamError(200, "malformed", error.message, retryable=True) from error
        raise UpstreamError(None, "truncated", f"{call.url}: the stream ended before [DONE]", retryable=True)

    async def embed(self, texts: Sequence[str], model: str) -> np.ndarray:
        """Embed texts.

        Returns:
            float32 of shape ``(len(texts), dimensions)``, every row of length 1 (L2), in the order of ``texts``;
            ``(0, 0)`` for no texts.

        Raises:
            UpstreamError: no answer, an error status, or vectors missing from the answer.
            UnsupportedOperation: the provider embeds nothing.
        """
        batches = []
        for at in range(0, len(texts), _EMBED_BATCH):
            batch = list(texts[at : at + _EMBED_BATCH])
            body = await self._post("embeddings", _embed_request(batch, model), None)
            batches.append(_vectors(body, len(batch)))
        return _stack(batches)

    async def _post(
        self, operation: str, request: Mapping[str, Any], headers: Mapping[str, str] | None
    ) -> dict[str, Any]:
        import httpx2

        call = self._call(operation, request, headers)
        try:
            response = await self._client.post(call.url, content=call.body, headers=call.headers)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        status, content = response.status_code, response.content
        if status >= 400:
            raise self._refused(status, content)
        if self._provider is not None:
            try:
                content = self._provider.dialect.answer(operation, content, model=call.model, now_s=time())
            except InvalidInput as error:
                raise UpstreamError(status, "malformed", error.message, retryable=True) from error
        return _body(status, content)

    def _call(self, operation: str, request: Mapping[str, Any], headers: Mapping[str, str] | None) -> _Call:
        pivot = json.dumps(request, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        model = str(request.get("model", ""))
        if self._provider is None:
            own = {"content-type": "application/json", **(headers or {})}
            return _Call(self.base_url + _PATHS[operation], own, pivot, pivot, model)
        return self._provider.call(operation, pivot, model, headers or {})

    def _translator(self, call: _Call) -> StreamTranslator:
        if self._provider is None:
            return _Unchanged()
        return self._provider.dialect.stream("chat", call.pivot, model=call.model, now_s=time())

    def _refused(self, status: int, content: bytes) -> UpstreamError:
        if self._provider is not None:
            status, content = self._provider.dialect.error(status, content)
        return error_of(status, content)

    def _unreachable(self, error: httpx2.HTTPError) -> UpstreamError:
        return _unreachable(self.base_url, self._timeout_s, error)


@dataclass(frozen=True, slots=True)
class _Call:
    """One request as it is sent, with the pivot request that it says."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    pivot: bytes
    model: str


@dataclass(frozen=True, slots=True)
class _Provider:
    """A server that speaks another format than OpenAI's."""

    dialect: Dialect
    origin: str  # scheme and host
    host: str
    base_path: str
    credentials: Credentials
    options: Mapping[str, str]

    def call(self, operation: str, pivot: bytes, model: str, headers: Mapping[str, str]) -> _Call:
        from tidemill.models.providers import Place

        place = Place(self.base_path, self.host, model, self.options)
        sent = self.dialect.request(operation, pivot, place, self.credentials, now_s=time())
        return _Call(self.origin + sent.path, {**headers, **dict(sent.headers)}, sent.body, pivot, model)


def _provider(
    base_url: str, word: str, credentials: Credentials | None, api_key: str | None, options: Mapping[str, str]
) -> _Provider:
    import httpx2

    from tidemill.models.providers import Credentials as Secrets
    from tidemill.models.providers import dialect

    url = httpx2.URL(base_url)
    host = url.netloc.decode()
    secrets = Secrets(api_key) if credentials is None else credentials
    return _Provider(dialect(word), f"{url.scheme}://{host}", host, url.path.rstrip("/"), secrets, options)


class _Unchanged:
    """The stream of a server that speaks OpenAI's format."""

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class EventDecoder:
    """Splits a stream of server-sent events into their data.

    Works on bytes and breaks lines at CR and LF alone: breaking at every Unicode separator, as ``str.splitlines``
    does, would cut an event whose JSON holds U+2028.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; return the data of each event that they complete."""
        text = self._rest + data
        # A CR at the very end may be half of a CRLF: it waits for the next bytes.
        held = b"\r" if text.endswith(b"\r") else b""
        text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *events, rest = text.split(b"\n\n")
        self._rest = rest + held
        return [data for data in map(_event_data, events) if data is not None]


def _event_data(event: bytes) -> str | None:
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines).decode("utf-8", "replace") if lines else None


def error_of(status: int, content: bytes) -> UpstreamError:
    """Read an error answer of any OpenAI-compatible server, or of a proxy before it."""
    kind, message = "http_error", ""
    try:
        error = json.loads(content)
        error = error.get("error", error) if isinstance(error, dict) else error
        if isinstance(error, dict):
            kind = str(error.get("type") or kind)
            message = str(error.get("message") or error.get("detail") or "")
        else:
            message = str(error)
    except ValueError:
        message = content[:300].decode("utf-8", "replace").strip()
    return UpstreamError(status, kind, message or f"HTTP status {status}", retryable=status in _RETRYABLE)


def _headers(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _unreachable(base_url: str, timeout_s: float, error: httpx2.HTTPError) -> UpstreamError:
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        message = f"{base_url} did not answer within {timeout_s:g} s"
        return UpstreamError(None, "timeout", message, retryable=True)
    return UpstreamError(None, "connection", f"{base_url}: {error or type(error).__name__}", retryable=True)


def _body(status: int, content: bytes) -> dict[str, Any]:
    if status >= 400:
        raise error_of(status, content)
    try:
        body = json.loads(content)
    except ValueError as error:
        raise UpstreamError(status, "malformed", f"the answer is not JSON: {error}", retryable=True) from error
    if not isinstance(body, dict):
        raise UpstreamError(status, "malformed", "the answer is not a JSON object", retryable=True)
    return body


def _chunk(event: str) -> dict[str, Any]:
    chunk = _body(200, event.encode())
    if "error" in chunk:
        error = chunk["error"] if isinstance(chunk["error"], dict) else {}
        code = error.get("code")
        status = code if isinstance(code, int) and code >= 400 else _STATUSES.get(str(error.get("type")), 502)
        raise error_of(status, event.encode())
    return chunk


def _embed_request(texts: list[str], model: str) -> dict[str, Any]:
    return {"model": model, "input": texts, "encoding_format": "base64"}


def _vectors(body: Mapping[str, Any], count: int) -> np.ndarray:
    import numpy as np

    try:
        rows = sorted(body["data"], key=lambda row: row["index"])
        vectors = np.stack([_vector(row["embedding"]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise UpstreamError(200, "malformed", f"the embeddings cannot be read: {error!r}", retryable=False) from error
    if len(vectors) != count:
        message = f"{count} texts were sent and {len(vectors)} embeddings came back"
        raise UpstreamError(200, "malformed", message, retryable=False)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def _vector(embedding: str | list[float]) -> np.ndarray:
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)


def _stack(batches: list[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)
