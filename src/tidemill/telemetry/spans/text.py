"""Full text over what was said: the words of a query, the expression that finds them, and filters of words.

A word is a run of ASCII letters, digits and underscores. A query's terms are parted by white space; each must occur in
a span's input or output, whatever its case:

- ``refund`` occurs as a whole word;
- ``"refund policy"``, and what is written together (``max-tokens``, ``a@b.c``), occurs as these words in this order
  with nothing but signs and white space between;
- a term with other letters (``naïve``, ``退款``) occurs anywhere, within words too: many scripts do not part words.

``WordFilter`` is a Bloom filter [Bloom 1970] over the words of a stretch of contents: it says which stretches cannot
hold a word, so that they need not be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import numpy as np

from tidemill.kernel import InvalidInput

BETWEEN: Final = "\x1f"
"""Parts a span's input from its output where both are kept as one text; no phrase reaches across it."""
_GAP: Final = r"[^\w\x1f]+"
_TERM: Final = re.compile(r'"([^"]*)"|(\S+)')
_WORD: Final = re.compile(r"\w+", re.ASCII)
_MOST_TERMS: Final = 32

_SEPARATE: Final = bytes(
    code + 32 if 65 <= code <= 90 else (code if 97 <= code <= 122 or 48 <= code <= 57 or code == 95 else 32)
    for code in range(256)
)
_BITS_A_WORD: Final = 8
HASHES: Final = 5
_SECOND_SEED: Final = 0x9E3779B9


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that must occur.

    Args:
        pattern: a regular expression that RE2 reads, to be matched anywhere in the text.
        words: words that a text must hold for the pattern to match, lower case; empty where none can be named.
    """

    pattern: str
    words: tuple[str, ...]

    @property
    def patterns(self) -> list[str]:
        """Expressions that must all match, the cheapest first.

        RE2 searches for a bare word ten times as fast as for one between word boundaries (measured over texts of 1 KB),
        and few texts that lack the term hold its words.
        """
        return [*(f"(?i){word}" for word in sorted(set(self.words), key=len, reverse=True)), self.pattern]


def terms_of(text: str) -> tuple[Term, ...]:
    """The terms of a query.

    Raises:
        InvalidInput: no term, or more than 32.
    """
    found = [quoted or plain for quoted, plain in _TERM.findall(text)]
    terms = tuple(_term(one.strip()) for one in found if one.strip())
    if not terms or len(terms) > _MOST_TERMS:
        raise InvalidInput(
            f"A full-text query has 1 to {_MOST_TERMS} terms; this one has {len(terms)}.",
            hint='Write words, or "words in this order" in quotes.',
        )
    return terms


def _term(text: str) -> Term:
    words = _WORD.findall(text)
    if text.isascii() and words:
        return Term(r"(?i)\b" + _GAP.join(words) + r"\b", tuple(word.lower() for word in words))
    return Term("(?i)" + r"\s+".join(_escaped(part) for part in text.split()), ())


def _escaped(text: str) -> str:
    return "".join(sign if sign.isalnum() or not sign.isascii() else "\\" + sign for sign in text)


def words_of(text: str) -> list[bytes]:
    """The words of a text, lower case, with repetitions."""
    return text.encode("utf-8", "replace").translate(_SEPARATE).split()


def word_filter(words: Iterable[bytes]) -> bytes:
    """A Bloom filter over words: about 1 in 45 words that are not in it seems to be.

    Returns:
        Its bits, most significant first; ``bit_places`` says which of them a word sets.
    """
    distinct = list(set(words))
    size = max(64, len(distinct) * _BITS_A_WORD + 7 & ~7)
    first = np.fromiter((crc32(word) for word in distinct), np.uint64, len(distinct))
    step = np.fromiter((crc32(word, _SECOND_SEED) | 1 for word in distinct), np.uint64, len(distinct))
    bits = np.zeros(size, np.uint8)
    for turn in range(HASHES):
        bits[(first + np.uint64(turn) * step) % np.uint64(size)] = 1
    return np.packbits(bits).tobytes()


def bit_places(word: str) -> list[int]:
    """Where a word's bits are: each number modulo the filter's size in bits."""
    key = word.encode()
    first, step = crc32(key), crc32(key, _SECOND_SEED) | 1
    return [first + turn * step for turn in range(HASHES)]
