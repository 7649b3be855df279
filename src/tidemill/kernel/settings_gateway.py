"""The sections of the project file that say how the gateway treats requests.

The names and defaults are those of ``kernel.routing_policy``, into which they are compiled; a test holds them equal.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tidemill.kernel.routing_policy import CacheMode, Choice, LimitScope, LimitUnit, Overflow, Priority
from tidemill.kernel.scope import NAME_PATTERN

Name = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0)]
Price = Annotated[float, Field(ge=0)]

EVERY: Final = "*"
"""Subject of a limit that every key, team or endpoint has for itself."""


class Section(BaseModel):
    """A part of the project file: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PriceSettings(Section):
    """A row of a price table: what a model costs from a day on."""

    since: date = Field(date(1970, 1, 1), description="First day the row holds; names the version on spans.")
    input_usd_per_mtok: Price = Field(0.0, description="A million input tokens.")
    output_usd_per_mtok: Price = Field(0.0, description="A million output tokens.")
    cached_input_usd_per_mtok: Price | None = Field(
        None, description="Input from the provider's cache; empty: as input."
    )
    reasoning_usd_per_mtok: Price | None = Field(None, description="Output spent on reasoning; empty: as output.")
    audio_input_usd_per_mtok: Price | None = Field(None, description="Audio input; empty: as input.")
    audio_output_usd_per_mtok: Price | None = Field(None, description="Audio output; empty: as output.")
    image_usd: Price = Field(0.0, description="An image of a prompt.")
    request_usd: Price = Field(0.0, description="A request, whatever it holds.")


class LearnedSettings(Section):
    """A small model for easy requests, a large one for hard ones, told apart by a score learned from traces."""

    weights: tuple[float, ...] = Field((), description="Of the request's features, the intercept last.")
    threshold: Share = Field(0.5, description="Requests that score at least so much go to the second model.")


class RuleSettings(Section):
    """A rule that puts one model first."""

    field: Literal["messages", "user", "tools"] = Field(description="Part of the request that is looked at.")
    pattern: str = Field(min_length=1, max_length=500, description="Regular expression to be found in it.")
    model: Name = Field(description="Model that then comes first.")


class RouterSettings(Section):
    """Several models of one release, and how one of them is chosen."""

    models: tuple[Name, ...] = Field(min_length=1, description="Further models, in order, after the release's own.")
    choice: Choice = Field(Choice.ORDERED, description="How one is chosen; the others are its fallbacks.")
    quality_floor: Share = Field(0.0, description="For cheapest: models of a lower quality are left out.")
    rules: tuple[RuleSettings, ...] = Field((), description="For ordered: the first rule that fits decides.")
    learned: LearnedSettings = Field(default=LearnedSettings(), description="For learned: weights and threshold.")


class TimeoutSettings(Section):
    """How long an endpoint's requests wait for an upstream."""

    connect_s: Positive = Field(5.0, description="To connect.")
    first_token_s: Positive = Field(300.0, description="From the call to the first content.")
    between_chunks_s: Positive = Field(120.0, description="Between two pieces of an answer.")
    total_s: Positive = Field(900.0, description="For the whole answer, over all attempts.")


class RetrySettings(Section):
    """When a failed attempt is made again, there or at the next target."""

    max_attempts: int = Field(3, ge=1, le=10, description="Attempts of one request; 1 never retries.")
    base_s: Positive = Field(0.1, description="Backoff before attempt n is drawn from 0 to base_s * 2^n.")
    max_s: Positive = Field(5.0, description="Longest backoff.")
    budget_share: Share = Field(0.2, description="Retries allowed per request.")


class BreakerSettings(Section):
    """When a failing target is left alone."""

    window_s: Positive = Field(30.0, description="Outcomes younger than this count.")
    min_requests: int = Field(10, ge=1, description="Fewer outcomes decide nothing.")
    error_share: float = Field(0.5, gt=0, le=1, description="Share of failures at which it opens.")
    consecutive: int = Field(5, ge=1, description="So many failures in a row open it as well.")
    open_s: Positive = Field(5.0, description="Open for so long at first; then one probe.")
    open_max_s: Positive = Field(60.0, description="Longest time open.")


class HedgingSettings(Section):
    """A second call when the first is slower than its target's own p95, before the first token."""

    share: Share = Field(0.0, description="Hedges allowed per request; 0 is off.")
    min_wait_s: Positive = Field(0.05, description="Never earlier than this.")


class CacheSettings(Section):
    """Which earlier answers may be given again."""

    mode: CacheMode = Field(CacheMode.OFF, description="off, exact, or semantic (by embeddings).")
    ttl_s: Positive = Field(3600.0, description="How long an answer is given again.")
    max_temperature: float = Field(0.0, ge=0, description="Requests above it are neither answered nor kept.")
    per_user: bool = Field(True, description="Whether users of a key have caches of their own.")
    similarity: float = Field(0.95, gt=0, le=1, description="Least cosine of a semantic hit.")


class CapSettings(Section):
    """How many requests run at once in one worker."""

    in_flight: int | None = Field(None, ge=1, description="Of the endpoint; empty for no cap.")
    in_flight_per_key: int | None = Field(None, ge=1, description="Of one key; empty for no cap.")
    queue: int = Field(64, ge=0, description="Requests that may wait.")
    queue_timeout_s: Positive = Field(2.0, description="Longest wait; then 429.")
    adaptive: bool = Field(False, description="Lower the cap by itself while the time to the first token grows.")


class LimitSettings(Section):
    """A rate limit or a budget: at most so much in any window of time."""

    scope: LimitScope = Field(description="Whose requests count: of a key, a team, an endpoint, the tenant.")
    subject: str = Field(EVERY, description="Name of the key, team or endpoint; * gives each its own account.")
    unit: LimitUnit = Field(description="requests, tokens or usd.")
    amount: Positive = Field(description="At most so much.")
    window_s: float = Field(ge=1, description="In any so many seconds, e.g. 60, 86400, 2592000.")


class ConversationSettings(Section):
    """What ``/v1/responses`` keeps."""

    enabled: bool = Field(True, description="Keep responses, for previous_response_id and conversations.")
    store: str | None = Field(None, description="SQLAlchemy or redis:// URL; empty for a file in the state folder.")
    retention_s: Positive = Field(2592000.0, description="Deleted so long after its newest turn.")
    bytes_most: int = Field(4 << 20, ge=1024, description="A larger turn is not kept.")
    depth_most: int = Field(500, ge=1, description="Turns a history may have.")
    key: str | None = Field(None, description="Secret reference of 64 hexadecimal digits; empty for a key file.")


class GatewaySettings(Section):
    """The data plane."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8410, description="Port that clients' base_url names.")
    workers: int = Field(1, ge=1, le=64, description="Worker processes that share the listening socket.")
    snapshot_lifetime_s: Positive = Field(3600.0, description="How long a worker serves on without the control plane.")
    capture: Literal["masked", "hashed", "none"] = Field("masked", description="What is kept of requests and answers.")
    tls_certificate: str | None = Field(None, description="File with the certificate chain; turns HTTPS on.")
    tls_key: str | None = Field(None, description="File with its key.")
    allowed_origins: tuple[str, ...] = Field((), description="Browser origins that may call.")
    allowed_hosts: tuple[str, ...] = Field((), description="Further Host names of a loopback listener.")
    limits_store: str | None = Field(None, description="redis:// URL for limits; empty keeps them in the ledger.")
    limits_unavailable: Literal["refuse", "allow"] = Field(
        "refuse", description="What happens to limited requests while that store cannot be reached."
    )
    cache_store: str | None = Field(None, description="redis:// URL of a cache that workers share.")
    cache_bytes: int = Field(32 << 20, ge=1 << 16, description="Memory of the answer cache of a worker.")
    conversations: ConversationSettings = Field(default=ConversationSettings(), description="What /v1/responses keeps.")
    guardrails: str | None = Field(
        None, description="module:factory of further guardrails; modules beside the project file are found."
    )

    @model_validator(mode="after")
    def _both_files(self) -> GatewaySettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("HTTPS needs both tls_certificate and tls_key")
        return self

    @property
    def base_url(self) -> str:
        """What clients on this machine set as their base URL."""
        return f"{'http' if self.tls_certificate is None else 'https'}://{self.host}:{self.port}/v1"


class PolicySettings(Section):
    """How an endpoint's requests are treated: the part of an endpoint that the gateway reads."""

    timeouts: TimeoutSettings = Field(default=TimeoutSettings(), description="How long to wait for upstreams.")
    retries: RetrySettings = Field(default=RetrySettings(), description="When a failed attempt is made again.")
    breaker: BreakerSettings = Field(default=BreakerSettings(), description="When a failing target is left alone.")
    hedging: HedgingSettings = Field(default=HedgingSettings(), description="A second call to beat a slow first.")
    cache: CacheSettings = Field(default=CacheSettings(), description="Which earlier answers may be given again.")
    caps: CapSettings = Field(default=CapSettings(), description="How many requests run at once.")
    max_output_tokens: int = Field(4096, ge=1, description="Bound put into requests that name none, under a limit.")
    overflow: Overflow = Field(Overflow.PASS, description="What happens to a prompt longer than the model's window.")
    guardrails: tuple[Name, ...] = Field((), description="Guardrails, in order: pii, credentials.")
    untraced: bool = Field(False, description="Serve requests that cannot be recorded (a full disk).")
    priority: Priority = Field(Priority.INTERACTIVE, description="Of requests whose key names none.")
