"""TLS on both sides, over real connections, under uvloop and under asyncio's own loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import uvloop

from tests.gateway.conftest import KEY, RunningGateway, target
from tests.gateway.http.certificates import Authority
from tests.gateway.http.pipes import Taken
from tests.gateway.wire import ask
from tidemill.gateway import Limits
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.gateway.tls import ServerTls, Trust
from tidemill.gateway.upstream import Address, Failure, UpstreamConnection, UpstreamPool, Waits
from tidemill.kernel import Route, Unavailable

PATIENCE_S = 30
REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
LOOPS = pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Waiter:
    """Waits for a connection or for the reason why there is none."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[UpstreamConnection | Failure] = asyncio.get_running_loop().create_future()

    def on_connected(self, connection: UpstreamConnection) -> None:
        self.outcome.set_result(connection)

    def on_failure(self, failure: Failure) -> None:
        self.outcome.set_result(failure)


async def connect(
    pool: UpstreamPool, port: int, *, host: str = "localhost", trust: Trust | None = None, waits: Waits | None = None
) -> UpstreamConnection | Failure:
    waiter = Waiter()
    pool.connect(Address.parse(f"https://{host}:{port}/v1", trust), waiter, waits)
    return await asyncio.wait_for(waiter.outcome, PATIENCE_S)


async def ask_over(connection: UpstreamConnection) -> Taken:
    ended = asyncio.Event()
    taken = Taken()
    taken.told = lambda: ended.set() if taken.done or taken.failure else None
    connection.start(taken, REQUEST)
    await asyncio.wait_for(ended.wait(), PATIENCE_S)
    return taken


class Secure:
    """A TLS server that answers each request with ``hello`` and remembers what it saw."""

    def __init__(self, certificate: Path, key: Path, *, client_ca: Path | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        if client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(client_ca)
        self.connections = 0
        self.protocols: list[str | None] = []
        self.peers: list[Any] = []

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        handshake = writer.get_extra_info("ssl_object")
        self.protocols.append(handshake.selected_alpn_protocol())
        self.peers.append(handshake.getpeercert())
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        except (asyncio.IncompleteReadError, OSError):
            writer.transport.abort()


def run(loop: NewLoop, work: Callable[[UpstreamPool], Awaitable[None]]) -> None:
    async def main() -> None:
        pool = UpstreamPool(Limits(connect_timeout_s=20))
        try:
            await work(pool)
        finally:
            pool.close()
            await asyncio.sleep(0.05)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@LOOPS
def test_connections_are_verified_and_kept(tmp_path: Path, loop: NewLoop) -> None:
    authority = Authority(tmp_path)
    trust = Trust(ca_file=authority.file)
    server = Secure(*authority.sign("server", "localhost", "127.0.0.1"))

    async def work(pool: UpstreamPool) -> None:
        async with server as port:
            connection = await connect(pool, port, trust=trust)
            assert isinstance(connection, UpstreamConnection)
            for _ in range(3):
                taken = await ask_over(connection)
                assert (taken.status, taken.body) == (200, b"hello")
                assert pool.take_idle(Address.parse(f"https://localhost:{port}/other", trust)) is connection
                assert pool.take_idle(Address.parse(f"https://localhost:{port}/v1")) is None  # another trust
            assert (server.connections, server.protocols) == (1, ["http/1.1"])
            assert isinstance(await connect(pool, port, host="127.0.0.1", trust=trust), UpstreamConnection)

    run(loop, work)


@LOOPS
def test_bad_certificates_are_refused_with_the_reason(tmp_path: Path, loop: NewLoop) -> None:
    authority = Authority(tmp_path)
    trust = Trust(ca_file=authority.file)
    good = authority.sign("good", "localhost")
    cases: list[tuple[tuple[Path, Path], Trust | None, str]] = [
        (authority.sign("elsewhere", "elsewhere.example"), trust, "ostname mismatch"),
        (authority.sign("expired", "localhost", expired=True), trust, "expired"),
        (good, None, "unable to get local issuer certificate"),
        (good, Trust(ca_file=tmp_path / "absent.pem"), "absent.pem"),
        (good, Trust(ca_file=good[1]), "no certificates of authorities"),
    ]

    async def work(pool: UpstreamPool) -> None:
        for files, whom, reason in cases:
            async with Secure(*files) as port:
                failure = await connect(pool, port, trust=whom)
                assert isinstance(failure, Failure)
                assert (failure.kind, failure.untouched) == ("connect", True)
                assert reason in failure.detail
        assert not pool.connections

    run(loop, work)


@LOOPS
def test_an_upstream_that_speaks_no_tls(loop: NewLoop) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def work(pool: UpstreamPool) -> None:
        for serve, reason in ((plain, "TLS handshake failed"), (silent, "does not answer within")):
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            failure = await connect(pool, port, host="127.0.0.1", waits=Waits(0.5, 1, 1) if serve is silent else None)
            assert isinstance(failure, Failure)
            assert failure.kind == "connect"
            assert reason in failure.detail
            server.close()

    run(loop, work)


def test_client_certificates_and_their_replacement(tmp_path: Path) -> None:
    authority, others = Authority(tmp_path), Authority(tmp_path, "others")
    server = Secure(*authority.sign("server", "localhost"), client_ca=others.file)
    certificate, key = others.sign("client", "client.example")
    trust = Trust(ca_file=authority.file, certificate=certificate, key=key)

    async def work(pool: UpstreamPool) -> None:
        async with server as port:
            for _ in range(2):
                connection = await connect(pool, port, trust=trust)
                assert isinstance(connection, UpstreamConnection)
                assert (await ask_over(connection)).body == b"hello"
                others.sign("client", "client.example")  # new files of the same names
            serials = {peer["serialNumber"] for peer in server.peers}
            assert len(serials) == 2

    run(uvloop.new_event_loop, work)


def handshake(port: int, authority: Authority, **options: Any) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name, value in options.items():
        setattr(context, name, value)
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    try:
        return context.wrap_socket(raw, server_hostname="localhost")
    except BaseException:
        raw.close()
        raise


def status_over(connection: ssl.SSLSocket) -> bytes:
    connection.sendall(ask())
    data = b""
    while not data.endswith(b"}"):
        piece = connection.recv(65_536)
        assert piece
        data += piece
    return data[:12]


def test_https_and_the_reload_of_certificates(
    start: Callable[..., RunningGateway], upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("front", "localhost", "127.0.0.1")
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    gateway = start(route, tls_certificate=certificate, tls_key=key)

    def serial() -> str:
        with handshake(gateway.port, authority) as connection:
            return str(connection.getpeercert()["serialNumber"])  # type: ignore[index]

    with handshake(gateway.port, authority) as standing:
        assert standing.selected_alpn_protocol() == "http/1.1"
        assert status_over(standing) == b"HTTP/1.1 200"
        first = serial()
        authority.sign("front", "localhost", "127.0.0.1")
        gateway.wait(lambda: serial() != first, PATIENCE_S)
        second = serial()
        good = certificate.read_bytes()
        certificate.write_bytes(b"broken")
        gateway.wait(lambda: gateway.worker._tls._mark[0][2] == 6, PATIENCE_S)
        assert serial() == second
        certificate.write_bytes(good)
        assert status_over(standing) == b"HTTP/1.1 200"
    with handshake(gateway.port, authority, maximum_version=ssl.TLSVersion.TLSv1_2) as older:
        assert older.version() == "TLSv1.2"


def test_the_official_client_over_https(
    start: Callable[..., RunningGateway],
    upstream: ScriptedUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("front", "localhost", "127.0.0.1")
    route = Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))
    gateway = start(route, tls_certificate=certificate, tls_key=key)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    url = f"https://127.0.0.1:{gateway.port}/v1"
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        answer = client.chat.completions.create(model="desk", messages=[])
        assert answer.choices[0].message.content == "Hello from the script."
        chunks = list(client.chat.completions.create(model="desk", messages=[], stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
            "Hello from the script."
        )


def test_a_listener_needs_a_certificate_with_its_own_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("one", "localhost")
    other = authority.sign("two", "localhost")[1]
    sealed = authority.sign("three", "localhost", password=b"secret")
    for pair in ((certificate, other), (tmp_path / "absent.pem", key), (key, key), sealed):
        with pytest.raises(Unavailable):
            ServerTls(*pair)
    tls = ServerTls(certificate, key)
    assert not tls.follow()
    assert tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
