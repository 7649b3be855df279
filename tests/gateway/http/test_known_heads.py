"""The quick way past the parser, beside the parser: it takes what the parser takes, as the parser takes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.http.pipes import Collected, front, mutated
from tidemill.gateway import Limits
from tidemill.gateway.answer_reading import AnswerReader, is_passed
from tidemill.gateway.known_heads import KnownAnswers
from tidemill.gateway.reading import Request, RequestReader

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
LINES = (
    "Host: a", "Authorization: Bearer x", "content-type: application/json", "X-A: b", "x-a:c", "X-B:  two words \t",
    "Accept: */*", f"Traceparent: {TRACE}", "Connection: keep-alive", "User-Agent: c/1", "X-Tidemill-Session: s",
)  # fmt: skip
LENGTHS = ("Content-Length: ", "content-length:", "CONTENT-LENGTH: ", "Content-length:\t")


@st.composite
def heads(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """What stands before and behind the digits of a request's length."""
    lines = draw(st.lists(st.sampled_from(LINES[1:]), unique_by=lambda line: line.split(":")[0].lower(), max_size=5))
    at = draw(st.integers(0, len(lines)))
    target = draw(st.sampled_from(["/v1/chat/completions", "/v1?a=b", "http://b:1/v1"]))
    before = "\r\n".join([f"POST {target} HTTP/1.1", LINES[0], *lines[:at], draw(st.sampled_from(LENGTHS))])
    after = "".join(f"\r\n{line}" for line in lines[at:]) + "\r\n\r\n"
    return before.encode(), after.encode()


def told(request: Request) -> dict[str, Any]:
    names = [name for name in vars(Request) if not name.startswith("_") and name not in {"header", "known"}]
    return {name: getattr(request, name) for name in [*names, "headers"]}


def reader_after(first: bytes) -> RequestReader:
    reader = RequestReader(Limits())
    reader.feed(first)
    assert reader.refusal is None
    reader.ready.clear()
    return reader


@given(head=heads(), bodies=st.tuples(st.binary(max_size=30), st.binary(max_size=300)))
@settings(max_examples=60, deadline=None)
def test_a_request_like_the_one_before_is_the_one_that_the_parser_reads(
    head: tuple[bytes, bytes], bodies: tuple[bytes, bytes]
) -> None:
    before, after = head
    first, second = (before + b"%d" % len(body) + after + body for body in bodies)
    second = second.replace(b"a" * 32, b"c" * 32, 1)
    quick, slow = reader_after(first), reader_after(first)
    request = quick.again(second)
    assert request is not None
    slow.feed(second)
    assert told(request) == told(slow.ready[0])
    assert request.body == bodies[1]
    # The parser stands where it stood: both read on alike.
    quick.feed(first)
    slow.feed(first)
    assert told(quick.ready[0]) == told(slow.ready[1])


@given(
    head=heads(),
    second=mutated(
        st.sampled_from([b"3", b"03", b"+3", b"3 ", b"", b"3\r\nContent-Length: 3", b"3, 3", b"9999999999"])
    ),
    body=st.sampled_from([b"abc", b"", b"ab", b"abcd", b"abc\r\n", b"abcGET / HTTP/1.1\r\n\r\n"]),
)
@settings(max_examples=100, deadline=None)
def test_what_is_taken_the_parser_takes(head: tuple[bytes, bytes], second: bytes, body: bytes) -> None:
    before, after = head
    first = before + b"2" + after + b"{}"
    quick, slow = reader_after(first), reader_after(first)
    data = before + second + after + body
    request = quick.again(data)
    slow.feed(data)
    if request is not None:
        assert slow.refusal is None
        assert [told(request)] == [told(one) for one in slow.ready]


@given(
    lines=st.permutations([b"Content-Length: 2", b"traceparent: " + TRACE.encode(), b"X-A: b"]),
    trace=mutated(st.just(TRACE.encode())),
)
@settings(max_examples=100, deadline=None)
def test_another_trace_is_taken_as_the_parser_takes_it(lines: list[bytes], trace: bytes) -> None:
    first = b"\r\n".join([b"POST /v1 HTTP/1.1", b"Host: a", *lines]) + b"\r\n\r\n{}"
    quick, slow = reader_after(first), reader_after(first)
    data = first.replace(TRACE.encode(), trace)
    request = quick.again(data)
    slow.feed(data)
    if request is not None:
        assert slow.refusal is None
        assert [told(request)] == [told(one) for one in slow.ready]
    plain = first.replace(b"b" * 16, b"d" * 16)
    assert quick.again(plain) is not None


def test_a_connection_with_another_head_each_time_is_not_learnt_for_ever() -> None:
    reader = RequestReader(Limits())
    learnt = []
    for number in range(20):
        data = b"POST /v1 HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\nContent-Length: 2\r\n\r\n{}" % number
        assert reader.again(data) is None
        reader.feed(data)
        learnt.append(reader.ready.popleft().known is not None)
    assert learnt[0]
    assert not learnt[-1]


@pytest.mark.parametrize(
    "line",
    [b"Connection: close", b"Expect: 100-continue", b"Connection: upgrade\r\nUpgrade: h2c"],
)
def test_heads_with_a_consequence_are_always_read_in_full(line: bytes) -> None:
    first = b"POST /v1 HTTP/1.1\r\nHost: a\r\n" + line + b"\r\nContent-Length: 2\r\n\r\n{}"
    assert reader_after(first).again(first) is None


def test_a_request_behind_half_of_another_is_not_taken_for_a_whole_one() -> None:
    first = b"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    reader = reader_after(first)
    reader.feed(first[:60])
    assert reader.again(first) is None


def test_a_known_head_does_not_lift_the_limit_of_bodies() -> None:
    handler = Collected()
    connection, _ = front(handler)
    head = b"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    most = Limits().body_bytes
    connection.data_received(head % 2 + b"{}")
    connection.data_received(head % (most + 1) + b"x" * (most + 1))
    assert handler.refusals == [413]


# -- answers ------------------------------------------------------------------------------------------------------

ANSWER_LINES = st.sampled_from(
    ["Content-Length: 3", "content-length: 3", "Content-Length: 03", "Content-Length:3", "Content-Length: 4",
     "Content-Length: +3", "Transfer-Encoding: chunked", "Connection: keep-alive", "Connection: close", "X-A: b",
     "x-request-id: r", "x-request-id:r", "x-ratelimit-limit-requests: 7", "openai-processing-ms: 3", "X-A : b", " x",
     "Content-Type: application/json; charset=utf-8", "content-type: text/event-stream", "content-encoding: gzip",
     "retry-after: 3", "X-B: \x80", "X-C: a\tb", "X-D:", "", "no colon", "Date: Tue, 24 Nov 2026 03:05:18 GMT"]
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    lines = [draw(st.sampled_from(["HTTP/1.1 200 OK"] * 8 + ["HTTP/1.1 200", "HTTP/1.0 200 OK", "HTTP/1.1 204 No"]))]
    lines += draw(st.lists(ANSWER_LINES, max_size=6))
    ends = st.sampled_from(["\r\n"] * 12 + ["\n", "\r"])
    text = "".join(line + draw(ends) for line in lines) + "\r\n"
    return text.encode("latin-1") + draw(st.sampled_from([b"abc", b"ab", b"abcd", b"", b"abc\r\n"]))


GOOD = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: application/json\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ndate: x\r\nserver: u\r\ncontent-length: 2\r\nx-request-id: 7\r\n\r\n{}",
    ]
)


@given(data=st.lists(st.one_of(answers(), mutated(GOOD), GOOD), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_an_answer_that_is_taken_whole_is_the_one_that_the_parser_reads(data: list[bytes]) -> None:
    quick = KnownAnswers(65_536, is_passed)
    for answer in data:
        found = quick.take(answer)
        if found is None:
            continue
        slow = AnswerReader(65_536)
        assert slow.feed(answer) is None
        assert slow.ended
        assert slow.reusable
        assert (slow.status, (slow.head.content_type, slow.head.passed, slow.take())) == (200, found)
        assert (slow.head.retry_after, slow.head.transfer) == (None, None)


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    more=st.lists(st.sampled_from(["Date: {}", "x-request-id: r{}", "openai-version: {}"]), unique=True),
)
@settings(max_examples=40, deadline=None)
def test_plain_answers_are_taken_whole(sizes: list[int], more: list[str]) -> None:
    quick = KnownAnswers(65_536, is_passed)
    for size in sizes:
        lines = [line.format(size) for line in more]
        head = "\r\n".join(["HTTP/1.1 200 OK", *lines, f"Content-Length: {size}", "content-type: application/json"])
        passed = "".join(f"{line}\r\n" for line in lines if not line.startswith("Date"))
        found = quick.take(head.encode() + b"\r\n\r\n" + b"x" * size)
        assert found == (b"application/json", passed.encode(), b"x" * size)
