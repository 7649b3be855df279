"""The OpenAI-compatible face of an application: chat completions, models, health."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tidemill.kernel import InvalidInput, UserError
from tidemill.models.transport import UpstreamError
from tidemill.serving.answers import AppAnswer
from tidemill.serving.application import Application
from tidemill.serving.spans import read_traceparent

# Faults of the request itself: they pass to the client as the model server gave them.
_PASSED_ON: Final = frozenset({400, 413, 422, 429})
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_NO_CACHE: Final = {"cache-control": "no-cache"}


class Loading:
    """The application of one process, while it is being loaded and afterwards.

    Args:
        load: opens what is needed and returns the application.
        release: digest that ``/health`` reports.
        close: lets go of what ``load`` opened; called once, when the server ends.
    """

    def __init__(
        self, load: Callable[[], Awaitable[Application]], release: str, close: Callable[[], Awaitable[None]]
    ) -> None:
        self.release = release
        self.close = close
        self.application: Application | None = None
        self.failure: BaseException | None = None
        self._load = load

    async def run(self) -> None:
        """Load, and keep either the application or what went wrong."""
        try:
            self.application = await self._load()
        except Exception as error:  # noqa: BLE001 - whoever started the process raises it again
            self.failure = error


def create_app(
    loading: Loading, *, hosts: frozenset[str] = frozenset(), on_failure: Callable[[], None] | None = None
) -> Starlette:
    """Make the ASGI application of a release.

    Args:
        loading: what is served; it is loaded when the server starts, and until then every call answers 503.
        hosts: names that requests may address it by, besides loopback ones; ``*`` allows all.
        on_failure: called when loading failed.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async def load() -> None:
            await loading.run()
            if loading.failure is not None and on_failure is not None:
                on_failure()

        task = asyncio.create_task(load())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await loading.close()

    def ready(answer: Callable[[Application, Request], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            host = request.headers.get("host", "").rsplit(":", 1)[0]
            if not {host, "*"} & (hosts | _LOOPBACK):
                # A page of another site reaches loopback listeners under a foreign Host.
                message = f"requests for host '{host}' are not served here"
                return JSONResponse(_error(403, "invalid_request_error", message), status_code=403)
            if loading.application is None:
                return _not_ready(loading)
            return await answer(loading.application, request)

        return handle

    async def health(_application: Application, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "release": loading.release})

    async def models(application: Application, _request: Request) -> Response:
        model = {"id": application.chat_model, "object": "model", "created": 0, "owned_by": "tidemill"}
        return JSONResponse({"object": "list", "data": [{**model, "release": loading.release}]})

    routes = [
        Route("/v1/chat/completions", ready(_chat), methods=["POST"]),
        Route("/v1/models", ready(models), methods=["GET"]),
        Route("/health", ready(health), methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _chat(application: Application, request: Request) -> Response:
    trace = read_traceparent(request.headers.get("traceparent"))
    headers = {"x-tidemill-trace-id": trace.trace_id, "x-tidemill-release": application.release.digest}
    try:
        body = _body(await request.body())
        identity = {"id": f"chatcmpl-{trace.trace_id}", "created": int(time.time()), "model": body.get("model") or ""}
        if not body.get("stream"):
            answer = await application.answer(body["messages"], traceparent=trace)
            return JSONResponse(_completion(answer, identity), headers=headers)
        parts = application.stream(body["messages"], traceparent=trace)
        # The first piece decides between an error status and a stream.
        events = _events(await anext(parts), parts, identity)
        return StreamingResponse(events, media_type="text/event-stream", headers={**headers, **_NO_CACHE})
    except UpstreamError as error:
        status, document = _upstream_error(error)
        return JSONResponse(document, status_code=status, headers=headers)
    except InvalidInput as error:
        return JSONResponse(_error(400, "invalid_request_error", str(error)), status_code=400, headers=headers)
    except UserError as error:  # something else is in the way, e.g. no space for the segment log
        return JSONResponse(_error(503, "unavailable", str(error)), status_code=503, headers=headers)
    except ClientDisconnect:
        return Response(status_code=499)


def _body(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise InvalidInput(f"the request is not JSON: {error}") from error
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise InvalidInput("the request needs 'messages': a list of objects with a role and content")
    assert isinstance(body, dict)
    return body


def _completion(answer: AppAnswer, identity: Mapping[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {
        **identity,
        "object": "chat.completion",
        "choices": [choice],
        "usage": answer.usage.as_openai(),
        "tidemill": answer.extension(),
    }


async def _events(
    first: str | AppAnswer, rest: AsyncGenerator[str | AppAnswer, None], identity: Mapping[str, Any]
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; the last chunk holds usage and the extension."""

    def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**identity, "object": "chat.completion.chunk", "choices": [choice], **more})

    async with aclosing(_chain(first, rest)) as parts:
        try:
            yield event({"role": "assistant", "content": ""})
            async for part in parts:
                if isinstance(part, str):
                    yield event({"content": part})
                else:
                    extension = part.extension()
                    yield event({}, part.finish_reason, usage=part.usage.as_openai(), tidemill=extension)
        except UpstreamError as error:
            # The status line is out already: the error travels as an event, and the closing mark stays away.
            yield _event(_upstream_error(error)[1])
            return
    yield b"data: [DONE]\n\n"


async def _chain(
    first: str | AppAnswer, rest: AsyncGenerator[str | AppAnswer, None]
) -> AsyncGenerator[str | AppAnswer, None]:
    # A client that went away cancels the generation: closing the inner iterator ends its spans.
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _upstream_error(error: UpstreamError) -> tuple[int, dict[str, Any]]:
    status = 504 if error.type == "timeout" else 502
    if error.status is not None and error.status in _PASSED_ON:
        status = error.status
    return status, _error(status, error.type, error.message)


def _error(status: int, kind: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _not_ready(loading: Loading) -> JSONResponse:
    message = f"the release {loading.release} is being loaded"
    if loading.failure is not None:
        message = f"the release {loading.release} could not be loaded: {loading.failure}"
    return JSONResponse(_error(503, "not_ready", message), status_code=503)
