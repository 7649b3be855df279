"""A supervisor as a process of its own, to be killed: ``python -m tests.server.supervise FOLDER PORT``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.server.children import toy
from tidemill.server.supervisor import InstanceLock, Supervisor


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    lock = InstanceLock(folder)
    supervisor = Supervisor(
        folder, folder, [toy("web", folder, port=port)], lambda: [toy("worker", folder)], on_change=print
    )
    supervisor.run(on_ready=lambda _: None)
    lock.release()


if __name__ == "__main__":
    main()
