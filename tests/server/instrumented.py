"""An application that tests run as a process: asks a model with the real client, instrumented by a library of another
project, and exports to the control plane: ``python -m tests.server.instrumented KIND MODEL_URL OTLP_URL TOKEN``."""

from __future__ import annotations

import sys
from importlib import import_module

from openai import OpenAI
from opentelemetry._logs import set_logger_provider
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider

INSTRUMENTORS = {
    "openinference": "openinference.instrumentation.openai",
    "opentelemetry": "opentelemetry.instrumentation.openai_v2",
    "opentelemetry-newest": "opentelemetry.instrumentation.openai_v2",
    "traceloop": "opentelemetry.instrumentation.openai",
}


def main(kind: str, model_url: str, otlp_url: str, token: str) -> None:
    """Ask twice, the second time streamed, and export everything."""
    headers = {"Authorization": f"Bearer {token}"}
    resource = Resource({"service.name": kind})
    tracers, loggers = TracerProvider(resource=resource), LoggerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{otlp_url}/v1/traces", headers=headers)))
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{otlp_url}/v1/logs", headers=headers)))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{otlp_url}/v1/metrics", headers=headers))
    meters = MeterProvider([reader], resource=resource)
    set_tracer_provider(tracers)
    set_logger_provider(loggers)
    set_meter_provider(meters)
    import_module(INSTRUMENTORS[kind]).OpenAIInstrumentor().instrument()
    client = OpenAI(base_url=model_url, api_key="none")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
    with tracers.get_tracer("app").start_as_current_span("answer"):
        client.chat.completions.create(model="gpt-4o-mini", messages=asked)
        stream = client.chat.completions.create(
            model="gpt-4o-mini", messages=asked, stream=True, stream_options={"include_usage": True}
        )
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "Rayleigh scattering."
        )
    tracers.shutdown()
    loggers.shutdown()
    meters.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:5])
