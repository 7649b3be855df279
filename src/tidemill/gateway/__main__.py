"""Start one gateway worker: ``python -m tidemill.gateway --fd N …`` (from the supervisor) or with ``--host --port``."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from pathlib import Path

from tidemill.gateway.backing_options import BackingOptions
from tidemill.gateway.worker import WorkerOptions, run_worker
from tidemill.kernel import UserError


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and run. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tidemill.gateway", description=__doc__)
    parser.add_argument("--fd", type=int, help="an inherited listening socket")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--snapshot", type=Path, required=True, help="the routing snapshot's file")
    parser.add_argument("--segments", type=Path, required=True, help="folder of all segment folders")
    parser.add_argument("--state", type=Path, help="folder the workers share; default: gateway/ beside the snapshot")
    parser.add_argument("--project", required=True)
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--worker", help="the worker's name; default: gateway-PID")
    parser.add_argument("--allow-origin", action="append", default=[], help="a browser origin that may call")
    parser.add_argument("--allow-host", action="append", default=[], help="a further Host name of a loopback listener")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file of the listener's certificate chain: HTTPS")
    parser.add_argument("--tls-key", type=Path, help="PEM file of its private key; default: in the certificate's file")
    parser.add_argument("--backing", default="{}", help="JSON of gateway.backing_options.BackingOptions")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = WorkerOptions(
        project=given.project,
        tenant=given.tenant,
        snapshot_path=given.snapshot,
        segments_folder=given.segments,
        state_folder=given.state or given.snapshot.parent / "gateway",
        worker=given.worker,
        allowed_origins=frozenset(given.allow_origin),
        allowed_hosts=frozenset(given.allow_host),
        tls_certificate=given.tls_certificate,
        tls_key=given.tls_key,
        backing=BackingOptions.decode(given.backing),
    )
    listener = socket.socket(fileno=given.fd) if given.fd is not None else None
    try:
        run_worker(
            options,
            listener=listener,
            host=given.host,
            port=given.port,
            ready=lambda port: print(f"gateway ready on port {port}", flush=True),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
