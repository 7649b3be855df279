"""The pages of the documentation as programs: their blocks, and a project folder to run them in.

Every block of a page runs, in order, in one empty folder and one Python namespace:

* ```` ```console ````: each line after ``$`` is a command; what follows is what it prints, where ``…`` stands for
  anything. ``tidemill`` runs in this process; ``tidemill up &`` is a real process, stopped at the end of the page;
  everything else goes to a shell. A command that does not end with 0 is followed by ``$ echo $?``.
* ```` ```python ```` is executed, ```` ```python-console ```` compared as doctest does.
* Any block after ``<!-- file: NAME -->`` is written to that file first; a Python file is not executed.
* A block after ``<!-- not run: REASON -->`` is left alone. The reason is not optional.
* In place of a block after ``<!-- instead: COMMAND -->`` that command runs, where the page's own would download.
* ``<!-- stage: NAME=VALUE -->`` anywhere sets a variable of the environment for the page.

``sh`` blocks hold what installs or would run this suite. Other languages (yaml, json, text, mermaid) are for the eye
unless they are files. The models that a page names are played by ``tidemill.serving.testing``, and the ports it names
are replaced by free ones.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tidemill.cli.entry import run
from tidemill.kernel import settings as kernel_settings
from tidemill.retrieval import terms
from tidemill.serving.testing import Messages, ScriptedModel, ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
RUN = {"console", "python", "python-console"}
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>file|instead|not run): (?P<what>[^\n]*?) -->\n+)?^```(?P<language>[\w-]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_STAGE = re.compile(r"<!-- stage: (\w+)=(.*?) -->")
_PORTS = {"8400": "server", "8410": "gateway", "8420": "runtime"}
_READY_S = 60.0
#: Would install, download or run this very suite.
NEVER = {"git", "make", "pip", "uv"}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    what: str = ""

    @property
    def runs(self) -> bool:
        return self.mark in {"file", "instead"} or (self.language in RUN and self.mark != "not run")


def blocks(path: Path) -> list[Block]:
    page = path.read_text(encoding="utf-8")
    name = str(path.relative_to(ROOT))
    return [
        Block(name, page.count("\n", 0, found.start()) + 1, found["language"], found["text"], found["mark"] or "",
              found["what"] or "")
        for found in _FENCE.finditer(page)
    ]  # fmt: skip


def runnable_pages() -> list[Path]:
    """Pages with at least one block that runs."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if page.exists() and any(block.runs for block in blocks(page))]


def says(messages: Messages) -> str:
    """The script of the model: the sentence of its context that shares most words with the question."""
    text = str(messages[-1]["content"])
    context, _, question = text.rpartition("Question:")
    asked = set(terms(question or text))
    plain = re.sub(r"^(Context:|#).*$", "", context, flags=re.MULTILINE) or text  # titles are no sentences
    sentences = re.split(r"(?<=[.])\s+", " ".join(plain.split()))
    return max(sentences, key=lambda sentence: len(asked & set(terms(sentence))))


@dataclass
class Stage:
    """An empty folder, free ports and a scripted model for one page."""

    folder: Path
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    status: int = 0
    up: subprocess.Popen[bytes] | None = None
    ports: dict[str, int] = field(default_factory=dict)

    def play(self, block: Block) -> None:
        text = self._local(block.text)
        if block.mark == "file":
            file = self.folder / block.what
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif block.mark == "instead":
            printed = self._type(block.what)
            assert self.status == 0, printed
        elif block.language == "python":
            # the line numbers of the page, so that a traceback leads there
            exec(compile("\n" * block.line + text, block.page, "exec"), self.namespace)
        elif block.language == "python-console":
            self._doctest(block, text)
        else:
            self._console(block, text)

    def _local(self, text: str) -> str:
        for port, part in _PORTS.items():
            text = re.sub(rf"(?<=:){port}\b", str(self.ports[part]), text)
        return text

    def _doctest(self, block: Block, text: str) -> None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        test = doctest.DocTestParser().get_doctest(text, self.namespace, block.page, block.page, block.line)
        test.globs = self.namespace
        out: list[str] = []
        failed = doctest.DocTestRunner(optionflags=flags).run(test, out=out.append, clear_globs=False).failed
        assert not failed, "".join(out)

    def _console(self, block: Block, text: str) -> None:
        steps = re.findall(r"^\$ (.*(?:\\\n.*)*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
        for number, (typed, expected) in enumerate(steps):
            command = typed.replace("\\\n", " ").split("  #")[0].strip()
            place = f"{block.page}, block at line {block.line}: {command}"
            checked = number + 1 < len(steps) and steps[number + 1][0].strip() == "echo $?"
            printed = self._type(command)
            assert checked or self.status == 0, f"{place}\nended with {self.status} and printed\n{printed}"
            assert matches(expected, printed), f"{place}\nprinted\n{printed}\nand not\n{expected}"

    def _type(self, command: str) -> str:
        if command == "echo $?":
            ended, self.status = self.status, 0
            return f"{ended}\n"
        words = shlex.split(command)
        assert words[0] not in NEVER, f"{command}: mark the block with <!-- not run: REASON -->"
        assert words[:2] != ["tidemill", "demo"], f"{command}: has tests of its own; mark the block with not run"
        if words[0] == "cd":
            os.chdir(words[1])
            return ""
        if words[:2] == ["tidemill", "up"]:
            return self._start()
        if words[0] != "tidemill" or re.search(r"[|>&]|\$\(", command):
            return self._shell(command)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            self.status = run(words[1:])
        return output.getvalue()

    def _shell(self, command: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**kernel_settings.child_environment(), "PATH": path, "COLUMNS": "200"}
        done = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
            timeout=60, check=False,
        )  # fmt: skip
        self.status = done.returncode
        return done.stdout

    def _start(self) -> str:
        log = self.folder / "up.log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", "tidemill.cli", "up"]
            self.up = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=kernel_settings.child_environment(PYTHONUNBUFFERED="1"),
            )
        self._wait(lambda: "ready after" in log.read_text(), log)
        # a release that is deployed already is served a moment after the gateway is there
        token = next(self.folder.rglob(".tidemill")) / "run" / "token"
        self._wait(lambda: token.exists() and self._served(token), log)
        self.status = 0
        return ""

    def _served(self, token: Path) -> bool:
        import json
        from urllib.request import Request

        request = Request(
            f"http://127.0.0.1:{self.ports['server']}/api/v1/status",
            headers={"Authorization": f"Bearer {token.read_text().strip()}"},
        )
        with contextlib.suppress(OSError), urlopen(request, timeout=5) as answer:
            return all(one["ready"] for one in json.load(answer)["endpoints"])
        return False

    def _wait(self, holds: Any, log: Path) -> None:
        limit_s = time.monotonic() + _READY_S
        while not holds():
            assert self.up is not None
            assert self.up.poll() is None, f"tidemill up ended:\n{log.read_text()}"
            assert time.monotonic() < limit_s, f"tidemill up is not ready:\n{log.read_text()}"
            time.sleep(0.1)

    def stop(self) -> None:
        if self.up is not None and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            self.up.wait(timeout=30)


def matches(expected: str, printed: str) -> bool:
    """Whether output is as the page shows it: blanks do not count, ``…`` is anything, nothing expected is anything."""
    if not expected.strip():
        return True
    parts = [re.escape(part.strip()) for part in " ".join(expected.split()).split("…")]
    return re.fullmatch(" ?.*? ?".join(parts), " ".join(printed.split())) is not None


@contextlib.contextmanager
def stage(page: Path, folder: Path) -> Iterator[Stage]:
    """A stage whose environment says: these ports, and a scripted model in the place of the weights."""
    with contextlib.ExitStack() as held, ScriptedServer(ScriptedModel(says)) as server:
        probes = {part: held.enter_context(socket.create_server(("127.0.0.1", 0))) for part in _PORTS.values()}
        ports = {part: probe.getsockname()[1] for part, probe in probes.items()}
        held.close()
        chat = {"url": server.url, "licence": "Apache-2.0"}
        variables = {f"TIDEMILL_{part.upper()}__PORT": str(port) for part, port in ports.items()}
        variables["TIDEMILL_MODELS__SMOLLM2-135M-INSTRUCT"] = f"{chat!r}"
        variables["TIDEMILL_RUNTIME__ENABLED"] = "false"
        variables |= dict(_STAGE.findall(page.read_text(encoding="utf-8")))
        before, place = dict(kernel_settings._frozen), Path.cwd()
        kernel_settings._frozen.clear()
        kernel_settings._frozen.update(os.environ | variables | {"COLUMNS": "200", "SCRIPTED_URL": server.url})
        columns = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "200"  # where Rich, which prints the tables in this process, looks for the width
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        one = Stage(folder, ports=ports)
        try:
            yield one
        finally:
            one.stop()
            os.chdir(place)
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns
            sys.path.remove(str(folder))
            kernel_settings._frozen.clear()
            kernel_settings._frozen.update(before)
