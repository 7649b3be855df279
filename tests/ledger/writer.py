"""A process that records decisions and says which are acknowledged. Run as a child by tests and the benchmark.

Arguments: database URL, project, name of the writer, how many decisions (0: until killed).
"""

from __future__ import annotations

import sys

from tidemill.kernel import Scope, Verdict
from tidemill.ledger import open_ledger


def main() -> None:
    url, project, writer, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    with open_ledger(url, blobs="memory://", scope=Scope(project)) as ledger:
        print("ready", flush=True)
        if sys.stdin.readline() != "go\n":
            return
        n = 0
        while count == 0 or n < count:
            n += 1
            decision = ledger.decisions.record("gate", f"subject-{writer}", Verdict(n, "for a test"), actor=writer)
            print(decision.decision_id, flush=True)


if __name__ == "__main__":
    main()
