"""A folder of the user's own documents: text, Markdown, reStructuredText and HTML."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.data.cleaning import clean, html_to_text
from tidemill.data.document import Document
from tidemill.kernel import InvalidInput, NotFound, Unavailable, UserError, Verdict

MEDIA_TYPES: Final = {
    ".txt": "text/plain",
    ".text": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".rst": "text/x-rst",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
}
_MAX_BYTES: Final = 32 << 20
_TITLE_CHARS: Final = 120
_UNDERLINE: Final = re.compile(r"[=\-~*#^]{3,}")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A source that gave no document.

    Args:
        source: its URI.
        verdict: why; ``value`` is ``False``.
    """

    source: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class FolderReading:
    """What reading a folder gave.

    Args:
        documents: in the order of their paths.
        skipped: every other file, with the reason.
    """

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


def read_folder(path: Path) -> FolderReading:
    """Read all text, Markdown, reStructuredText and HTML files of a folder and its subfolders.

    Files and folders whose names begin with a dot are passed over; links are followed to files inside the folder
    alone. A file that cannot be read as UTF-8 (or UTF-16 with its mark) is skipped, never guessed at.

    Args:
        path: the folder.

    Returns:
        Documents with sources ``file:FOLDER/RELATIVE/PATH``, and what was skipped with its verdict.

    Raises:
        NotFound: there is no such folder.
        InvalidInput: it is not a folder, or nothing in it could be read.
        Unavailable: it may not be opened.
    """
    root = path.expanduser().resolve()
    if not root.exists():
        raise NotFound(
            f"There is no folder '{path}'.", hint="Give the path of a folder with text, Markdown or HTML files."
        )
    if not root.is_dir():
        raise InvalidInput(f"'{path}' is a file, not a folder.", hint=f"Give its folder: {path.parent}")
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for source, outcome in _read_all(root):
        if isinstance(outcome, Document):
            documents.append(outcome)
        else:
            skipped.append(Skipped(source, outcome))
    if not documents:
        raise _nothing_read(path, skipped)
    return FolderReading(tuple(documents), tuple(skipped))


def _nothing_read(path: Path, skipped: list[Skipped]) -> UserError:
    endings = ", ".join(MEDIA_TYPES)
    hint = f"Put documents into it; files ending in {endings} are read."
    if not skipped:
        return InvalidInput(f"The folder '{path}' holds no files.", hint=hint)
    first = skipped[0]
    more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    message = f"No document could be read from the folder '{path}': {first.source}: {first.verdict.reason}{more}."
    return InvalidInput(message, hint=hint)


def _read_all(root: Path) -> Iterator[tuple[str, Document | Verdict]]:
    unreadable: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder, name)
            source = _source(root, file)
            yield source, _read_file(root, file, source)
    for error in unreadable:
        if Path(error.filename) == root:
            raise Unavailable(f"The folder '{root}' cannot be opened: {error.strerror}.", hint="Check its permissions.")
        yield _source(root, Path(error.filename)), _refused(f"cannot be opened: {error.strerror}")


def _source(root: Path, file: Path) -> str:
    # A name that is not UTF-8 arrives with surrogates, which nothing stored may hold.
    relative = file.relative_to(root).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return f"file:{root.name}/{relative}"


def _refused(reason: str) -> Verdict:
    return Verdict(False, reason)


def _read_file(root: Path, file: Path, source: str) -> Document | Verdict:
    media_type = MEDIA_TYPES.get(file.suffix.lower())
    if media_type is None:
        return _refused(f"files ending in '{file.suffix}' are not read" if file.suffix else "has no ending")
    data = _bytes(root, file)
    text = data if isinstance(data, Verdict) else _decode(data)
    if isinstance(text, Verdict):
        return text
    title = ""
    if media_type == "text/html":
        title, text = html_to_text(text)
    text = clean(text)
    if not text:
        return _refused("holds no text")
    return Document(title=clean(title) or _title(text, file.stem), text=text, source=source, media_type=media_type)


def _bytes(root: Path, file: Path) -> bytes | Verdict:
    try:
        if not file.resolve().is_relative_to(root):
            return _refused("a link that leads out of the folder")
        if not file.is_file():
            return _refused("a broken link, or not a plain file")
        if file.stat().st_size > _MAX_BYTES:
            return _refused(f"larger than {_MAX_BYTES >> 20} MiB")
        return file.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        return _refused(f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _decode(data: bytes) -> str | Verdict:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    if encoding == "utf-8-sig" and b"\0" in data:
        return _refused("is binary, not text")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        return _refused(f"is not {'UTF-16' if encoding == 'utf-16' else 'UTF-8'} text (byte {error.start})")


def _title(text: str, stem: str) -> str:
    """The first Markdown heading, the first underlined line, a short first line, or else the file's name."""
    lines = [line.strip() for line in text.split("\n", 40)[:40]]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")[:_TITLE_CHARS]
        if line and _UNDERLINE.fullmatch(following):
            return line[:_TITLE_CHARS]
    return lines[0] if len(lines[0].split()) <= 12 and len(lines[0]) <= _TITLE_CHARS else stem
