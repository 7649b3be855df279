"""Traces from any Python program: a decorator and a context manager that are plain OpenTelemetry underneath.

``import tidemill as tm`` has these names too. Needs the extra ``otel``.
"""

from __future__ import annotations

from tidemill.tm.scoring import score
from tidemill.tm.sending import CarryingProcessor, configure, flush
from tidemill.tm.spans import Handle, Step, current, span, trace

__all__ = ["CarryingProcessor", "Handle", "Step", "configure", "current", "flush", "score", "span", "trace"]
