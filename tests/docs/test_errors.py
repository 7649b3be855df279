"""The page of errors has every code that the gateway's code can tell, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "reference" / "errors.md"
GATEWAY: Final = ROOT / "src" / "tidemill" / "gateway"

#: Calls that word an error, and the place of its code.
TELLERS: Final = {"Refusal": 2, "error_body": 2}
#: Codes that are not written where the error is: (file, expression) -> the codes it can be.
ELSEWHERE: Final[dict[tuple[str, str], set[str]]] = {
    ("answers.py", "self.code"): set(),  # a refusal's own
    ("app.py", "code"): {"invalid_json", "internal_error"},
    ("reading.py", "code"): set(),  # handed in by _refuse's callers, whose codes are read below
    ("failures.py", "word"): set(),  # the provider's
    ("replying.py", "code"): {"upstream_timeout", "upstream_failed"},
    ("caps.py", "code"): {"queue_full", "queue_timeout", "displaced"},
    ("refusals.py", "_CODES[limit.unit]"): {"rate_limit_exceeded", "insufficient_quota"},
    ("execution.py", "_CODE"): {"content_filter"},
    ("store.py", "f'{kind}_not_found'"): {"response_not_found", "conversation_not_found"},
}


def calls() -> Iterator[tuple[str, ast.expr | None, int]]:
    """File, code and line of every error that is worded."""
    for path in sorted(GATEWAY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            place = TELLERS.get(name)
            if name == "_refuse" and path.name == "reading.py":
                place = 2
            if place is None:
                continue
            named = [one.value for one in node.keywords if one.arg == "code"]
            yield path.name, named[0] if named else node.args[place] if len(node.args) > place else None, node.lineno


def constants(code: ast.expr) -> set[str] | None:
    """The codes of an expression, if they stand in it."""
    if isinstance(code, ast.IfExp):
        one, other = constants(code.body), constants(code.orelse)
        return None if one is None or other is None else one | other
    return {code.value} if isinstance(code, ast.Constant) and isinstance(code.value, str) else None


def test_every_code_is_on_the_page_and_no_other() -> None:
    told: set[str] = set()
    unknown: list[str] = []
    used: set[tuple[str, str]] = set()
    for file, code, line in calls():
        found = constants(code) if code is not None else None
        if found is None and code is not None:
            place = (file, ast.unparse(code))
            used.add(place)
            found = ELSEWHERE.get(place)
        if found is None:
            unknown.append(f"{file}:{line}")
        else:
            told |= found
    assert unknown == [], "an error without a code, or with one that ELSEWHERE does not list"
    assert used == ELSEWHERE.keys(), "ELSEWHERE lists what is not there any more"
    text = PAGE.read_text(encoding="utf-8").partition("### The connection")[2]
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")]
    listed = set(re.findall(r"`([a-z_]+)`", " ".join(rows)))
    assert told - listed == set(), "codes that the page lacks"
    assert listed - told == set(), "codes of the page that nothing tells"
