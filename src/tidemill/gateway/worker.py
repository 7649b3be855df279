"""One gateway process: listens, follows the snapshot, sweeps timers, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from typing import Any, Final

from tidemill.gateway.app import Access, Gateway
from tidemill.gateway.backing import ConversationDesk, KeptAnswers, open_guardrails, open_limiter
from tidemill.gateway.backing_options import BackingOptions
from tidemill.gateway.front import Front
from tidemill.gateway.known_traces import KnownTraces
from tidemill.gateway.limits import Limits
from tidemill.gateway.metrics import Metrics
from tidemill.gateway.sessions import SessionTable
from tidemill.gateway.snapshots import SecretResolver, Shared, SnapshotFile
from tidemill.gateway.tls import ServerTls
from tidemill.gateway.tracing import Journal
from tidemill.gateway.upstream import UpstreamPool
from tidemill.kernel import RoutingSnapshot, Unavailable, check_name
from tidemill.telemetry.records import Capture

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_SWEEP_S: Final = 0.5
_OPEN_LIMITS_S: Final = 5.0
_KEPT_SWEEP_S: Final = 10.0
_CONVERSATIONS_SWEEP_S: Final = 600.0
_BACKLOG: Final = 1024
_HASH_KEY_BYTES: Final = 32
_THREAD_TURN_S: Final = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker needs to know.

    Args:
        project, tenant: whose gateway it is.
        snapshot_path: the routing snapshot, renamed into place by the control plane.
        segments_folder: where segment folders of all writers lie; the worker writes to a folder of its own in it.
        state_folder: shared by the workers of a host: session table and the key of user hashes. Made when missing.
        worker: the worker's name; ``None`` takes ``gateway-PID``.
        capture: what is kept of content until a snapshot says otherwise.
        allowed_origins: browser origins that may call.
        allowed_hosts: further Host names of a loopback listener.
        limits: sizes and times.
        backing: what stands behind the worker besides upstreams.
        tls_certificate, tls_key: PEM files; with them the worker speaks HTTPS, and follows their replacement.
    """

    project: str
    tenant: str
    snapshot_path: Path
    segments_folder: Path
    state_folder: Path
    worker: str | None = None
    capture: Capture = "masked"
    allowed_origins: frozenset[str] = frozenset()
    allowed_hosts: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    backing: BackingOptions = BackingOptions()


class Worker:
    """A gateway worker inside a running event loop.

    Args:
        options: what it needs to know.
        resolve_secret: turns secret references of upstreams into secrets; ``None`` takes the kernel's own way.
    """

    def __init__(self, options: WorkerOptions, resolve_secret: SecretResolver | None = None) -> None:
        self.options = options
        self.fronts: set[Front] = set()
        self.gateway: Gateway | None = None
        self._resolve_secret = resolve_secret or resolve_reference
        self._server: asyncio.AbstractServer | None = None
        self._handles: list[asyncio.TimerHandle] = []
        self._stopped = self._closed = False
        self._tls: ServerTls | None = None
        self._conversations_at = 0.0

    async def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket; the socket becomes the worker's own.

        Raises:
            Unavailable: state or segments cannot be written, or a certificate cannot be read.
            SettingsError: the guardrails that the options name cannot be loaded.
        """
        options = self.options
        limits, fronts = options.limits, self.fronts
        if options.tls_certificate is not None:
            self._tls = ServerTls(options.tls_certificate, options.tls_key or options.tls_certificate)
        gateway = self.open(loopback=_is_loopback(listener))
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Front(gateway, limits, fronts),
            sock=listener,
            backlog=_BACKLOG,
            ssl=self._tls.context if self._tls is not None else None,
            ssl_handshake_timeout=limits.header_timeout_s if self._tls is not None else None,
        )

    def open(self, *, loopback: bool) -> Gateway:
        """Everything but a listener: what an ASGI server that brings its own needs. Call it inside the loop.

        Args:
            loopback: whether the listener is reachable from this machine only.

        Raises:
            Unavailable: state or segments cannot be written.
            SettingsError: the guardrails that the options name cannot be loaded.
        """
        self.gateway = _open_gateway(self.options, self._resolve_secret, loopback=loopback)
        self._follow()
        limiter = self.gateway.snapshots.shared.limiter
        if limiter is not None:
            limiter.wait(_OPEN_LIMITS_S)
        self._every(_POLL_S, self._follow)
        self._every(_SWEEP_S, self._sweep)
        self._every(_KEPT_SWEEP_S, self._sweep_kept)
        return self.gateway

    async def stop(self, *, drain_timeout_s: float | None = None) -> None:
        """Take no more connections, finish what is in flight (bounded), then close everything.

        Args:
            drain_timeout_s: instead of the limit's.
        """
        if self._stopped or self.gateway is None:
            return
        self._stopped = True
        if self._server is not None:
            self._server.close()
        await self._drain(drain_timeout_s)
        self.gateway.admission.close()
        self.gateway.shadows.close()
        await self.gateway.snapshots.shared.answers.close()
        self.gateway.pool.close()
        self._closed = True
        for handle in self._handles:
            handle.cancel()
        await asyncio.sleep(0)
        await self.gateway.close()
        self.gateway.journal.close()
        self.gateway.sessions.close()
        limiter = self.gateway.snapshots.shared.limiter
        if limiter is not None:
            limiter.close()

    async def _drain(self, drain_timeout_s: float | None) -> None:
        gateway = self.gateway
        assert gateway is not None
        patience_s = self.options.limits.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        end = monotonic() + patience_s
        for front in tuple(self.fronts):
            front.draining = True
        idle_until = monotonic() + min(self.options.limits.drain_idle_s, patience_s)
        while self.fronts and monotonic() < idle_until:
            await asyncio.sleep(0.02)
        for front in tuple(self.fronts):
            front.drain()
        while self.fronts and monotonic() < end:
            await asyncio.sleep(0.02)
        while not gateway.shadows.idle and monotonic() < end:
            await asyncio.sleep(0.02)
        for front in tuple(self.fronts):
            front.cut()
        await asyncio.sleep(0)

    def _follow(self) -> None:
        assert self.gateway is not None
        self.gateway.snapshots.poll()
        self.gateway.admission.sweep(monotonic())
        if self._tls is not None:
            self._tls.follow()

    def _sweep(self) -> None:
        assert self.gateway is not None
        now = monotonic()
        for front in tuple(self.fronts):
            front.expire(now)
        self.gateway.pool.sweep(now)
        self.gateway.sweep(now)

    def _sweep_kept(self) -> None:
        """What is kept for minutes or days need not be looked at twice a second."""
        gateway = self.gateway
        assert gateway is not None
        gateway.snapshots.shared.answers.sweep(time())
        now = monotonic()
        if gateway.conversations.missing or now >= self._conversations_at:
            self._conversations_at = now + _CONVERSATIONS_SWEEP_S
            gateway.spawn(gateway.conversations.sweep())

    def _every(self, period_s: float, action: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        place = len(self._handles)

        def tick() -> None:
            action()
            if not self._closed:
                self._handles[place] = loop.call_later(period_s, tick)

        self._handles.append(loop.call_later(period_s, tick))


def run_worker(
    options: WorkerOptions,
    *,
    listener: socket.socket | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    resolve_secret: SecretResolver | None = None,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Run a worker until SIGTERM or SIGINT; returns when it has drained.

    Args:
        options: what it needs to know.
        listener: a bound, listening socket, usually inherited from the supervisor; or give ``host`` and ``port``.
        host: where to listen otherwise.
        port: likewise; 0 takes a free one.
        resolve_secret: turns secret references of upstreams into secrets.
        ready: called with the port when the worker serves.

    Raises:
        Unavailable: the port is taken, or a folder cannot be written.
        SettingsError: the guardrails that the options name cannot be loaded.
    """
    listener = listener or bind(host, port)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        worker = Worker(options, resolve_secret)
        bound = listener.getsockname()
        await worker.start(listener)
        # Requests leave no reference cycles behind, so the collector need not look at every few hundred objects, and
        # never at what was there from the start.
        gc.collect()
        gc.freeze()
        gc.set_threshold(25_000, 20, 20)
        # While a thread beside the loop computes (leases, the tending of segments), the loop waits this long for its
        # turn, and may do so at every event.
        sys.setswitchinterval(_THREAD_TURN_S)
        if ready is not None:
            ready(bound[1] if isinstance(bound, tuple) else 0)
        await stop.wait()
        await worker.stop()

    _run_loop(main())


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        Unavailable: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"The gateway cannot listen on {host}:{port}: {error.strerror}.",
            hint="Choose another port, or stop its owner.",
        ) from error
    return listener


def resolve_reference(reference: str) -> str:
    """Turn a secret reference (``env:NAME``, ``file:PATH``) into the secret.

    Raises:
        SettingsError: it is not there.
    """
    from tidemill.kernel.settings import resolve_secret  # loads pydantic, which most workers never need

    return resolve_secret(reference)


def _open_gateway(options: WorkerOptions, resolve_secret: SecretResolver, *, loopback: bool) -> Gateway:
    name = options.worker or f"gateway-{os.getpid()}"
    check_name(name, "worker")
    services = options.backing
    guardrails = open_guardrails(services)
    try:
        options.state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sessions = SessionTable(options.state_folder / "sessions.tbl")
        user_hash_key = _shared_key(options.state_folder / "user-hash.key")
        known = KnownTraces(options.state_folder / "traces.tbl")
    except OSError as error:
        raise Unavailable(f"{options.state_folder} cannot be written: {error.strerror}") from error
    folder = options.segments_folder / name
    journal = Journal(folder, project=options.project, tenant=options.tenant, capture=options.capture, known=known)

    def taken(snapshot: RoutingSnapshot) -> None:
        if snapshot.capture in {"masked", "hashed", "none"}:
            journal.set_capture(snapshot.capture)  # type: ignore[arg-type]  # narrowed by the set above

    pool = UpstreamPool(options.limits)
    shared = Shared(
        options.project,
        resolve_secret,
        options.limits,
        pool,
        KeptAnswers(services, project=options.project, pool=pool, resolve_secret=resolve_secret),
        open_limiter(services, project=options.project, worker=name, folder=folder),
        guardrails,
    )
    conversations = ConversationDesk(
        options.backing,
        project=options.project,
        state_folder=options.state_folder,
        resolve_secret=resolve_secret,
    )
    conversations.open()
    return Gateway(
        snapshots=SnapshotFile(options.snapshot_path, shared=shared, taken=taken),
        journal=journal,
        sessions=sessions,
        user_hash_key=user_hash_key,
        metrics=Metrics(name),
        conversations=conversations,
        access=Access(loopback, options.allowed_origins, options.allowed_hosts),
    )


def _shared_key(path: Path) -> bytes:
    """The key of user hashes: made by the first worker, read by all, whole at any moment (linked into place)."""
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, os.urandom(_HASH_KEY_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another worker was first
        finally:
            draft.unlink()
    return path.read_bytes()


def _is_loopback(listener: socket.socket) -> bool:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return True  # a Unix socket
    return ipaddress.ip_address(name[0]).is_loopback


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # not available on Windows
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
