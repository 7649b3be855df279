"""Features of requests, and the score over them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.routing import FEATURES, RoutingCall, features, score, turns_of
from tidemill.kernel import InvalidInput


def of(text: str, **more: object) -> dict[str, float]:
    messages = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]).encode()
    return dict(zip(FEATURES, features(RoutingCall(messages=messages, **more)), strict=True))  # type: ignore[arg-type]


@given(st.binary(max_size=200) | st.text(max_size=300).map(lambda text: json.dumps(text).encode()))
def test_anything_at_all_has_finite_features(messages: bytes) -> None:
    values = features(RoutingCall(messages=messages))
    assert len(values) == len(FEATURES)
    assert all(math.isfinite(value) and value >= 0 for value in values)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), st.lists, max_leaves=10))
def test_messages_of_any_shape_are_read(value: object) -> None:
    assert isinstance(turns_of(json.dumps([{"role": "user", "content": value}, value]).encode()), list)


def test_features_say_what_they_are_called_after() -> None:
    plain = of("Hello there")
    assert of("def f(x):\n    return x")["code"] == 1 > plain["code"]
    assert of("Why is it so, and how?")["reasoning_words"] > plain["reasoning_words"]
    assert of("What is the capital of Peru?")["look_up_words"] > 0
    assert of("3 apples and 14 pears")["numbers"] == pytest.approx(math.log1p(2))
    assert of("Choose:\nA. one\nB. two")["options"] == 1
    assert of("Hello", tools=b"[]")["tools"] == 1
    assert plain["context_length"] == pytest.approx(math.log1p(9) / 3)


def test_prompts_and_inputs_are_turns_of_the_user() -> None:
    assert turns_of(b'"one text"') == [("user", "one text")]
    assert turns_of(b'["a","b"]') == [("user", "a"), ("user", "b")]
    assert turns_of(b"[[1,2]]") == []
    assert turns_of(b'[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url"}]}]') == [("user", "x")]


def test_the_score_is_logistic() -> None:
    weights = [0.0] * len(FEATURES) + [math.log(3)]
    assert score(weights, RoutingCall()) == pytest.approx(0.75)
    assert score([1e9] * len(weights), RoutingCall(tools=b"[]")) == 1.0
    with pytest.raises(InvalidInput, match="asked_length"):
        score([1.0], RoutingCall())
