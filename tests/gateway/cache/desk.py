"""A route with a cache, a clock that is set, and answers to keep."""

from __future__ import annotations

import json
from typing import Any

from tidemill.gateway.cache import AnswerCache, AnswerStore, CacheCall, CacheKey
from tidemill.gateway.usage import Usage
from tidemill.kernel import ReleaseRoute, Route, Target
from tidemill.kernel.routing_policy import CacheMode, CachePolicy, RoutePolicy

RELEASE_1 = "sha256:" + "1" * 64
RELEASE_2 = "sha256:" + "2" * 64


class Time:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def route(endpoint: str = "desk", tenant: str = "acme", model: str = "m", **policy: Any) -> Route:
    settings = CachePolicy(**{"mode": CacheMode.EXACT, **policy})
    releases = tuple(
        ReleaseRoute(release, "release/desk@1", (Target("http://127.0.0.1:1/v1", model=model),))
        for release in (RELEASE_1, RELEASE_2)
    )
    return Route(endpoint, tenant, releases, policy=RoutePolicy(cache=settings))


def cache(where: Route | None = None, *, project: str = "demo", guardrails: str = "g", **parts: Any) -> AnswerCache:
    parts.setdefault("store", AnswerStore())
    parts.setdefault("now", Time())
    return AnswerCache(where or route(), project=project, guardrails=guardrails, **parts)


def body(text: str = "how?", **more: Any) -> bytes:
    return json.dumps({"model": "desk", "messages": [{"role": "user", "content": text}], **more}).encode()


def call(text: str = "how?", **more: Any) -> CacheCall:
    """A call with temperature 0; names of ``CacheCall``'s fields go there and into the body alike."""
    header = more.pop("cache_control", None)
    release, key_name = more.pop("release", RELEASE_1), more.pop("key_name", "key")
    operation = more.pop("operation", "chat")
    more.setdefault("temperature", 0)
    usage = bool(more.get("stream_options"))
    return CacheCall(
        operation,
        release,
        key_name,
        body(text, **more),
        more.get("stream"),
        more.get("user"),
        more["temperature"],
        usage,
        more.get("n", 1),
        header,
    )


def answer(text: str = "so.", reason: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
    return json.dumps(
        {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


def keep(where: AnswerCache, key: CacheKey | None, given: bytes | None = None, **more: Any) -> bool:
    assert key is not None
    facts: dict[str, Any] = {
        "status": 200,
        "streamed": False,
        "finish_reasons": ("stop",),
        "trace_id": "t1",
        "usage": Usage(3, 4),
        **more,
    }
    return where.keep(key, body=answer() if given is None else given, **facts)
