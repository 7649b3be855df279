"""A child for the supervisor's tests: notes that it started, perhaps serves a health page, perhaps dies."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=Path, required=True, help="a line with the pid is appended here")
    parser.add_argument("--port", type=int)
    parser.add_argument("--refuse", action="store_true", help="end with exit code 2, as for a user's mistake")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    options = parser.parse_args()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with options.starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if options.refuse:
        print("the port is taken, choose another", file=sys.stderr)
        return 2
    if options.port is not None:
        HTTPServer(("127.0.0.1", options.port), _Health).serve_forever()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    raise SystemExit(main())
