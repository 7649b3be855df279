"""Figures of speed: CPU per request and stream, throughput beside other gateways, added latency, two workers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from gateway.peers import LITELLM_KEY, start_litellm, start_tensorzero
from gateway.rig import KEY, PROXY_CORE, Rig, cpu_s, free_port
from rows import Row

STREAMS = 16
RATE_PER_S = 1000
RATE_TURN_S = 10.0


def nginx_proxy(rig: Rig, upstream: int, *, buffering: bool, workers: int = 1) -> tuple[int, int]:
    """nginx's proxy_pass with kept-alive upstream connections. Returns (port, pid)."""
    port, word = free_port(), "on" if buffering else "off"
    values = {"UPSTREAM": str(upstream), "BUFFERING": word, "WORKERS": str(workers)}
    process = rig.nginx("nginx-proxy.conf", PROXY_CORE, port, **values)
    return port, process.pid


def cpu_us(turn: Callable[[], float], *pids: int) -> float:
    """CPU microseconds per request of one turn, which returns the requests that were answered."""
    before = cpu_s(*pids)
    answered = turn()
    return (cpu_s(*pids) - before) / answered * 1e6


def in_turns(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Figures by name over rounds of short turns, the order reversed from round to round; a first round warms up.

    Other load on the machine hits neighbours in time alike, so what is compared is each round's turns with each other.
    """
    found: dict[str, list[float]] = {name: [] for name in turns}
    order = list(turns.items())
    for number in range(rounds + 1):
        order.reverse()
        for name, turn in order:
            figure = turn()
            if number:
                found[name].append(figure)
    return found


def ratios(found: Mapping[str, list[float]], ours: str, theirs: str) -> list[float]:
    return sorted(one / other for one, other in zip(found[ours], found[theirs], strict=True))


def ratio_rows(what: str, found: dict[str, list[float]], bar: float) -> list[Row]:
    """The gateway's CPU beside nginx's, and the median ratio of the rounds."""
    every = ratios(found, "gateway", "nginx")
    ratio = statistics.median(every)
    print(f"{what}: {ratio:.2f}x nginx, rounds {every[0]:.2f} to {every[-1]:.2f}", flush=True)
    ours, theirs = (statistics.median(found[name]) for name in ("gateway", "nginx"))
    return [
        Row(f"CPU per {what}", ours, "us", "", None, {"nginx": theirs}),
        Row(f"CPU per {what} over nginx's", ratio, "ratio", f"<= {bar:g}", ratio <= bar),
    ]


def request_rows(rig: Rig, rounds: int) -> list[Row]:
    """CPU per non-streaming request with keys, limits, budget, trace and an exact-cache miss."""
    upstream = rig.plain_upstream()
    port, pid = nginx_proxy(rig, upstream, buffering=True)
    gateway, bare = rig.gateway(upstream), rig.gateway(upstream, bare=True)
    turns = {
        "nginx": lambda: cpu_us(lambda: rig.wrk(port, rig.seconds), pid),
        "gateway": lambda: cpu_us(lambda: rig.wrk(gateway.port, rig.seconds), *gateway.pids),
        "bare": lambda: cpu_us(lambda: rig.wrk(bare.port, rig.seconds), *bare.pids),
    }
    found = in_turns(turns, rounds)
    rows = ratio_rows("request", found, 3.2)
    found["gateway"] = found["bare"]
    return [*rows, *ratio_rows("request, pass-through without limits and cache", found, 3)]


def stream_rows(rig: Rig, rounds: int) -> list[Row]:
    """Likewise per stream of 50 chunks."""
    upstream = rig.stream_upstream()
    port, pid = nginx_proxy(rig, upstream, buffering=False)
    gateway = rig.gateway(upstream)

    def streams(at: int) -> float:
        return rig.load(at, rig.stream_body, "closed", STREAMS, rig.seconds)["n"]

    turns = {
        "nginx": lambda: cpu_us(lambda: streams(port), pid),
        "gateway": lambda: cpu_us(lambda: streams(gateway.port), *gateway.pids),
    }
    return ratio_rows("50-chunk stream", in_turns(turns, rounds), 2.2)


def throughput_rows(rig: Rig, rounds: int) -> list[Row]:
    """Requests a second that one core answers, beside the gateway in TensorZero's wheel and LiteLLM's proxy."""
    upstream = rig.plain_upstream()
    gateway = rig.gateway(upstream)
    tensorzero, body = start_tensorzero(rig, upstream)
    litellm, _ = start_litellm(rig, upstream)
    seconds = max(3.0, rig.seconds)
    found = in_turns(
        {
            "gateway": lambda: rig.wrk(gateway.port, seconds) / seconds,
            "tensorzero": lambda: rig.wrk(tensorzero, seconds, body=body) / seconds,
            "litellm": lambda: rig.wrk(litellm, 2 * seconds, key=LITELLM_KEY) / (2 * seconds),
        },
        max(3, rounds // 2),
    )
    rate = {name: statistics.median(values) for name, values in found.items()}
    beside = {name: rate[name] for name in ("tensorzero", "litellm")}
    rows = [Row("requests a second on one core", rate["gateway"], "1/s", "", None, beside)]
    for name, bar in (("tensorzero", 4), ("litellm", 50)):
        ratio = statistics.median(ratios(found, "gateway", name))
        rows.append(Row(f"throughput over {name}'s", ratio, "ratio", f">= {bar}", ratio >= bar))
    return rows


def latency_rows(rig: Rig, rounds: int) -> list[Row]:
    """What each proxy adds at an even rate, in milliseconds over the upstream asked directly.

    Everyone has a second to warm up; then come turns of ten seconds, so that a pause that happens once in some seconds
    is in every figure, as a thousand requests a second for one second could miss it.
    """
    upstream = rig.plain_upstream()
    nginx, _ = nginx_proxy(rig, upstream, buffering=True)
    gateway = rig.gateway(upstream)
    ports = {"direct": upstream, "nginx": nginx, "gateway": gateway.port}
    found: dict[str, dict[str, list[float]]] = {name: {"p50_ms": [], "p99_ms": []} for name in ports}
    for port in ports.values():
        rig.load(port, rig.body, "open", RATE_PER_S, 1.0)
    for _ in range(max(3, rounds // 2)):
        for name, port in ports.items():
            one = rig.load(port, rig.body, "open", RATE_PER_S, RATE_TURN_S)
            print(f"{name}: p50 {one['p50_ms']:.3f} ms, p99 {one['p99_ms']:.3f} ms", flush=True)
            for figure, values in found[name].items():
                values.append(one[figure])
    rows = []
    for figure in ("p50_ms", "p99_ms"):
        # The least of the rounds: whatever else runs on the machine only ever adds.
        best = {name: min(found[name][figure]) for name in ports}
        added = {name: best[name] - best["direct"] for name in ports}
        bar = "<= nginx + 0.5" if figure == "p99_ms" else ""
        holds = added["gateway"] <= added["nginx"] + 0.5 if bar else None
        label = f"latency added at {RATE_PER_S}/s, {figure[:3]}"
        rows.append(Row(label, added["gateway"], "ms", bar, holds, {"nginx": added["nginx"], "direct": best["direct"]}))
    return rows


def scaling_rows(rig: Rig, rounds: int) -> list[Row]:
    """CPU per request of two workers on one socket beside that of one; nginx, measured alike, is the control.

    Both workers share one core, so what is measured is what a second process costs by itself: fewer requests at each
    waking, and caches that two share.
    """
    upstream = rig.plain_upstream()
    one, two = rig.gateway(upstream), rig.gateway(upstream, workers=2)
    nginx_one, nginx_two = (nginx_proxy(rig, upstream, buffering=True, workers=count) for count in (1, 2))

    def turn(port: int, *pids: int) -> Callable[[], float]:
        return lambda: cpu_us(lambda: rig.wrk(port, rig.seconds, key=KEY), *pids)

    turns = {
        "one": turn(one.port, *one.pids),
        "two": turn(two.port, *two.pids),
        "nginx one": turn(*nginx_one),
        "nginx two": turn(*nginx_two),
    }
    found = in_turns(turns, rounds)
    ratio = statistics.median(ratios(found, "two", "one"))
    control = statistics.median(ratios(found, "nginx two", "nginx one"))
    return [
        Row(
            "CPU per request, two workers over one",
            ratio,
            "ratio",
            "<= 1.15",
            ratio <= 1.15,
            {
                "one worker (us)": statistics.median(found["one"]),
                "two workers (us)": statistics.median(found["two"]),
                "nginx": control,
            },
        )
    ]
