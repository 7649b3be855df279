"""``python -m tidemill.models.runtime``: serve a chat model and an embedding model on one port.

Exits with 0 on SIGTERM or SIGINT after running requests have had five seconds, and by itself when the process named
by ``--parent-pid`` is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from tidemill.kernel import InvalidInput, Unavailable, UserError
from tidemill.models.embedder import LocalEmbedder

if TYPE_CHECKING:
    from tidemill.models.runtime.engine import ChatEngine

_GRACE_S: Final = 5
_PARENT_CHECK_S: Final = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the models, listen, say so, and serve until told to stop.

    Returns:
        0 after a clean stop, 2 when an argument, a file or the port is at fault.
    """
    options = _parser().parse_args(arguments)
    try:
        with _listening(options.host, options.port) as listener:
            _serve(options, listener)
    except UserError as error:
        print(f"tidemill runtime: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tidemill.models.runtime", description=__doc__)
    cores = os.cpu_count() or 1
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port; 0 takes a free one and says which")
    parser.add_argument("--chat", type=Path, metavar="GGUF", help="weights of the chat model")
    parser.add_argument("--chat-name", default="smollm2-135m-instruct", help="its name in requests")
    parser.add_argument("--embed", type=Path, metavar="ONNX", help="graph of the embedding model, or a folder with it")
    parser.add_argument("--embed-name", default="all-minilm-l6-v2", help="its name in requests")
    parser.add_argument("--tokenizer", type=Path, metavar="JSON", help="tokenizer.json of the embedding model")
    parser.add_argument("--embed-tokens", type=int, default=256, help="longer texts are cut before embedding")
    parser.add_argument("--threads", type=int, default=cores, help="cores of the chat model")
    parser.add_argument("--embed-threads", type=int, default=cores, help="cores of the embedding model")
    parser.add_argument("--parallel", type=int, default=8, help="chat requests computed together")
    parser.add_argument("--context", type=int, default=8192, help="tokens held at once, shared by parallel requests")
    parser.add_argument("--parent-pid", type=int, help="exit when this process is gone")
    return parser


def _listening(host: str, port: int) -> socket.socket:
    """Take the port before the models load, so that a taken one is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="Choose another --port, or 0 for any."
        ) from error
    return listener


def _serve(options: argparse.Namespace, listener: socket.socket) -> None:
    from tidemill.models.runtime.app import create_app

    embedder = _embedder(options)
    chat = _chat(options)
    if chat is None and embedder is None:
        raise InvalidInput("there is no model to serve; give --chat, --embed or both")
    app = create_app(chat=chat, embedder=embedder, hosts=frozenset({options.host}))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        lifespan="on",
        server_header=False,
    )
    try:
        asyncio.run(_run(_Server(config), listener, options))
    finally:
        if chat is not None:
            chat.close()


class _Server(uvicorn.Server):
    """A server whose process outlives it: uvicorn itself raises the signal again, before the engine is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop serving on SIGTERM and SIGINT; give up waiting for requests on the second one."""
        caught = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self.handle_exit) for number in caught]
        try:
            yield
        finally:
            for number, handler in zip(caught, before, strict=True):
                signal.signal(number, handler)


async def _run(server: uvicorn.Server, listener: socket.socket, options: argparse.Namespace) -> None:
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    watching = asyncio.ensure_future(_watch_parent(server, options.parent_pid))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        host, port = listener.getsockname()[:2]
        print(f"tidemill runtime ready on http://{host}:{port}/v1 pid {os.getpid()}", flush=True)
    await serving
    watching.cancel()


async def _watch_parent(server: uvicorn.Server, parent_pid: int | None) -> None:
    while parent_pid is not None and _lives(parent_pid):
        await asyncio.sleep(_PARENT_CHECK_S)
    if parent_pid is not None:
        server.should_exit = True


def _lives(pid: int) -> bool:
    """Whether our parent, or another process we were told to follow, is there.

    A dead parent may stay a zombie that still takes signals; that we are no longer its child is the surer sign.
    """
    if os.getppid() == pid:
        return True
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True


def _embedder(options: argparse.Namespace) -> tuple[str, LocalEmbedder] | None:
    if options.embed is None:
        return None
    graph, tokenizer = options.embed, options.tokenizer
    if graph.is_dir():
        graph, tokenizer = graph / "model.onnx", tokenizer or graph / "tokenizer.json"
    if tokenizer is None:
        raise InvalidInput("--embed with a file needs --tokenizer, the tokenizer.json that goes with it")
    embedder = LocalEmbedder(graph, tokenizer, max_tokens=options.embed_tokens, threads=options.embed_threads)
    return options.embed_name, embedder


def _chat(options: argparse.Namespace) -> ChatEngine | None:
    if options.chat is None:
        return None
    from tidemill.models.runtime.engine import ChatEngine, ChatOptions

    return ChatEngine(
        ChatOptions(
            weights=options.chat,
            name=options.chat_name,
            threads=options.threads,
            parallel=options.parallel,
            context_tokens=options.context,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
