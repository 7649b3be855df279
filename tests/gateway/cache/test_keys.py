"""The key of an answer: nothing that could change the answer is left out, and nothing crosses a partition."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.cache.keys import Partition, exact_digest, read_question

SEED = b"s" * 32
texts = st.text(max_size=30)
partitions = st.builds(Partition, *[st.sampled_from(["", "a", "b", "a:b", "1:a"])] * 8)
values = st.none() | st.booleans() | st.integers(-3, 3) | texts | st.lists(texts, max_size=2)
extras = st.dictionaries(st.sampled_from(["temperature", "tools", "seed", "logit_bias", "top_p", "x"]), values)


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "desk", "messages": [{"role": role, "content": text} for role, text in turns], **more}


def compact(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def digest(body: dict[str, Any], *, per_user: bool = True, write: Any = compact) -> bytes:
    return exact_digest(SEED, write(body), stream=body.get("stream"), user=body.get("user"), per_user=per_user)


@given(partitions, partitions)
def test_partitions_share_a_seed_only_when_they_are_equal(one: Partition, other: Partition) -> None:
    assert (one.seed() == other.seed()) == (one == other)


@given(texts, extras, extras)
def test_another_field_is_another_key(text: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = chat(("user", text), **one), chat(("user", text), **other)
    assert (digest(first) == digest(second)) == (compact(first) == compact(second))


@given(texts, extras, st.booleans())
def test_a_stream_and_a_whole_answer_share_a_key(text: str, more: dict[str, Any], per_user: bool) -> None:
    body = chat(("user", text), **more)
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    for write in (compact, lambda value: json.dumps(value).encode()):
        assert digest(streamed, per_user=per_user, write=write) == digest(body, per_user=per_user, write=write)
    assert digest({"stream": False, **body}, per_user=per_user) == digest(body, per_user=per_user)


def test_the_user_is_left_out_only_where_it_does_not_matter() -> None:
    anna, ben = chat(("user", "hi"), user="anna"), chat(("user", "hi"), user="ben")
    assert digest(anna, per_user=False) == digest(ben, per_user=False) == digest(chat(("user", "hi")), per_user=False)
    assert digest(anna) != digest(ben)


def test_what_looks_like_a_field_inside_a_text_is_text() -> None:
    one = chat(("user", 'x","stream":true,"user":"b'), stream=True)
    other = chat(("user", 'x"'), stream=True)
    assert digest(one) != digest(other)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"stream": True}}}}]
    without = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}]
    assert digest(chat(("user", "x"), tools=tools, stream=True)) != digest(
        chat(("user", "x"), tools=without, stream=True)
    )


def test_a_field_that_comes_twice_never_shares_a_key_with_one_that_comes_once() -> None:
    once = b'{"model":"desk","messages":[{"role":"user","content":"b"}],"stream":true}'
    twice = b'{"model":"desk","messages":[1],"messages":[{"role":"user","content":"b"}],"stream":true}'
    assert exact_digest(SEED, once, stream=True, user=None, per_user=True) != exact_digest(
        SEED, twice, stream=True, user=None, per_user=True
    )


def test_a_body_that_cannot_be_taken_apart_is_its_own_key() -> None:
    assert exact_digest(SEED, b"not json", stream=True, user=None, per_user=True) == exact_digest(
        SEED, b"not json", stream=None, user=None, per_user=True
    )


# -- questions ------------------------------------------------------------------------------------------------


def question(body: dict[str, Any], seed: bytes = SEED) -> Any:
    return read_question(seed, compact(body), most_chars=100)


def test_a_question_is_the_last_user_message_and_its_shelf_all_the_rest() -> None:
    one = question(chat(("system", "s"), ("user", "how?")))
    other = question(chat(("system", "s"), ("user", "why?"), stream=True, user="anna"))
    assert one.text == "how?"
    assert other.text == "why?"
    assert one.shelf == other.shelf


@given(st.sampled_from(["system", "earlier", "tools", "model", "temperature", "name", "seed"]))
def test_whatever_else_differs_is_another_shelf(what: str) -> None:
    body = chat(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "how?"), temperature=0)
    other = json.loads(json.dumps(body))
    seed = SEED
    if what == "system":
        other["messages"][0]["content"] = "S"
    elif what == "earlier":
        other["messages"][2]["content"] = "A"
    elif what == "name":
        other["messages"][3]["name"] = "anna"
    elif what == "seed":
        seed = b"t" * 32
    else:
        other[what] = 1
    assert question(body).shelf != question(other, seed).shelf


def test_only_a_users_plain_text_of_bounded_length_is_compared() -> None:
    part = {"type": "text", "text": "how?"}
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert question(chat(("user", [part]))).text == "how?"
    for turns in ([("user", [part, picture])], [("user", [picture])], [("user", " ")], [("user", "x" * 101)],
                  [("user", "q"), ("assistant", "a")], [("tool", "r")], []):  # fmt: skip
        assert question(chat(*turns)) is None
    assert read_question(SEED, b"[]", most_chars=100) is None
    assert read_question(SEED, b'{"messages":[1]}', most_chars=100) is None
