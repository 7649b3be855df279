"""Where the gateway's conversations are kept: sealed entries in SQLite, PostgreSQL or Redis, behind one interface.

Light to import: a back end's driver is loaded when the back end is opened.
"""

from tidemill.ledger.conversations.opening import open_conversation_rows
from tidemill.ledger.conversations.rows import ConversationRows, ConversationScope, Entry, Walk

__all__ = ["ConversationRows", "ConversationScope", "Entry", "Walk", "open_conversation_rows"]
