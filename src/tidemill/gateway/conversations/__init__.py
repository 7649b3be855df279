"""What was said before: the store of responses and conversations, and what happens when a window overflows.

Light: the back ends' drivers load when a store is opened.
"""

from tidemill.gateway.conversations.context import Window, window_of
from tidemill.gateway.conversations.store import Conversations, Retention, Vault
from tidemill.gateway.conversations.summaries import Ask, SummaryMemory, fit, fit_chat

__all__ = ["Ask", "Conversations", "Retention", "SummaryMemory", "Vault", "Window", "fit", "fit_chat", "window_of"]
