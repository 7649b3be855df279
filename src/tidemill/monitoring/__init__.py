"""Monitors and objectives: whether production still keeps what was promised, and alarms when it does not.

Pure: a state and events give a new state and, perhaps, alarms. The caller brings the events in the order in which they
were stored and keeps the state, or replays it.
"""

from tidemill.monitoring.budgets import BURN_WINDOWS, BudgetReport, EventCounts, budget_report
from tidemill.monitoring.burning import BurnRule, BurnState, Turn, watch
from tidemill.monitoring.monitors import Alarm, Monitor, Sample, evaluate, initial_state
from tidemill.monitoring.slo import (
    PAGE_BURN,
    Indicator,
    Slo,
    SloState,
    SloTurn,
    advance,
    good_request,
    good_score,
    report,
)

__all__ = [
    "BURN_WINDOWS",
    "PAGE_BURN",
    "Alarm",
    "BudgetReport",
    "BurnRule",
    "BurnState",
    "EventCounts",
    "Indicator",
    "Monitor",
    "Sample",
    "Slo",
    "SloState",
    "SloTurn",
    "Turn",
    "advance",
    "budget_report",
    "evaluate",
    "good_request",
    "good_score",
    "initial_state",
    "report",
    "watch",
]
