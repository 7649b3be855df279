"""Move a store's tables to another version: ``python -m tidemill.ledger upgrade URL``."""

from __future__ import annotations

import argparse
import sys

from tidemill.kernel import UserError
from tidemill.ledger.schema import downgrade, upgrade


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tidemill.ledger", description=__doc__)
    ways = parser.add_subparsers(dest="way", required=True)
    up = ways.add_parser("upgrade", help="bring the tables up to date, or make them")
    up.add_argument("url", help="sqlite:////path/ledger.db or postgresql+psycopg://user@host/name")
    up.add_argument("--to", default="head", help="which version (default: the newest)")
    down = ways.add_parser("downgrade", help="bring the tables back to an older version")
    down.add_argument("url", help="as for upgrade")
    down.add_argument("--to", required=True, help="which version; 'base' removes the tables with all rows")
    options = parser.parse_args(arguments)
    try:
        now = {"upgrade": upgrade, "downgrade": downgrade}[options.way](options.url, options.to)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"schema {now or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
