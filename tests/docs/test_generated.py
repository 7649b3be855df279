"""What is generated from the code says what the code says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tidemill.cli.entry import COMMANDS
from tidemill.kernel.settings import Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES: dict[Path, str] = load().pages()


@pytest.mark.parametrize("path", list(PAGES), ids=lambda path: path.name)
def test_is_current(path: Path) -> None:
    assert path.exists(), f"{path.name} is missing: run make docs"
    assert path.read_text(encoding="utf-8") == PAGES[path], f"{path.name} is not current: run make docs"


def test_every_command_has_its_section() -> None:
    text = PAGES[DOCS / "reference" / "commands.md"]
    assert [name for name in COMMANDS if f"### tidemill {name}\n" not in text] == []
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_every_setting_is_described() -> None:
    text = PAGES[DOCS / "reference" / "settings.md"]
    assert [line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |")] == []
    assert [key for key in Settings.model_fields if f"| `{key}` |" not in text] == []
    for title in ("## gateway", "## store.s3", "## endpoints.NAME.rollout", "## prompts.NAME.messages"):
        assert f"{title}\n" in text
