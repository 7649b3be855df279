"""Personal data in text: addresses, numbers with check digits, telephone numbers.

Whatever has a check digit is checked, so that order numbers and timestamps pass. All patterns run in linear time:
e-mail is looked for around each ``@`` alone, and number patterns never repeat a class inside a repetition of the same.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from tidemill.checks.findings import Finding, merged, verdict_of
from tidemill.kernel import Verdict

_LOCAL_PART = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}")
_LOCAL_CHARS: Final = 64

_DIGITS = re.compile(r"[0-9]+")
_MARGIN_CHARS: Final = 40
"""No pattern reaches further from its digits: an IPv6 address has 39 characters."""

_LONG_NUMBER = re.compile(r"(?<![\w.])[+(]?\d(?:[ .\-()/]{0,2}\d){6,}(?!\w)", re.ASCII)
_GROUPS = re.compile(r"\d+")
_PHONE_WORD = re.compile(
    r"(?:phone|tel|mobile|cell|call|fax|whatsapp|sms|text me at|dial|reach me)\W{0,3}(?:\w+\W{1,3}){0,2}\Z", re.I
)
_SSN = re.compile(r"(?<![\d.])(?!000|666|9)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\d-])")
_CPF = re.compile(r"(?<![\d.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)")
_AADHAAR = re.compile(r"(?<![\d.])[2-9]\d{3}([ -])\d{4}\1\d{4}(?!\d|\1\d{4})")
_CARD = re.compile(r"(?<![\d.])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}|\d{13,19})(?!\d)")

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])", re.ASCII)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,7}(?![\w:])", re.ASCII)
_NINO = re.compile(
    r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)", re.ASCII
)
_DNI = re.compile(r"(?<!\w)(?:\d{8}|[XYZ]\d{7})-?[A-HJ-NP-TV-Z](?!\w)", re.ASCII)
_CODICE = re.compile(r"(?<!\w)[A-Z]{6}\d{2}[ABCDEHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)", re.ASCII)
_RESIDENT = re.compile(r"(?<!\w)[1-9]\d{5}(?:19|20)\d{9}[\dX](?!\w)", re.ASCII)
_NIR = re.compile(r"(?<!\w)[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?!\w)", re.ASCII)

_ISSUERS: Final = ("2", "30", "34", "35", "36", "37", "38", "39", "4", "5", "6")
_IBAN_LENGTHS: Final = {
    **dict.fromkeys(("NO",), 15), **dict.fromkeys(("BE",), 16), **dict.fromkeys(("DK", "FI", "FO", "GL", "NL"), 18),
    **dict.fromkeys(("MK", "SI"), 19), **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("PT", "ST"), 25), **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29), **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31), **dict.fromkeys(("LC",), 32),
}  # fmt: skip
"""Length of an IBAN by country (SWIFT's IBAN registry)."""


def find_pii(text: str) -> tuple[Finding, ...]:
    """Find personal data: ``email``, ``phone``, ``credit_card``, ``iban``, ``ip_address``, ``us_ssn``, ``national_id``.

    Returns:
        Findings in order, without overlaps.
    """
    found = list(_emails(text)) if "@" in text else []
    for window in _windows(text):
        found += _long_numbers(window)
        found += _addresses(window)
        for pattern, kind, digits, valid in _CHECKED:
            if window.digits >= digits:
                hits = pattern.finditer(text, window.start, window.end)
                found += [Finding(hit.start(), hit.end(), kind) for hit in hits if valid(_plain(hit.group()))]
    return merged(found)


def check_pii(text: str) -> Verdict:
    """Judge whether a text is free of personal data; ``False`` when it is not, with kinds and places as evidence."""
    return verdict_of(find_pii(text), "personal data")


class _Window(NamedTuple):
    """A stretch of text round some digits. Most of a text has none near, and is not looked at twice."""

    text: str
    start: int
    end: int
    digits: int


def _windows(text: str) -> Iterator[_Window]:
    """Stretches that hold at least four digits, none further than the margin from the next."""
    start = end = digits = 0
    for hit in _DIGITS.finditer(text):
        if hit.start() - end > _MARGIN_CHARS:
            if digits >= 4:
                yield _Window(text, max(0, start - _MARGIN_CHARS), end + _MARGIN_CHARS, digits)
            start, digits = hit.start(), 0
        end = hit.end()
        digits += end - hit.start()
    if digits >= 4:
        yield _Window(text, max(0, start - _MARGIN_CHARS), end + _MARGIN_CHARS, digits)


def _emails(text: str) -> Iterator[Finding]:
    at = text.find("@")
    while at >= 0:
        local = _LOCAL_PART.search(text[max(0, at - _LOCAL_CHARS) : at])
        domain = _DOMAIN.match(text, at + 1)
        if local and domain and local.group().strip("."):
            yield Finding(at - len(local.group().lstrip(".")), domain.end(), "email")
        at = text.find("@", at + 1)


def _long_numbers(window: _Window) -> Iterator[Finding]:
    if window.digits < 7:
        return
    text = window.text
    for hit in _LONG_NUMBER.finditer(text, window.start, window.end):
        number, start = hit.group(), hit.start()
        # A number may stand in a row with other digits: '4111 1111 1111 1111 12/28'.
        inner = [
            Finding(start + part.start(), start + part.end(), kind)
            for pattern, kind, valid in _GROUPED
            for part in pattern.finditer(number)
            if valid(_plain(part.group()))
        ]
        if inner:
            yield from inner
        elif _is_phone(number, _plain(number), text[max(0, start - 40) : start]):
            yield Finding(start, hit.end(), "phone")


def _is_phone(number: str, digits: str, before: str) -> bool:
    if not 7 <= len(digits) <= 15:
        return False
    if number.startswith("+"):
        return len(digits) >= 8 and digits[0] != "0"
    if _PHONE_WORD.search(before):
        return True
    groups = _GROUPS.findall(number)
    sizes = [len(group) for group in groups]
    if sizes in ([3, 3, 4], [1, 3, 3, 4]):  # North America: neither area nor exchange begins with 0 or 1
        return groups[-3][0] > "1" and groups[-2][0] > "1" and groups[0] in {groups[-3], "1"}
    # Elsewhere a trunk 0 and groups; a date such as 01.02.2026 has its groups of two, two and four.
    return digits[0] == "0" and digits[1] != "0" and 2 <= len(groups) <= 5 and len(digits) >= 9 and sizes[0] >= 3


def _addresses(window: _Window) -> Iterator[Finding]:
    text, start, end, _ = window
    for pattern, mark in ((_IPV4, "."), (_IPV6, ":")):
        if text.count(mark, start, end) < 3:
            continue
        for hit in pattern.finditer(text, start, end):
            with suppress(ValueError):
                address = ipaddress.ip_address(hit.group())
                if not (address.is_loopback or address.is_unspecified):
                    yield Finding(hit.start(), hit.end(), "ip_address")


def _plain(number: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", number)


def is_card_number(digits: str) -> bool:
    """Whether digits are a payment card's: issuer range, length and Luhn's check digit (ISO/IEC 7812-1)."""
    if not 13 <= len(digits) <= 19 or not digits.startswith(_ISSUERS) or len(set(digits)) == 1:
        return False
    if digits[0] == "2" and not (2200 <= int(digits[:4]) <= 2204 or 2221 <= int(digits[:4]) <= 2720):
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_iban(text: str) -> bool:
    """Whether a text without spaces is an IBAN: its country's length and mod-97 check digits (ISO 13616)."""
    if _IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def _is_dni(text: str) -> bool:
    number = int(text[:-1].translate(str.maketrans("XYZ", "012")))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[-1]


_ODD: Final = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21,
    2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23,
), strict=True))  # fmt: skip
"""Values of characters at odd places of an Italian fiscal code (decree of 23 December 1976)."""


def _is_codice(text: str) -> bool:
    total = sum(
        _ODD[char] if place % 2 == 0 else int(char, 36) - (10 if char.isalpha() else 0)
        for place, char in enumerate(text[:15])
    )
    return chr(ord("A") + total % 26) == text[15]


def _is_cpf(digits: str) -> bool:
    if len(set(digits)) == 1:
        return False
    for size in (9, 10):
        total = sum(int(digit) * (size + 1 - place) for place, digit in enumerate(digits[:size]))
        if total * 10 % 11 % 10 != int(digits[size]):
            return False
    return True


_DIHEDRAL: Final = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_PERMUTED: Final = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


def _is_verhoeff(digits: str) -> bool:
    """Verhoeff's check digit over the dihedral group of order ten (J. Verhoeff, 1969)."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(_DIHEDRAL[check][int(_PERMUTED[place % 8][int(digit)])])
    return check == 0


def _is_resident(text: str) -> bool:
    """Chinese resident identity number (GB 11643): ISO 7064 mod 11-2."""
    total = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17]


def _is_nir(digits: str) -> bool:
    """French social security number: a key of 97 minus the rest."""
    return int(digits[3:5]) in {*range(1, 13), 20} and 97 - int(digits[:13]) % 97 == int(digits[13:])


def _always(_: str) -> bool:
    return True


_GROUPED: Final[tuple[tuple[re.Pattern[str], str, Callable[[str], bool]], ...]] = (
    (_CARD, "credit_card", is_card_number),
    (_SSN, "us_ssn", _always),
    (_CPF, "national_id", _is_cpf),
    (_AADHAAR, "national_id", _is_verhoeff),
)
_CHECKED: Final[tuple[tuple[re.Pattern[str], str, int, Callable[[str], bool]], ...]] = (
    (_IBAN, "iban", 4, is_iban),
    (_NINO, "national_id", 6, _always),
    (_DNI, "national_id", 7, _is_dni),
    (_CODICE, "national_id", 7, _is_codice),
    (_RESIDENT, "national_id", 17, _is_resident),
    (_NIR, "national_id", 15, _is_nir),
)
"""Pattern, kind, how many digits it needs, its check."""
