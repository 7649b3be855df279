"""OTLP over gRPC: the same receiver behind another transport. Needs the extra ``grpc``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Final

from tidemill.kernel import InvalidInput, Unavailable
from tidemill.server.otlp import Senders, success_message
from tidemill.telemetry.otlp import Receiver
from tidemill.telemetry.otlp.wire import Signal

_SERVICES: Final[dict[str, Signal]] = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
}
_WORKERS: Final = 8
_WRITTEN_WITHIN_S: Final = 60.0


def start_grpc(receiver: Receiver, senders: Senders, port: int) -> Callable[[], None]:
    """Serve OTLP over gRPC on loopback, in threads.

    Args:
        receiver: takes what comes.
        senders: who may send; the ``authorization`` metadata is as in HTTP.
        port: to listen on.

    Returns:
        Stops it; requests under way are answered first.

    Raises:
        InvalidInput: the extra is not installed.
        Unavailable: the port is taken.
    """
    try:
        grpc: Any = import_module("grpc")
    except ImportError as error:
        raise InvalidInput(
            "OTLP over gRPC needs the extra 'grpc'.", hint="Install it: pip install 'tidemill[grpc]'"
        ) from error

    def export(signal: Signal) -> Callable[[bytes, Any], bytes]:
        def handle(body: bytes, context: Any) -> bytes:
            given = dict(context.invocation_metadata())
            if not senders.may_send(str(given.get("authorization", "")).encode()):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Send the local token or a key for telemetry.")
            try:
                receiver.admit(len(body))
                try:
                    taken, written = receiver.receive(signal, "protobuf", body)
                    written.result(_WRITTEN_WITHIN_S)
                finally:
                    receiver.release(len(body))
            except Unavailable as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except InvalidInput as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return success_message(taken)

        return handle

    most = [("grpc.max_receive_message_length", receiver.request_bytes_most), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(_WORKERS, thread_name_prefix="otlp-grpc"), options=most)
    for service, signal in _SERVICES.items():
        handler = grpc.unary_unary_rpc_method_handler(export(signal))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    try:
        server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError as error:
        raise Unavailable(f"port {port} cannot be listened on for OTLP over gRPC: {error}") from error
    server.start()

    def stop() -> None:
        server.stop(5).wait()

    return stop
