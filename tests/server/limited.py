"""Workers that admit calls and their further attempts under limits and write what they did, for tests that kill them.

One process loads the libraries and forks a worker for each line ``start NAME`` on its standard input; it answers with
the worker's process id. A worker runs until it is killed, gets SIGTERM or is an orphan. Run as a child by tests.

Arguments: JSON with ``url``, ``project``, ``segments``, ``limits``, ``calls`` (in flight at once), ``total`` (calls of
a worker; 0: without end), ``log`` (where refusals are written, a line each) and ``options`` of the limiter.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy  # noqa: F401 - loaded once, before the forks

from tests.gateway.admission.limiting import call, limit, snapshot
from tidemill.gateway.admission.desks import LimiterOptions
from tidemill.gateway.admission.limits import Limiter
from tidemill.gateway.answers import Refusal
from tidemill.kernel import Limit, Scope
from tidemill.ledger.accounts import LeaseStore, open_lease_store
from tidemill.ledger.accounts import sqlite_store as _loaded_too  # noqa: F401 - likewise
from tidemill.telemetry import Intent, SegmentWriter, Span


def limits_of(task: dict[str, Any]) -> list[Limit]:
    return [limit(amount, unit, scope, window_s=window_s) for amount, unit, scope, window_s in task["limits"]]


async def work(task: dict[str, Any], name: str) -> None:
    folder = Path(task["segments"])
    chance = random.Random(os.getpid())
    scope = Scope(task["project"])

    def open_store(tenant: str) -> LeaseStore:
        return open_lease_store(task["url"], scope)

    limiter = Limiter(name, folder / name, open_store, LimiterOptions(**task["options"]))
    limiter.follow(snapshot(*limits_of(task)))
    writer = SegmentWriter(folder / name, project=task["project"], tenant="default", capture="none", fsync="never")
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    parent = os.getppid()

    async def end_with_parent() -> None:
        while os.getppid() == parent and not stopping.is_set():
            await asyncio.sleep(0.5)
        stopping.set()  # a test that was killed leaves no workers behind

    watching = asyncio.ensure_future(end_with_parent())
    left = task["total"] or sys.maxsize
    log = Path(task["log"])

    def note(refusal: Refusal) -> None:
        with log.open("a") as file:
            file.write(f"{refusal.status} {refusal.message}\n")

    async def caller() -> None:
        nonlocal left
        loop = asyncio.get_running_loop()
        while left > 0 and not stopping.is_set():
            left -= 1
            given, made = chance.randrange(1, 50), chance.randrange(1, 100)
            future: asyncio.Future[Any] = loop.create_future()
            limiter.enter(call(input_bytes=given, max_output_tokens=made), future.set_result, future.set_exception)
            try:
                ticket = await future
            except Refusal as refusal:
                note(refusal)
                await asyncio.sleep(chance.uniform(0.05, 0.2))
                continue
            ids = {"trace_id": f"{chance.getrandbits(128):032x}", "span_id": f"{chance.getrandbits(64):016x}"}
            begun = time.time_ns()
            writer.intent(Intent(**ids, started_at_ns=begun, attributes=dict(ticket.attributes)))
            await asyncio.sleep(chance.uniform(0, 0.05))
            tokens = chance.randrange(1, given + made + 1)
            while chance.random() < 0.3:  # it failed, or is slow: one more attempt, and both are charged
                again: asyncio.Future[Any] = loop.create_future()
                ticket.more(again.set_result, again.set_exception)
                try:
                    ticket = await again
                except Refusal as refusal:
                    note(refusal)
                    break
                writer.intent(Intent(**ids, started_at_ns=begun, attributes=dict(ticket.attributes)))
                await asyncio.sleep(chance.uniform(0, 0.05))
                tokens += chance.randrange(1, given + made + 1)
            attributes = dict(ticket.attributes)
            ticket.settle(tokens=tokens, cost_usd=tokens * 1e-6)
            attributes.update(ticket.attributes)
            kind = {"project": task["project"], "tenant": "default", "name": "chat", "operation": "chat"}
            writer.finished(Span(**ids, **kind, started_at_ns=begun, ended_at_ns=time.time_ns(), attributes=attributes))

    await asyncio.gather(*(caller() for _ in range(task["calls"])))
    watching.cancel()
    limiter.close()
    writer.close()


def main() -> None:
    task = json.loads(sys.argv[1])
    for line in sys.stdin:
        _, name = line.split()
        child = os.fork()
        if child == 0:
            asyncio.run(work(task, name))
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    main()
