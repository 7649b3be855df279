"""Where in a text something was found, and how it is taken out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tidemill.kernel import Verdict


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A stretch of text, by character offsets, and what it is. It never carries the text itself.

    Args:
        start, end: ``text[start:end]`` is what was found.
        kind: e.g. ``email``, ``credit_card``, ``api_key``; becomes the placeholder's name.
    """

    start: int
    end: int
    kind: str


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings in order, those that overlap joined into one of the longest one's kind."""
    result: list[Finding] = []
    longest = 0
    for finding in sorted(findings):
        size = finding.end - finding.start
        if result and finding.start < result[-1].end:
            last = result.pop()
            kind = finding.kind if size > longest else last.kind
            longest = max(longest, size)
            result.append(Finding(last.start, max(last.end, finding.end), kind))
        else:
            longest = size
            result.append(finding)
    return tuple(result)


def mask(text: str, findings: Iterable[Finding]) -> str:
    """Replace each finding by its kind in angle brackets, e.g. ``<email>``; the rest of the text stays as it is."""
    pieces: list[str] = []
    end = 0
    for finding in merged(findings):
        pieces += (text[end : finding.start], f"<{finding.kind}>")
        end = finding.end
    return "".join(pieces) + text[end:]


def verdict_of(findings: tuple[Finding, ...], what: str) -> Verdict:
    """A verdict that holds (``True``) when nothing was found; its evidence names kinds and places, not the text."""
    if not findings:
        return Verdict(True, f"No {what} found.")
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    listing = ", ".join(f"{count} x {kind}" for kind, count in sorted(counts.items()))
    places = [{"kind": finding.kind, "start": finding.start, "end": finding.end} for finding in findings]
    return Verdict(False, f"The text holds {what}: {listing}.", {"findings": places})
