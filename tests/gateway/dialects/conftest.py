"""What the tests of the Responses API share: servers, stores and official clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.dialects.responses_server import Model, ResponsesServer
from tidemill.gateway.conversations import Conversations, Retention, Vault
from tidemill.ledger.conversations import open_conversation_rows


@pytest.fixture
def open_store(tmp_path: Path) -> Callable[..., Conversations]:
    """Opens the store in this test's file; whoever gets it closes it."""

    def begin(retention: Retention | None = None, key: bytes = b"k" * 32) -> Conversations:
        return Conversations(open_conversation_rows(f"sqlite:///{tmp_path}/conversations.db"), Vault(key), retention)

    return begin


@pytest.fixture
def serve(open_store: Callable[..., Conversations]) -> Iterator[Callable[..., ResponsesServer]]:
    """Starts servers in front of scripted models."""
    with ExitStack() as running:

        def begin(
            model: Model, *, store: bool = True, retention: Retention | None = None, **more: Any
        ) -> ResponsesServer:
            conversations = open_store(retention) if store else None
            return running.enter_context(ResponsesServer(model, conversations, **more))

        yield begin


@pytest.fixture
def client_of() -> Iterator[Callable[..., openai.OpenAI]]:
    """Official clients pointed at a server."""
    with ExitStack() as opened:

        def begin(server: ResponsesServer, key: str = "desk") -> openai.OpenAI:
            return opened.enter_context(openai.OpenAI(base_url=server.url, api_key=key, max_retries=0))

        yield begin
