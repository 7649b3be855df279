"""Every page runs: what it tells a reader to type works and prints what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import NEVER, ROOT, RUN, blocks, matches, runnable_pages, stage

PAGES = sorted((ROOT / "docs").rglob("*.md")) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]


@pytest.mark.parametrize("page", runnable_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page: Path, tmp_path: Path) -> None:
    with stage(page, tmp_path) as played:
        for block in blocks(page):
            if block.runs:
                played.play(block)


def test_blocks_left_alone_say_why() -> None:
    found = [block for page in PAGES if page.exists() for block in blocks(page)]
    assert [f"{one.page}:{one.line}" for one in found if one.mark and len(one.what) < 4] == []
    shell = [line.split()[0] for one in found if one.language == "sh" for line in one.text.splitlines() if line]
    assert set(shell) <= NEVER, "what a test can run is a console block"
    assert {one.language for one in found} <= RUN | {"", "yaml", "json", "text", "mermaid", "markdown", "sh"}


def test_links_lead_somewhere() -> None:
    link = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        if page.exists()
        for target in link.findall(re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(page.name for page in folder.glob("[0-9]*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    listed = re.findall(r"^\| \[(\d{4})\]\((.*?)\) \| (.*) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert [target for _, target, _ in listed] == pages
    for number, target, title in listed:
        assert (folder / target).read_text().startswith(f"# {number} {title}\n")
    parts = ("**Context.**", "**Decision.**", "**Consequences.**")
    assert [name for name in pages if any(part not in (folder / name).read_text() for part in parts)] == []


def test_every_page_is_listed() -> None:
    text = (ROOT / "docs" / "README.md").read_text() + (ROOT / "README.md").read_text().replace("](docs/", "](")
    collected = "".join(program.read_text() for program in (ROOT / "docs").glob("generate_*.py"))  # parts of others
    pages = [page.relative_to(ROOT / "docs") for page in sorted((ROOT / "docs").glob("*/*.md"))]
    listed = [page for page in pages if f"]({page})" in text or f'"{page.name}"' in collected]
    assert [str(page) for page in pages if page.parts[0] != "decisions" and page not in listed] == []


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("", "anything", True),
        ("a  b\n", "a b", True),
        ("a …", "a b c", True),
        ("a … c", "a b c", True),
        ("a", "a b", False),
        ("sha256:…", "sha256:abc", True),
    ],
)
def test_output_is_compared_loosely(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
