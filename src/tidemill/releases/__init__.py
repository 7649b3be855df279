"""Releases and how an endpoint's traffic moves from one to the next, on evidence.

``rules`` is the state machine as tables, ``assess`` judges a canary from its stored sessions, and the rest keeps both
in the ledger, where every step of a rollout is a decision that can be replayed.
"""

from tidemill.releases.assessment import PathPoint, assess, assess_path, assess_shadow
from tidemill.releases.policy import SHARE_METRIC, RolloutPolicy
from tidemill.releases.registry import create_release, live_release
from tidemill.releases.rollouts import (
    Rollout,
    apply_event,
    assess_rollout,
    explain,
    list_rollouts,
    load_rollout,
    open_rollout,
)
from tidemill.releases.rules import Position, RolloutEvent, RolloutState, advance, legal_events, mermaid

__all__ = [
    "SHARE_METRIC",
    "PathPoint",
    "Position",
    "Rollout",
    "RolloutEvent",
    "RolloutPolicy",
    "RolloutState",
    "advance",
    "apply_event",
    "assess",
    "assess_path",
    "assess_rollout",
    "assess_shadow",
    "create_release",
    "explain",
    "legal_events",
    "list_rollouts",
    "live_release",
    "load_rollout",
    "mermaid",
    "open_rollout",
]
