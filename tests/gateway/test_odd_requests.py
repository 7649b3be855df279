"""Requests that try to get more than was reserved for them, or to break the reader; and errors no client can read."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.conftest import ONCE, RunningGateway, target
from tests.gateway.wire import Wire, ask, post
from tidemill.gateway.answers import Refusal
from tidemill.gateway.payloads import read_request
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import Route

TURN = [{"role": "user", "content": "Hello."}]


def asked(**fields: Any) -> bytes:
    return json.dumps({"model": "desk", **fields}).encode()


@pytest.mark.parametrize(
    "fields", [{"n": -1}, {"n": 0}, {"best_of": -3}, {"max_tokens": -1}, {"max_completion_tokens": -9}]
)
def test_a_negative_bound_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(Refusal) as refused:
        read_request(asked(**fields))
    assert refused.value.status == 400
    assert next(iter(fields)) in refused.value.message


def test_of_two_bounds_the_larger_counts() -> None:
    assert read_request(asked(max_tokens=9000, max_completion_tokens=1)).output_tokens_most == 9000
    assert read_request(asked(max_tokens=1, max_completion_tokens=9000)).output_tokens_most == 9000
    assert read_request(asked(max_completion_tokens=7)).output_tokens_most == 7
    assert read_request(asked(max_tokens=0)).output_tokens_most == 0


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 2, "best_of": 5}, 5),
        ({"prompt": "a"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
    ],
)
def test_all_answers_a_provider_may_charge_are_counted(fields: dict[str, Any], most: int) -> None:
    assert read_request(asked(**fields)).answers_most == most


def test_a_deep_body_is_refused_and_the_connection_serves_on(gateway: RunningGateway) -> None:
    deep = b'{"model":"desk","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with Wire(gateway.port) as wire:
        wire.send(post({}).partition(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % len(deep) + deep)
        status, body = wire.answer()
        assert status == 400
        assert json.loads(body)["error"]["message"] == "The request body is nested too deeply."
        wire.send(ask())
        assert wire.answer()[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_says_nothing_is_an_error_to_clients_of_another_dialect(
    gateway: RunningGateway, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.always = Fault.SLOW_HEADER  # its answer is {}
    with Wire(gateway.port) as wire:
        wire.socket.settimeout(30)
        wire.send(post({"model": "desk", "max_tokens": 5, "messages": TURN, "stream": stream}, path="/v1/messages"))
        status, body = wire.answer()
    assert status == 502
    assert json.loads(body)["type"] == "error"
    assert gateway.records().span().status == "error"


def test_an_error_page_becomes_an_error_that_clients_can_read(start: Callable[..., RunningGateway]) -> None:
    def upstream(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            connection.sendall(
                b"HTTP/1.1 500 Oops\r\ncontent-type: text/plain\r\ncontent-length: 21\r\n\r\nInternal Server Error"
            )

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=upstream, args=(listener,))
        thread.start()
        release = target(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        gateway = start(Route("desk", "default", (release,), policy=ONCE))
        with Wire(gateway.port) as wire:
            wire.socket.settimeout(30)
            wire.send(ask())
            status, body = wire.answer()
        thread.join(30)
    assert status == 500
    assert json.loads(body)["error"]["code"] == "upstream_error"
    gateway.close()
