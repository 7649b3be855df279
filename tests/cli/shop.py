"""A small project for the commands: the example of ``init``, answered by a scripted model on a real socket."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tidemill.cli.entry import run

PRICE = "A flat tyre costs 12 euros."


@dataclass(frozen=True)
class Called:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shop:
    """A project folder and the commands on it."""

    folder: Path

    def call(self, *arguments: str) -> Called:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run([*arguments, "--project", str(self.folder)])
        return Called(code, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str) -> str:
        called = self.call(*arguments)
        assert called.code == 0, called
        return called.out

    def json(self, *arguments: str, code: int = 0) -> Any:
        called = self.call(*arguments, "--json")
        assert called.code == code, called
        return json.loads(called.out)

    def refused(self, *arguments: str) -> str:
        """The message of a user's mistake: exit code 2, nothing on stdout, no traceback."""
        called = self.call(*arguments)
        assert (called.code, called.out) == (2, ""), called
        assert "Traceback" not in called.err
        assert called.err.startswith("tidemill: ")
        return called.err

    def change(self, *path: str, to: Any) -> None:
        """Change a key of the project file."""
        file = self.folder / "tidemill.yaml"
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        place = document
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = to
        file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def answers_well(messages: Sequence[Mapping[str, Any]]) -> str:
    """The script of the model: right, unless its instructions tell it to be careless."""
    return "Something else." if "careless" in str(messages[0]["content"]) else PRICE


def make_shop(folder: Path, *, model_url: str, ports: Sequence[int]) -> Shop:
    shop = Shop(folder)
    with redirect_stdout(io.StringIO()):
        assert run(["init", str(folder), "--name", "shop"]) == 0
    shop.change("indexes", "shop", "mode", to="bm25")
    shop.change("models", "scripted", to={"kind": "chat", "url": model_url, "output_usd_per_mtok": 100.0})
    shop.change("releases", "shop", "model", to="scripted")
    shop.change("runtime", to={"enabled": False, "port": ports[0]})
    shop.change("server", "port", to=ports[1])
    shop.change("gateway", "port", to=ports[2])
    return shop


def write_questions(path: Path, count: int = 40) -> Path:
    lines = [
        {
            "question": f"What does flat tyre number {number} cost?",
            "answers": [PRICE],
            "documents": ["file:documents/repairs.md"],
            "split": "heldout" if number % 2 else "dev",
            "tags": ["price"],
        }
        for number in range(count)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path


def copy_shop(shop: Shop, folder: Path) -> Shop:
    shutil.copytree(shop.folder, folder)
    return Shop(folder)
