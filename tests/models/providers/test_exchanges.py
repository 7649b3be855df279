"""Recorded exchanges: what each dialect sends and what it makes of the answers.

The texts are the project's own; the shapes are those of the providers' public references. A file of ``exchanges/`` is a
JSON object:

- ``dialect``, ``place`` (a URL's ``base_path``, ``host``, ``model``, ``options``), ``credentials``, ``now_s``,
  ``operation`` (``chat`` when left out);
- ``pivot_request`` with ``provider_request`` (``path``, ``headers``, ``body``), or with ``unsupported``: the field that
  is refused;
- ``provider_answer`` with ``pivot_answer``; or ``provider_stream`` (events: objects, or bare strings) with
  ``pivot_stream``; or ``provider_error`` with ``pivot_error`` (``status``, ``body``). A chunk of ``pivot_stream`` may
  leave out ``id``, ``object``, ``created`` and ``model``, which are then those of ``head``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.models.providers import Credentials, Dialect, Place, UnsupportedField, dialect

FOLDER = Path(__file__).parent / "exchanges"
EXCHANGES: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))
}


def having(*keys: str) -> list[str]:
    return [name for name, exchange in EXCHANGES.items() if all(key in exchange for key in keys)]


def spoken(name: str) -> tuple[dict[str, Any], Dialect, str]:
    exchange = EXCHANGES[name]
    return exchange, dialect(exchange["dialect"]), exchange.get("operation", "chat")


def place_of(exchange: dict[str, Any]) -> Place:
    return Place(**{"base_path": "/v1", "host": "models.example", "model": "model-1", **exchange.get("place", {})})


def credentials_of(exchange: dict[str, Any]) -> Credentials:
    return Credentials(**{"api_key": "key-of-the-target", **exchange.get("credentials", {})})


def wire(exchange: dict[str, Any]) -> bytes:
    """The provider's stream as it comes over the wire."""
    lines = []
    for event in exchange["provider_stream"]:
        if isinstance(event, dict) and "type" in event and exchange["dialect"] == "anthropic":
            lines.append(f"event: {event['type']}\n")
        lines.append(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n")
    return "".join(lines).encode()


def chunks(exchange: dict[str, Any]) -> list[Any]:
    """The pivot's events, each with the head that all of a stream share."""
    head = exchange.get("head", {})
    return [
        event if isinstance(event, str) or "error" in event else {**head, **event} for event in exchange["pivot_stream"]
    ]


def events(translated: bytes) -> list[Any]:
    assert translated == b"" or translated.endswith(b"\n\n")
    found = []
    for event in translated.decode().split("\n\n")[:-1]:
        assert event.startswith("data: ")
        assert "\n" not in event
        found.append("[DONE]" if event == "data: [DONE]" else json.loads(event[6:]))
    return found


@pytest.mark.parametrize("name", having("provider_request"))
def test_request(name: str) -> None:
    exchange, speaker, operation = spoken(name)
    sent = speaker.request(
        operation,
        json.dumps(exchange["pivot_request"]).encode(),
        place_of(exchange),
        credentials_of(exchange),
        now_s=exchange.get("now_s", 0.0),
    )
    expected = exchange["provider_request"]
    assert json.loads(sent.body) == expected["body"]
    assert sent.path == expected["path"]
    assert sent.path.startswith(place_of(exchange).base_path)
    assert dict(sent.headers) == expected["headers"]
    assert len(dict(sent.headers)) == len(sent.headers)


@pytest.mark.parametrize("name", having("unsupported"))
def test_unsupported_field_is_named(name: str) -> None:
    exchange, speaker, operation = spoken(name)
    body = json.dumps(exchange["pivot_request"]).encode()
    with pytest.raises(UnsupportedField) as refused:
        speaker.request(operation, body, place_of(exchange), credentials_of(exchange), now_s=0.0)
    assert refused.value.field == exchange["unsupported"]
    assert exchange["unsupported"] in str(refused.value)


@pytest.mark.parametrize("name", having("provider_answer"))
def test_answer(name: str) -> None:
    exchange, speaker, operation = spoken(name)
    body = json.dumps(exchange["provider_answer"]).encode()
    model = place_of(exchange).model
    answer = json.loads(speaker.answer(operation, body, model=model, now_s=exchange.get("now_s", 0.0)))
    assert answer == exchange["pivot_answer"]


@pytest.mark.parametrize("name", having("provider_error"))
def test_error(name: str) -> None:
    exchange, speaker, _ = spoken(name)
    given = exchange["provider_error"]
    body = given["body"]
    status, translated = speaker.error(
        given["status"], body.encode() if isinstance(body, str) else json.dumps(body).encode()
    )
    assert {"status": status, "body": json.loads(translated)} == exchange["pivot_error"]


def translate(name: str, pieces: list[bytes]) -> bytes:
    exchange, speaker, operation = spoken(name)
    body = json.dumps(exchange["pivot_request"]).encode()
    translator = speaker.stream(operation, body, model=place_of(exchange).model, now_s=exchange.get("now_s", 0.0))
    return b"".join([*(translator.feed(piece) for piece in pieces), translator.finish()])


@pytest.mark.parametrize("name", having("provider_stream"))
def test_stream(name: str) -> None:
    exchange = EXCHANGES[name]
    assert events(translate(name, [wire(exchange)])) == chunks(exchange)


@pytest.mark.parametrize("name", having("provider_stream"))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_split_of_a_stream_gives_the_same_bytes(name: str, data: st.DataObject) -> None:
    raw = wire(EXCHANGES[name])
    if data.draw(st.booleans(), "carriage returns"):
        raw = raw.replace(b"\n", b"\r\n")
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=40), "cuts"))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert translate(name, pieces) == translate(name, [raw])


@pytest.mark.parametrize("name", having("provider_stream"))
def test_a_stream_that_ends_early_is_never_done(name: str) -> None:
    exchange = EXCHANGES[name]
    raw = wire(exchange)
    whole = events(translate(name, [raw]))
    for cut in range(0, len(raw), 7):
        found = events(translate(name, [raw[:cut]]))
        assert found == whole[: len(found)]
        if "[DONE]" in found:  # what follows the source's own last event may be lost
            assert found == whole
            break


def test_there_are_exchanges_of_every_translating_dialect() -> None:
    assert {exchange["dialect"] for exchange in EXCHANGES.values()} >= {"anthropic", "azure", "mistral"}
