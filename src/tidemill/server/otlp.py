"""OTLP over HTTP on the control plane: ``/v1/traces``, ``/v1/logs`` and ``/v1/metrics``.

It stands before the REST API, not inside it: exporters get OTLP's answers, in the encoding they sent, and an export
passes none of the layers that are there for people.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tidemill.checks import may_hold_findings
from tidemill.kernel import InvalidInput, Prices, Unavailable, key_digest
from tidemill.loop.targets import provider_prices
from tidemill.safety import mask_pii, routing_keys
from tidemill.telemetry.otlp import (
    PACKINGS,
    Bounds,
    Busy,
    CapturePolicy,
    Decoder,
    Keys,
    Points,
    PriceOf,
    Receiver,
    SpanMapper,
    Taken,
    TooLarge,
)
from tidemill.telemetry.sealing import shared_secret
from tidemill.telemetry.segments import HASH_KEY_NAME

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tidemill.kernel.settings import Settings
    from tidemill.loop.project import Project
    from tidemill.telemetry.otlp.wire import Encoding, Signal

SCOPE: Final = "telemetry"
"""The operation that an API key must name to send telemetry; a key for everything does not do."""
PATHS: Final[dict[str, Signal]] = {"/v1/traces": "traces", "/v1/logs": "logs", "/v1/metrics": "metrics"}
ENCODINGS: Final[dict[str, Encoding]] = {"application/x-protobuf": "protobuf", "application/json": "json"}
_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_REJECTED: Final = {"traces": "rejectedSpans", "logs": "rejectedLogRecords", "metrics": "rejectedDataPoints"}
_BODY_WITHIN_S: Final = 60.0
_KEYS_FOR_S: Final = 5.0
_INLINE_BYTES: Final = 32 << 10
"""A larger body is looked into by a thread, so that others are answered meanwhile."""
_RETRY_AFTER_S: Final = 5


@dataclass(frozen=True, slots=True)
class Receiving:
    """What receives, and what decodes what was received; both know the same policy, prices and keys."""

    receiver: Receiver
    decoder: Decoder
    points: Points


def open_receiving(project: Project, waiting_bytes: Callable[[], int]) -> Receiving:
    """The receiving side of a project.

    Args:
        project: its settings say what is kept and taken.
        waiting_bytes: how much is written and not stored yet.
    """
    settings, places = project.settings, project.places
    asked, otlp = settings.telemetry, settings.telemetry.otlp
    policy = CapturePolicy(default=asked.capture, of=dict(asked.capture_of), bytes_most=asked.content_bytes_most)
    users = places.state / "gateway" / "user-hash.key"
    for folder in (places.segments, users.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = Keys(user=shared_secret(users), content=shared_secret(places.segments / HASH_KEY_NAME))

    def mapper() -> SpanMapper:
        return SpanMapper(
            settings.project,
            settings.tenant,
            keys=keys,
            policy=policy,
            mask=mask_pii,
            suspect=may_hold_findings,
            price_of=price_of(settings),
        )

    points = Points()
    receiver = Receiver(
        places.segments,
        project=settings.project,
        tenant=settings.tenant,
        policy=policy,
        mapper=mapper(),
        bounds=Bounds(
            request_bytes_most=otlp.request_bytes_most,
            backlog_bytes_most=otlp.backlog_bytes_most,
            group_commit_s=otlp.group_commit_s,
        ),
        waiting_bytes=waiting_bytes,
    )
    return Receiving(receiver, Decoder(mapper(), bytes_most=otlp.request_bytes_most, points=points), points)


def price_of(settings: Settings) -> PriceOf:
    """The project's prices by the name of a model in the catalogue or at its provider, and by day."""
    models = {one.upstream_model: one for one in settings.models.values() if one.upstream_model} | dict(settings.models)
    flat = {"input_usd_per_mtok", "output_usd_per_mtok"}

    def price(provider: str | None, model: str, at_ns: int) -> Prices | None:  # noqa: ARG001 - names are unique here
        own = models.get(model)
        if own is None:
            return None
        day: date = datetime.fromtimestamp(at_ns / 1e9, UTC).date()
        if any(row.since <= day for row in own.prices) or flat & own.model_fields_set:
            return provider_prices(own, {}, day)
        return None

    return price


class Senders:
    """Who may send: programs with the local token, and holders of an API key for telemetry.

    Args:
        project: its ledger keeps the keys.
        token: the local one.
    """

    def __init__(self, project: Project, token: str) -> None:
        self._project = project
        self._token = f"Bearer {token}".encode()
        self._digests: frozenset[str] = frozenset()
        self._read_s = -_KEYS_FOR_S

    def may_send(self, authorization: bytes) -> bool:
        """Whether this ``Authorization`` header lets its sender in. May read the ledger."""
        if hmac.compare_digest(authorization, self._token):
            return True
        if not authorization.startswith(b"Bearer tm-"):
            return False
        now_s = time.monotonic()
        if now_s - self._read_s >= _KEYS_FOR_S:
            tenant = self._project.settings.tenant
            keys = routing_keys(self._project.ledger, now_s=time.time())
            self._digests = frozenset(one.digest for one in keys if SCOPE in one.operations and one.tenant == tenant)
            self._read_s = now_s
        return key_digest(authorization.removeprefix(b"Bearer ").decode("latin-1")) in self._digests


class OtlpFront:
    """ASGI: answers OTLP's paths itself and hands everything else on.

    Args:
        app: what answers everything else.
        receiver: takes what comes.
        senders: who may send.
    """

    def __init__(self, app: ASGIApp, receiver: Receiver, senders: Senders) -> None:
        self._app = app
        self._receiver = receiver
        self._senders = senders

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        signal = PATHS.get(scope["path"]) if scope["type"] == "http" else None
        if signal is None:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        encoding = ENCODINGS.get(content_type, "json")
        try:
            await self._check(scope["method"], headers, content_type)
            taken = await self._take(signal, encoding, headers, receive)
        except _Refusal as refusal:
            await _answer(send, refusal.status, encoding, _problem(encoding, refusal.message), refusal.retry_after_s)
        except ClientGoneError:
            return
        else:
            await _answer(send, 200, encoding, _success(signal, encoding, taken))

    async def _check(self, method: str, headers: dict[bytes, bytes], content_type: str) -> None:
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0]
        if host not in _LOCAL or b"origin" in headers:
            raise _Refusal(403, "OTLP is taken from local programs only, not from pages in a browser.")
        authorization = headers.get(b"authorization", b"")
        if not await asyncio.to_thread(self._senders.may_send, authorization):
            raise _Refusal(401, f"Send the local token, or an API key whose operations name '{SCOPE}', as Bearer.")
        if method != "POST":
            raise _Refusal(405, "Exports are sent with POST.")
        if content_type not in ENCODINGS:
            self._receiver.note_invalid("wrong_content_type", content_type)
            raise _Refusal(415, f"The content type must be one of {', '.join(ENCODINGS)}; it is '{content_type}'.")

    async def _take(self, signal: Signal, encoding: Encoding, headers: dict[bytes, bytes], receive: Receive) -> Taken:
        packed = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        packing = PACKINGS.get(packed)
        if packing is None:
            self._receiver.note_invalid("wrong_content_encoding", packed)
            raise _Refusal(415, f"The content encoding '{packed}' is not understood; send gzip, deflate or none.")
        told = headers.get(b"content-length", b"0")
        size = int(told) if told.isdigit() else 0
        try:
            self._receiver.admit(size)
            try:
                body = await _body(receive, self._receiver.request_bytes_most)
                if len(body) > _INLINE_BYTES:
                    taken, written = await asyncio.to_thread(self._receiver.receive, signal, encoding, body, packing)
                else:
                    taken, written = self._receiver.receive(signal, encoding, body, packing)
                await asyncio.wrap_future(written)
            finally:
                self._receiver.release(size)
        except Busy as error:
            raise _Refusal(429, error.message, max(1, round(error.retry_after_s))) from error
        except Unavailable as error:
            raise _Refusal(503, str(error), _RETRY_AFTER_S) from error
        except TooLarge as error:
            raise _Refusal(413, str(error)) from error
        except InvalidInput as error:
            raise _Refusal(400, str(error)) from error
        return taken


class ClientGoneError(Exception):
    """The client has left before its request was complete."""


class _Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


async def _body(receive: Receive, bytes_most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > bytes_most:
                    raise TooLarge(f"The body is larger than {bytes_most} bytes.", hint="Send smaller batches.")
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as error:
        raise _Refusal(408, f"The body did not come within {_BODY_WITHIN_S:.0f} s.") from error


async def _answer(send: Send, status: int, encoding: str, body: bytes, retry_after_s: int | None = None) -> None:
    kind = b"application/x-protobuf" if encoding == "protobuf" else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _success(signal: Signal, encoding: Encoding, taken: Taken) -> bytes:
    if encoding == "protobuf":
        return success_message(taken)
    partial = {_REJECTED[signal]: str(taken.rejected), "errorMessage": taken.message}
    return msgspec.json.encode({"partialSuccess": partial} if taken.rejected else {})


def success_message(taken: Taken) -> bytes:
    """``ExportTraceServiceResponse`` or that of logs or metrics: their partial success has the same fields."""
    if not taken.rejected:
        return b""
    text = taken.message.encode()
    partial = b"\x08" + varint(taken.rejected) + b"\x12" + varint(len(text)) + text
    return b"\x0a" + varint(len(partial)) + partial


def _problem(encoding: str, message: str) -> bytes:
    """A ``google.rpc.Status`` with its message alone."""
    if encoding == "json":
        return msgspec.json.encode({"message": message})
    text = message.encode()
    return b"\x12" + varint(len(text)) + text


def varint(number: int) -> bytes:
    """A number in protobuf's variable length."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def mount_otlp(app: Any, receiver: Receiver, senders: Senders) -> None:
    """Put OTLP before a Starlette or FastAPI application."""
    app.add_middleware(OtlpFront, receiver=receiver, senders=senders)
