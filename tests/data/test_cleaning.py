from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.data import clean, html_to_text

# Characters that cleaning looks at, so that random texts meet them often.
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from("\r\n\t `:~!<>ab\u200b\x00\u0301\u00a0")), max_size=60)


@given(TEXTS)
@example("````a````")
@example(":a:`:b:`c``")
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean(text)
    assert clean(once) == once


@given(TEXTS)
def test_clean_text_has_one_form_and_no_control_characters(text: str) -> None:
    cleaned = clean(text)
    assert "\r" not in cleaned
    assert "\n\n\n" not in cleaned
    assert unicodedata.normalize("NFC", cleaned) == cleaned
    assert not any(unicodedata.category(char) == "Cc" and char not in "\n\t" for char in cleaned)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("See :class:`~pathlib.Path` and :func:`os.walk`.", "See pathlib.Path and os.walk."),
        (":meth:`read <io.IOBase.read>`", "io.IOBase.read"),
        ("Use ``x = 1`` here", "Use x = 1 here"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("line  \n\n\n\nnext\t", "line\n\nnext"),
        ("Cafe\u0301\u200b", "Café"),
        ("```python\nx\n```", "```python\nx\n```"),
    ],
)
def test_known_cases(raw: str, expected: str) -> None:
    assert clean(raw) == expected


def test_html_becomes_text_without_scripts_navigation_and_markup() -> None:
    page = """<!DOCTYPE html><html><head><title> The  page </title><style>p{}</style></head><body>
    <nav>Home</nav><h1>Heading</h1><p>One &amp; two,<br>three<p>four</p>
    <script>alert("x")</script><ul><li>first</li><li>second</li></ul><pre>a
  b</pre><footer>imprint</footer></body></html>"""
    title, text = html_to_text(page)
    assert title == "The page"
    assert clean(text) == "Heading\n\nOne & two,\nthree\nfour\n\n- first\n\n- second\n\na\n  b"


def test_an_element_never_closed_does_not_swallow_the_page() -> None:
    assert "kept" in html_to_text("<nav><p>gone</nav><p>kept")[1]
    assert "kept" in html_to_text("<svg><template>x</svg><p>kept")[1]


@given(st.text(st.sampled_from("<>/&;!-pdivscript \"'=a"), max_size=80))
def test_any_markup_is_read_without_an_error(markup: str) -> None:
    html_to_text(markup)
