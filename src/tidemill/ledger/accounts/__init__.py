"""Accounts of rate limits and budgets: what a rolling window has seen, and what is lent to the gateway's workers.

The values are light to import; a store's library is loaded when one is opened.
"""

from __future__ import annotations

from tidemill.ledger.accounts.charges import (
    ADMITTED_AT,
    CHARGES,
    USED,
    Charge,
    ChargedRequest,
    charge_head,
    charged_request,
    portions,
)
from tidemill.ledger.accounts.opening import load_driver, open_lease_store
from tidemill.ledger.accounts.values import (
    HOLDER_SUFFIX,
    UNLEASED,
    Ask,
    Grant,
    LeaseReport,
    LeaseStore,
    SettleReport,
    Shortage,
    Standing,
    account_of,
    quanta,
    units,
)

__all__ = [
    "ADMITTED_AT",
    "CHARGES",
    "HOLDER_SUFFIX",
    "UNLEASED",
    "USED",
    "Ask",
    "Charge",
    "ChargedRequest",
    "Grant",
    "LeaseReport",
    "LeaseStore",
    "SettleReport",
    "Shortage",
    "Standing",
    "account_of",
    "charge_head",
    "charged_request",
    "load_driver",
    "open_lease_store",
    "portions",
    "quanta",
    "units",
]
