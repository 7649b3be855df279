"""Kept answers and guardrails as the official client meets them, through a real worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.gateway.conftest import KEY, RunningGateway, target
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import Route
from tidemill.kernel.routing_policy import CacheMode, CachePolicy, RoutePolicy

ASK: Any = [{"role": "user", "content": "What is a tide mill?"}]
SAID = "Hello from the script."
MAIL = "anna.meyer@example.com"
TOKEN = "sk-live8fJ3kQ9zLmN2pR7tVwXyB4cD"
Start = Callable[..., RunningGateway]


def desk(upstream: ScriptedUpstream, start: Start, **policy: Any) -> RunningGateway:
    policy.setdefault("cache", CachePolicy(mode=CacheMode.EXACT))
    return start(Route("desk", "default", (target(upstream.url),), policy=RoutePolicy(**policy)))


def client_of(gateway: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0)


def streamed(client: openai.OpenAI, messages: Any = ASK, **more: Any) -> str:
    with client.chat.completions.create(model="desk", messages=messages, stream=True, temperature=0, **more) as stream:
        return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


@pytest.mark.parametrize("first_streams", [False, True])
def test_an_answer_is_given_again_in_both_forms_and_traced(
    start: Start, upstream: ScriptedUpstream, first_streams: bool
) -> None:
    gateway = desk(upstream, start)
    with client_of(gateway) as client:
        if first_streams:
            assert streamed(client) == SAID
        else:
            client.chat.completions.create(model="desk", messages=ASK, temperature=0)
        again = client.chat.completions.with_raw_response.create(model="desk", messages=ASK, temperature=0)
        assert again.parse().choices[0].message.content == SAID
        assert again.headers["x-tidemill-cache"] == "hit"
        assert streamed(client) == SAID
        client.chat.completions.create(
            model="desk", messages=ASK, temperature=0, extra_headers={"cache-control": "no-store"}
        )
    assert len(upstream.seen) == 2
    spans = gateway.records().requests()
    assert [span.attributes.get("tidemill.cache") for span in spans] == [None, "hit", "hit", None]
    assert spans[1].attributes["tidemill.cached_trace_id"] == spans[0].trace_id
    assert not spans[1].cost_usd
    assert all(span.status == "ok" for span in spans)


def test_users_and_temperatures_are_kept_apart(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = desk(upstream, start)
    with client_of(gateway) as client:
        for user in ("anna", "ben", "anna"):
            client.chat.completions.create(model="desk", messages=ASK, temperature=0, user=user)
        for _ in range(2):
            client.chat.completions.create(model="desk", messages=ASK, temperature=0.7)
    assert len(upstream.seen) == 4


def test_personal_data_is_masked_both_ways_and_the_masked_answer_is_kept(
    start: Start, upstream: ScriptedUpstream
) -> None:
    upstream.words = ("Write ", "to anna.", "meyer@exam", "ple.com", " today.")
    gateway = desk(upstream, start, guardrails=("pii",))
    ask = [{"role": "user", "content": f"I am {MAIL}"}]
    with client_of(gateway) as client:
        for _ in range(2):
            assert streamed(client, ask) == "Write to <email> today."
        whole = client.chat.completions.create(model="desk", messages=ask, temperature=0)  # type: ignore[arg-type]
        assert whole.choices[0].message.content == "Write to <email> today."
    assert len(upstream.seen) == 1
    assert MAIL.encode() not in upstream.seen[0].body
    spans = gateway.records().requests()
    assert [span.attributes["tidemill.guardrail.pii"] for span in spans] == ["rewritten"] * 3


def test_a_credential_stops_the_request_and_the_answer(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = desk(upstream, start, guardrails=("credentials",))
    with client_of(gateway) as client:
        with pytest.raises(openai.BadRequestError, match="credentials"):
            client.chat.completions.create(
                model="desk", messages=[{"role": "user", "content": f"use {TOKEN}"}], temperature=0
            )
        assert upstream.seen == []
        upstream.words = ("The key is ", TOKEN[:9], TOKEN[9:20], TOKEN[20:], ", keep it.")
        with pytest.raises(openai.BadRequestError, match="credentials"):
            client.chat.completions.create(model="desk", messages=ASK, temperature=0)
        with pytest.raises(openai.APIError, match="credentials"):
            assert TOKEN[:6] not in streamed(client)
    assert len(upstream.seen) == 2  # nothing blocked was kept
    spans = gateway.records().requests()
    assert [span.error_type for span in spans] == ["guardrail_blocked"] * 3
    stages = [span.attributes["tidemill.guardrail.credentials.stage"] for span in spans]
    assert stages == ["before", "after", "stream"]
