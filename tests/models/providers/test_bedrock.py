"""Bedrock against what AWS publishes or ships: its signature vectors, and botocore for frames and bodies."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from typing import Any

import botocore.config
import botocore.eventstream
import botocore.exceptions
import botocore.parsers
import botocore.session
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.models.providers.provider_servers import (
    AWS,
    REGION,
    Reply,
    aws_signature,
    bedrock_stream,
    check_bedrock,
    check_converse,
    event,
    frame,
    serving,
)
from tests.models.providers.test_exchanges import EXCHANGES, chunks, credentials_of, events, having, place_of
from tidemill.kernel import InvalidInput
from tidemill.models.providers import Credentials, Place, dialect
from tidemill.models.providers.bedrock_eventstream import BrokenFrame, EventStreamDecoder
from tidemill.models.providers.sigv4 import SigningIdentity, signed_headers

HELLO = b'{"messages": [{"role": "user", "content": "Hello"}]}'
BEDROCK = [name for name in having("dialect") if EXCHANGES[name]["dialect"] == "bedrock"]
STREAMED = having("provider_frames")

# --- the signature

# AWS's own test suite for Signature Version 4 (header-signed-request.txt of each case), all of 2015-08-30 12:36 UTC.
MOMENT_S = 1440938160.0
IDENTITY = SigningIdentity(
    access_key_id=AWS["aws_access_key_id"],
    secret_access_key=AWS["aws_secret_access_key"],
    session_token=None,
    region="us-east-1",
    service="service",
)
FORM = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"
UNRESERVED = "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SUITE: dict[str, tuple[str, str, list[tuple[str, str]], bytes, str]] = {
    "post-vanilla": ("POST", "/", [], b"", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    "get-utf8": ("GET", "/ሴ", [], b"", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
    "get-space": (
        "GET", "/example space/", [], b"", "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
    ),
    "get-unreserved": (
        "GET", UNRESERVED, [], b"", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    ),
    "get-header-value-trim": (
        "GET", "/", [("My-Header1", " value1"), ("My-Header2", ' "a   b   c"')], b"",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    "get-header-key-duplicate": (
        "GET", "/", [("My-Header1", "value2"), ("My-Header1", "value2"), ("My-Header1", "value1")], b"",
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    "post-x-www-form-urlencoded": (
        "POST", "/",
        [("Content-Type", "application/x-www-form-urlencoded"), ("Content-Length", "13"),
         ("x-amz-content-sha256", FORM)],
        b"Param1=value1", "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SUITE)
def test_signature_of_the_published_suite(case: str) -> None:
    method, path, headers, body, signature = SUITE[case]
    headers = [("Host", "example.amazonaws.com"), *headers]
    added = dict(signed_headers(method, path, headers, body, IDENTITY, now_s=MOMENT_S))
    assert added["x-amz-date"] == "20150830T123600Z"
    assert added["authorization"].startswith(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="
    )
    assert added["authorization"].endswith(f", Signature={signature}")


def test_signature_with_a_session_token_of_the_published_suite() -> None:
    token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"
    identity = SigningIdentity(IDENTITY.access_key_id, IDENTITY.secret_access_key, token, "us-east-1", "service")
    headers = [("host", "example.amazonaws.com")]
    added = dict(signed_headers("GET", "/", headers, b"", identity, now_s=MOMENT_S))
    assert added["x-amz-security-token"] == token
    assert "SignedHeaders=host;x-amz-date;x-amz-security-token, " in added["authorization"]
    assert added["authorization"].endswith("07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8")


@settings(max_examples=60, deadline=None)
@given(
    # No dot alone: as part of a path it names a folder, and no model.
    st.text("abcXYZ019-._~:/ +%é", min_size=1, max_size=30).filter(lambda model: model.strip(".") != ""),
    st.text(max_size=30),
    st.sampled_from(["eu-central-1", "us-gov-west-1"]),
    st.sampled_from([None, "token/with+signs=="]),
    st.integers(0, 4_102_444_800),
)
@example("anthropic.claude-sonnet-4-5-20250929-v1:0", "Hello", "eu-central-1", None, 0)
@example("arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.x", "", "eu-central-1", "t", 1)
def test_any_request_is_signed_as_botocore_signs_it(
    model: str, text: str, region: str, token: str | None, now_s: int
) -> None:
    secrets = {**AWS, "aws_session_token": token} if token else {key: AWS[key] for key in list(AWS)[:2]}
    place = Place("", "bedrock.example:8443", model, {"region": region})
    body = json.dumps({"messages": [{"role": "user", "content": f"x{text}"}]}).encode()
    sent = dialect("bedrock").request("chat", body, place, Credentials(extra=secrets), now_s=now_s)
    headers = dict(sent.headers)
    scope = headers["authorization"].partition("AKIDEXAMPLE/")[2].partition(",")[0]
    signed = {"host": place.host, **{name: value for name, value in headers.items() if name != "authorization"}}
    signature = aws_signature(sent.path, signed, sent.body, scope)
    assert headers["authorization"].endswith(f"Signature={signature}")
    assert scope.split("/")[1:] == [region, "bedrock", "aws4_request"]


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bedrock-runtime.eu-west-3.amazonaws.com", "eu-west-3"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("vpce-1.bedrock-runtime.ap-south-1.vpce.amazonaws.com:443", "ap-south-1"),
    ],
)
def test_the_host_tells_the_region(host: str, region: str) -> None:
    sent = dialect("bedrock").request("chat", HELLO, Place("", host, "m"), Credentials(extra=AWS), now_s=0)
    assert f"/{region}/bedrock/aws4_request" in dict(sent.headers)["authorization"]


def test_what_is_missing_is_said() -> None:
    bedrock, anywhere = dialect("bedrock"), Place("", "proxy.example", "m")
    with pytest.raises(InvalidInput, match="region") as missing:
        bedrock.request("chat", HELLO, anywhere, Credentials(extra=AWS), now_s=0)
    assert "region" in str(missing.value.hint)
    with pytest.raises(InvalidInput, match="no credentials"):
        bedrock.request("chat", HELLO, anywhere, Credentials(extra={"aws_access_key_id": "a"}), now_s=0)
    assert AWS["aws_secret_access_key"] not in repr(IDENTITY)


def test_the_checking_server_is_right_about_aws_own_client() -> None:
    """What the tests let pass and send back is what AWS's client signs and reads."""
    answer = {
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello!"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12},
        "metrics": {"latencyMs": 1},
    }
    stream = bedrock_stream(("messageStart", {"role": "assistant"}), ("messageStop", {"stopReason": "end_turn"}))
    replies = [Reply([json.dumps(answer).encode()]), stream, Reply([b'{"message": "slow down"}'], 429)]
    question: dict[str, Any] = {
        "modelId": "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "messages": [{"role": "user", "content": [{"text": "Hello"}]}],
    }
    session = botocore.session.Session()
    session.set_credentials(*AWS.values())
    config = botocore.config.Config(retries={"total_max_attempts": 1})
    with serving(check_bedrock, *replies) as server:
        client = session.create_client(
            "bedrock-runtime", region_name=REGION, endpoint_url=server.url, config=config, verify=False
        )
        with contextlib.closing(client):
            assert client.converse(**question)["output"] == answer["output"]
            kinds = [next(iter(one)) for one in client.converse_stream(**question)["stream"]]
            assert kinds == ["messageStart", "messageStop"]
            with pytest.raises(botocore.exceptions.ClientError, match="slow down"):
                client.converse(**question)
    assert server.refused == []


# --- bodies


@pytest.mark.parametrize("name", [name for name in BEDROCK if "provider_request" in EXCHANGES[name]])
def test_bodies_are_those_of_the_service_model(name: str) -> None:
    check_converse(place_of(EXCHANGES[name]).model, EXCHANGES[name]["provider_request"]["body"])


def _parsed(operation: str, body: bytes) -> tuple[Any, Any]:
    service = botocore.session.get_session().get_service_model("bedrock-runtime")
    shape = service.operation_model(operation).output_shape
    parser = botocore.parsers.create_parser("rest-json")
    return parser.parse({"status_code": 200, "headers": {}, "body": body}, shape), shape


@pytest.mark.parametrize("name", [name for name in BEDROCK if "provider_answer" in EXCHANGES[name]])
def test_the_recorded_answers_are_of_the_service_model(name: str) -> None:
    answer = EXCHANGES[name]["provider_answer"]
    parsed, _ = _parsed("Converse", json.dumps(answer).encode())
    assert len(parsed["output"]["message"]["content"]) == len(answer["output"]["message"]["content"])
    assert all(parsed["output"]["message"]["content"])
    assert parsed["usage"] == answer["usage"]


# --- frames

# botocore's own cases of the encoding.
PAYLOAD = (
    b"\x00\x00\x00=\x00\x00\x00 \x07\xfd\x83\x96\x0ccontent-type\x07\x00\x10"
    b"application/json{'foo':'bar'}\x8d\x9c\x08\xb1"
)
ALL_TYPES = (
    b"\x00\x00\x00\x62\x00\x00\x00\x52\x03\xb5\xcb\x9c\x010\x00\x011\x01\x012\x02\x02\x013\x03\x00\x03"
    b"\x014\x04\x00\x00\x00\x04\x015\x05\x00\x00\x00\x00\x00\x00\x00\x05\x016\x06\x00\x05bytes\x017\x07\x00\x04utf8"
    b"\x018\x08\x00\x00\x00\x00\x00\x00\x00\x08\x019\x090123456789abcdef\x63\x35\x36\x71"
)
FRAMES: dict[str, tuple[bytes, dict[str, Any], bytes]] = {
    "empty": (b"\x00\x00\x00\x10\x00\x00\x00\x00\x05\xc2H\xeb}\x98\xc8\xff", {}, b""),
    "payload": (PAYLOAD, {"content-type": "application/json"}, b"{'foo':'bar'}"),
    "all types": (
        ALL_TYPES,
        {"0": True, "1": False, "2": 2, "3": 3, "4": 4, "5": 5, "6": b"bytes", "7": "utf8", "8": 8,
         "9": b"0123456789abcdef"},
        b"",
    ),
    "negative": (b"\x00\x00\x00\x17\x00\x00\x00\x07)\x86\x01X\x04byte\x02\xff\xc2\xf8i\xdc", {"byte": -1}, b""),
}  # fmt: skip
BROKEN = {
    "length": b"\x01\x00\x00\x1d\x00\x00\x00\x00\xfdR\x8cZ{'foo':'bar'}\xc3e96",
    "payload": b"\x00\x00\x00\x1d\x00\x00\x00\x00\xfdR\x8cZ{'foo':'bar'\x8d\xc3e96",
    "header": PAYLOAD.replace(b"content-type", b"content+type"),
    "header twice": (
        b"\x00\x00\x00\x24\x00\x00\x00\x14\x4b\xb9\x82\xd0\x04test\x04asdf\x04test\x04asdf\xf3\xf4\x75\x63"
    ),
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames_of_the_published_encoding(case: str) -> None:
    raw, headers, payload = FRAMES[case]
    decoder = EventStreamDecoder()
    (found,) = decoder.feed(raw)
    assert (dict(found.headers), found.payload) == (headers, payload)
    assert not decoder.incomplete


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_frame_is_refused(case: str) -> None:
    with pytest.raises(BrokenFrame, match="damaged"):
        list(EventStreamDecoder().feed(BROKEN[case]))


@pytest.mark.parametrize(
    ("lengths", "block"),
    [((12, 0), b""), ((16 + 200_000, 200_000), b""), ((2**31, 0), b""), ((16, 8), b""), ((19, 3), b"\x09ab"),
     ((19, 3), b"\x01a\x0b"), ((20, 4), b"\x01a\x05\x00"), ((21, 5), b"\x01a\x07\x00\x09")],
)  # fmt: skip
def test_impossible_lengths_are_refused(lengths: tuple[int, int], block: bytes) -> None:
    prelude = struct.pack(">II", *lengths)
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + block
    with pytest.raises(BrokenFrame):
        list(EventStreamDecoder().feed(message + struct.pack(">I", zlib.crc32(message))))


@given(st.dictionaries(st.text(min_size=1, max_size=40), st.text(max_size=60), max_size=4), st.binary(max_size=200))
def test_frames_are_read_as_botocore_reads_them(headers: dict[str, str], payload: bytes) -> None:
    raw = frame(headers, payload) * 2
    buffer = botocore.eventstream.EventStreamBuffer()
    buffer.add_data(raw)
    theirs = [(message.headers, message.payload) for message in buffer]
    ours = [(dict(found.headers), found.payload) for found in EventStreamDecoder().feed(raw)]
    assert ours == theirs == [(headers, payload)] * 2


# --- streams


def wire(name: str) -> bytes:
    return b"".join(event(*one) for one in EXCHANGES[name]["provider_frames"])


def translate(name: str, pieces: list[bytes]) -> tuple[bytes, bool]:
    """The pivot's bytes, and whether the dialect refused the stream."""
    exchange = EXCHANGES[name]
    body = json.dumps(exchange["pivot_request"]).encode()
    now_s = exchange.get("now_s", 0.0)
    translator = dialect("bedrock").stream("chat", body, model=place_of(exchange).model, now_s=now_s)
    written = []
    for piece in pieces:
        try:
            written.append(translator.feed(piece))
        except InvalidInput:
            return b"".join(written), True
    return b"".join([*written, translator.finish()]), False


@pytest.mark.parametrize("name", STREAMED)
def test_stream(name: str) -> None:
    translated, refused = translate(name, [wire(name)])
    assert not refused
    assert events(translated) == chunks(EXCHANGES[name])


@pytest.mark.parametrize("name", STREAMED)
def test_the_recorded_frames_are_of_the_service_model(name: str) -> None:
    service = botocore.session.get_session().get_service_model("bedrock-runtime")
    shape = service.operation_model("ConverseStream").output_shape.members["stream"]
    parser = botocore.parsers.create_parser("rest-json")._event_stream_parser
    buffer = botocore.eventstream.EventStreamBuffer()
    buffer.add_data(wire(name))
    for message, recorded in zip(buffer, EXCHANGES[name]["provider_frames"], strict=True):
        parsed = parser.parse(message.to_response_dict(), shape)
        if message.headers[":message-type"] == "exception":
            assert parsed["Error"]["Code"] == recorded[0]
            assert parsed["Error"]["Message"] == recorded[1]["message"]
        else:
            assert parsed[recorded[0]].keys() == recorded[1].keys() - {"p"}


@pytest.mark.parametrize("name", STREAMED)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_split_of_a_stream_gives_the_same_bytes(name: str, data: st.DataObject) -> None:
    raw = wire(name)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=40), "cuts"))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert translate(name, pieces) == translate(name, [raw])


@pytest.mark.parametrize("name", STREAMED)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_an_error_and_never_a_wrong_text(name: str, data: st.DataObject) -> None:
    raw = bytearray(wire(name))
    at = data.draw(st.integers(0, len(raw) * 8 - 1), "bit")
    raw[at // 8] ^= 1 << at % 8
    whole = events(translate(name, [wire(name)])[0])
    # Fed byte by byte, so that what comes before the damage is seen too.
    translated, refused = translate(name, [bytes([one]) for one in raw])
    found = events(translated)
    assert found == whole[: len(found)]
    failed = bool(found) and "error" in found[-1]  # after an error the rest is not read
    assert refused or failed
    assert "[DONE]" not in found
    assert translate(name, [bytes(raw)])[1] or failed


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_that_ends_early_is_never_done(name: str) -> None:
    raw = wire(name)
    whole = events(translate(name, [raw])[0])
    # The usage, which comes last, may be lost; the reason why the model stopped may not.
    needed = sum(len(event(*one)) for one in EXCHANGES[name]["provider_frames"] if one[0] != "metadata")
    for cut in range(0, needed, 5):
        found = events(translate(name, [raw[:cut]])[0])
        assert found == whole[: len(found)]
        assert "[DONE]" not in found


def test_an_error_frame_without_a_payload() -> None:
    translator = dialect("bedrock").stream("chat", HELLO, model="m")
    headers = {":message-type": "error", ":error-code": "InternalFailure", ":error-message": "It broke."}
    (found,) = events(translator.feed(frame(headers, b"") + event("messageStop", {"stopReason": "end_turn"})))
    assert found["error"] == {"message": "It broke.", "type": "server_error", "param": None, "code": "InternalFailure"}
    assert translator.finish() == b""


def test_events_of_the_future_are_passed_over() -> None:
    translator = dialect("bedrock").stream("chat", HELLO, model="m")
    assert translator.feed(event("weather", {"wind": 3})) == b""


@pytest.mark.parametrize("name", [name for name in BEDROCK if "provider_request" in EXCHANGES[name]])
def test_nothing_of_the_credentials_shows(name: str) -> None:
    credentials = credentials_of(EXCHANGES[name])
    assert not any(secret in repr(credentials) for secret in (credentials.api_key or "-", *credentials.extra.values()))
