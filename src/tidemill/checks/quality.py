"""Is a text prose worth keeping, and in which language? Simple rules, each of which says why it refused.

The rules follow Rae et al., Scaling Language Models (Gopher), 2021, table A1, loosened where short documents would
fail.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from tidemill.checks.overlap import words
from tidemill.kernel import Verdict

_STOP_WORDS: Final = {
    "en": "the of and to in is that for it with as was on be are this by not or from an at which have you if can but",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er",
    "fr": "de la le et les des en un du une que est dans qui par pour au sur pas plus ne se ce il sont avec elle ou",
    "es": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este es",
    "it": "di e il la che in un per è una non sono con del si da le dei nel alla come più anche ma gli i al ha",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem",
    "nl": "de van het een en in is dat op te zijn met voor niet aan er om ook als dan maar bij uit nog naar wordt",
}
_STOP: Final = {language: frozenset(listing.split()) for language, listing in _STOP_WORDS.items()}
_SCRIPTS: Final = (
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
)


def detect_language(text: str) -> str | None:
    """Guess a text's language from its script, or from the commonest words of seven Latin ones.

    Returns:
        An ISO 639-1 code, or ``None`` when there is too little to go by.
    """
    letters = sum(char.isalpha() for char in text)
    if not letters:
        return None
    for language, script in _SCRIPTS:
        # Japanese is written with mostly Chinese characters, so a few kana decide.
        if len(script.findall(text)) >= letters * (0.05 if language == "ja" else 0.3):
            return language
    found = words(text)
    hits = {language: sum(word in stop for word in found) for language, stop in _STOP.items()}
    best = max(hits, key=lambda language: hits[language])
    return best if hits[best] >= max(2, 0.08 * len(found)) else None


def check_language(text: str, allowed: Collection[str]) -> Verdict:
    """Judge whether a text is in one of the allowed languages (ISO 639-1); an unknown language is let pass."""
    language = detect_language(text)
    evidence = {"language": language}
    if language is None:
        return Verdict(True, "The language cannot be told.", evidence)
    if language in allowed:
        return Verdict(True, f"The text is in '{language}'.", evidence)
    return Verdict(False, f"The text is in '{language}'; allowed: {', '.join(sorted(allowed))}.", evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRules:
    """Limits a text must keep.

    Args:
        min_words, max_words: number of words.
        min_mean_word_chars, max_mean_word_chars: mean length of words, in characters.
        min_alphabetic_share: letters among the characters that are not white space.
        max_repeated_line_share: lines that repeat an earlier one, among lines that are not empty.
        max_top_word_share: occurrences of the commonest word, in texts of at least 50 words.
    """

    min_words: int = 5
    max_words: int = 1_000_000
    min_mean_word_chars: float = 2.0
    max_mean_word_chars: float = 15.0
    min_alphabetic_share: float = 0.5
    max_repeated_line_share: float = 0.5
    max_top_word_share: float = 0.3


def check_quality(text: str, rules: QualityRules | None = None) -> Verdict:
    """Judge whether a text reads like prose; ``False`` with the first rule it breaks, the measures as evidence."""
    limits = rules or QualityRules()
    found = words(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    visible = sum(not char.isspace() for char in text)
    count = len(found)
    measures = {
        "words": count,
        "mean_word_chars": sum(map(len, found)) / count if count else 0.0,
        "alphabetic_share": sum(char.isalpha() for char in text) / visible if visible else 0.0,
        "repeated_line_share": 1 - len(set(lines)) / len(lines) if lines else 0.0,
        "top_word_share": Counter(found).most_common(1)[0][1] / count if count >= 50 else 0.0,
    }
    bounds = (
        ("words", limits.min_words, limits.max_words),
        ("mean_word_chars", limits.min_mean_word_chars, limits.max_mean_word_chars),
        ("alphabetic_share", limits.min_alphabetic_share, 1.0),
        ("repeated_line_share", 0.0, limits.max_repeated_line_share),
        ("top_word_share", 0.0, limits.max_top_word_share),
    )
    for name, low, high in bounds:
        if not low <= measures[name] <= high:
            sides = f"at least {low:g}" if measures[name] < low else f"at most {high:g}"
            return Verdict(False, f"{name.replace('_', ' ')} is {measures[name]:.3g}; it must be {sides}.", measures)
    return Verdict(True, "The text keeps every rule.", measures)
