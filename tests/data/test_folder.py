from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill.data import read_folder
from tidemill.kernel import InvalidInput, NotFound, UserError


def _reasons(folder: Path) -> dict[str, str]:
    return {skipped.source: skipped.verdict.reason for skipped in read_folder(folder).skipped}


def test_text_markdown_and_html_are_read_in_order(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "b.md").write_text("# Second\n\ntext", encoding="utf-8")
    (docs / "a.txt").write_text("First line\nmore\r\n", encoding="utf-8")
    (docs / "sub" / "c.html").write_text("<title>Third</title><p>body", encoding="utf-8")
    (docs / "d.rst").write_text("Fourth\n======\n\n:class:`Path`", encoding="utf-8")
    (docs / ".hidden.md").write_text("# secret", encoding="utf-8")
    documents = read_folder(docs).documents
    assert [(document.title, document.source, document.media_type) for document in documents] == [
        ("First line", "file:docs/a.txt", "text/plain"),
        ("Second", "file:docs/b.md", "text/markdown"),
        ("Fourth", "file:docs/d.rst", "text/x-rst"),
        ("Third", "file:docs/sub/c.html", "text/html"),
    ]
    assert documents[0].text == "First line\nmore"
    assert documents[3].text == "body"


def test_what_cannot_be_read_is_reported_with_a_reason(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "good.md").write_text("fine", encoding="utf-8")
    (docs / "empty.txt").write_text(" \n", encoding="utf-8")
    (docs / "binary.txt").write_bytes(b"PK\x03\x04\x00\x00")
    (docs / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (docs / "page.pdf").write_bytes(b"%PDF")
    (docs / "Makefile").write_text("all:", encoding="utf-8")
    (tmp_path / "outside.txt").write_text("private", encoding="utf-8")
    (docs / "link.txt").symlink_to(tmp_path / "outside.txt")
    (docs / "loop.txt").symlink_to(docs / "loop.txt")
    reasons = _reasons(docs)
    assert reasons["file:docs/empty.txt"] == "holds no text"
    assert reasons["file:docs/binary.txt"] == "is binary, not text"
    assert "UTF-8" in reasons["file:docs/latin.txt"]
    assert ".pdf" in reasons["file:docs/page.pdf"]
    assert reasons["file:docs/Makefile"] == "has no ending"
    assert "out of the folder" in reasons["file:docs/link.txt"]
    assert "file:docs/loop.txt" in reasons
    assert len(reasons) == 7


def test_marks_of_byte_order_are_understood(tmp_path: Path) -> None:
    (tmp_path / "eight.txt").write_bytes("\ufeffüber".encode())
    (tmp_path / "sixteen.txt").write_bytes("über".encode("utf-16"))
    assert [document.text for document in read_folder(tmp_path).documents] == ["über", "über"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("fine", encoding="utf-8")
    (tmp_path / "locked.txt").write_text("no", encoding="utf-8")
    (tmp_path / "locked.txt").chmod(0)
    assert len(_reasons(tmp_path)) == 1


def test_missing_empty_and_wrong_folders_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no files") as error:
        read_folder(tmp_path / "empty")
    assert ".md" in str(error.value)
    (tmp_path / "only.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match="No document could be read"):
        read_folder(tmp_path)
    with pytest.raises(InvalidInput, match="is a file"):
        read_folder(tmp_path / "only.pdf")


def test_a_file_name_that_is_not_utf8_is_stored_readably(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("y", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes names of UTF-8 alone")
    for document in read_folder(tmp_path).documents:
        document.source.encode()
