"""Text that is held back: whatever the split, what leaves is a checked prefix, and nothing blocked ever leaves."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.guardrails import Edit, HoldBack, Passage

pieces = st.lists(st.text(alphabet="abx .\n", max_size=6), max_size=30)
holds = st.integers(0, 12)
steps = st.integers(1, 9)
FORBIDDEN = re.compile("xx+")


def feed(held: HoldBack, parts: list[str], rule: object = None) -> tuple[str, str]:
    """Feed pieces and rule on whatever is due; what has left, and the whole text."""
    judge = rule if callable(rule) else lambda passage: held.rule(passage, passes=True)
    whole = out = ""

    def settle() -> None:
        nonlocal out
        while not held.blocked and (passage := held.due()) is not None:
            judge(passage)
        before = len(out)
        out = held.edited(0, held.released, whole[: held.released])
        assert len(out) >= before or held.blocked

    for part in parts:
        held.feed(part)
        whole += part
        settle()
    held.close()
    settle()
    return out, whole


@given(pieces, holds, steps, st.booleans())
def test_all_that_passes_leaves_in_the_end(parts: list[str], hold: int, step: int, sentences: bool) -> None:
    out, whole = feed(HoldBack(hold_chars=hold, step_chars=step, whole_sentences=sentences), parts)
    assert out == whole


@given(pieces, holds, steps, st.booleans())
def test_nothing_leaves_unseen(parts: list[str], hold: int, step: int, sentences: bool) -> None:
    """Each character that leaves stood in a passage that passed, with what is held back behind it or the end."""
    held = HoldBack(hold_chars=hold, step_chars=step, whole_sentences=sentences)
    seen: list[tuple[int, int, bool]] = []

    def judge(passage: Passage) -> None:
        before = held.released
        start = held.size - len(passage.text)
        assert start == before - passage.released
        held.rule(passage, passes=True)
        seen.append((start, held.size, passage.final))
        assert held.released <= (held.size if passage.final else max(before, held.size - hold))

    _, whole = feed(held, parts, judge)
    reached = 0
    for start, end, _ in seen:
        assert start <= reached  # no gap
        reached = max(reached, end)
    assert reached >= len(whole) or not whole


@given(pieces, st.integers(3, 12), steps, st.booleans())
def test_nothing_blocked_ever_leaves(parts: list[str], hold: int, step: int, sentences: bool) -> None:
    held = HoldBack(hold_chars=hold, step_chars=step, whole_sentences=sentences)

    def judge(passage: Passage) -> None:
        held.rule(passage, passes="xxx" not in passage.text)

    out, whole = feed(held, parts, judge)
    assert whole.startswith(out)
    at = whole.find("xxx")
    assert held.blocked == (at >= 0)
    if at >= 0:
        assert len(out) <= at
        held.feed("more")
        assert held.due() is None
        assert held.released <= at


@given(pieces, st.integers(4, 12), steps, st.booleans())
def test_what_is_edited_leaves_as_if_the_whole_text_had_been(
    parts: list[str], hold: int, step: int, sentences: bool
) -> None:
    """For findings that the hold-back spans; a longer one is held until it ends, since an edit leaves whole."""
    held = HoldBack(hold_chars=hold, step_chars=step, whole_sentences=sentences)

    def judge(passage: Passage) -> None:
        found = [Edit(hit.start(), hit.end(), "<x>") for hit in FORBIDDEN.finditer(passage.text)]
        held.rule(passage, passes=True, edits=tuple(edit for edit in found if edit.end > passage.released))

    out, whole = feed(held, parts, judge)
    assert out == FORBIDDEN.sub("<x>", whole)


@given(st.text(alphabet="ab", min_size=1, max_size=40), holds, st.data())
def test_a_stretch_of_the_text_leaves_with_its_part_of_the_edits(text: str, hold: int, data: st.DataObject) -> None:
    held = HoldBack(hold_chars=hold, step_chars=1)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    held.feed(text)
    held.close()
    passage = held.due()
    assert passage is not None
    held.rule(passage, passes=True, edits=(Edit(start, end, "-"),))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    out = [held.edited(one, other, text[one:other]) for one, other in pairwise(edges)]
    assert "".join(out) == text[:start] + "-" + text[end:]


def test_the_first_passage_waits_for_a_step_and_its_hold() -> None:
    held = HoldBack(hold_chars=4, step_chars=3)
    held.feed("abcd")
    assert held.due() is None  # nothing of it could leave
    held.feed("ef")
    passage = held.due()
    assert passage == Passage("abcdef", 0, final=False, place=(0,))
    assert held.due() is None  # one at a time
    held.feed("ghij")
    held.rule(passage, passes=True)
    assert held.released == 2
    again = held.due()
    assert again is not None
    assert (again.text, again.released) == ("abcdefghij", 2)


def test_whole_sentences_leave_together() -> None:
    held = HoldBack(hold_chars=0, step_chars=1, whole_sentences=True)
    out, _ = feed(held, ["One. Two", " and"], None)
    assert out == "One. Two and"  # the end of the text ends the sentence
    held = HoldBack(hold_chars=0, step_chars=1, whole_sentences=True)
    held.feed("One. Two")
    passage = held.due()
    assert passage is not None
    held.rule(passage, passes=True)
    assert held.released == len("One. ")


def test_a_long_text_is_not_kept_whole() -> None:
    held = HoldBack(hold_chars=10, step_chars=100)
    for _ in range(1000):
        held.feed("a" * 100)
        while (passage := held.due()) is not None:
            assert len(passage.text) < 300
            held.rule(passage, passes=True)
    assert held.size == 100_000
    assert held.released == 100_000 - 10
