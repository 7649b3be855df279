"""What stands around the clients: faulty upstreams, worker processes on one socket, drainers with settlement."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.gateway.conftest import write_snapshot
from tidemill.gateway import bind
from tidemill.gateway.backing_options import BackingOptions, ConversationOptions
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import (
    ApiKey,
    Arm,
    CacheMode,
    CachePolicy,
    Limit,
    LimitScope,
    LimitUnit,
    Prices,
    ReleaseRoute,
    Route,
    RoutePolicy,
    RoutingSnapshot,
    Scope,
    Target,
    key_digest,
)
from tidemill.kernel.routing_policy import Breaker, Hedging, Retries, Timeouts
from tidemill.ledger import open_ledger
from tidemill.ledger.accounts import Standing, open_lease_store
from tidemill.safety import mask_pii
from tidemill.server.settlement import Settlement
from tidemill.telemetry import Drainer, Span, open_span_store

TENANTS = ("default", "acme")
KEYS = {
    "tm_anna": ("anna", "default"),
    "tm_ben": ("ben", "default"),
    "tm_dora": ("dora", "default"),
    "tm_carl": ("carl", "acme"),
}
BUDGET_USD = 1.0
FAULT_SHARE = 0.15
STARTED_WITHIN_S = 60.0
SETTLED_WITHIN_S = 120.0
PRICES = Prices(input_usd_per_mtok=10.0, output_usd_per_mtok=100.0)
LIMITS = (
    Limit(
        limit_id="ben-requests", scope=LimitScope.KEY, subject="ben", unit=LimitUnit.REQUESTS, amount=150, window_s=5.0
    ),
    Limit(
        limit_id="web-usd",
        scope=LimitScope.TEAM,
        subject="web",
        unit=LimitUnit.USD,
        amount=BUDGET_USD,
        window_s=86400.0,
    ),
    Limit(
        limit_id="acme-tokens",
        scope=LimitScope.TENANT,
        subject="acme",
        unit=LimitUnit.TOKENS,
        amount=50_000,
        window_s=10.0,
        tenant="acme",
    ),
)


class Drawn(deque[Fault]):
    """Faults without end, drawn by chance."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.counts: Counter[Fault] = Counter()
        self._random = random.Random(seed)

    def __len__(self) -> int:
        return int(self._random.random() < FAULT_SHARE)

    def popleft(self) -> Fault:
        fault = self._random.choice(tuple(Fault))
        self.counts[fault] += 1
        return fault


class Upstreams:
    """Two faulty targets, a canary, a shadow and a talkative one for each tenant; each says its own name only."""

    def __init__(self, stack: ExitStack) -> None:
        self.faults: list[Drawn] = []
        self.servers: dict[str, ScriptedUpstream] = {}
        for tenant in TENANTS:
            for part in ("a", "b", "canary"):
                name = f"{tenant}-{part}"
                drawn = Drawn(len(self.faults))
                self.faults.append(drawn)
                server = ScriptedUpstream(words=(f"{name} ",) * 6, faults=drawn)
                self.servers[name] = stack.enter_context(server)
            name = f"{tenant}-bulk"
            self.servers[name] = stack.enter_context(ScriptedUpstream(words=(f"{name} " * 2000,) * 20))

    @property
    def injected(self) -> Counter[Fault]:
        return sum((drawn.counts for drawn in self.faults), Counter())

    def routes(self, canary_weight: float) -> list[Route]:
        return [route for tenant in TENANTS for route in self._routes(tenant, canary_weight)]

    def _routes(self, tenant: str, canary_weight: float) -> list[Route]:
        policy = RoutePolicy(
            timeouts=Timeouts(connect_s=5.0, first_token_s=1.0, between_chunks_s=1.0, total_s=15.0),
            retries=Retries(max_attempts=3, base_s=0.01, max_s=0.1, budget_share=1.0),
            breaker=Breaker(consecutive=20, min_requests=50, error_share=0.6, open_s=0.2, open_max_s=0.5),
            hedging=Hedging(share=0.1),
            cache=CachePolicy(mode=CacheMode.EXACT, ttl_s=2.0),
            max_output_tokens=50,
        )
        places = [self._target(tenant, part) for part in ("a", "b")]
        control = ReleaseRoute("sha256:" + "1" * 64, "release/desk@1", tuple(places), weight=1.0 - canary_weight)
        canary_place = (self._target(tenant, "canary"), places[0])
        canary = ReleaseRoute("sha256:" + "2" * 64, "release/desk@2", canary_place, Arm.CANARY, canary_weight)
        bulk = ReleaseRoute("sha256:" + "3" * 64, "release/bulk@1", (self._target(tenant, "bulk"),))
        guarded = RoutePolicy(timeouts=policy.timeouts, retries=policy.retries, guardrails=("pii",))
        return [
            Route("desk", tenant, (control, canary), rollout="rol_1", salt="s", policy=policy),
            Route("guarded", tenant, (replace(control, weight=1.0),), policy=guarded),
            Route("bulk", tenant, (bulk,)),
        ]  # fmt: skip

    def _target(self, tenant: str, part: str) -> Target:
        name = f"{tenant}-{part}"
        return Target(self.servers[name].url, name=name, prices=PRICES)


class Stage:
    """Workers on one listening socket, their snapshot, and what the control plane does for them.

    Args:
        folder: for all files.
        stack: closes what is opened.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.upstreams = Upstreams(stack)
        self.segments = folder / "segments"
        self.ledger = f"sqlite:///{folder / 'ledger.db'}"
        self.spans: list[Span] = []
        self.wrong: list[str] = []
        self.killed_at: list[float] = []
        self.most_mb = 0.0
        self._folder, self._epoch = folder, 0
        for tenant in TENANTS:
            open_ledger(self.ledger, blobs=str(folder / "blobs"), scope=Scope("demo", tenant)).close()
        self.accounts = {tenant: open_lease_store(self.ledger, Scope("demo", tenant)) for tenant in TENANTS}
        self._settlements = {
            tenant: Settlement(self.accounts[tenant], self.segments, tenant=tenant) for tenant in TENANTS
        }
        self._drainers = []
        for tenant in TENANTS:
            stack.callback(self.accounts[tenant].close)
            store = open_span_store(folder / f"spans-{tenant}.db", Scope("demo", tenant))
            stack.callback(store.close)
            self._drainers.append(Drainer(self.segments, store, mask=mask_pii, settle=self._settler(tenant)))
        self.reload()
        self._listener = stack.enter_context(bind("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(self._kill_all)
        for number in range(2):
            self.start_worker(f"gateway-{number}")

    def _settler(self, tenant: str) -> Callable[[Sequence[Span]], None]:
        def settle(spans: Sequence[Span]) -> None:
            self._settlements[tenant].settle(spans)
            self.spans.extend(spans)

        return settle

    def reload(self) -> None:
        """A new snapshot; the canary's share wanders."""
        self._epoch += 1
        keys = tuple(
            ApiKey(key_digest(key), name, tenant, team="web" if name == "anna" else None)
            for key, (name, tenant) in KEYS.items()
        )
        routes = tuple(self.upstreams.routes((self._epoch % 5) / 10))
        snapshot = RoutingSnapshot("demo", self._epoch, time.time(), 600.0, routes, keys, limits=LIMITS)
        write_snapshot(self._folder / "routing.json", snapshot)

    def start_worker(self, name: str) -> None:
        """As the supervisor does: the same name again after a death."""
        options = BackingOptions(
            limits_url=self.ledger,
            conversations=ConversationOptions(url=f"sqlite:///{self._folder / 'conversations.db'}"),
        )
        log = self._folder / f"{name}-{len(list(self._folder.glob('*.log')))}.log"
        with log.open("wb") as out:
            self.workers[name] = subprocess.Popen(
                [sys.executable, "-m", "tidemill.gateway", "--fd", str(self._listener.fileno()), "--project", "demo",
                 "--snapshot", str(self._folder / "routing.json"), "--segments", str(self.segments),
                 "--worker", name, "--backing", options.encode()],
                pass_fds=(self._listener.fileno(),), stdout=out, stderr=out,
            )  # fmt: skip
        end = time.monotonic() + STARTED_WITHIN_S
        while b"ready" not in log.read_bytes():
            assert time.monotonic() < end, log.read_text()
            assert self.workers[name].poll() is None, log.read_text()
            time.sleep(0.02)

    def end_worker(self, name: str, number: signal.Signals) -> None:
        """End one and wait; a killed one's moment is kept."""
        process = self.workers.pop(name)
        if number is signal.SIGKILL:
            self.killed_at.append(time.monotonic())
        process.send_signal(number)
        code = process.wait(60)
        if number is signal.SIGTERM and code != 0:
            self.wrong.append(f"{name} ended with {code}")

    def _kill_all(self) -> None:
        for process in self.workers.values():
            process.kill()
            process.wait()

    def control(self) -> None:
        """One look of the control plane: drain, settle, close leases of the dead, and look at the limits."""
        for drainer in self._drainers:
            while drainer.drain_once().more:
                pass
        for settlement in self._settlements.values():
            settlement.tick()
        for one in self.standing():
            if one.spent + one.leased > one.amount + 1e-9:
                self.wrong.append(f"{one.limit.limit_id}: {one.spent} spent, {one.leased} leased of {one.amount}")
        self.most_mb = max([self.most_mb, *(_rss_mb(process.pid) for process in self.workers.values())])

    def control_until(self, stop: threading.Event) -> None:
        """Look again and again."""
        while not stop.wait(0.3):
            self.control()

    def standing(self) -> list[Standing]:
        return [
            one
            for tenant, store in self.accounts.items()
            for one in store.standing([limit for limit in LIMITS if limit.tenant == tenant])
        ]

    def settle(self) -> None:
        """Look until nothing is leased any more."""
        end = time.monotonic() + SETTLED_WITHIN_S
        while True:
            self.control()
            if not any(one.leased for one in self.standing()):
                return
            assert time.monotonic() < end, f"still leased: {self.standing()}"
            time.sleep(0.2)

    def in_flight(self) -> dict[str, int]:
        """What each living worker's gauge says, each asked on connections of their own until all have answered."""
        found: dict[str, int] = {}
        end = time.monotonic() + STARTED_WITHIN_S
        while set(found) != set(self.workers) or any(found.values()):
            if time.monotonic() > end:
                break
            with socket.create_connection(("127.0.0.1", self.port), 20) as line:
                line.sendall(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
                text = b"".join(iter(lambda: line.recv(65536), b"")).decode()
            gauge = re.search(r'tidemill_gateway_in_flight\{worker="([^"]+)"\} (\d+)', text)
            assert gauge is not None, text
            found[gauge[1]] = int(gauge[2])
        return found

    def log_lines(self) -> list[str]:
        """What workers said that they must not say."""
        logs = [log.read_text().splitlines() for log in self._folder.glob("*.log")]
        return [
            "\n".join(lines[place : place + 40])
            for lines in logs
            for place, line in enumerate(lines)
            if re.search(r"Traceback|Exception| ERROR ", line)
        ]


def _rss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        return 0.0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
