"""Personal data is found, numbers that only look like it are not, and nothing takes long. All data is made up."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checks import Finding, check_pii, find_pii, mask
from tidemill.checks.findings import merged
from tidemill.checks.pii import is_card_number, is_iban


def kinds(text: str) -> list[str]:
    return [finding.kind for finding in find_pii(text)]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mail bob.smith+x@example.co.uk, please.", "Mail <email>, please."),
        ("<jane@example.org>", "<<email>>"),
        ("grüße@müller.example", "<email>"),
        ("...bob@example.org", "...<email>"),
        ("Ring +44 20 7946 0958 now", "Ring <phone> now"),
        ("(212) 555-0142", "<phone>"),
        ("1-212-555-0142", "<phone>"),
        ("0171 9012345", "<phone>"),
        ("my phone number is 5551234567", "my phone number is <phone>"),
        ("4111 1111 1111 1111 12/28", "<credit_card> 12/28"),
        ("amex 3782 822463 10005", "amex <credit_card>"),
        ("378282246310005", "<credit_card>"),
        ("DE89 3704 0044 0532 0130 00 thanks", "<iban> thanks"),
        ("GB82WEST12345698765432", "<iban>"),
        ("from 203.0.113.7.", "from <ip_address>."),
        ("2001:db8:0:0:8a2e:370:7334:1 and fe80::1:2:3", "<ip_address> and <ip_address>"),
        ("ssn 078-05-1120", "ssn <us_ssn>"),
        ("NINO AB 12 34 56 C", "NINO <national_id>"),
        ("DNI 12345678Z, NIE X1234567L", "DNI <national_id>, NIE <national_id>"),
        ("RSSMRA85T10A562S", "<national_id>"),
        ("CPF 529.982.247-25", "CPF <national_id>"),
        ("2341 2341 2346", "<national_id>"),
        ("11010519491231002X", "<national_id>"),
        ("1 85 05 78 006 084 91", "<national_id>"),
    ],
)
def test_personal_data_is_found(text: str, masked: str) -> None:
    assert mask(text, find_pii(text)) == masked
    verdict = check_pii(text)
    assert verdict.value is False
    assert all(place["kind"] in masked for place in verdict.evidence["findings"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Order 1234567890123 of 2026-11-23 21:10:11 for 1,299.00",
        "pi is 3.14159265358979",
        "epoch 1732395600123",
        "version 1.2.3.4.5 listens on 127.0.0.1 and 0.0.0.0",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "DE89 3704 0044 0532 0130 01",
        "123-00-1120 and 000-12-3456 and 900-12-3456",
        "x = lst[1:2:3]; std::vector<a::b::c1234>; 12:34:56:78",
        "bob@localhost and @decorator and a @ b.example",
        "x == 0x7fffdeadbeef, seed 1234567",
        "ISBN 978-3-16-148410-0",
        "256.300.1.2 is no address",
        "529.982.247-26 and 12345678A",
        "from 01.02.2026 to 03.04.2026",
    ],
)
def test_numbers_and_code_are_left_alone(text: str) -> None:
    assert find_pii(text) == ()
    assert check_pii(text).value is True


@given(st.integers(10**14, 10**15 - 1))
def test_luhn_accepts_one_check_digit_in_ten(body: int) -> None:
    numbers = [f"4{body}"[:15] + str(digit) for digit in range(10)]
    assert sum(map(is_card_number, numbers)) == 1


@given(st.integers(0, 10**18 - 1), st.integers(0, 21))
def test_one_wrong_digit_breaks_an_iban(number: int, place: int) -> None:
    body = f"{number:018d}"
    check = 98 - int(body + "131400") % 97
    iban = f"DE{check:02d}{body}"
    assert is_iban(iban)
    assert kinds(f"pay to {iban} today") == ["iban"]
    wrong = iban[:place] + str((int(iban[place]) + 1) % 10) + iban[place + 1 :] if place > 1 else "XX" + iban[2:]
    assert not is_iban(wrong)


@given(
    st.text(st.characters(categories=["Lu", "Ll", "Zs"]), max_size=60),
    st.sampled_from(["bob@example.org", "+44 20 7946 0958", "4111111111111111", "203.0.113.7", "078-05-1120"]),
    st.text(st.characters(categories=["Lu", "Ll", "Zs"]), max_size=60),
)
def test_data_is_found_wherever_it_stands(before: str, data: str, after: str) -> None:
    text = f"{before} {data} {after}"
    assert data not in mask(text, find_pii(text))


@given(st.text())
def test_findings_are_in_order_apart_and_inside(text: str) -> None:
    found = find_pii(text)
    edges = [edge for finding in found for edge in (finding.start, finding.end)]
    assert edges == sorted(edges)
    assert all(0 <= finding.start < finding.end <= len(text) for finding in found)


spans = st.tuples(st.integers(0, 30), st.integers(1, 10), st.sampled_from("abc"))


@given(st.lists(spans.map(lambda entry: Finding(entry[0], entry[0] + entry[1], entry[2]))))
def test_masking_hides_every_finding_and_keeps_the_rest(findings: list[Finding]) -> None:
    text = "".join(chr(0x4E00 + place) for place in range(40))
    hidden = {place for finding in findings for place in range(finding.start, finding.end)}
    masked = mask(text, findings)
    assert [char for char in masked if char >= "\u4e00"] == [char for n, char in enumerate(text) if n not in hidden]
    assert masked.count("<") == len(merged(findings))


@pytest.mark.parametrize(
    "evil",
    [
        "a" * 100_000, "1" * 100_000, "1 " * 50_000, "@a." * 30_000, "a@" * 50_000, ":" * 100_000, "1.2.3." * 20_000,
        "AB12 " * 20_000, "a.a@" * 25_000, "(1" * 50_000, "1:" * 50_000, "+1-" * 30_000, "A1" * 50_000,
    ],
)  # fmt: skip
def test_no_text_takes_long(evil: str) -> None:
    start = time.process_time()
    find_pii(evil)
    assert time.process_time() - start < 1.0
