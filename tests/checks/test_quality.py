"""Language and quality rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checks import QualityRules, check_language, check_quality, detect_language

PROSE = "The assert statement is a convenient way to insert debugging checks into a program and to state what holds."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PROSE, "en"),
        ("Die Anweisung ist ein bequemer Weg, um Prüfungen in das Programm zu bringen und nicht zu stören.", "de"),
        ("La phrase est dans un fichier et les mots sont pour une personne qui lit avec plaisir.", "fr"),
        ("El perro de la casa es un animal que no come con los otros por la noche.", "es"),
        ("Это предложение написано по-русски.", "ru"),
        ("これは日本語の文章です。", "ja"),
        ("这是一个中文句子。", "zh"),
        ("한국어 문장입니다.", "ko"),
        ("x = 1", None),
        ("12345 ---", None),
        ("", None),
    ],
)
def test_language(text: str, language: str | None) -> None:
    assert detect_language(text) == language


def test_check_language() -> None:
    assert check_language(PROSE, {"en"}).value is True
    verdict = check_language(PROSE, {"de", "fr"})
    assert verdict.value is False
    assert verdict.reason == "The text is in 'en'; allowed: de, fr."
    assert check_language("??", {"de"}).value is True


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Too short.", "words"),
        ("a b c d e f g h", "mean word chars"),
        ("x" * 40 + " " + "y" * 40 + " and three more words", "mean word chars"),
        ("one two three four five " + "=" * 80, "alphabetic share"),
        ("buy this now\n" * 5, "repeated line share"),
        ("spam spam " * 30 + "is not the only word", "top word share"),
    ],
)
def test_quality_says_which_rule_was_broken(text: str, rule: str) -> None:
    verdict = check_quality(text)
    assert verdict.value is False
    assert verdict.reason.startswith(rule)


def test_quality_lets_prose_pass() -> None:
    assert check_quality(PROSE).value is True
    assert check_quality(PROSE, QualityRules(min_words=100)).value is False


@given(st.text())
def test_any_text_gets_a_verdict(text: str) -> None:
    assert isinstance(check_quality(text).value, bool)
    assert isinstance(check_language(text, {"en"}).value, bool)
