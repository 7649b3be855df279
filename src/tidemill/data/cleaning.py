"""Text made plain: one Unicode form, one line ending, no markup, no control characters."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser
from typing import Final

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u200b\u2060]")
_TRAILING = re.compile(r"[ \t\u00a0]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`(?:[^`<]*<)?[~!]?([^`<>]+)>?`")
_LITERAL = re.compile(r"(?<!`)``([^`\n]+)``(?!`)")
_SKIPPED: Final = frozenset({"script", "style", "template", "noscript", "svg", "head", "nav", "footer", "iframe"})
_BLOCK_NAMES: Final = (
    "address article aside blockquote br dd div dl dt fieldset figcaption figure form h1 h2 h3 h4 h5 h6 header hr li "
    "main ol p pre section table td th tr ul"
)
_BLOCKS: Final = frozenset(_BLOCK_NAMES.split())


def clean(text: str) -> str:
    """Make a text plain.

    Unicode form NFC, line feeds alone, no control or zero-width characters, no white space at line ends, at most one
    blank line in a row, reStructuredText roles (``:class:`Path```) reduced to what they name. Cleaning a clean
    text changes nothing.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = unicodedata.normalize("NFC", _CONTROL.sub("", text))
    before = ""
    while before != text:  # markup may nest; each round makes the text shorter
        before, text = text, _LITERAL.sub(r"\1", _ROLE.sub(r"\1", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


def html_to_text(markup: str) -> tuple[str, str]:
    """Take the readable text out of an HTML page.

    Scripts, styles, navigation and footers are left out; block elements become lines; ``pre`` keeps its line breaks.

    Returns:
        The title (empty where the page has none) and the text, not yet cleaned.
    """
    reader = _PageReader()
    reader.feed(markup)
    reader.close()
    return " ".join("".join(reader.title).split()), "".join(reader.parts)


class _PageReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        self._skipping: list[str] = []
        self._in_title = False
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - HTMLParser's signature
        self._in_title = tag == "title"
        if tag in _SKIPPED:
            self._skipping.append(tag)
        elif tag in _BLOCKS and not self._skipping:
            self.parts.append("\n- " if tag == "li" else "\n")
            self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if tag in self._skipping:
            # A page that forgets to close an inner element must not lose the rest of its text.
            del self._skipping[self._skipping.index(tag) :]
        elif tag in _BLOCKS and not self._skipping:
            self.parts.append("\n")
            self._preformatted = max(0, self._preformatted - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._skipping:
            self.parts.append(data if self._preformatted else re.sub(r"\s+", " ", data))
