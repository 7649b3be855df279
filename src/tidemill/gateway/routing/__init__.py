"""Which target a request goes to, when it is tried again, and when a target is left alone. Pure: no IO, no clock."""

from tidemill.gateway.routing.breaker import AttemptResult, BreakerState, CircuitBreaker
from tidemill.gateway.routing.choice import Chooser
from tidemill.gateway.routing.health import Attempt, HealthBook, TargetHealth
from tidemill.gateway.routing.hedging import Hedger, may_hedge
from tidemill.gateway.routing.learned import FEATURES, features, score, score_of
from tidemill.gateway.routing.retries import (
    FAILURE,
    Again,
    Attempts,
    Reading,
    RetryBudget,
    RetryParts,
    Step,
    backoff_s,
    reading_of,
    retry_after_of,
)
from tidemill.gateway.routing.rules import RoutingCall, RuleList, turns_of

__all__ = [
    "FAILURE",
    "FEATURES",
    "Again",
    "Attempt",
    "AttemptResult",
    "Attempts",
    "BreakerState",
    "Chooser",
    "CircuitBreaker",
    "HealthBook",
    "Hedger",
    "Reading",
    "RetryBudget",
    "RetryParts",
    "RoutingCall",
    "RuleList",
    "Step",
    "TargetHealth",
    "backoff_s",
    "features",
    "may_hedge",
    "reading_of",
    "retry_after_of",
    "score",
    "score_of",
    "turns_of",
]
