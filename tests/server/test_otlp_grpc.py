"""OTLP over gRPC with the real library on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.server.desk import Desk
from tests.server.test_otlp import now_span
from tests.telemetry.otlp.making import traces
from tidemill.kernel import Unavailable
from tidemill.server.otlp import Senders
from tidemill.server.otlp_grpc import start_grpc
from tidemill.server.supervisor import free_port

grpc = pytest.importorskip("grpc")
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture
def port(desk: Desk) -> Iterator[int]:
    number = free_port()
    stop = start_grpc(desk.control.receiving.receiver, Senders(desk.project, "let-me-in"), number)
    yield number
    stop()


def export(port: int, body: bytes, token: str = "let-me-in", **how: Any) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(EXPORT)
        return bytes(call(body, metadata=(("authorization", f"Bearer {token}"),), timeout=20, **how))


def test_an_export_is_written_before_it_is_answered(desk: Desk, port: int) -> None:
    body = traces(now_span(1), now_span(2, end_time_unix_nano=5)).SerializeToString()
    answer = ExportTraceServiceResponse.FromString(export(port, body, compression=grpc.Compression.Gzip))
    assert answer.partial_success.rejected_spans == 1
    desk.control.drain()
    assert desk.control.store.trace(f"{1:032x}")


@pytest.mark.parametrize(
    ("body", "token", "code"), [(b"", "wrong", "UNAUTHENTICATED"), (b"\xff\xff", "let-me-in", "INVALID_ARGUMENT")]
)
def test_what_cannot_be_taken_has_its_status(port: int, body: bytes, token: str, code: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        export(port, body, token)
    assert caught.value.code().name == code


def test_a_disk_that_takes_no_more_is_unavailable(desk: Desk, port: int) -> None:
    (desk.project.places.segments / "otlp").write_text("not a folder")
    with pytest.raises(grpc.RpcError) as caught:
        export(port, traces(now_span(1)).SerializeToString())
    assert caught.value.code().name == "UNAVAILABLE"


def test_a_port_that_is_taken_is_told(desk: Desk, port: int) -> None:
    with pytest.raises(Unavailable, match="cannot be listened on"):
        start_grpc(desk.control.receiving.receiver, Senders(desk.project, "x"), port)
