"""Forms with files, as the official client sends them and as a hostile one might."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.gateway import Limits
from tidemill.gateway.answers import Refusal
from tidemill.gateway.front import Front, Request
from tidemill.gateway.uploads import read_form

TYPE = b"multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    return b"".join(b"--xyz\r\n%b\r\n\r\n%b\r\n" % (head.encode(), value) for head, value in parts) + end


def plain(name: str, value: bytes) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', value


FILE = (
    'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav',
    b"\0\r\n--xy\r\n\xff",
)


class Listening:
    """Answers every upload with the text of a transcription."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def handle(self, front: Front, request: Request) -> None:
        self.requests.append(request)
        front.answer(200, b'{"text":"hello"}')

    def refused(self, status: int) -> None:
        raise AssertionError(status)


@pytest.fixture
def listening() -> Iterator[tuple[Listening, int]]:
    handler, ready, port = Listening(), threading.Event(), [0]
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = await loop.create_server(lambda: Front(handler, Limits(), set()), "127.0.0.1", 0)
        port[0] = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        await asyncio.sleep(0.05)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    yield handler, port[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


def test_what_the_official_client_sends(listening: tuple[Listening, int]) -> None:
    handler, port = listening
    sound = bytes(range(256)) * 20_000
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client:
        answer = client.audio.transcriptions.create(
            model="ears", file=('a "b".wav', sound, "audio/wav"), prompt="names: Zoë", timestamp_granularities=["word"]
        )
    assert answer.text == "hello"
    (request,) = handler.requests
    assert request.target == b"/v1/audio/transcriptions"
    found = read_form(request.content_type, request.body)
    assert (found.text("model"), found.text("prompt"), found.text("stream")) == ("ears", "names: Zoë", None)
    (file,) = (part for part in found.parts if part.is_file)
    assert request.body[file.begin : file.end] == sound
    again = read_form(request.content_type, found.with_text("model", "whisper-1"))
    assert again.text("model") == "whisper-1"
    assert [part.name for part in again.parts] == [part.name for part in found.parts]
    (file,) = (part for part in again.parts if part.is_file)
    assert again.body[file.begin : file.end] == sound


def test_a_field_that_was_not_there_is_added() -> None:
    found = read_form(TYPE, form(FILE))
    again = read_form(TYPE, found.with_text("model", "m"))
    assert (again.text("model"), len(again.parts)) == ("m", 2)
    assert read_form(b'multipart/form-data; charset=utf-8; boundary="xyz"', form(FILE)).parts == found.parts


@pytest.mark.parametrize("kind", [None, b"application/json", b"multipart/mixed; boundary=xyz", b"multipart/form-data"])
def test_what_is_no_form_is_refused(kind: bytes | None) -> None:
    with pytest.raises(Refusal, match="multipart/form-data") as refused:
        read_form(kind, form(FILE))
    assert refused.value.status == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--xyz--\r\n--xyz",
        b"before\r\n" + form(FILE),
        form(FILE) + b"behind",
        form(FILE, end=b""),
        form(FILE, end=b"--xyzz--\r\n"),
        form(("Content-Disposition: form-data", b"x")),
        form(("Content-Type: text/plain", b"x")),
        form(('Content-Disposition: form-data; name="a"; name="b"', b"x")),
        form(('Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="b"', b"x")),
        form(('Content-Disposition: attachment; name="a"', b"x")),
        form(('Content-Disposition : form-data; name="a"', b"x")),
        form(("Content-Disposition: form-data; name*=utf-8''model", b"x")),
        form(('X: y\nContent-Disposition: form-data; name="a"', b"x")),
        form((f'Content-Disposition: form-data; name="a"\r\nX: {"y" * 9000}', b"x")),
        form(*[plain("a", b"")] * 200),
    ],
)
def test_malformed_forms_are_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        read_form(TYPE, body)
    assert (refused.value.status, refused.value.code) == (400, "malformed_form")


@pytest.mark.parametrize(
    "parts",
    [
        [plain("model", b"a"), plain("model", b"b")],
        [('Content-Disposition: form-data; name="model"; filename="m"', b"a")],
        [plain("model", b"\xff")],
        [plain("model", b"a" * 70_000)],
    ],
)
def test_a_doubtful_field_is_refused_by_name(parts: list[tuple[str, bytes]]) -> None:
    found = read_form(TYPE, form(*parts))
    with pytest.raises(Refusal) as refused:
        found.text("model")
    assert refused.value.param == "model"


def test_a_value_cannot_break_the_form() -> None:
    with pytest.raises(Refusal, match="one line"):
        read_form(TYPE, form(FILE)).with_text("model", "a\r\n--xyz--")


@given(values=st.lists(st.binary(max_size=60).filter(lambda value: b"--xyz" not in value), max_size=5))
@settings(max_examples=40, deadline=None)
def test_values_come_back_as_the_standard_library_reads_them(values: list[bytes]) -> None:
    body = form(*(plain(f"f{place}", value) for place, value in enumerate(values)), FILE)
    found = read_form(TYPE, body)
    assert [body[part.begin : part.end] for part in found.parts[:-1]] == values
    other: Message = BytesParser().parsebytes(b"Content-Type: " + TYPE + b"\r\n\r\n" + body)
    assert len(other.get_payload()) == len(values) + 1


@given(damage=st.lists(st.tuples(st.integers(0, 400), st.sampled_from(b'\r\n-;"x:=')), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_damaged_forms_are_refused_or_read(damage: list[tuple[int, int]]) -> None:
    body = bytearray(form(plain("model", b"m"), FILE))
    for place, byte in damage:
        body[place % len(body)] = byte
    try:
        found = read_form(TYPE, bytes(body))
    except Refusal:
        return
    assert all(0 < part.begin <= part.end for part in found.parts)
