"""``/v1/messages/count_tokens`` of a running worker: Anthropic's own client, and errors below ``/v1/messages``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from tests.gateway.conftest import KEY, RunningGateway, snapshot_of, target
from tests.gateway.dialects.answering import Answer, Asked, answering
from tests.gateway.dialects.test_messages import TIDES
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import ApiKey, Route, key_digest

Start = Callable[..., RunningGateway]
ASKED: dict[str, Any] = {
    "model": "desk",
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "When is high water at Brest?"}],
    "tools": [TIDES],
}


def client_of(gateway: RunningGateway, key: str = KEY) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway.url.removesuffix("/v1"), api_key=key, max_retries=0, timeout=60)


def counting(asked: Asked) -> Answer:
    """Anthropic's API, as far as these tests go."""
    assert asked.headers["x-api-key"] == "key-of-the-target"
    if b"overload" in asked.body:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return 529, "application/json", [json.dumps(error).encode()]
    if b"nonsense" in asked.body:
        return 200, "application/json", [b'{"tokens": "many"}']
    return 200, "application/json", [b'{"input_tokens": 421}']


def test_anthropic_counts_where_it_is_the_target(start: Start, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("key-of-the-target")
    with answering(counting) as place:
        release = target(
            f"{place.url}/v1", dialect="anthropic", model="claude-sonnet-4-6", api_key_ref=f"file:{secret}"
        )
        gateway = start(Route(endpoint="desk", tenant="default", releases=(release,)))
        with client_of(gateway) as client:
            count = client.messages.count_tokens(**ASKED, thinking={"type": "enabled", "budget_tokens": 2048})
            assert count.to_dict() == {"input_tokens": 421}
            with pytest.raises(anthropic.InternalServerError, match="Overloaded") as overloaded:
                client.messages.count_tokens(**{**ASKED, "system": "overload"})
            with pytest.raises(anthropic.InternalServerError) as nonsense:
                client.messages.count_tokens(**{**ASKED, "system": "nonsense"})
    first = json.loads(place.asked[0].body)
    assert place.asked[0].path == "/v1/messages/count_tokens"
    assert first.keys() == {"model", "messages", "system", "tools", "thinking", "output_config"}
    assert (first["model"], first["tools"]) == ("claude-sonnet-4-6", [TIDES])
    assert overloaded.value.body["type"] == nonsense.value.body["type"] == "error"  # type: ignore[index]  # a JSON object
    spans = gateway.records().requests()
    assert [(span.operation, span.status) for span in spans] == [
        ("count_tokens", "ok"),
        ("count_tokens", "error"),
        ("count_tokens", "error"),
    ]
    assert spans[0].output_tokens in (None, 0)


def test_elsewhere_the_gateway_estimates_and_says_so(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)))
    with client_of(gateway) as client:
        count = client.messages.count_tokens(**ASKED)
        assert count.to_dict() == {"input_tokens": count.input_tokens, "tidemill": {"estimated": True}}
        longer = client.messages.count_tokens(
            model="desk", messages=[{"role": "user", "content": "word " * 1000}], system="Be brief."
        )
    assert 40 < count.input_tokens < 200
    assert 1200 < longer.input_tokens < 1350
    assert upstream.seen == []
    assert gateway.records().spans == []


def test_a_mixed_release_is_estimated(start: Start, upstream: ScriptedUpstream) -> None:
    one, other = target(upstream.url), target(upstream.url, dialect="anthropic")
    release = replace(one, targets=(other.targets[0], one.targets[0]))
    gateway = start(Route(endpoint="desk", tenant="default", releases=(release,)))
    with client_of(gateway) as client:
        assert client.messages.count_tokens(**ASKED).to_dict()["tidemill"] == {"estimated": True}
    assert upstream.seen == []


def test_refusals_of_a_count(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)))
    keys = tuple(ApiKey(key_digest(name), name, "default", operations=(name,)) for name in ("chat", "embeddings"))
    gateway.route(replace(snapshot_of(*gateway.gateway.snapshots.table.snapshot.routes, epoch=2), keys=keys))
    with client_of(gateway, "chat") as client:
        assert client.messages.count_tokens(**ASKED).input_tokens
        with pytest.raises(anthropic.BadRequestError, match="'max_tokens' cannot be served"):
            client.messages.count_tokens(**ASKED, extra_body={"max_tokens": 5})
        with pytest.raises(anthropic.BadRequestError, match="'messages' must hold at least one"):
            client.messages.count_tokens(**{**ASKED, "messages": []})
        with pytest.raises(anthropic.NotFoundError, match="no model 'nobody'"):
            client.messages.count_tokens(**{**ASKED, "model": "nobody"})
    with client_of(gateway, "embeddings") as client, pytest.raises(anthropic.PermissionDeniedError, match="'chat'"):
        client.messages.count_tokens(**ASKED)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/v1/messages/count_tokens", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("POST", "/v1/messages/count_tokens?beta=true", 400, "invalid_request_error"),
        ("POST", "/v1/messages", 400, "invalid_request_error"),
    ],
)
def test_errors_below_messages_are_anthropics(
    gateway: RunningGateway, method: str, path: str, status: int, kind: str
) -> None:
    url = gateway.url.removesuffix("/v1") + path
    answer = httpx2.request(method, url, headers={"x-api-key": KEY}, content=b"{" if method == "POST" else b"")
    assert answer.status_code == status
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
