"""Spans as OpenTelemetry's SDK ends them, collected in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tidemill.tm import CarryingProcessor

_exporter = InMemorySpanExporter()
_provider: TracerProvider | None = None


class Spans:
    """What has ended so far."""

    @property
    def all(self) -> list[ReadableSpan]:
        return list(_exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.all]

    def __getitem__(self, name: str) -> ReadableSpan:
        (found,) = [one for one in self.all if one.name == name]
        return found

    def said(self, name: str) -> dict[str, object]:
        return dict(self[name].attributes or {})


@pytest.fixture
def spans() -> Iterator[Spans]:
    """A process has one installed provider; it is made once, and emptied for each test."""
    global _provider  # noqa: PLW0603 - OpenTelemetry's own is global too
    if _provider is None:
        _provider = TracerProvider()
        _provider.add_span_processor(CarryingProcessor())  # type: ignore[arg-type]
        _provider.add_span_processor(SimpleSpanProcessor(_exporter))
        otel.set_tracer_provider(_provider)
    _exporter.clear()
    yield Spans()
    assert otel.get_current_span() is otel.INVALID_SPAN, "a test left a span open"
