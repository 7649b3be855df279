"""Applications instrumented by other projects' libraries, with the real client: complete, costed traces of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server.desk import open_desk, write_desk
from tests.server.instrumented import INSTRUMENTORS
from tests.server.test_otlp import serving

ROOT = Path(__file__).parents[2]
USAGE = {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26, "prompt_tokens_details": {"cached_tokens": 4}}
ANSWER = "Rayleigh scattering."
CAPTURE = {
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true",
    "TRACELOOP_TRACE_CONTENT": "true",
}
NEWEST = {
    "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_AND_EVENT",
}


class Model(BaseHTTPRequestHandler):
    """A server that answers as OpenAI does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        head = {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o-mini-2024-07-18"}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": ANSWER}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send(
                "application/json",
                json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE}),
            )
            return
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "Rayleigh "}, {"content": "scattering."}]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": USAGE})  # type: ignore[dict-item]
        lines = [json.dumps({**head, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        self._send("text/event-stream", "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]))

    def _send(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def model() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("kind", INSTRUMENTORS)
def test_an_instrumented_application_shows_complete_and_costed_traces(tmp_path: Path, kind: str) -> None:
    folder = write_desk(tmp_path / "desk")
    document = yaml.safe_load((folder / "tidemill.yaml").read_text())
    document["models"] = {
        "small": {"url": "http://127.0.0.1:9/v1", "upstream_model": "gpt-4o-mini", "input_usd_per_mtok": 1.0,
                  "output_usd_per_mtok": 4.0}
    }  # fmt: skip
    (folder / "tidemill.yaml").write_text(yaml.safe_dump(document))
    with open_desk(folder) as desk, model() as model_url, serving(desk) as port:
        settings = os.environ | CAPTURE | (NEWEST if kind.endswith("newest") else {})
        command = [
            sys.executable,
            "-m",
            "tests.server.instrumented",
            kind,
            model_url,
            f"http://127.0.0.1:{port}",
            "let-me-in",
        ]
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        desk.control.drain()
        (root,) = [one for one in desk.control.store.spans(_roots()) if one.span.service == kind]
        spans = desk.control.store.trace(root.span.trace_id)
        assert desk.control.receiving.receiver.totals.rejected == {}
    calls = [one for one in spans if one.span.operation == "chat"]
    assert [one.span.parent_span_id for one in calls] == [root.span.span_id] * 2
    for stored in calls:
        span, content = stored.span, stored.content
        assert (span.request_model, span.response_model) == ("gpt-4o-mini", "gpt-4o-mini-2024-07-18") or (
            kind == "openinference" and span.response_model == "gpt-4o-mini-2024-07-18"
        )
        assert span.provider == "openai"
        assert (span.input_tokens, span.output_tokens) == (21, 5)
        if span.request_model == "gpt-4o-mini":
            assert span.cost_usd == pytest.approx((21 * 1.0 + 5 * 4.0) / 1e6)
        assert span.status == "ok"
        assert content is not None, [kind, span]
        asked = json.loads(content.input)
        assert [one["role"] for one in asked] == ["system", "user"]
        assert asked[1]["content"] == "Why is the sky blue?"
        assert content.output == ANSWER


def _roots() -> Any:
    from tidemill.telemetry import SpanQuery

    return SpanQuery(roots_only=True)
