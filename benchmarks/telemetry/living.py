"""The server as it lives: how soon it answers, and how questions and arriving spans disturb each other."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

from rows import Row
from telemetry.payload import requests_of
from telemetry.rig import Bench, Receiver, get

BATCH = 500
KEPT, ARRIVING = 200_000, 200_000
QUESTIONS = 60
QUESTION = "/api/v1/series?measure=p95:duration_s&measure=requests&by=request_model&every=1h&spans=true"


def living_rows(folder: Path) -> list[Row]:
    """Fills a server, starts it again, and asks it while idle and while spans arrive at half of what it can take."""
    begin_ns = time.time_ns() - 24 * 3600 * 10**9
    with Bench(folder) as bench:
        receiver = bench.tidemill()
        bodies = list(requests_of(KEPT, BATCH, start_ns=begin_ns, text=200))
        begun = time.monotonic()
        for body in bodies:
            _post(receiver, body)
        _until(receiver, KEPT)
        rate = KEPT / (time.monotonic() - begun)
        receiver.stop()
        begun = time.monotonic()
        receiver = bench.tidemill()
        _ask(receiver)
        started_s = time.monotonic() - begun
        idle = _asked(receiver, QUESTIONS)
        more = list(requests_of(ARRIVING, BATCH, start_ns=begin_ns, seed=1, text=200))
        alone = _paced(receiver, more[: len(more) // 2], rate / 2)
        busy, beside = _both(receiver, more[len(more) // 2 :], rate / 2)
        receiver.stop()
    slower = _p95(busy) / _p95(idle)
    lost = max(0.0, 1 - beside / alone)
    return [
        Row("server start to first answer, 200,000 spans kept", started_s, "s", "< 3", started_s < 3),
        Row("p95 of questions while spans arrive, over idle", slower, "ratio", "<= 2", slower <= 2,
            {"idle (ms)": _p95(idle) * 1e3, "busy (ms)": _p95(busy) * 1e3, "spans/s": rate / 2}),
        Row("ingest lost to questions", 100 * lost, "%", "< 10", lost < 0.1, {"alone": alone, "beside": beside}),
    ]  # fmt: skip


def _post(receiver: Receiver, body: bytes) -> None:
    while (status := receiver.post(body)) in (429, 503):
        time.sleep(0.1)
    if status != 200:
        raise SystemExit(f"the server answered {status}")


def _until(receiver: Receiver, spans: int) -> None:
    end = time.monotonic() + 300
    while receiver.stored() < spans:
        if time.monotonic() > end:
            raise SystemExit("spans that were acknowledged cannot be asked for")
        time.sleep(0.2)


def _ask(receiver: Receiver) -> float:
    begun = time.perf_counter()
    if get(receiver.url.removesuffix("/v1/traces") + QUESTION, receiver.headers) is None:
        raise SystemExit(f"no answer to {QUESTION}")
    return time.perf_counter() - begun


def _asked(receiver: Receiver, times: int) -> list[float]:
    _ask(receiver)
    found = []
    for _ in range(times):
        found.append(_ask(receiver))
        time.sleep(0.05)
    return found


def _paced(receiver: Receiver, bodies: list[bytes], rate: float) -> float:
    """Send so many spans a second; what was really reached, up to their being stored."""
    before, begun = receiver.stored(), time.monotonic()
    for place, body in enumerate(bodies):
        time.sleep(max(0.0, begun + place * BATCH / rate - time.monotonic()))
        _post(receiver, body)
    _until(receiver, before + len(bodies) * BATCH)
    return len(bodies) * BATCH / (time.monotonic() - begun)


def _both(receiver: Receiver, bodies: list[bytes], rate: float) -> tuple[list[float], float]:
    reached: list[float] = []
    sending = threading.Thread(target=lambda: reached.append(_paced(receiver, bodies, rate)))
    sending.start()
    found: list[float] = []
    while sending.is_alive():
        found.append(_ask(receiver))
        time.sleep(0.05)
    sending.join()
    return found, reached[0]


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
