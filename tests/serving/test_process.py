"""``python -m tidemill.serving`` as a real process on a real ledger."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx2

from tests.serving.releases import DOCUMENTS, PROMPT, SCOPE, ask
from tidemill.kernel import ArtifactKind, Decoding, Digest, ReleaseParts, RowId
from tidemill.ledger import Row, open_ledger
from tidemill.prompts import publish_prompt
from tidemill.retrieval import Embedder, build_index
from tidemill.serving.testing import ScriptedModel, ScriptedServer, hash_embeddings
from tidemill.telemetry import Finished, Intent, read_segment


@dataclass
class Process:
    popen: subprocess.Popen[str]
    url: str
    segments: Path

    def ready(self) -> dict[str, str]:
        deadline = time.monotonic() + 20
        while True:
            response = httpx2.get(f"{self.url}/health")
            if response.status_code == 200:
                return dict(response.json())
            assert time.monotonic() < deadline, response.text
            time.sleep(0.05)


def publish(folder: Path) -> Digest:
    """A hybrid release over the small documents, in a new ledger."""
    with open_ledger(f"sqlite:///{folder}/ledger.db", blobs=str(folder / "blobs"), scope=SCOPE) as ledger:
        rows = [
            Row(
                row_id=RowId(f"doc_{name}"),
                value={"title": name, "text": text, "source": f"python:topics/{name}", "media_type": "text/plain"},
                sources=(f"python:topics/{name}",),
            )
            for name, text in DOCUMENTS.items()
        ]
        model = ledger.artifacts.publish(ArtifactKind.MODEL, "tiny", {"kind": "scripted"})
        index = build_index(
            ledger, "desk", ledger.datasets.write("docs", rows), embedder=Embedder(hash_embeddings, model.digest)
        )
        prompt = publish_prompt(ledger, PROMPT)
        parts = ReleaseParts(
            model=model.digest, prompt=prompt.digest, index=index.digest, decoding=Decoding(max_tokens=8)
        )
        return ledger.artifacts.publish(ArtifactKind.RELEASE, "desk", parts.as_json()).digest


def arguments(folder: Path, release: str, model_url: str, port: int = 0) -> list[str]:
    options = {
        "--ledger-url": f"sqlite:///{folder}/ledger.db",
        "--blobs": str(folder / "blobs"),
        "--project": SCOPE.project,
        "--tenant": SCOPE.tenant,
        "--release": release,
        "--model-url": model_url,
        "--chat-model": "tiny",
        "--embed-model": "minilm",
        "--segments": str(folder / "segments" / "serving"),
        "--port": str(port),
    }
    return [sys.executable, "-m", "tidemill.serving", *(part for pair in options.items() for part in pair)]


@contextmanager
def started(folder: Path, release: str, model_url: str) -> Iterator[Process]:
    command = arguments(folder, release, model_url)
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Process(popen, _url(popen.stdout), folder / "segments" / "serving")
    finally:
        popen.kill()
        popen.communicate()


def _url(output: IO[str] | None) -> str:
    assert output is not None
    line = output.readline()
    assert " on http://" in line, line
    return line.rsplit(" on ", 1)[1].strip().removesuffix("/v1")


def test_a_release_is_served_until_sigterm_and_running_answers_are_finished(tmp_path: Path) -> None:
    release = publish(tmp_path)
    model = ScriptedModel(lambda _: "It raises AssertionError.", delay_s=0.3)
    with ScriptedServer(model) as upstream, started(tmp_path, release, upstream.url) as process:
        assert process.ready() == {"status": "ok", "release": release}
        body = {"messages": ask("what does assert raise"), "stream": True}
        with httpx2.stream("POST", f"{process.url}/v1/chat/completions", json=body, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            process.popen.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        last = json.loads(rest[-2].removeprefix("data: "))
        assert last["tidemill"]["citations"] == ["python:topics/assert"]
        assert process.popen.wait(20) == 0
    records = read(process.segments)
    operations = [record.span.operation for record in records if isinstance(record, Finished)]
    assert operations == ["retrieval", "chat", "invoke_agent"]


def test_what_the_caller_can_mend_ends_with_a_sentence(tmp_path: Path) -> None:
    release = publish(tmp_path)
    missing = Digest("sha256:" + "0" * 64)
    with ScriptedServer() as upstream:
        taken = int(upstream.url.rsplit(":", 1)[1].removesuffix("/v1"))
        for command, words in (
            (arguments(tmp_path, missing, upstream.url), "no artifact"),
            (arguments(tmp_path, release, upstream.url, port=taken), "cannot listen"),
            (arguments(tmp_path / "nowhere", release, upstream.url), "There is no ledger"),
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 2, done.stderr
            assert words in done.stderr
            assert "Traceback" not in done.stderr


def test_a_killed_process_leaves_its_open_answer_in_the_segment(tmp_path: Path) -> None:
    release = publish(tmp_path)
    model = ScriptedModel(delay_s=30)
    with ScriptedServer(model) as upstream, started(tmp_path, release, upstream.url) as process:
        process.ready()
        body = {"messages": ask("what does assert raise")}
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(httpx2.post, f"{process.url}/v1/chat/completions", json=body, timeout=20)
            wait_until(lambda: bool(model.requests))
            os.kill(process.popen.pid, signal.SIGKILL)
            assert isinstance(asked.exception(20), httpx2.HTTPError)
    records = read(process.segments)
    (intent,) = (record for record in records if isinstance(record, Intent))
    finished = [record.span for record in records if isinstance(record, Finished)]
    assert intent.operation == "invoke_agent"
    assert [span.operation for span in finished] == ["retrieval"]
    assert finished[0].parent_span_id == intent.span_id


def test_without_its_parent_the_process_ends(tmp_path: Path) -> None:
    release = publish(tmp_path)
    with ScriptedServer() as upstream:
        command = [*arguments(tmp_path, release, upstream.url), "--parent-pid", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def read(segments: Path) -> list[object]:
    return [record for path in sorted(segments.glob("*.seg")) for record, _ in read_segment(path)]


def wait_until(ready: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
