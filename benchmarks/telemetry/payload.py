"""Spans for every receiver: agent traces of five spans, about 1 KB a span, with real text that does not repeat.

The text is the documentation and source that come with Python, cut into pieces that are used once each; attributes are
both those of OpenTelemetry's GenAI conventions and OpenInference's, so that each receiver finds the names it knows.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

MODELS = ("gpt-4o-mini", "claude-haiku", "llama-3-8b", "qwen-2.5-7b", "mistral-small", "gemini-flash")
STEPS = (
    ("invoke_agent support", "invoke_agent", "AGENT"),
    ("retrieval kb", "retrieval", "RETRIEVER"),
    ("chat", "chat", "LLM"),
    ("execute_tool lookup", "execute_tool", "TOOL"),
    ("chat", "chat", "LLM"),
)
SPANS_A_TRACE = len(STEPS)
HOUR_NS = 3600 * 10**9


def real_text() -> str:
    """Some 30 MB that every Python installation has, the language reference first."""
    library = Path(sysconfig.get_paths()["stdlib"])
    parts = list(topics.topics.values())
    parts += [path.read_text("utf-8", "replace") for path in sorted(library.glob("*.py"))]
    for folder in ("asyncio", "email", "http", "json", "logging", "unittest", "xml", "test", "idlelib", "tkinter"):
        parts += [path.read_text("utf-8", "replace") for path in sorted((library / folder).rglob("*.py"))]
    parts += [path.read_text("utf-8", "replace") for path in sorted((library / "site-packages").rglob("*.py"))[:4000]]
    return "\n".join(parts)


class Pieces:
    """Hands out the text in pieces, each once; begins again when it is used up and says so by ``rounds``."""

    def __init__(self) -> None:
        self._text = real_text()
        self._at = 0
        self.rounds = 0

    def take(self, length: int) -> str:
        if self._at + length > len(self._text):
            self._at, self.rounds = 0, self.rounds + 1
        piece = self._text[self._at : self._at + length]
        self._at += length
        return piece


def _pair(key: str, value: object) -> KeyValue:
    if isinstance(value, bool):
        kept = AnyValue(bool_value=value)
    elif isinstance(value, int):
        kept = AnyValue(int_value=value)
    elif isinstance(value, float):
        kept = AnyValue(double_value=value)
    elif isinstance(value, list):
        kept = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=one) for one in value]))
    else:
        kept = AnyValue(string_value=str(value))
    return KeyValue(key=key, value=kept)


def _chat(draw: random.Random, pieces: Pieces, length: int) -> dict[str, object]:
    model, read, written = draw.choice(MODELS), draw.randrange(100, 3000), draw.randrange(10, 600)
    asked = [{"role": "user", "parts": [{"type": "text", "content": pieces.take(length)}]}]
    answered = [
        {"role": "assistant", "parts": [{"type": "text", "content": pieces.take(length)}], "finish_reason": "stop"}
    ]
    return {
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": read,
        "gen_ai.usage.output_tokens": written,
        "gen_ai.request.temperature": 0.2,
        "gen_ai.response.finish_reasons": ["stop"],
        "llm.model_name": model,
        "llm.token_count.prompt": read,
        "llm.token_count.completion": written,
        "gen_ai.input.messages": json.dumps(asked),
        "gen_ai.output.messages": json.dumps(answered),
    }


def _attributes(step: str, draw: random.Random, pieces: Pieces, length: int) -> dict[str, object]:
    if step == "chat":
        return _chat(draw, pieces, length)
    if step == "retrieval":
        return {"gen_ai.data_source.id": "kb", "gen_ai.retrieval.query.text": pieces.take(length)}
    if step == "execute_tool":
        arguments = json.dumps({"id": draw.randrange(9999), "note": pieces.take(length)})
        return {"gen_ai.tool.name": "lookup", "gen_ai.tool.call.arguments": arguments}
    return {"gen_ai.agent.name": "support", "input.value": pieces.take(length), "output.value": pieces.take(length)}


def requests_of(
    spans: int, batch: int, *, start_ns: int, span_ns: int = 24 * HOUR_NS, seed: int = 0, text: int = 400
) -> Iterator[bytes]:
    """Serialized export requests.

    Args:
        spans: how many in all; whole traces, so a multiple of five.
        batch: spans in a request.
        start_ns: when the first trace begins.
        span_ns: over how long the traces are spread.
        text: characters of each text.
    """
    draw, pieces = random.Random(seed), Pieces()
    for first in range(0, spans, batch):
        request = ExportTraceServiceRequest()
        scope = request.resource_spans.add()
        scope.resource.attributes.extend([_pair("service.name", "bench"), _pair("openinference.project.name", "bench")])
        target = scope.scope_spans.add()
        target.scope.name = "bench"
        for number in range(first, min(first + batch, spans), SPANS_A_TRACE):
            _trace(target.spans, draw, pieces, start_ns + number * span_ns // spans, text)
        yield request.SerializeToString()


def _trace(spans: object, draw: random.Random, pieces: Pieces, begin_ns: int, text: int) -> None:
    trace_id, root = draw.getrandbits(128).to_bytes(16, "big"), draw.getrandbits(64).to_bytes(8, "big")
    session = f"s{draw.randrange(5000)}"
    at_ns = begin_ns
    for place, (name, step, kind) in enumerate(STEPS):
        span = spans.add()  # type: ignore[attr-defined]
        span.trace_id = trace_id
        span.span_id = root if place == 0 else draw.getrandbits(64).to_bytes(8, "big")
        if place:
            span.parent_span_id = root
        took_ns = int(draw.lognormvariate(-0.7, 0.6) * 1e9) if step == "chat" else int(draw.uniform(0.005, 0.1) * 1e9)
        span.name, span.kind = name, 3 if step == "chat" else 1
        span.start_time_unix_nano, span.end_time_unix_nano = at_ns, at_ns + (took_ns if place else 3 * 10**9)
        at_ns += took_ns if place else 0
        span.status.code = 2 if draw.random() < 0.02 else 1
        common = {
            "gen_ai.operation.name": step,
            "openinference.span.kind": kind,
            "session.id": session,
            "gen_ai.conversation.id": session,
        }
        pairs = common | _attributes(step, draw, pieces, text)
        span.attributes.extend([_pair(key, value) for key, value in pairs.items()])
