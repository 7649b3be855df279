"""Order, flow control and timers of client connections, without sockets."""

from __future__ import annotations

from time import monotonic

from tests.gateway.http.pipes import Collected, front
from tidemill.gateway import Limits
from tidemill.gateway.front import Front

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
FAR = 1e6  # seconds: later than any timer


def test_answers_nobody_reads_stop_the_work() -> None:
    """A client that pipelines thousands of requests and reads nothing holds no more than it was let have."""
    handler = Collected(body=b"x" * 1000)
    connection, pipe = front(handler, high_water=64 * 1024)
    connection.data_received(GET * 5000)
    assert len(handler.requests) < 100
    connection.data_received(GET * 10)
    assert not pipe.reading
    for _ in range(200):
        pipe.drain()
    assert len(handler.requests) == 5010
    assert pipe.reading


def test_one_read_is_kept_aside_while_an_answer_is_under_way() -> None:
    handler = Collected(wait=True)
    connection, pipe = front(handler)
    connection.data_received(GET)
    connection.data_received(GET * 2)
    assert (len(handler.requests), pipe.reading) == (1, False)
    for served in (1, 2, 3):
        assert len(handler.requests) == served
        connection.answer(200, b"")
    assert pipe.reading


def test_an_invitation_waits_for_its_turn() -> None:
    handler = Collected(wait=True)
    connection, pipe = front(handler)
    connection.data_received(GET + POST + b"Expect: 100-continue\r\n\r\n")
    assert pipe.take() == b""
    connection.answer(200, b"")
    assert pipe.take().endswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.data_received(b"ab")
    assert handler.requests[1].body == b"ab"


def test_no_invitation_for_a_body_that_is_there_or_an_old_client() -> None:
    for data in (
        POST + b"Expect: 100-continue\r\n\r\nab",
        b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
    ):
        connection, pipe = front(Collected(wait=True))
        connection.data_received(data)
        assert pipe.take() == b""


def test_timers_follow_what_is_waited_for() -> None:
    limits = Limits(header_timeout_s=10, body_timeout_s=60, idle_timeout_s=75)
    connection, _ = front(Collected(), limits)

    def patience_s() -> float:
        return connection.deadline - monotonic()

    assert 0 < patience_s() <= 10
    connection.data_received(GET)
    assert 60 < patience_s() <= 75
    connection.data_received(GET + GET[:20])
    assert 0 < patience_s() <= 10
    set_at = connection.deadline
    connection.data_received(GET[20:25])  # dripping does not help
    assert connection.deadline == set_at
    connection.data_received(GET[25:] + POST + b"\r\n")
    assert 10 < patience_s() <= 60


def test_a_slow_head_gets_408_and_an_idle_client_nothing() -> None:
    handler = Collected()
    connection, pipe = front(handler)
    connection.data_received(GET[:20])
    connection.expire(monotonic() + FAR)
    assert (handler.refusals, pipe.half_closed) == ([408], True)
    connection.expire(monotonic() + FAR)
    assert pipe.aborted
    connection, pipe = front(Collected())
    connection.expire(monotonic() + FAR)
    assert (pipe.open, pipe.take()) == (False, b"")


def test_a_client_that_reads_slowly_stays_and_one_that_does_not_is_dropped() -> None:
    handler = Collected(wait=True)
    connection, pipe = front(handler, high_water=1000)
    connection.data_received(GET)
    connection.write(b"x" * 2000)
    assert handler.calls == ["slow"]
    pipe.unread = 1500
    connection.expire(monotonic() + FAR)
    assert pipe.open
    connection.expire(monotonic() + 2 * FAR)
    assert pipe.aborted
    connection.connection_lost(None)
    assert handler.calls == ["slow", "left"]


def test_a_closing_connection_does_not_wait_for_ever() -> None:
    connection, pipe = front(Collected())
    connection.data_received(b"GET / HTTP/1.0\r\n\r\n")
    assert (pipe.open, pipe.aborted) == (False, False)
    connection.expire(monotonic() + FAR)
    assert pipe.aborted


def test_connections_beyond_the_limit_are_told_so() -> None:
    handler = Collected()
    fronts: set[Front] = {Front(handler, Limits(), set())}
    connection, pipe = front(handler)
    connection.connection_lost(None)
    pipe.attach(Front(handler, Limits(client_connections=1), fronts))
    assert (handler.refusals, pipe.take()[:12]) == ([503], b"HTTP/1.1 503")


def test_a_drained_connection_answers_what_has_begun() -> None:
    connection, pipe = front(Collected())
    connection.data_received(GET[:10])
    connection.drain()
    assert pipe.open
    connection.data_received(GET[10:])
    assert b"connection: close" in pipe.take()
    assert not pipe.open
