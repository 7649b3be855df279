"""How a text that comes in pieces is held back until it has been ruled on. Pure: no clock, no tasks, no bytes.

The rules:

1. What leaves is a prefix of the whole text, but for edits.
2. A character leaves only after a ruling on a passage that held it and the ``hold_chars`` characters behind it, or all
   that ever came. So whatever is forbidden and no longer than ``hold_chars`` is recognised before any of it has left.
3. An edit leaves whole or not at all: a passage is never released up to the middle of one.
4. After a block nothing leaves.
"""

from __future__ import annotations

import re
from typing import Final

from tidemill.gateway.guardrails.guardrail import Edit, Passage

_SENTENCE_END: Final = re.compile(r"[.!?…][\"')\]]*\s|[。！？]|\n")
_SENTENCE_MOST: Final = 8
"""A sentence longer than so many times ``hold_chars`` is released before its end: some texts have none."""


class HoldBack:
    """One text of an answer.

    Args:
        hold_chars: held back behind what is released.
        step_chars: new text that is waited for before a passage is due.
        whole_sentences: release up to the end of a sentence only.
        place: for the passages.
    """

    __slots__ = ("_asked", "_cut", "_edits", "_final", "_hold", "_place", "_seen", "_sentences", "_step", "_text",
                 "blocked", "released")  # fmt: skip

    def __init__(
        self, *, hold_chars: int, step_chars: int, whole_sentences: bool = False, place: tuple[int | str, ...] = (0,)
    ) -> None:
        self.released = 0
        """Characters of the text that may leave."""
        self.blocked = False
        self._text = ""  # from ``_cut`` on
        self._cut = 0  # so much of the beginning is forgotten
        self._edits: list[Edit] = []  # of what is released; offsets in the whole text
        self._hold = max(0, hold_chars)
        self._step = max(1, step_chars)
        self._sentences = whole_sentences
        self._place = place
        self._final = False
        self._seen = 0  # up to here passages were ruled on
        self._asked: tuple[int, bool] | None = (
            None  # end of the passage that is being ruled on, and whether it is final
        )

    @property
    def size(self) -> int:
        """Characters that came."""
        return self._cut + len(self._text)

    def feed(self, text: str) -> None:
        """More text came."""
        self._text += text

    def close(self) -> None:
        """No more will come."""
        self._final = True

    def due(self) -> Passage | None:
        """The passage to rule on now, if one is due and none is being ruled on. Answer with ``rule``."""
        if self._asked is not None or self.blocked:
            return None
        size = self.size
        if self._final:
            if self.released >= size:
                return None
        elif size - self._seen < self._step or not self._worth(size):
            return None
        start = max(self._cut, self.released - self._hold)
        self._asked = (size, self._final)
        return Passage(self._text[start - self._cut :], self.released - start, self._final, self._place)

    def rule(self, passage: Passage, *, passes: bool, edits: tuple[Edit, ...] = ()) -> None:
        """Take the ruling on the passage that was due.

        Args:
            passage: as ``due`` gave it.
            passes: whether its text may leave.
            edits: what leaves otherwise; offsets in ``passage.text``.
        """
        assert self._asked is not None, "no passage was due"
        (end, final), self._asked = self._asked, None
        if not passes:
            self.blocked = True
            return
        self._seen = end
        start = end - len(passage.text)
        found = sorted(Edit(start + one.start, start + one.end, one.text) for one in edits)
        limit = end if final else self._limit(end)
        limit = max(limit, self.released)
        for edit in reversed(found):
            if edit.start < limit < edit.end:
                limit = max(edit.start, self.released)
        self._edits += [_after(edit, self.released) for edit in found if self.released < edit.end <= limit]
        self.released = limit
        self._forget()

    def edited(self, start: int, end: int, text: str) -> str:
        """What leaves in place of the released characters ``start`` to ``end``, which came as ``text``."""
        pieces: list[str] = []
        at = start
        for edit in self._edits:
            if edit.end <= at or edit.start >= end:
                continue
            if edit.start >= start:
                pieces += (text[at - start : edit.start - start], edit.text)
            at = min(edit.end, end)
        return "".join(pieces) + text[at - start :]

    def forget_edits(self, upto: int) -> None:
        """Everything before has left."""
        if self._edits and self._edits[0].end <= upto:
            self._edits = [edit for edit in self._edits if edit.end > upto]

    def _worth(self, size: int) -> bool:
        """Whether a ruling could release anything."""
        return self._limit(size) > self.released

    def _limit(self, end: int) -> int:
        """How far a passage that passes up to ``end`` releases the text."""
        limit = end - self._hold
        if not self._sentences or limit <= self.released:
            return limit
        last = self.released
        for match in _SENTENCE_END.finditer(self._text, self.released - self._cut, limit - self._cut):
            last = self._cut + match.end()
        return limit if last == self.released and limit - last > _SENTENCE_MOST * max(1, self._hold) else last

    def _forget(self) -> None:
        """Drop text that is neither context nor held, in large pieces."""
        spare = self.released - self._hold - self._cut
        if spare > 4096:
            self._text = self._text[spare:]
            self._cut += spare


def _after(edit: Edit, released: int) -> Edit:
    """An edit less what of its stretch has left already."""
    return edit if edit.start >= released else Edit(released, edit.end, edit.text)
