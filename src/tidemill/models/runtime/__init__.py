"""The local runtime: one process that serves a chat model and an embedding model over OpenAI's HTTP interface.

Started as ``python -m tidemill.models.runtime``; nothing else imports it.
"""

from tidemill.models.runtime.app import create_app
from tidemill.models.runtime.engine import ChatEngine, ChatOptions

__all__ = ["ChatEngine", "ChatOptions", "create_app"]
