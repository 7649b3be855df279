"""Whatever a client or a provider sends: a dialect answers, or says what is wrong, and fails in no other way.

Each place of each recorded exchange is replaced by each of a list of odd values, and removed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.models.providers.test_exchanges import EXCHANGES, credentials_of, events, having, place_of, spoken, wire
from tidemill.kernel import InvalidInput
from tidemill.models.providers import DIALECTS

ODD: list[Any] = [
    None, True, -1, 2.5, "", "a", "data:image/png;base64,AAAA", "data:nonsense", "[1]", [], {}, [None], [{}], ["a"],
    {"type": "text"}, {"type": 1}, {"a": None},
]  # fmt: skip
GONE = object()
#: Their events are passed on unread.
PASSED_ON = {"azure", "mistral", "ollama", "openai", "vllm"}


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    if here:
        yield here
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*here, key))


def damaged(whole: Any) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """The value with one place replaced or removed: the place, what stands there, and the whole."""
    for place in places(whole):
        for odd in (*ODD, GONE):
            found = copy.deepcopy(whole)
            *above, last = place
            inside = found
            for step in above:
                inside = inside[step]
            if odd is GONE:
                del inside[last]
            else:
                inside[last] = odd
            yield place, odd, found


def failures(whole: Any, use: Callable[[Any], None]) -> list[str]:
    """Damages to which ``use`` answers neither with a result nor with what is wrong."""
    found = []
    for place, odd, value in damaged(whole):
        try:
            use(value)
        except InvalidInput as error:
            if not error.message:
                found.append(f"{place}: {odd!r}: no message")
        except Exception as error:
            found.append(f"{place}: {odd!r}: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("name", having("pivot_request", "provider_request"))
def test_a_damaged_request_is_served_or_refused(name: str) -> None:
    exchange, speaker, operation = spoken(name)

    def use(request: Any) -> None:
        body = json.dumps(request).encode()
        sent = speaker.request(operation, body, place_of(exchange), credentials_of(exchange), now_s=1.79e9)
        json.loads(sent.body)

    assert failures(exchange["pivot_request"], use) == []


@pytest.mark.parametrize("name", having("provider_answer"))
def test_a_damaged_answer_is_read_or_refused(name: str) -> None:
    exchange, speaker, operation = spoken(name)

    def use(answer: Any) -> None:
        json.loads(speaker.answer(operation, json.dumps(answer).encode(), model="m"))

    assert failures(exchange["provider_answer"], use) == []


@pytest.mark.parametrize("name", having("provider_stream"))
def test_a_damaged_stream_is_read_or_refused(name: str) -> None:
    exchange, speaker, operation = spoken(name)
    request = json.dumps(exchange["pivot_request"]).encode()

    def use(stream: Any) -> None:
        translator = speaker.stream(operation, request, model="m")
        translated = translator.feed(wire({**exchange, "provider_stream": stream})) + translator.finish()
        if exchange["dialect"] not in PASSED_ON:
            events(translated)

    assert failures(exchange["provider_stream"], use) == []


@pytest.mark.parametrize("name", sorted(DIALECTS))
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504, 529])
def test_any_error_becomes_openais(name: str, status: int) -> None:
    whole = {"error": {"message": "a", "type": "b", "code": "c", "details": {"a": 1}}, "message": "d", "detail": []}
    bodies = [b"", b"\xff", b"<html>", *(json.dumps(one).encode() for one in ODD)]
    bodies += [json.dumps(value).encode() for _, _, value in damaged(whole)]
    for body in bodies:
        translated_status, translated = DIALECTS[name].error(status, body)
        assert 400 <= translated_status < 600
        error = json.loads(translated)["error"]
        assert isinstance(error["message"], str), body
        assert error["message"], body


@pytest.mark.parametrize("name", sorted(DIALECTS))
@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b'"a"', b"\xff\xfe", b"1"])
def test_what_is_no_object_is_refused(name: str, body: bytes) -> None:
    speaker = DIALECTS[name]
    exchange = next(one for one in EXCHANGES.values() if one["dialect"] == name and "provider_request" in one)
    with pytest.raises(InvalidInput):
        speaker.request("chat", body, place_of(exchange), credentials_of(exchange), now_s=0.0)
