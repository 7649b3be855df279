from __future__ import annotations

import subprocess
import sys

import pytest

from tidemill.data import Document, clean, read_python_reference


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return read_python_reference()


def test_there_are_hundreds_of_distinct_documents(documents: list[Document]) -> None:
    assert 400 <= len(documents) <= 1200
    assert len({document.source for document in documents}) == len(documents)
    assert len({document.row_id for document in documents}) == len(documents)


def test_every_topic_and_the_named_forms_of_sources_are_there(documents: list[Document]) -> None:
    from pydoc_data.topics import topics

    sources = {document.source for document in documents}
    assert {f"python:topics/{name}" for name in topics} <= sources
    assert {"python:builtins/sorted", "python:collections.Counter", "python:os.path", "python:statistics"} <= sources


def test_titles_and_texts_are_clean(documents: list[Document]) -> None:
    for document in documents:
        assert document.title
        assert "\n" not in document.title
        assert clean(document.text) == document.text
        assert " at 0x" not in document.text, document.source
        assert len(document.text) >= 40, document.source


def test_a_topic_carries_its_heading_as_title(documents: list[Document]) -> None:
    titles = {document.source: document.title for document in documents}
    assert titles["python:topics/assert"] == "The assert statement"
    assert titles["python:builtins/sorted"] == "sorted (function)"
    assert titles["python:collections.Counter"] == "collections.Counter (class)"


def test_short_docstrings_are_told_by_their_module_or_class(documents: list[Document]) -> None:
    texts = {document.source: document.text for document in documents}
    assert "random.shuffle" in texts["python:random"]
    assert "str.upper" in texts["python:builtins/str"]


def test_reading_twice_gives_the_same_documents_in_the_same_order(documents: list[Document]) -> None:
    assert read_python_reference() == documents


def test_reading_has_no_side_effects_and_works_without_hash_order() -> None:
    code = (
        "import sys, hashlib\n"
        "from tidemill.data import read_python_reference\n"
        "ids = ''.join(document.row_id for document in read_python_reference())\n"
        "assert 'antigravity' not in sys.modules and 'turtle' not in sys.modules\n"
        "print(hashlib.sha256(ids.encode()).hexdigest())\n"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1


def test_python_without_docstrings_is_told_how_to_mend() -> None:
    code = (
        "from tidemill.data import read_python_reference\n"
        "from tidemill.kernel import UserError\n"
        "try: read_python_reference()\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-OO" in done.stdout
