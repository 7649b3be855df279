from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.shop import Shop, answers_well, copy_shop, make_shop, write_questions
from tidemill.server.supervisor import free_port
from tidemill.serving.testing import ScriptedModel, ScriptedServer


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    with ScriptedServer(ScriptedModel(answers_well)) as server:
        yield server.url


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, model_url: str) -> Shop:
    """A project with everything up to an evaluated release; never changed, only copied."""
    folder = tmp_path_factory.mktemp("cli") / "shop"
    shop = make_shop(folder, model_url=model_url, ports=[free_port() for _ in range(3)])
    shop.ok("apply")
    shop.ok("models", "pull", "scripted")
    shop.ok("data", "build", "shop")
    shop.ok("index", "build", "shop")
    shop.ok("release", "create", "shop", "--note", "the first")
    questions = write_questions(folder / "questions.jsonl")
    shop.ok("eval", "run", "shop", "--file", str(questions))
    return shop


@pytest.fixture
def shop(made_once: Shop, tmp_path: Path) -> Shop:
    """A project with everything up to an evaluated release, to be changed at will."""
    return copy_shop(made_once, tmp_path / "shop")


@pytest.fixture
def bare_shop(tmp_path: Path, model_url: str) -> Shop:
    """A project fresh from ``init``: nothing is in its store."""
    return make_shop(tmp_path / "shop", model_url=model_url, ports=[free_port() for _ in range(3)])
