"""A collector: takes OTLP over HTTP and writes each span's ids to a file before it says yes. Run as a process.

``python -m tests.server.receiver PORT FILE [MODE]``: ``busy`` answers the first three requests with 503, ``picky``
refuses every request with a span named ``poison``.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mode = ""
    refused = 0
    file = ""

    def do_POST(self) -> None:
        body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
        request = ExportTraceServiceRequest.FromString(body)
        if self.mode == "busy" and Receiver.refused < 3:
            Receiver.refused += 1
            self._answer(503, {"retry-after": "0"})
            return
        rows = []
        for group in request.resource_spans:
            resource = {one.key: one.value.string_value for one in group.resource.attributes}
            for scoped in group.scope_spans:
                for span in scoped.spans:
                    attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
                    attributes = {
                        name: value for name, value in attributes.items() if isinstance(value, str | int | float)
                    }
                    rows.append(
                        {
                            "trace_id": span.trace_id.hex(),
                            "span_id": span.span_id.hex(),
                            "name": span.name,
                            "status": span.status.code,
                            "resource": resource,
                            "attributes": attributes,
                            "authorization": self.headers.get("authorization"),
                            "path": self.path,
                        }
                    )
        if self.mode == "picky" and any(row["name"] == "poison" for row in rows):
            self._answer(400, {})
            return
        with Path(self.file).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self._answer(200, {})

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Receiver.file = sys.argv[2]
    Receiver.mode = sys.argv[3] if len(sys.argv) > 3 else ""
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
    print("ready", flush=True)
    server.serve_forever()
