"""Sources, cleaning and duplicates: from files and Python's own reference to data set versions of documents."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from tidemill.data.cleaning import clean, html_to_text
from tidemill.data.document import Document
from tidemill.data.folder import FolderReading, Skipped, read_folder
from tidemill.data.python_reference import read_python_reference

if TYPE_CHECKING:
    from tidemill.data.building import DatasetBuild, Sifted, build_dataset, sift

_LATER: Final = ("DatasetBuild", "Sifted", "build_dataset", "sift")

__all__ = [
    "DatasetBuild",
    "Document",
    "FolderReading",
    "Sifted",
    "Skipped",
    "build_dataset",
    "clean",
    "html_to_text",
    "read_folder",
    "read_python_reference",
    "sift",
]


def __getattr__(name: str) -> Any:
    """Load what needs the ledger's data sets when it is first named."""
    if name not in _LATER:
        raise AttributeError(f"module 'tidemill.data' has no attribute '{name}'")
    return getattr(import_module("tidemill.data.building"), name)
