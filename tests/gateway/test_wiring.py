"""What the parts of the gateway do together, at a running worker."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.conftest import KEY, RELEASE_1, RunningGateway, snapshot_of
from tests.gateway.wire import Wire, ask
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import ApiKey, ReleaseRoute, Route, Target, key_digest
from tidemill.kernel.routing_policy import CacheMode, CachePolicy, Prices, Retries, RoutePolicy, Timeouts

ASK: Any = [{"role": "user", "content": "What is a tide mill?"}]
Start = Callable[..., RunningGateway]


def route_to(*targets: Target, **policy: Any) -> Route:
    release = ReleaseRoute(RELEASE_1, "release/desk@1", targets)
    return Route(endpoint="desk", tenant="default", releases=(release,), policy=RoutePolicy(**policy))


def client_of(gateway: RunningGateway, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url, api_key=key, max_retries=0, timeout=60)


def test_every_operation_is_served(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = start(route_to(Target(upstream.url, "provider-name")))
    with client_of(gateway) as client:
        assert not client.moderations.create(model="desk", input="a").results[0].flagged
        audio = ("speech.wav", io.BytesIO(b"RIFF" + bytes(200)))
        text = client.audio.transcriptions.create(model="desk", file=audio, language="en")
        assert text.text == "Hello from the script."
        spoken = client.audio.speech.create(model="desk", voice="alloy", input="Say it")
        assert spoken.content.startswith(b"ID3")
        assert len(spoken.content) == 2051
    moderated, transcribed, said = upstream.seen
    assert moderated.body["model"] == said.body["model"] == "provider-name"
    assert b"provider-name" in transcribed.body
    assert b'name="language"' in transcribed.body
    spans = gateway.records().requests()
    assert [span.operation for span in spans] == ["moderation", "transcription", "speech"]
    assert {span.status for span in spans} == {"ok"}


def test_fields_to_leave_out_are_left_out_at_any_dialect(start: Start, upstream: ScriptedUpstream) -> None:
    options = {"leave_out": "temperature, seed"}
    gateway = start(route_to(Target(upstream.url, "provider-name", options=options)))
    with client_of(gateway) as client:
        asked: dict[str, Any] = {"model": "desk", "messages": ASK, "temperature": 1, "top_p": 0.5, "seed": 3}
        client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    for seen in upstream.seen:
        assert seen.body.keys() - {"stream", "stream_options"} == {"model", "messages", "top_p"}
        assert seen.body["model"] == "provider-name"


@pytest.mark.parametrize("options", [{}, {"leave_out": "language"}])
@pytest.mark.parametrize("dialect", ["openai", "vllm"])
def test_a_form_names_the_targets_model(
    start: Start, upstream: ScriptedUpstream, dialect: str, options: dict[str, str]
) -> None:
    gateway = start(route_to(Target(upstream.url, "provider-name", dialect=dialect, options=options)))
    with client_of(gateway) as client:
        client.audio.transcriptions.create(model="desk", file=("speech.wav", b"RIFF" + bytes(200)))
    assert b"provider-name" in upstream.seen[0].body


def test_keys_have_scopes_and_an_end(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = start()
    route = route_to(Target(upstream.url))
    keys = (
        ApiKey(key_digest("tm_chat"), "chatter", "default", operations=("chat",)),
        ApiKey(key_digest("tm_other"), "other", "default", endpoints=("elsewhere",)),
        ApiKey(key_digest("tm_late"), "late", "default", expires_at=time.time() - 1),
        ApiKey(key_digest("tm_soon"), "soon", "default", expires_at=time.time() + 3600),
    )
    gateway.route(replace(snapshot_of(route), keys=keys))
    with client_of(gateway, "tm_chat") as client:
        client.chat.completions.create(model="desk", messages=ASK)
        with pytest.raises(openai.PermissionDeniedError, match="'embeddings', only for: chat"):
            client.embeddings.create(model="desk", input="a")
    with (
        client_of(gateway, "tm_other") as client,
        pytest.raises(openai.PermissionDeniedError, match="only: 'elsewhere'"),
    ):
        client.chat.completions.create(model="desk", messages=ASK)
    with client_of(gateway, "tm_late") as client, pytest.raises(openai.AuthenticationError, match="expired"):
        client.chat.completions.create(model="desk", messages=ASK)
    with client_of(gateway, "tm_soon") as client:
        client.chat.completions.create(model="desk", messages=ASK)
    assert len(upstream.seen) == 2


def test_a_revoked_key_stops(start: Start, upstream: ScriptedUpstream) -> None:
    route = route_to(Target(upstream.url))
    gateway = start(route)
    with Wire(gateway.port) as wire:
        wire.send(ask())
        assert wire.answer()[0] == 200
        gateway.route(replace(snapshot_of(route, epoch=2), keys=()))
        wire.send(ask())
        assert wire.answer()[0] == 401


def test_anthropic_clients_are_served_and_refused_in_their_own_words(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = start(route_to(Target(upstream.url), retries=Retries(max_attempts=1)))
    base = gateway.url.removesuffix("/v1")
    asked: Any = {"model": "desk", "max_tokens": 64, "messages": ASK}
    with anthropic.Anthropic(base_url=base, api_key=KEY, max_retries=0, timeout=60) as client:
        answer = client.messages.create(**asked)
        assert answer.content[0].text == "Hello from the script."
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == "Hello from the script."
        with pytest.raises(anthropic.NotFoundError, match="no model 'nobody'"):
            client.messages.create(**{**asked, "model": "nobody"})
        upstream.faults.append(Fault.RATE_LIMIT)
        with pytest.raises(anthropic.RateLimitError, match="scripted"):
            client.messages.create(**asked)
        upstream.faults.append(Fault.CUT)
        with pytest.raises(anthropic.APIError, match="broke off"), client.messages.stream(**asked) as stream:
            list(stream.text_stream)
    with (
        anthropic.Anthropic(base_url=base, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError, match="not known"),
    ):
        client.messages.create(**asked)
    spans = gateway.records().requests()
    assert [span.status for span in spans] == ["ok", "ok", "error", "truncated"]
    assert answer._request_id == spans[0].trace_id


def test_kept_answers_are_traces_too(start: Start, upstream: ScriptedUpstream) -> None:
    prices = Prices(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)
    gateway = start(route_to(Target(upstream.url, prices=prices), cache=CachePolicy(mode=CacheMode.EXACT)))
    with client_of(gateway) as client:
        asked: Any = {"model": "desk", "messages": ASK, "temperature": 0}
        first = client.chat.completions.with_raw_response.create(**asked)
        second = client.chat.completions.with_raw_response.create(**asked)
        assert second.headers["x-tidemill-cache"] == "hit"
        assert first.content == second.content
        streamed = client.chat.completions.create(**asked, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in streamed) == "Hello from the script."
        client.chat.completions.create(**{**asked, "temperature": 1})
    assert len(upstream.seen) == 2
    fresh, hit, stream_hit, warm = gateway.records().requests()
    assert fresh.cost_usd == warm.cost_usd == pytest.approx((11 * 1 + 5 * 10) / 1e6)
    for span in (hit, stream_hit):
        assert (span.status, span.cost_usd) == ("ok", 0.0)
        assert span.attributes["tidemill.cache"] == "hit"
        assert span.attributes["tidemill.cached_trace_id"] == fresh.trace_id


def test_guardrails_stop_what_must_not_pass(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = start(route_to(Target(upstream.url), guardrails=("pii-block",)))
    with client_of(gateway) as client:
        mine: Any = [{"role": "user", "content": "I am ann@example.com, call me"}]
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="desk", messages=mine)
        assert caught.value.code == "content_filter"
        assert upstream.seen == []
        upstream.words = ("Write", " to", " ann@example.com", " please", ".")
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="desk", messages=ASK)
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="desk", messages=ASK, stream=True))
        upstream.words = ("All", " is", " well", ".")
        assert client.chat.completions.create(model="desk", messages=ASK).choices[0].message.content == "All is well."
        stream = client.chat.completions.create(model="desk", messages=ASK, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in stream) == "All is well."
    gateway.wait(lambda: not gateway.gateway.live)
    assert gateway.gateway.metrics.in_flight == 0
    spans = gateway.records().requests()
    assert [span.status for span in spans] == ["error", "error", "error", "ok", "ok"]
    assert {span.error_type for span in spans[:3]} == {"guardrail_blocked"}
    assert all("tidemill.guardrail.pii-block" in span.attributes for span in spans)


def test_requests_that_cannot_be_recorded_are_served_where_the_policy_says_so(
    start: Start, upstream: ScriptedUpstream
) -> None:
    gateway = start(route_to(Target(upstream.url), untraced=True))
    gateway.segments.write_text("a file where the folder should be")
    with client_of(gateway) as client:
        answer = client.chat.completions.with_raw_response.create(model="desk", messages=ASK)
        assert answer.headers["x-tidemill-untraced"] == "1"
        assert list(client.chat.completions.create(model="desk", messages=ASK, stream=True))
    assert gateway.gateway.metrics.count("untraced") == 2
    gateway.segments.unlink()


def test_usage_is_asked_for_and_kept_from_those_who_did_not_ask(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = start(route_to(Target(upstream.url)))
    upstream.usage_event = True
    with Wire(gateway.port) as wire:
        wire.send(ask(stream=True))
        assert b'"choices": []' not in wire.answer()[1]
        wire.send(ask(stream=True, stream_options={"include_usage": True}))
        assert b'"choices": []' in wire.answer()[1]
        wire.send(ask(stream=True, stream_options=None))
        wire.answer()
    assert [seen.body["stream_options"] for seen in upstream.seen[:2]] == [{"include_usage": True}] * 2
    assert upstream.seen[2].body["stream_options"] is None
    spans = gateway.records().requests()
    assert [span.attributes["tidemill.usage_source"] for span in spans] == ["provider", "provider", "provider"]
    assert [(span.input_tokens, span.output_tokens) for span in spans] == [(11, 5)] * 3


def test_tokens_are_counted_where_the_provider_tells_none(start: Start) -> None:
    with ScriptedUpstream(usage=False) as upstream:
        gateway = start(route_to(Target(upstream.url, prices=Prices(output_usd_per_mtok=10.0))))
        with client_of(gateway) as client:
            client.chat.completions.create(model="desk", messages=ASK)
            list(client.chat.completions.create(model="desk", messages=ASK, stream=True))
    for span in gateway.records().requests():
        assert span.attributes["tidemill.usage_source"] == "counted"
        assert span.output_tokens == pytest.approx(5, abs=3)
        assert span.cost_usd == pytest.approx((span.output_tokens or 0) * 10 / 1e6)


def test_a_deadline_counts_over_all_attempts(start: Start) -> None:
    with ScriptedUpstream(always=Fault.STALL) as slow:
        gateway = start(route_to(Target(slow.url), timeouts=Timeouts(total_s=0.5), retries=Retries(max_attempts=5)))
        with client_of(gateway) as client, pytest.raises(openai.InternalServerError, match="no complete answer"):
            client.chat.completions.create(model="desk", messages=ASK)
        gateway.wait(lambda: slow.seen[0].cancelled)
        assert 0 < int(slow.seen[0].headers["x-tidemill-deadline-ms"]) <= 500
    span = gateway.records().span()
    assert (span.status, span.error_type, span.http_status) == ("error", "deadline_exceeded", 504)


def test_two_failures_in_a_row_are_survived_and_three_are_told(start: Start, upstream: ScriptedUpstream) -> None:
    retries = Retries(max_attempts=3, base_s=0.01)
    gateway = start(route_to(Target(upstream.url), retries=retries))
    upstream.faults += [Fault.RESET, Fault.SERVER_ERROR]
    with client_of(gateway) as client:
        client.chat.completions.create(model="desk", messages=ASK)
        upstream.faults += [Fault.ERROR_BODY, Fault.SERVER_ERROR, Fault.NOT_JSON]
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="desk", messages=ASK)
    records = gateway.records()
    fine, failed = records.requests()
    assert (fine.status, fine.attributes["tidemill.attempts"]) == ("ok", 3)
    assert (failed.status, failed.error_type, failed.attributes["tidemill.attempts"]) == (
        "error",
        "upstream_malformed",
        3,
    )
    assert [span.error_type for span in records.attempts()] == ["upstream_lost", *["overloaded"] * 3]


def test_a_client_that_leaves_during_a_pause_is_recorded_once(start: Start, upstream: ScriptedUpstream) -> None:
    upstream.always = Fault.RATE_LIMIT
    gateway = start(route_to(Target(upstream.url), retries=Retries(max_attempts=3, max_s=60.0)))
    with Wire(gateway.port) as wire:
        wire.send(ask())
        gateway.wait(lambda: gateway.gateway.metrics.count("retry") == 1)
    gateway.wait(lambda: not gateway.gateway.live)
    assert gateway.gateway.metrics.in_flight == 0
    assert len(upstream.seen) == 1
    span = gateway.records().span()
    assert (span.status, span.error_type) == ("cancelled", "client_disconnected")


def test_a_field_a_provider_cannot_serve_is_named(start: Start, upstream: ScriptedUpstream) -> None:
    stranger = Target(upstream.url, "claude", "claude", dialect="anthropic")
    gateway = start(route_to(stranger))
    with client_of(gateway) as client:
        with pytest.raises(openai.BadRequestError, match="logit_bias") as caught:
            client.chat.completions.create(model="desk", messages=ASK, logit_bias={"1": 1})
        assert caught.value.code == "unsupported_field"
        with pytest.raises(openai.BadRequestError, match="does not serve the operation 'embeddings'"):
            client.embeddings.create(model="desk", input="a")
    assert upstream.seen == []
    gateway.route(snapshot_of(route_to(stranger, Target(upstream.url, None, "open")), epoch=2))
    with client_of(gateway) as client:
        client.chat.completions.create(model="desk", messages=ASK, logit_bias={"1": 1})
    assert upstream.seen[0].body["logit_bias"] == {"1": 1}


def test_slow_first_attempts_are_hedged_and_both_are_charged(start: Start, upstream: ScriptedUpstream) -> None:
    from tidemill.kernel.routing_policy import Hedging

    with ScriptedUpstream() as slow:
        prices = Prices(input_usd_per_mtok=1e6)
        gateway = start(
            route_to(
                Target(slow.url, None, "slow", prices=prices),
                Target(upstream.url, None, "fast", prices=prices),
                hedging=Hedging(share=1.0, min_wait_s=0.01),
            )
        )
        with client_of(gateway) as client:
            for _ in range(40):  # until the target's own p95 is known
                client.chat.completions.create(model="desk", messages=ASK)
            slow.always = Fault.STALL
            client.chat.completions.create(model="desk", messages=ASK)
        gateway.wait(lambda: slow.seen[-1].cancelled)
        assert gateway.gateway.metrics.count("hedge") >= 1
    records = gateway.records()
    last = max(records.requests(), key=lambda span: span.started_at_ns)
    (loser,) = [span for span in records.attempts() if span.parent_span_id == last.span_id]
    assert (last.status, last.attributes["tidemill.target"], last.attributes["tidemill.hedged"]) == ("ok", "fast", True)
    assert (loser.status, loser.error_type, loser.attributes["tidemill.target"]) == ("cancelled", "hedge_lost", "slow")
    assert loser.cost_usd
    assert last.cost_usd == pytest.approx(11 + loser.cost_usd)
