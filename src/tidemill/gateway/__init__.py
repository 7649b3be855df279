"""The OpenAI-compatible data plane: routing by snapshot, sticky sessions, pass-through, traces.

Light: importing it loads no database, no data frames and no model library.
"""

from tidemill.gateway.limits import Limits
from tidemill.gateway.worker import Worker, WorkerOptions, bind, run_worker

__all__ = ["Limits", "Worker", "WorkerOptions", "bind", "run_worker"]
