"""Answers of upstreams out of bytes, beside h11."""

from __future__ import annotations

import re
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.gateway.http.pipes import mutated, pieces
from tidemill.gateway.answer_reading import AnswerReader

OK = b"HTTP/1.1 200 OK\r\n"
Outcome = tuple[str, int, bytes]


def by_gateway(data: bytes, cuts: list[int], *, closed: bool = False) -> tuple[Outcome, bool]:
    """How an answer ended (done, bad, open), its status and body; and whether the connection may be used again."""
    reader = AnswerReader(65_536)
    body = b""
    state = "open"
    for piece in pieces(data, cuts):
        if state != "open":  # the connection ends after a fault, and what comes while idle ends it too
            return (state, reader.status, body), False
        problem = reader.feed(piece)
        body += reader.take()
        if reader.ended:
            state = "done"
        elif problem is not None:
            state = "bad"
    if closed and state == "open":
        state = "done" if reader.end() else "bad"
    return (state, reader.status, body), reader.ended and reader.reusable


def by_h11(data: bytes, *, closed: bool = False) -> tuple[Outcome, bool]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "a"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        connection.receive_data(data)
        if closed:
            connection.receive_data(b"")
        while True:
            event: Any = connection.next_event()
            if event is h11.NEED_DATA:
                return ("open", status, body), False
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                again = connection.their_state is h11.DONE and not connection.trailing_data[0].strip(b"\r\n")
                return ("done", status, body), again
            elif isinstance(event, h11.ConnectionClosed):
                return ("bad", status, body), False
    except h11.RemoteProtocolError:
        return ("bad", status, body), False


LINES = st.sampled_from(
    ["HTTP/1.1 200 OK", "HTTP/1.1 200", "HTTP/1.1 429 Too Many", "HTTP/1.0 200 OK", "HTTP/1.1 204 No", "HTTP/1.1 304 N",
     "HTTP/1.1 100 Continue", "HTTP/1.1 103 Early", "HTTP/1.1 101 S", "HTTP/1.1 000 x", "HTTP/1.1 999 x",
     "HTTP/2.0 200 OK", "ICY 200 OK", "HTTP/1.1  200 OK", "HTTP/1.1 2000 OK", "200 OK"]
)  # fmt: skip
NAMES = st.sampled_from(["Content-Length", "Transfer-Encoding", "Connection", "X-A", "Content-Length ", "content-type"])
VALUES = st.sampled_from(
    ["0", "3", "+3", "3, 3", "99999999999999999999999", "chunked", "gzip, chunked", "gzip", "identity", "close",
     "keep-alive", "upgrade", "", "Chunked", "chunked, chunked", "a"]
)  # fmt: skip
BODIES = st.sampled_from(
    ["", "abc", "ab", "abcd", "3\r\nabc\r\n0\r\n\r\n", "3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n", "3\r\nabc\r\n0\r\n",
     "3\r\nabc\r\n",
     "3\r\nabcd\r\n0\r\n\r\n", "zz\r\nnonsense\r\n", "fffffffffffffffff\r\nabc", "0\r\n\r\n", "3\nabc\n0\n\n",
     "abc\r\n", "-3\r\nabc\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n"]
)  # fmt: skip
ENDS = st.sampled_from(["\r\n"] * 9 + ["\n", "\r\n ", "\r"])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    out = ""
    for _ in range(draw(st.integers(1, 2))):
        out += draw(LINES) + draw(ENDS)
        for _ in range(draw(st.integers(0, 3))):
            out += draw(NAMES) + ":" + draw(st.sampled_from([" ", ""])) + draw(VALUES) + draw(ENDS)
        out += "\r\n" + draw(BODIES)
    return out.encode()


GOOD = st.sampled_from(
    [
        OK + b"Content-Length: 3\r\nContent-Type: application/json\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;a=b\r\ndefg\r\n0\r\nT: v\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na",
        OK + b"X-A: b\r\n\r\nuntil the end",
    ]
)


def without_leniencies(data: bytes) -> bytes:
    """As h11 wants it: HTTP for RTSP and ICE, and no empty lines before an answer."""
    data = re.sub(rb"(?:RTSP|ICE)/", b"HTTP/", data.lstrip(b"\r\n"))
    return re.sub(rb"\r\n\r\n[\r\n]+(?=HTTP/)", b"\r\n\r\n", data)


def check(data: bytes, cuts: list[int], closed: bool) -> None:
    (ours, again), (theirs, again_theirs) = by_gateway(data, cuts, closed=closed), by_h11(data, closed=closed)
    if ours[0] == "done":
        if theirs != ours:
            theirs, again_theirs = by_h11(without_leniencies(data), closed=closed)
        assert ours == theirs
    else:
        # What is refused or cut short gave nobody bytes that h11 would not have given at that place.
        assert theirs[2].startswith(ours[2]) or ours[2].startswith(theirs[2])
    assert not again or again_theirs
    whole, whole_again = by_gateway(data, [], closed=closed)
    assert whole == ours
    assert whole_again >= again  # in several reads, what came behind the answer came to an idle connection


@given(data=answers(), cuts=st.lists(st.integers(0, 400), max_size=4), closed=st.booleans())
@example(data=(OK + b"Content-Length: 2\r\n\r\nab") * 2, cuts=[], closed=False)
@example(data=OK + b"Content-Length: 2\r\n\r\nabx", cuts=[], closed=False)
@example(data=OK + b"Content-Length: 5\r\n\r\nabc", cuts=[], closed=True)
@settings(max_examples=100, deadline=None)
def test_an_answer_that_is_taken_is_what_h11_takes(data: bytes, cuts: list[int], closed: bool) -> None:
    check(data, cuts, closed)


@given(data=mutated(GOOD), cuts=st.lists(st.integers(0, 200), max_size=3), closed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_damaged_answers_are_read_as_h11_reads_them(data: bytes, cuts: list[int], closed: bool) -> None:
    check(data, cuts, closed)


@pytest.mark.parametrize(
    ("data", "closed", "outcome", "again"),
    [
        (OK + b"Content-Length: 3\r\n\r\nabc", False, ("done", 200, b"abc"), True),
        (OK + b"Content-Length: 3\r\n\r\nabcd", False, ("done", 200, b"abc"), False),
        ((OK + b"Content-Length: 3\r\n\r\nabc") * 2, False, ("done", 200, b"abc"), False),
        (OK + b"Content-Length: 3\r\n\r\nab", True, ("bad", 200, b"ab"), False),
        (OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", False, ("bad", 0, b""), False),
        (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", False, ("bad", 0, b""), False),
        (OK + b"\r\nabc", True, ("done", 200, b"abc"), False),
        (OK + b"\r\nabc", False, ("open", 200, b"abc"), False),
        (OK + b"Transfer-Encoding: gzip\r\n\r\nabc", True, ("bad", 0, b""), False),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", False, ("bad", 0, b""), False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", True, ("bad", 200, b"abc"), False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz", False, ("bad", 200, b"abc"), False),
        (OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na", False, ("done", 200, b"a"), False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK + b"Content-Length: 1\r\n\r\na", False, ("done", 200, b"a"), True),
        (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", False, ("done", 204, b""), True),
        (b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", False, ("done", 304, b""), True),
        (b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False, ("bad", 0, b""), False),
        (b"HTTP/1.1 000 x\r\nContent-Length: 0\r\n\r\n", False, ("bad", 0, b""), False),
        (b"HTTP/1.1 600 x\r\nContent-Length: 0\r\n\r\n", False, ("bad", 0, b""), False),
        (OK + b"A: b\r\n folded\r\n\r\n", False, ("bad", 0, b""), False),
        (OK + b"A: b\x00c\r\n\r\n", False, ("bad", 0, b""), False),
        (OK + b"A: " + b"a" * 70_000, False, ("bad", 0, b""), False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, False, ("bad", 0, b""), False),
        (b"", True, ("bad", 0, b""), False),
    ],
)
def test_endings(data: bytes, closed: bool, outcome: Outcome, again: bool) -> None:
    assert by_gateway(data, [], closed=closed) == (outcome, again)
    assert by_gateway(data, list(range(0, len(data), 7)), closed=closed)[0] == outcome


def test_headers_for_the_client_and_for_the_gateway() -> None:
    reader = AnswerReader(65_536)
    reader.feed(
        OK + b"X-RateLimit-Remaining: 3\r\nopenai-processing-ms: 9\r\nSet-Cookie: secret\r\nRetry-After: 7 \r\n"
        b"retry-after-ms: 6500\r\nContent-Length: 0\r\n\r\n"
    )
    head = reader.head
    assert head.passed == (
        b"X-RateLimit-Remaining: 3\r\nopenai-processing-ms: 9\r\nRetry-After: 7 \r\nretry-after-ms: 6500\r\n"
    )
    assert (head.retry_after, head.retry_after_ms, head.length) == (b"7", b"6500", b"0")
    assert head.content_type == b"application/json"


def test_one_reader_reads_one_answer_after_another() -> None:
    reader = AnswerReader(1000)
    for turn in range(50):
        reader.expect()
        assert reader.feed(OK + b"X-A: " + b"a" * 900 + b"\r\nContent-Length: 1\r\n\r\n%d" % (turn % 10)) is None
        assert (reader.take(), reader.ended, reader.reusable) == (b"%d" % (turn % 10), True, True)
