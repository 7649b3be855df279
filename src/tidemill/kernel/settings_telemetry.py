"""The parts of the project file that telemetry and monitoring read: what is received, kept and promised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tidemill.kernel.settings_gateway import Name, Port, Positive, Section, Share

Capture = Literal["masked", "hashed", "none"]


class OtlpSettings(Section):
    """What other programs may send: OpenTelemetry's protocol."""

    enabled: bool = Field(True, description="Receive OTLP over HTTP at /v1/traces, /v1/logs and /v1/metrics.")
    grpc_port: Port | None = Field(None, description="Port of OTLP over gRPC; empty for none (extra: grpc).")
    request_bytes_most: int = Field(64 << 20, ge=1024, description="A larger request, unpacked, is refused.")
    backlog_bytes_most: int = Field(
        2 << 30, ge=1 << 20, description="Received and not yet stored; above it senders are told to wait."
    )
    group_commit_s: float = Field(0.005, ge=0, description="How long an fsync waits for more requests to join.")


class RetentionSettings(Section):
    """How long telemetry is kept, and where."""

    hot_days: float = Field(7.0, gt=0, description="Days in the span store before a day becomes a Parquet partition.")
    days: float | None = Field(None, gt=0, description="Everything older is deleted; empty keeps it.")
    cold: str | None = Field(
        None, description="Folder or s3://bucket/prefix of partitions; empty for the state folder."
    )


class ForwardSettings(Section):
    """Another collector that receives a copy of every span as OTLP."""

    url: str = Field(description="Its OTLP base URL; /v1/traces is added.")
    headers: Mapping[str, str] = Field(default_factory=dict, description="Header names to secret references.")
    content: bool = Field(False, description="Send masked inputs and outputs too.")


class TelemetrySettings(Section):
    """What is received, kept and passed on."""

    store: str | None = Field(None, description="clickhouse://… URL; empty for DuckDB in the state folder.")
    memory_mb: int = Field(512, ge=128, description="Memory of the embedded span store.")
    capture: Capture = Field("masked", description="What is kept of content that arrives over OTLP.")
    capture_of: Mapping[str, Capture] = Field(default_factory=dict, description="Likewise by service.name.")
    content_bytes_most: int = Field(256 << 10, ge=1024, description="Longer texts are cut, with a mark that says so.")
    otlp: OtlpSettings = Field(default=OtlpSettings(), description="What other programs may send.")
    retention: RetentionSettings = Field(default=RetentionSettings(), description="How long and where it is kept.")
    forward: Mapping[Name, ForwardSettings] = Field(default_factory=dict, description="Collectors that get a copy.")
    metric_names: Literal["new", "old", "both"] = Field("new", description="Generation of GenAI names in /metrics.")


Indicator = Literal[
    "availability",
    "error_rate",
    "first_token_time",
    "between_token_time",
    "total_time",
    "cost",
    "refusal_rate",
    "groundedness",
    "data_freshness",
    "recovery_time",
]


class SloSettings(Section):
    """A service level objective: the share of events that must be good."""

    indicator: Indicator = Field(description="What makes an event good.")
    endpoint: Name | None = Field(None, description="Endpoint it is about; empty for all.")
    objective: Share = Field(0.99, description="Share of events that must be good.")
    threshold: Positive | None = Field(
        None, description="Good is at most this: seconds, USD a request, or for groundedness the least score."
    )
    window_days: Positive = Field(28.0, description="The error budget belongs to so many days.")
    false_alarm_every_days: Positive = Field(90.0, description="At most one false alarm in so many days.")
