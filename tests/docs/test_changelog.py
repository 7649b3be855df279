"""Fragments of the changelog are named and written as changelog.d/README.md says."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

FRAGMENTS = sorted(path for path in (ROOT / "changelog.d").iterdir() if path.name != "README.md")


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.name)
def test_fragment_is_one_sentence_for_users(fragment) -> None:
    assert re.fullmatch(r"[a-z0-9-]+\.(added|changed|fixed|removed)\.md", fragment.name)
    text = fragment.read_text(encoding="utf-8").strip()
    assert text.endswith(".")
    assert "\n" not in text
    assert 20 < len(text) < 300
