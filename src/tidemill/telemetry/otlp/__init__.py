"""What OpenTelemetry-instrumented programs send: received, written down, acknowledged, and decoded afterwards."""

from __future__ import annotations

from tidemill.telemetry.otlp.costs import PriceOf, call_cost_usd
from tidemill.telemetry.otlp.decoding import Decoder
from tidemill.telemetry.otlp.mapping import Keys, SpanMapper
from tidemill.telemetry.otlp.packing import PACKINGS, TooLarge
from tidemill.telemetry.otlp.points import Points, Series
from tidemill.telemetry.otlp.policy import CapturePolicy
from tidemill.telemetry.otlp.receiving import Bounds, Busy, Receiver, Taken

__all__ = [
    "PACKINGS",
    "Bounds",
    "Busy",
    "CapturePolicy",
    "Decoder",
    "Keys",
    "Points",
    "PriceOf",
    "Receiver",
    "Series",
    "SpanMapper",
    "Taken",
    "TooLarge",
    "call_cost_usd",
]
