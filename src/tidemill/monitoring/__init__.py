"""Monitors: whether production still keeps what was promised, and alarms when it does not.

Pure: a monitor's state and samples give a new state and, perhaps, an alarm. The caller brings the samples in the order
in which they were stored and keeps the state, or replays it.
"""

from tidemill.monitoring.monitors import Alarm, Monitor, MonitorState, Sample, evaluate, initial_state

__all__ = ["Alarm", "Monitor", "MonitorState", "Sample", "evaluate", "initial_state"]
