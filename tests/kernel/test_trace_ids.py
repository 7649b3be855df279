from __future__ import annotations

import base64
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.kernel.trace_ids import parse_span_id, parse_trace_id

ID = "0af7651916cd43dd8448eb211c80319c"
ids = st.binary(min_size=16, max_size=16).filter(any).map(bytes.hex)


@given(ids)
def test_every_usual_form_is_the_same_id(trace_id: str) -> None:
    data = bytes.fromhex(trace_id)
    forms = [
        trace_id,
        trace_id.upper(),
        f"0x{trace_id}",
        f"0X{trace_id.upper()}",
        f"trace:{trace_id}",
        f" {trace_id}\n",
        f"00-{trace_id}-b7ad6b7169203331-01",
        f"00-{trace_id.upper()}-B7AD6B7169203331-00",
        f"cc-{trace_id}-b7ad6b7169203331-01-what-the-future-adds",
        str(uuid.UUID(trace_id)),
        base64.b64encode(data).decode(),
        base64.b64encode(data).decode().rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        f"1-{trace_id[:8]}-{trace_id[8:]}",
        f"Root=1-{trace_id[:8]}-{trace_id[8:]};Parent=53995c3f42cd8ad8;Sampled=1",
    ]
    assert {parse_trace_id(form) for form in forms} == {trace_id}


def test_sixteen_digits_are_padded() -> None:
    assert parse_trace_id("B7AD6B7169203331") == "0" * 16 + "b7ad6b7169203331"


@pytest.mark.parametrize(
    "text", ["", "trace:", "0" * 32, "x" * 32, ID[:-1], ID + "0", f"00-{ID}-01", "é" * 24, "1-2-3"]
)
def test_anything_else_gets_a_sentence(text: str) -> None:
    with pytest.raises(InvalidInput, match="no trace id"):
        parse_trace_id(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reading(text: str) -> None:
    try:
        found = parse_trace_id(text)
    except InvalidInput:
        return
    assert len(found) == 32
    assert found.strip("0")
    assert int(found, 16)


def test_span_ids() -> None:
    assert parse_span_id("B7AD6B7169203331") == "b7ad6b7169203331"
    assert parse_span_id("0xb7ad6b7169203331") == "b7ad6b7169203331"
    assert parse_span_id(f"00-{ID}-b7ad6b7169203331-01") == "b7ad6b7169203331"
    for text in ("", "0" * 16, ID, "x" * 16):
        with pytest.raises(InvalidInput, match="no span id"):
            parse_span_id(text)
