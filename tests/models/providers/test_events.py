"""Server-sent events: read in any split and with any line end, and written as OpenAI writes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.models.providers.compatible import WholeEvents
from tidemill.models.providers.events import DONE, MAX_EVENT_BYTES, ChunkWriter, Event, EventSplitter, error_event
from tidemill.models.providers.pivot import error_json, usage_of


def read(*pieces: bytes) -> list[Event]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_read_with_every_line_end(end: bytes) -> None:
    raw = end.join(
        [b": a comment", b"event: greeting", b"id: 7", b"data: a", b"data:b", b"data:  c", b"", b"", b"data", b"", b""]
    )
    # a lone \r at the end may be half of \r\n, so what follows it decides nothing
    assert read(raw) == [Event(b"greeting", b"a\nb\n c"), Event(b"", b"")]


def test_a_byte_order_mark_is_no_part_of_the_first_field() -> None:
    assert read(b"\xef\xbb", b"\xbfdata: a\n\n") == [Event(b"", b"a")]


def test_a_name_without_data_is_no_event() -> None:
    assert read(b"event: ping\n\ndata: a\n\n") == [Event(b"", b"a")]


def test_an_unfinished_event_is_held() -> None:
    splitter = EventSplitter()
    assert splitter.empty
    assert splitter.feed(b"data: a\n") == []
    assert not splitter.empty
    assert splitter.feed(b"\n") == [Event(b"", b"a")]
    assert splitter.empty


EVENT = st.tuples(
    st.sampled_from([b"", b"message", b"error"]),
    st.lists(
        st.binary(max_size=6).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), min_size=1, max_size=3
    ),
)


@given(
    events=st.lists(EVENT, max_size=4), end=st.sampled_from([b"\n", b"\r\n", b"\r"]), mark=st.booleans(), data=st.data()
)
def test_any_split_gives_the_same_events(
    events: list[tuple[bytes, list[bytes]]], end: bytes, mark: bool, data: st.DataObject
) -> None:
    raw = b"\xef\xbb\xbf" if mark else b""
    for name, lines in events:
        raw += b"".join([b"event: " + name + end if name else b"", *(b"data: " + line + end for line in lines), end])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=20)))
    pieces = [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert read(*pieces) == [Event(name, b"\n".join(lines)) for name, lines in events]


def feed_endlessly(target: EventSplitter | WholeEvents, piece: bytes) -> None:
    for _ in range(MAX_EVENT_BYTES // len(piece) + 2):
        target.feed(piece)


@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_an_endless_event_is_refused(line_end: bytes) -> None:
    with pytest.raises(InvalidInput, match="too long"):
        feed_endlessly(EventSplitter(), b"data: " + b"a" * 2**20 + line_end)


def test_an_endless_event_is_refused_when_it_is_passed_on() -> None:
    with pytest.raises(InvalidInput, match="too long"):
        feed_endlessly(WholeEvents(), b"a" * 2**20)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_only_whole_events_are_passed_on(end: bytes) -> None:
    whole = WholeEvents()
    raw = b"data: 1" + end + b"data: 2" + end + b"data: [DO"
    assert b"".join(whole.feed(bytes([byte])) for byte in raw) == b"data: 1" + end + b"data: 2" + end
    assert whole.finish() == b""
    assert whole.feed(b"NE]") == b""
    assert whole.finish() == DONE


def loads(event: bytes) -> dict[str, object]:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event[6:])


def test_chunks_are_openais() -> None:
    writer = ChunkWriter("m", "a1", 7, include_usage=True)
    head = {"id": "a1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    choice = {"index": 2, "delta": {"content": "é\n"}, "finish_reason": None}
    assert loads(writer.delta({"content": "é\n"}, index=2)) == {**head, "choices": [choice]}
    logprobs = {"content": []}
    assert loads(writer.delta({"content": "é\n"}, index=2, logprobs=logprobs)) == {
        **head,
        "choices": [{**choice, "logprobs": logprobs}],
    }
    writer.identity, writer.service_tier = "a2", "default"
    ended = writer.end({0: "stop", 1: "length"}, usage_of(3, 4)).split(b"\n\n")
    head |= {"id": "a2", "service_tier": "default"}
    reasons = [{"index": 0, "delta": {}, "finish_reason": "stop"}, {"index": 1, "delta": {}, "finish_reason": "length"}]
    assert loads(ended[0] + b"\n\n") == {**head, "choices": reasons}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert loads(ended[1] + b"\n\n") == {**head, "choices": [], "usage": usage}


def test_usage_rides_on_the_last_choice_when_it_was_not_asked_for() -> None:
    ended = loads(ChunkWriter("m", "a1", 7, include_usage=False).end({0: "stop"}, usage_of(3, 4)))
    assert ended["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert ended["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_errors_are_openais() -> None:
    assert loads(error_event(error_json(429, "Slow down.", code="busy"))) == {
        "error": {"message": "Slow down.", "type": "rate_limit_error", "param": None, "code": "busy"}
    }
