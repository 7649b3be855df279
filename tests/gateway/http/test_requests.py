"""Requests out of bytes, beside h11: what the gateway accepts, h11 reads the same way."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.gateway.http.pipes import Collected, Message, by_gateway, by_h11, front, mutated, pieces
from tidemill.gateway import Limits
from tidemill.gateway.reading import BODY, HEAD, IDLE, Request, RequestReader

START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
NAMES = st.sampled_from(
    ["Content-Length", "Transfer-Encoding", "content-length", "X-A", "Connection", "Trailer", "Content-Length ", "Host",
     "Upgrade", "Expect", "transfer-encoding", "TE", "Proxy-Connection", "Authorization", "x-a\t", "", "x(y"]
)  # fmt: skip
VALUES = st.sampled_from(
    ["a", "0", "3", "03", "+3", "-3", "0x3", "3, 3", "3,", "3 3", "chunked", "Chunked", "CHUNKED ", "identity",
     "gzip, chunked", "chunked, identity", "keep-alive", "close", "upgrade", "h2c", "keep-alive, Upgrade", "", " 3 ",
     "\t3", "chunked, chunked", "chunked;q=1", "\x0bchunked", "xchunked", "99999999999999999999999", "100-continue"]
)  # fmt: skip
CHUNKS = st.sampled_from(
    ["3\r\nabc\r\n", "03\r\nabc\r\n", "3;x=y\r\nabc\r\n", '3;x="y;z"\r\nabc\r\n', "3 \r\nabc\r\n", "3;\r\nabc\r\n",
     "3\nabc\r\n", "3\r\nabc\n", "3\r\nabcd\r\n", "4\r\nabc\r\n", "0x3\r\nabc\r\n", "+3\r\nabc\r\n", "g\r\n",
     "A\r\n0123456789\r\n", "fffffffffffffffff\r\nabc\r\n", "000000000000000000000003\r\nabc\r\n", "3\rabc\r\n"]
)  # fmt: skip
TRAILERS = st.sampled_from(
    ["", "T: v\r\n", "Content-Length: 5\r\n", "T : v\r\n", "Transfer-Encoding: chunked\r\n", "T\r\n"]
)
ENDS = st.sampled_from(["\r\n"] * 9 + ["\n", "\r", "\r\n ", "\r\r\n"])
LINES = st.sampled_from(
    ["POST /v1 HTTP/1.1", "GET / HTTP/1.1", "GET /a b HTTP/1.1", "POST http://a:80/v1?q=1 HTTP/1.1", "POST /v1",
     "POST /v1 HTTP/1.0", "OPTIONS * HTTP/1.1", "GET /v1#f HTTP/1.1", "POST //x/y HTTP/1.1", "GET HTTPS://a HTTP/1.1",
     "DELETE /v1 HTTP/1.1", "GET /%00\x80 HTTP/1.1", "CONNECT a:1 HTTP/1.1", "POST /v1 HTTP/2.0", "get / HTTP/1.1"]
)  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        return draw(st.sampled_from(["", "abc", "abcGET / HTTP/1.1\r\nHost: a\r\n\r\n"]))
    return (
        "".join(draw(st.lists(CHUNKS, max_size=3)))
        + draw(st.sampled_from(["0\r\n", "0;x\r\n", ""]))
        + draw(TRAILERS)
        + draw(st.sampled_from(["\r\n", "\r\n", "\n", ""]))
    )


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Valid, nearly valid and smuggling requests, one to three in a row."""
    out = ""
    for _ in range(draw(st.integers(1, 3))):
        out += draw(LINES) + draw(ENDS) + "Host: a\r\n"
        for _ in range(draw(st.integers(0, 3))):
            out += draw(NAMES) + ":" + draw(st.sampled_from([" ", "", "\t"])) + draw(VALUES) + draw(ENDS)
        out += "\r\n" + draw(bodies())
    return out.encode("latin-1")


GOOD = st.sampled_from(
    [
        START + b"Content-Length: 3\r\n\r\nabc",
        START + b"X-A: b\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n",
        b"GET /v1/models?limit=2 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nConnection: keep-alive\r\n\r\n",
        b"POST /v1 HTTP/1.0\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
    ]
)


def comparable(messages: list[Message]) -> list[Message]:
    """With what both sides may write differently written one way."""
    found = []
    for method, written, headers, body in messages:
        target = written
        if target[:1] not in {b"/", b"*"}:
            parts = urlsplit(target)
            target = parts.path + b"?" * bool(parts.query) + parts.query or b"/"
        kept = [
            (
                name,
                value.lower()
                if name == b"transfer-encoding"
                else value.lstrip(b"0")
                if name == b"content-length"
                else value,
            )
            for name, value in headers
        ]
        found.append((method, target, kept, body))
    return found


def without_leniencies(data: bytes) -> bytes:
    """As h11 wants it: the request line with single spaces, and HTTP for RTSP and ICE."""
    line, end, rest = data.lstrip(b"\r\n").partition(b"\r\n")
    line = re.sub(rb"^(\S+) +(\S+) +(?:HTTP|RTSP|ICE)/", rb"\1 \2 HTTP/", line)
    return line + end + rest


@given(data=requests(), cuts=st.lists(st.integers(0, 600), max_size=5))
@example(data=START + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", cuts=[])
@example(data=START + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc" * 2, cuts=[90])
@example(
    data=START + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    cuts=[],
)
@settings(max_examples=60, deadline=None)
def test_what_is_taken_is_what_h11_takes(data: bytes, cuts: list[int]) -> None:
    """Where h11 is laxer the gateway may refuse; it never takes what h11 refuses."""
    ours, refused = by_gateway(data, cuts)
    assert comparable(ours) == comparable(by_h11(data)[: len(ours)])
    assert by_gateway(data, []) == (ours, refused)
    assert by_gateway(data, list(range(len(data)))) == (ours, refused)


@given(data=mutated(GOOD), cuts=st.lists(st.integers(0, 200), max_size=3))
@settings(max_examples=60, deadline=None)
def test_damaged_requests_are_read_as_h11_reads_them(data: bytes, cuts: list[int]) -> None:
    ours, refused = by_gateway(data, cuts)
    theirs = by_h11(data)
    if len(theirs) < len(ours):
        theirs = by_h11(without_leniencies(data))
    assert comparable(ours) == comparable(theirs[: len(ours)])
    assert by_gateway(data, []) == (ours, refused)


@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_good_requests_arrive_whole(bodies: list[bytes], sizes: list[int], chunked: bool, cuts: list[int]) -> None:
    """In order, however they are chunked and split. Nothing valid is refused."""
    data = b""
    for body in bodies:
        if chunked:
            data += START + b"Transfer-Encoding: chunked\r\n\r\n"
            at = 0
            for turn in range(len(body)):
                piece = body[at : at + sizes[turn % len(sizes)]]
                at += len(piece)
                if piece:
                    data += b"%x;n=%d\r\n%b\r\n" % (len(piece), turn, piece)
            data += b"0\r\nT: v\r\n\r\n"
        else:
            data += START + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    ours, refused = by_gateway(data, cuts)
    assert not refused
    assert [body for _, _, _, body in ours] == bodies
    assert comparable(ours) == comparable(by_h11(data))


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=3))
@settings(max_examples=40, deadline=None)
def test_noise_never_breaks_the_connection_object(data: bytes, cuts: list[int]) -> None:
    by_gateway(data, cuts)
    by_gateway(START + data, cuts)


def test_parser_is_strict_by_default() -> None:
    """Guards the assumption that llhttp's leniencies are off."""
    parser = httptools.HttpRequestParser(RequestReader(Limits()))
    with pytest.raises(httptools.HttpParserError):
        parser.feed_data(START + b"A: b\r\n c\r\n\r\n")


def one_request(data: bytes) -> Request:
    handler = Collected()
    connection, _ = front(handler)
    connection.data_received(data)
    assert not handler.refusals
    (request,) = handler.requests
    return request


def test_an_absolute_target_names_the_host() -> None:
    request = one_request(b"GET http://other:81/v1/models?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (request.target, request.host) == (b"/v1/models?x=1", b"other:81")
    assert one_request(b"GET http://other HTTP/1.1\r\nHost: a\r\n\r\n").target == b"/"
    assert one_request(b"GET http://other?x/y HTTP/1.1\r\nHost: a\r\n\r\n").target == b"/?x/y"
    handler = Collected()
    connection, _ = front(handler)
    connection.data_received(b"GET ftp://other/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert handler.refusals == [400]


def test_headers_by_name_and_without_blanks() -> None:
    request = one_request(START + b"Anthropic-Beta:  tools \t\r\nX-Api-Key: k \r\nCookie: a\r\nCookie: b\r\n\r\n")
    assert request.header(b"anthropic-beta") == b"tools"
    assert request.header(b"cookie") == b"a"
    assert request.header(b"absent") is None
    assert request.api_key == b"k"


@pytest.mark.parametrize(
    ("head", "modern", "stays"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", True, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", True, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n", True, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n", True, False),
        (b"GET / HTTP/1.0\r\n", False, False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", False, False),
        (b"GET / HTTP/1.0\r\nProxy-Connection: keep-alive\r\n", False, False),
    ],
)
def test_version_and_keep_alive(head: bytes, modern: bool, stays: bool) -> None:
    request = one_request(head + b"\r\n")
    assert (request.modern, request.keep_alive) == (modern, stays)


def test_stages() -> None:
    reader = RequestReader(Limits())
    assert reader.stage == IDLE
    reader.feed(b"\r\n")
    assert reader.stage == IDLE
    reader.feed(START)
    assert reader.stage == HEAD
    reader.feed(b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert reader.stage == BODY
    assert reader.invite
    reader.feed(b"a")
    assert not reader.invite
    reader.feed(b"bPOST")
    assert reader.stage == HEAD
    assert len(reader.ready) == 1


def test_a_body_in_tiny_chunks_costs_its_size() -> None:
    """Linear in time, and no list of millions of pieces."""
    reader = RequestReader(Limits())
    body = bytes(range(256)) * 800
    reader.feed(START + b"Transfer-Encoding: chunked\r\n\r\n")
    for piece in pieces(b"".join(b"1\r\n%c\r\n" % byte for byte in body), list(range(0, 1 << 21, 4096))):
        reader.feed(piece)
        assert len(reader._parts) < 1000
    reader.feed(b"0\r\n\r\n")
    assert reader.ready[0].body == body


@pytest.mark.parametrize("size", [50_000, 65_536, 200_000])
def test_a_long_head_is_refused_however_it_comes(size: int) -> None:
    for data in (START + b"X: " + b"a" * size, b"GET /" + b"a" * size, START + b"X: y\r\n" * (size // 6)):
        for cuts in ([], list(range(0, size, 1000)), [10, size // 2]):
            assert by_gateway(data, cuts) == ([], True)


def test_small_requests_in_one_read_are_no_long_head() -> None:
    small = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    ours, refused = by_gateway(small * 3000 + small[:20], [])
    assert (len(ours), refused) == (3000, False)
