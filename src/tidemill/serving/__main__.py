"""The process that serves one release: ``python -m tidemill.serving --release sha256:… --model-url http://…/v1 …``.

It listens at once and answers 503 until the release is loaded. SIGTERM lets running answers finish, then ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from tidemill.kernel import Scope, Unavailable, UserError, parse_digest
from tidemill.serving.application import Application, LoadedRelease
from tidemill.serving.http import Loading, create_app
from tidemill.serving.loading import load_release

if TYPE_CHECKING:
    from tidemill.ledger import S3Options
    from tidemill.models.transport import ModelClient
    from tidemill.telemetry import SegmentWriter

_DRAIN_S: Final = 30
_PARENT_CHECK_S: Final = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop.

    Returns:
        0 after a clean stop, 2 for what the caller can mend: a port taken, an unknown release, a store that is away.
    """
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_serve(options))
    except UserError as error:
        print(f"tidemill serving: {error}", file=sys.stderr)
        return error.exit_code


async def _serve(options: argparse.Namespace) -> int:
    listener = _listen(options.host, options.port)
    resources = _Resources(options)
    loading = Loading(resources.open, options.release, resources.close)

    def stop() -> None:
        server.should_exit = True

    config = uvicorn.Config(
        create_app(loading, hosts=frozenset({options.host, *options.allow_host}), on_failure=stop),
        log_level="warning",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=_DRAIN_S,
        timeout_keep_alive=75,
    )
    server = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    host, port = listener.getsockname()[:2]
    print(f"serving {options.release} on http://{host}:{port}/v1", flush=True)
    watching = asyncio.create_task(_watch_parent(options.parent_pid, stop))
    await server.serve(sockets=[listener])
    watching.cancel()
    if loading.failure is not None:
        raise loading.failure
    return 0


async def _watch_parent(parent_pid: int | None, stop: Callable[[], None]) -> None:
    """A supervisor that was killed must not leave its children holding their ports."""
    while parent_pid is not None:
        if os.getppid() != parent_pid:
            stop()
            return
        await asyncio.sleep(_PARENT_CHECK_S)


class _Server(uvicorn.Server):
    """Leaves signals to ``_serve``: uvicorn raises them again after a clean stop, which would look like a crash."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing around the run."""
        yield


class _Resources:
    """What the process holds while it serves."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._clients: list[ModelClient] = []
        self._writer: SegmentWriter | None = None

    async def open(self) -> Application:
        """Load the release and connect it with its model server and the segment log."""
        from tidemill.models.transport import ModelClient
        from tidemill.telemetry import SegmentWriter

        options = self._options
        scope = Scope(options.project, options.tenant)
        release = await asyncio.to_thread(_load, options, scope)
        chat = _chat_client(options)
        self._clients.append(chat)
        embedder = None
        if options.embed_model:
            server = chat
            if options.embed_url:
                server = ModelClient(options.embed_url, api_key=_secret(options.embed_key), timeout_s=options.timeout_s)
                self._clients.append(server)
            embedder = (server, options.embed_model)
        if options.segments is not None:
            self._writer = SegmentWriter(
                options.segments, project=scope.project, tenant=scope.tenant, capture=options.capture
            )
        return Application(
            release, chat, chat_model=options.chat_model, embedder=embedder, scope=scope, writer=self._writer
        )

    async def close(self) -> None:
        """Finish the segment and close connections."""
        if self._writer is not None:
            self._writer.close()
        for client in self._clients:
            await client.close()


def _chat_client(options: argparse.Namespace) -> ModelClient:
    from tidemill.models.providers import Credentials
    from tidemill.models.transport import ModelClient

    key = _secret(options.model_key)
    if options.dialect == "openai":
        return ModelClient(options.model_url, api_key=key, timeout_s=options.timeout_s)
    return ModelClient(
        options.model_url,
        dialect=options.dialect,
        credentials=Credentials(key, {name: str(_secret(ref)) for name, ref in _pairs(options.model_secret)}),
        options=dict(_pairs(options.option)),
        timeout_s=options.timeout_s,
    )


def _pairs(given: list[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (one.partition("=") for one in given)]


def _load(options: argparse.Namespace, scope: Scope) -> LoadedRelease:
    from tidemill.ledger import open_ledger

    # Another process owns the tables' version; an upstream only reads.
    with open_ledger(
        options.ledger_url,
        blobs=options.blobs,
        scope=scope,
        s3=_s3(options),
        migrate=False,
        cache_dir=options.cache_dir,
    ) as ledger:
        return load_release(ledger, parse_digest(options.release))


def _s3(options: argparse.Namespace) -> S3Options | None:
    from tidemill.ledger import S3Options

    if not options.blobs.startswith("s3://"):
        return None
    return S3Options(
        endpoint=options.s3_endpoint,
        region=options.s3_region,
        access_key_id=_secret(options.s3_key_id),
        secret_access_key=_secret(options.s3_secret),
        allow_http=bool(options.s3_endpoint and options.s3_endpoint.startswith("http://")),
    )


def _secret(reference: str | None) -> str | None:
    from tidemill.kernel.settings import resolve_secret

    return None if reference is None else resolve_secret(reference)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="Stop what holds the port, or give another one."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tidemill.serving", description="Serve one release over HTTP.")
    store = parser.add_argument_group("the store")
    store.add_argument("--ledger-url", required=True, help="SQLAlchemy URL of the ledger")
    store.add_argument("--blobs", required=True, help="folder or s3://bucket/prefix")
    store.add_argument("--cache-dir", type=Path, help="folder for blobs of a remote store")
    store.add_argument("--s3-endpoint", help="URL of an S3-compatible server")
    store.add_argument("--s3-region", default="us-east-1")
    store.add_argument("--s3-key-id", help="secret reference of the access key id, e.g. env:NAME")
    store.add_argument("--s3-secret", help="secret reference of the secret key")
    release = parser.add_argument_group("the release")
    release.add_argument("--project", required=True)
    release.add_argument("--tenant", default="default")
    release.add_argument("--release", required=True, help="digest of the release")
    models = parser.add_argument_group("the models")
    models.add_argument("--model-url", required=True, help="base URL of an OpenAI-compatible server, with /v1")
    models.add_argument("--model-key", help="secret reference of its API key")
    models.add_argument("--dialect", default="openai", help="what that server speaks")
    models.add_argument("--option", action="append", default=[], help="what its dialect needs: NAME=VALUE; repeat")
    models.add_argument("--model-secret", action="append", default=[], help="NAME=REFERENCE of a secret; repeat")
    models.add_argument("--chat-model", required=True, help="model name for chat completions")
    models.add_argument("--embed-model", help="model name for embeddings, for dense and hybrid search")
    models.add_argument("--embed-url", help="base URL of the embedding server, if another")
    models.add_argument("--embed-key", help="secret reference of its API key")
    models.add_argument("--timeout-s", type=float, default=60.0, help="longest wait for the next byte")
    process = parser.add_argument_group("the process")
    process.add_argument("--host", default="127.0.0.1")
    process.add_argument("--port", type=int, required=True, help="0 takes a free one; the first line printed names it")
    process.add_argument("--allow-host", action="append", default=[], help="further Host name; '*' allows all")
    process.add_argument("--parent-pid", type=int, help="end when this process is no longer the parent")
    process.add_argument("--segments", type=Path, help="this process's own segment folder; none writes no spans")
    process.add_argument("--capture", choices=("masked", "hashed", "none"), default="masked")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
