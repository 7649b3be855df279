"""Runs one module as a supervised child: ``python -m tidemill.server.child MODULE ARGS…``.

The supervisor holds the other end of the child's standard input. When the supervisor dies, however it dies, the pipe
closes and the child stops itself, so that no orphan keeps a port or a store.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_GRACE_S = 10.0


def _stop_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def main() -> None:
    """Watch standard input in a thread and run the named module as ``__main__``."""
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    threading.Thread(target=_stop_with_parent, name="parent-watch", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
