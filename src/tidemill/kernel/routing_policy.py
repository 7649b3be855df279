"""How the gateway may treat an endpoint's requests: times, retries, breakers, hedging, caches, caps, limits.

Plain values of the routing snapshot. Every field has a default that suits one host, so that a project file names only
what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Choice(StrEnum):
    """How a release with several targets chooses among them."""

    ORDERED = "ordered"
    WEIGHTED = "weighted"
    LEAST_IN_FLIGHT = "least_in_flight"
    PEAK_EWMA = "peak_ewma"
    CHEAPEST = "cheapest"
    LEARNED = "learned"


class Priority(StrEnum):
    """Who is let in first, and shed last."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    SHADOW = "shadow"


class LimitScope(StrEnum):
    """Whose requests a limit counts."""

    KEY = "key"
    TEAM = "team"
    ENDPOINT = "endpoint"
    TENANT = "tenant"


class LimitUnit(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    USD = "usd"


class CacheMode(StrEnum):
    """Which earlier answers may be given again."""

    OFF = "off"
    EXACT = "exact"
    SEMANTIC = "semantic"


class Overflow(StrEnum):
    """What happens to a prompt that is longer than the model's window."""

    PASS = "pass"
    REFUSE = "refuse"
    TRUNCATE = "truncate"
    SUMMARISE = "summarise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a target charges, in US dollars a million tokens unless the name says otherwise.

    Args:
        cached_input_usd_per_mtok: input read from the provider's cache; ``None`` costs as other input.
        reasoning_usd_per_mtok: output spent on reasoning; ``None`` costs as other output.
        audio_input_usd_per_mtok, audio_output_usd_per_mtok: audio tokens; ``None`` cost as other tokens.
        image_usd: an image of the prompt.
        request_usd: a request, whatever it holds.
        version: names the row of the price table, e.g. ``2026-11-01``; spans carry it.
    """

    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    cached_input_usd_per_mtok: float | None = None
    reasoning_usd_per_mtok: float | None = None
    audio_input_usd_per_mtok: float | None = None
    audio_output_usd_per_mtok: float | None = None
    image_usd: float = 0.0
    request_usd: float = 0.0
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a request may wait for an upstream, in seconds; ``total_s`` counts over all attempts."""

    connect_s: float = 5.0
    first_token_s: float = 300.0
    between_chunks_s: float = 120.0
    total_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """When a failed attempt is made again.

    Args:
        max_attempts: of one request, over all targets; 1 never retries.
        base_s, max_s: backoff before attempt n is drawn from [0, min(max_s, base_s * 2^n)] (full jitter).
        budget_share: retries allowed per finished request, saved up in a token bucket.
    """

    max_attempts: int = 3
    base_s: float = 0.1
    max_s: float = 5.0
    budget_share: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """When a failing target is left alone.

    Args:
        window_s: outcomes younger than this count.
        min_requests: fewer decide nothing.
        error_share: at this share of failures the breaker opens.
        consecutive: so many failures in a row open it too, however long they took.
        open_s, open_max_s: it stays open so long at first, doubling with jitter up to the most; then one probe.
    """

    window_s: float = 30.0
    min_requests: int = 10
    error_share: float = 0.5
    consecutive: int = 5
    open_s: float = 5.0
    open_max_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging:
    """A second call when the first is slower than its target's own p95, before the first token.

    Args:
        share: hedges allowed per request; 0 switches hedging off.
        min_wait_s: never earlier than this.
    """

    share: float = 0.0
    min_wait_s: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Which earlier answers may be given again.

    Args:
        ttl_s: an answer is given again for so long.
        max_temperature: requests with a higher temperature are neither answered nor kept.
        per_user: whether the ``user`` of a request is part of the partition.
        similarity: least cosine of a semantic hit.
    """

    mode: CacheMode = CacheMode.OFF
    ttl_s: float = 3600.0
    max_temperature: float = 0.0
    per_user: bool = True
    similarity: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many requests of an endpoint run at once.

    Args:
        in_flight: of the endpoint in one worker; ``None`` sets no cap.
        in_flight_per_key: likewise of one key.
        queue: requests that may wait; further ones get 429.
        queue_timeout_s: longest wait; then 429.
        adaptive: lower the cap by itself while first-token latency grows.
    """

    in_flight: int | None = None
    in_flight_per_key: int | None = None
    queue: int = 64
    queue_timeout_s: float = 2.0
    adaptive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedRouting:
    """A small model for easy requests, a large one for hard ones.

    Args:
        weights: of the features that ``gateway.routing.learned`` computes from a request, with the intercept last.
        threshold: requests whose score is at least this go to the second target, others to the first.
    """

    weights: tuple[float, ...] = ()
    threshold: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePolicy:
    """How a release chooses among its targets.

    Args:
        quality_floor: for ``cheapest``: targets of a lower ``quality`` are left out.
        rules: for ``ordered``: ``(field, pattern, target name)``; the first rule whose pattern is found in the named
            part of the request (``messages``, ``user``, ``tools``) puts that target first.
    """

    kind: Choice = Choice.ORDERED
    quality_floor: float = 0.0
    rules: tuple[tuple[str, str, str], ...] = ()
    learned: LearnedRouting = LearnedRouting()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """Everything an endpoint's requests are treated by.

    Args:
        max_output_tokens: upper bound for reserves, put into requests that name none while a token or money limit
            applies.
        overflow: what happens to a prompt longer than the target's ``context_tokens``.
        guardrails: names of the guardrails, in order.
        untraced: whether requests are served when they cannot be recorded (a full disk).
        priority: of requests whose key names none.
    """

    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    breaker: Breaker = Breaker()
    hedging: Hedging = Hedging()
    cache: CachePolicy = CachePolicy()
    caps: Caps = Caps()
    max_output_tokens: int = 4096
    overflow: Overflow = Overflow.PASS
    guardrails: tuple[str, ...] = ()
    untraced: bool = False
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A rate limit or a budget: at most ``amount`` of a unit in any window of ``window_s``.

    Args:
        limit_id: names the account it is kept in; the same id with other numbers is the same account.
        subject: name of the key, team, endpoint or tenant it counts.
        tenant: whose limit it is; each tenant has accounts of its own.
    """

    limit_id: str
    scope: LimitScope
    subject: str
    unit: LimitUnit
    amount: float
    window_s: float
    tenant: str = "default"
