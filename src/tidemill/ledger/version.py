"""The version of the ledger's tables, apart from them: who only has to check it loads no database library."""

from typing import Final

NEWEST: Final = "0003"
"""The newest migration."""
