"""Documents cut into passages: spans of whole paragraphs and sentences, of about equal length, with stable ids."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from tidemill.kernel import InvalidInput, RowId, canonical_json

_TOKEN: Final = re.compile(r"[^\W\d_]+|\d|_+|[^\w\s]+|\n[ \t]*")
_PARAGRAPH: Final = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE: Final = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
_LINE: Final = re.compile(r"\n")
_WORD: Final = re.compile(r"\s+")
_HEADING_TOKENS: Final = 14


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How documents are cut.

    Args:
        passage_tokens: the most a passage may hold, in estimated tokens (see ``estimate_tokens``).
        overlap_tokens: how much of a passage's end the next one repeats, in whole sentences; 0 repeats nothing.
    """

    passage_tokens: int = 160
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if self.passage_tokens < 16:
            raise InvalidInput(f"passage_tokens is {self.passage_tokens}: a passage needs at least 16 tokens")
        if not 0 <= self.overlap_tokens <= self.passage_tokens // 2:
            raise InvalidInput(
                f"overlap_tokens is {self.overlap_tokens}: give 0 to {self.passage_tokens // 2}, half a passage"
            )

    def as_json(self) -> dict[str, Any]:
        """The options as a plain JSON object, as they enter passage ids."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A span of a document: what is searched, quoted and cited.

    Args:
        passage_id: stable id: the same document, span and split options give the same id.
        document_id: row id of the document.
        source: the document's URI.
        title: the document's title.
        text: exactly ``document text[start:end]``.
        start, end: the span in characters.
    """

    passage_id: RowId
    document_id: RowId
    source: str
    title: str
    text: str
    start: int
    end: int

    @property
    def titled_text(self) -> str:
        """The text as it is embedded and shown to a model: under its title."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    def as_json(self) -> dict[str, Any]:
        """The passage as the value of a data set row."""
        value = asdict(self)
        del value["passage_id"]
        return value


def estimate_tokens(text: str) -> int:
    """Estimate how many tokens a small byte-pair tokenizer makes of a text, without having one.

    English words of up to seven letters count one, longer ones a token for each five letters; each digit, each line
    break with its indentation and each two signs count one. Meant to err on the high side.

    Args:
        text: any text.

    Returns:
        A number of tokens; 0 for an empty text.
    """
    count = 0
    for token in _TOKEN.findall(text):
        first = token[0]
        if first.isalpha():
            count += 1 if len(token) <= 7 else math.ceil(len(token) / 5)
        elif first == "\n" or first.isdigit():
            count += 1
        else:
            count += math.ceil(len(token) / 2)
    return count


def split(document_id: RowId, document: Mapping[str, Any], options: SplitOptions | None = None) -> list[Passage]:
    """Cut a document into passages.

    Cuts fall between paragraphs where these are small enough, else between sentences, lines or words. Lengths are
    evened out, so that no document ends in a scrap, and a heading stays with what follows it.

    Args:
        document_id: row id of the document.
        document: the row's value: ``title``, ``text`` and ``source``.
        options: lengths, in estimated tokens.

    Returns:
        Passages in the order of the text; without overlap every character that is not white space is in exactly one.
    """
    chosen = options or SplitOptions()
    text = str(document["text"])
    units = list(_units(text, 0, len(text), chosen.passage_tokens))
    passages = []
    for start, end in _pack(text, units, chosen):
        identity = {"document": document_id, "start": start, "end": end, "split": chosen.as_json()}
        passages.append(
            Passage(
                passage_id=RowId("psg_" + hashlib.sha256(canonical_json(identity)).hexdigest()[:24]),
                document_id=document_id,
                source=str(document["source"]),
                title=str(document["title"]),
                text=text[start:end],
                start=start,
                end=end,
            )
        )
    return passages


def _units(text: str, start: int, end: int, limit: int, level: int = 0) -> Iterator[tuple[int, int]]:
    """Spans that each fit the limit, cut at the coarsest border that makes them fit."""
    start, end = _trim(text, start, end)
    if start >= end:
        return
    borders = (_PARAGRAPH, _SENTENCE, _LINE, _WORD)
    if level == len(borders):
        # One word longer than a passage: nothing is left to cut at but its characters.
        for at in range(start, end, limit):
            yield at, min(end, at + limit)
        return
    if level > 0 and estimate_tokens(text[start:end]) <= limit:
        yield start, end
        return
    at = start
    for border in borders[level].finditer(text, start, end):
        yield from _units(text, at, border.start(), limit, level + 1)
        at = border.end()
    yield from _units(text, at, end, limit, level + 1)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _pack(text: str, units: list[tuple[int, int]], options: SplitOptions) -> Iterator[tuple[int, int]]:
    """Join neighbouring units into spans of even length below the limit."""
    if not units:
        return
    sizes = [estimate_tokens(text[start:end]) for start, end in units]
    left = list(itertools.accumulate(reversed(sizes)))[::-1]
    first = 0
    while first < len(units):
        target = left[first] / math.ceil(left[first] / options.passage_tokens)
        last = _fill(text, units, first, (target, options.passage_tokens))
        if last > first and last + 1 < len(units) and _is_heading(text, units[last]):
            last -= 1
        yield units[first][0], units[last][1]
        if last + 1 == len(units):
            return
        following = last + 1
        repeated = 0
        while following - 1 > first and repeated + sizes[following - 1] <= options.overlap_tokens:
            following -= 1
            repeated += sizes[following]
        first = following


def _fill(text: str, units: list[tuple[int, int]], first: int, bounds: tuple[float, int]) -> int:
    """The index of the last unit of the span that begins with unit ``first``."""
    target, limit = bounds
    last, size = first, estimate_tokens(text[units[first][0] : units[first][1]])
    while last + 1 < len(units):
        longer = estimate_tokens(text[units[first][0] : units[last + 1][1]])
        if longer > limit or (size + longer) / 2 > target:
            break
        last, size = last + 1, longer
    return last


def _is_heading(text: str, unit: tuple[int, int]) -> bool:
    content = text[unit[0] : unit[1]]
    return content[-1] not in ".!?;,`\"')" and estimate_tokens(content) <= _HEADING_TOKENS
