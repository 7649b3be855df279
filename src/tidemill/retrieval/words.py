"""Text to index terms: one analysis for passages and for questions.

Terms are lower-case Porter-2 stems. Identifiers count whole and by their parts (``KeyError``: keyerror, key, error),
and operators of two or more signs (``:=``, ``**``) are terms of their own, so that questions about code find text
about code.
"""

from __future__ import annotations

import re
import threading
from typing import Any, Final

# Function words that carry no topic. Words which are also keywords of common programming languages (if, for, with,
# not, while, …) are left out of the list on purpose: in technical text they are topics.
_FUNCTION_WORDS: Final = """
a an the this that these those i me my we our you your he she it its they them their what which who whom how why
am are be been being was were do does did doing has had having of to at by into would could should shall will may
might must can please tell there here than then so such very just about between when where some
"""
STOP_WORDS: Final = frozenset(_FUNCTION_WORDS.split())

_OPERATOR_SIGNS: Final = r"=\-*/<>:!@"
_TERM: Final = re.compile(
    rf"\w+|(?<![{_OPERATOR_SIGNS}])(?::=|->|\*\*|//|==|!=|<=|>=|<<|>>)(?![{_OPERATOR_SIGNS}])", re.UNICODE
)
_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_local = threading.local()


def terms(text: str) -> list[str]:
    """Analyse a text into index terms, in order, with repetitions.

    Args:
        text: any text, a passage or a question.

    Returns:
        Stems; stop words and single characters are dropped.
    """
    found: list[str] = []
    for token in _TERM.findall(text):
        word = token.strip("_")
        if not word or word[0] in ":-*/=!<>":
            found.extend([token] if word else [])
            continue
        lowered = word.lower()
        if len(word) < 2 or lowered in STOP_WORDS:
            continue
        found.append(_stem(lowered))
        if "_" in word or not (word.islower() or word[1:].islower()):
            parts = _PARTS.findall(word)
            if len(parts) > 1:
                found.extend(_stem(part.lower()) for part in parts if len(part) > 1)
    return found


def _stem(word: str) -> str:
    # PyStemmer objects keep state between calls and must not be shared by threads.
    stemmer: Any = getattr(_local, "stemmer", None)
    if stemmer is None:
        import Stemmer

        stemmer = _local.stemmer = Stemmer.Stemmer("english")
    return str(stemmer.stemWord(word))
