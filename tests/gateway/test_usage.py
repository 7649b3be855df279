"""Token usage from a provider's usage object or counted here, and its price."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.usage import (
    NO_USAGE,
    PromptDetails,
    Usage,
    UsageObject,
    cost_usd,
    count_images,
    counted_usage,
    estimate_tokens,
    read_usage,
    usage_of,
)
from tidemill.kernel.routing_policy import Prices

tokens = st.integers(-5, 10_000)


def answer(usage: object) -> bytes:
    return json.dumps({"id": "a", "choices": [], "usage": usage}).encode()


def test_every_part_of_a_usage_object_is_read() -> None:
    body = answer(
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 5, "accepted_prediction_tokens": 0},
        }
    )
    assert read_usage(body) == Usage(100, 50, 40, 30, 10, 5)


@pytest.mark.parametrize("body", [b"not json", answer(None), answer({}), answer({"prompt_tokens": "many"}), b"[]"])
def test_an_answer_without_readable_usage_has_none(body: bytes) -> None:
    assert read_usage(body) is None


def test_embeddings_have_input_alone() -> None:
    assert read_usage(answer({"prompt_tokens": 7, "total_tokens": 7})) == Usage(7, 0)


@given(st.lists(tokens, min_size=6, max_size=6))
def test_parts_never_exceed_their_whole(counts: list[int]) -> None:
    prompt, completion, cached, asked_audio, reasoning, given_audio = counts
    body = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": asked_audio},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": given_audio},
    }
    usage = read_usage(answer(body))
    assert usage is not None
    assert min(usage.cached_tokens, usage.audio_input_tokens, usage.reasoning_tokens, usage.audio_output_tokens) >= 0
    assert usage.cached_tokens + usage.audio_input_tokens <= usage.input_tokens
    assert usage.reasoning_tokens + usage.audio_output_tokens <= usage.output_tokens
    dear = Prices(input_usd_per_mtok=3, output_usd_per_mtok=15, cached_input_usd_per_mtok=0.3)
    assert cost_usd(usage, dear) >= 0


def test_each_token_is_paid_once_at_its_own_price() -> None:
    prices = Prices(
        input_usd_per_mtok=1,
        output_usd_per_mtok=10,
        cached_input_usd_per_mtok=0.1,
        reasoning_usd_per_mtok=20,
        audio_input_usd_per_mtok=4,
        audio_output_usd_per_mtok=40,
        image_usd=0.01,
        request_usd=0.5,
    )
    usage = Usage(1000, 500, cached_tokens=300, reasoning_tokens=100, audio_input_tokens=200, audio_output_tokens=50,
                  images=2)  # fmt: skip
    text = (500 * 1 + 300 * 0.1 + 200 * 4 + 350 * 10 + 100 * 20 + 50 * 40) / 1e6
    assert cost_usd(usage, prices) == pytest.approx(text + 0.02 + 0.5)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 3))
def test_a_part_without_a_price_costs_as_the_rest(asked: int, given_: int, part: int, images: int) -> None:
    prices = Prices(input_usd_per_mtok=2.5, output_usd_per_mtok=10, request_usd=0.001)
    plain = cost_usd(Usage(asked, given_), prices)
    parted = Usage(asked, given_, cached_tokens=min(part, asked), reasoning_tokens=min(part, given_), images=images)
    assert cost_usd(parted, prices) == pytest.approx(plain)


def test_a_kept_answer_costs_nothing() -> None:
    assert cost_usd(NO_USAGE, Prices(input_usd_per_mtok=1, request_usd=1)) == 0
    assert NO_USAGE.attributes() == {"tidemill.usage_source": "cache"}


def test_the_span_names_the_parts_that_have_a_price() -> None:
    usage = usage_of(UsageObject(10, 5, PromptDetails(cached_tokens=4)))
    assert usage.attributes() == {"tidemill.usage_source": "provider", "tidemill.cached_tokens": 4}


def test_what_no_provider_counted_is_counted_and_marked() -> None:
    usage = counted_usage("What is the capital of France?", "Paris.")
    assert usage.source == "counted"
    assert usage.input_tokens == pytest.approx(7, abs=2)
    assert usage.output_tokens == pytest.approx(2, abs=1)


# Counted with the o200k vocabulary.
REAL = [
    ("The quick brown fox jumps over the lazy dog, and nobody asked it why.", 16),
    ("def estimate(text):\n    return max(1, round(len(text) / 4))\n", 18),
    ("Die Rechnung wurde bereits bezahlt, bitte senden Sie keine weitere Mahnung.", 14),
    ("请告诉我如何重置我的密码，谢谢。", 10),
]


@pytest.mark.parametrize(("text", "count"), REAL)
def test_the_estimate_is_near_a_real_tokenizer(text: str, count: int) -> None:
    assert estimate_tokens(text) == pytest.approx(count, rel=0.6)


@given(st.text())
def test_the_estimate_takes_any_text(text: str) -> None:
    assert (estimate_tokens(text) == 0) == (text == "")
    assert estimate_tokens(text + "\ud800 end") > 0  # half a surrogate pair, as JSON may hold


def test_images_are_counted_in_content_parts_alone() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    turns = [
        {"role": "system", "content": 'say "type":"image_url"'},
        {"role": "user", "content": [{"type": "text", "text": "what is this?"}, part, part]},
        {"role": "assistant", "content": None},
    ]
    assert count_images(json.dumps(turns).encode()) == 2
    assert count_images(b'[{"role":"user","content":"no picture"}]') == 0
    assert count_images(b'"image"') == 0
