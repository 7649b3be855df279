"""The control plane as a process: ``python -m tidemill.server --project FOLDER``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tidemill.kernel import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tidemill.server", description="The control plane.")
    parser.add_argument("--project", type=Path, required=True, help="project file or folder")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from tidemill.server.process import run_server

    try:
        run_server(options.project)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
