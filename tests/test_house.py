"""The house rules that no linter knows.

An allowlist entry carries its argument and must still be needed: a list here can only become shorter.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tidemill.cli.entry import COMMANDS
from tidemill.kernel.settings import settings_schema

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "tidemill"
REFERENCE = ROOT / "docs" / "reference"
EXPORTED_NAMES = ROOT / "tests" / "exported_names.txt"

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60  # of code: a docstring may be as long as it must
HEAVY = ("duckdb", "fastapi", "numpy", "onnxruntime", "pandas", "pyarrow", "sqlalchemy", "torch", "xllamacpp")
SQL = {"alembic", "duckdb", "psycopg", "sqlalchemy", "sqlite3"}
MAY_SPEAK_SQL = ("ledger", "telemetry")  # and the back ends of retrieval's indexes, once there is one
#: Folders of tests that mirror no package: suites over every back end of an interface, and the documentation.
TEST_FOLDERS = {"conformance", "docs"}
EMPTY_NAME = re.compile(r"Manager|Helper|Util(s|ity)?$|Base$|Impl$|Service")

#: 'module:name' -> why it may be without a docstring.
UNDESCRIBED = {
    "ledger.migrations.versions.v0001_first:upgrade": "the signature Alembic asks for; the module says what it does",
    "ledger.migrations.versions.v0001_first:downgrade": "the signature Alembic asks for; the module says what it does",
}


@cache
def modules() -> dict[str, tuple[Path, str, ast.Module]]:
    """Dotted name below ``tidemill`` -> file, text, tree."""
    found = {}
    for file in sorted(SOURCES.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        found[".".join(file.relative_to(SOURCES).with_suffix("").parts)] = (file, text, ast.parse(text))
    return found


def definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """The public functions and classes of a module, and the methods of those classes."""
    for node in body:
        if any(isinstance(one, ast.Name) and one.id == "overload" for one in getattr(node, "decorator_list", ())):
            continue  # described where it is implemented
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    described = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if described else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def test_no_module_is_too_long() -> None:
    lengths = {name: len(text.splitlines()) for name, (_, text, _) in modules().items()}
    assert {name: count for name, count in lengths.items() if count > MAX_MODULE_LINES} == {}


def test_no_function_is_too_long() -> None:
    long = {
        f"{name}:{node.name}": code_lines(node)
        for name, (_, _, tree) in modules().items()
        for node in definitions(tree)
        if not isinstance(node, ast.ClassDef) and code_lines(node) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_names_say_what_a_thing_is() -> None:
    empty = {
        f"{name}:{node.name}"
        for name, (_, _, tree) in modules().items()
        for node in definitions(tree)
        if EMPTY_NAME.search(node.name)
    }
    assert empty == set()


def test_everything_public_is_described() -> None:
    without = {
        f"{name}:{what}"
        for name, (_, _, tree) in modules().items()
        for what, node in public(tree.body)
        if not ast.get_docstring(node)  # type: ignore[arg-type]  # functions and classes alone
    }
    assert without == set(UNDESCRIBED), "describe what is new here; take off UNDESCRIBED what is described by now"


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, (_, text, tree) in modules().items() if text.strip() and not ast.get_docstring(tree)] == []


def _packages() -> list[str]:
    """The packages whose ``__init__`` names a public face."""
    names = ["tidemill." + name.removesuffix(".__init__") for name in modules() if name.endswith(".__init__")]
    return ["tidemill", *names]


def _face(package: str) -> list[str]:
    return list(getattr(import_module(package), "__all__", []))


def _place(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, each by the alphabet."""
    bare = name.strip("_")
    return (0 if bare.isupper() and len(bare) > 1 else 1 if bare[:1].isupper() else 2), name


@pytest.mark.parametrize("package", _packages())
def test_public_face_is_sorted_and_there(package: str) -> None:
    face = _face(package)
    assert face == sorted(set(face), key=_place)
    module = import_module(package)
    assert [name for name in face if not hasattr(module, name)] == []
    assert [name for name in face if name.startswith("_") and name != "__version__"] == []


def test_public_faces_are_pinned() -> None:
    """A name enters or leaves the public face on purpose.

    After such a change write the list anew: python -m tests.test_house
    """
    assert EXPORTED_NAMES.read_text(encoding="utf-8") == _exported_names(), "python -m tests.test_house"


def _exported_names() -> str:
    lines = ["# The public face of every package. Written by: python -m tests.test_house"]
    for package in _packages():
        face = _face(package)
        if face:
            lines += ["", package, *(f"    {name}" for name in face)]
    return "\n".join(lines) + "\n"


def test_packages_use_each_others_public_faces() -> None:
    """A private name stays in its package."""
    taken = [
        f"{name}:{node.lineno} {node.module}.{alias.name}"
        for name, (_, _, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tidemill.")
        for alias in node.names
        if alias.name.startswith("_")
        and alias.name != "__version__"
        and (node.module or "").split(".")[1] != name.split(".")[0]
    ]
    assert taken == []


def _loaded_by(code: str) -> str:
    """Run code in a fresh interpreter; what it printed last."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_import_is_light_and_opens_no_socket() -> None:
    code = f"""
import sys
sockets = []
sys.addaudithook(lambda event, _: sockets.append(event) if event.startswith("socket.") else None)
import tidemill
print(sockets + [name for name in sys.modules if name.split(".")[0] in {(*HEAVY, "pydantic", "typer", "yaml")}])
"""
    assert _loaded_by(code) == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "from tidemill.cli.entry import run; run(['--help'])",
        "from tidemill.cli.entry import run; run(['status', '--project', 'nowhere'])",
        "import tidemill.gateway.__main__",
        "import tidemill.serving",
        "import tidemill.telemetry, tidemill.ledger, tidemill.models, tidemill.kernel",
    ],
    ids=["help", "status", "gateway", "serving", "packages"],
)
def test_light_processes_load_no_database_and_no_model_library(code: str) -> None:
    # a serving process holds its index in numpy arrays; the rest has no use for numbers
    heavy = tuple(name for name in HEAVY if name != "numpy" or "serving" not in code)
    assert _loaded_by(f"import sys\n{code}\nprint([name for name in {heavy} if name in sys.modules])") == "[]"


def test_only_settings_read_the_environment() -> None:
    reading = {
        name
        for name, (_, _, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "environb", "getenv"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert reading == {"kernel.settings"}


def test_only_stores_speak_sql() -> None:
    speaking = [
        f"{name}:{line} {module}"
        for name, (_, _, tree) in modules().items()
        for line, module in imports(tree)
        if module.split(".")[0] in SQL and name.split(".")[0] not in MAY_SPEAK_SQL
    ]
    assert speaking == []


def test_every_exception_from_a_check_gives_its_reason() -> None:
    noqa = re.compile(r"#\s*noqa\b(?!: [A-Z0-9, ]+ - \S)")
    ignore = re.compile(r"#\s*type:\s*ignore\b(?!\[[^\]]+\]\s+# \S)")
    bare = [
        f"{name}:{number} {line.strip()}"
        for name, (_, text, _) in modules().items()
        for number, line in enumerate(text.splitlines(), 1)
        if noqa.search(line) or ignore.search(line)
    ]
    assert bare == []


def test_every_setting_is_described_and_documented() -> None:
    schema = settings_schema()
    sections = {"": schema, **schema["$defs"]}
    undescribed = [
        f"{section}.{key}"
        for section, one in sections.items()
        for key, value in one.get("properties", {}).items()
        if not (value if "$ref" not in value else schema["$defs"][value["$ref"].rpartition("/")[2]]).get("description")
    ]
    assert undescribed == []
    text = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    keys = {key for one in sections.values() for key in one.get("properties", {})}
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", text)) == []


def _commands() -> list[str]:
    """Every command as it is typed, with those of the groups."""
    import typer

    found = []
    for name, (module, attribute, _, _) in COMMANDS.items():
        target = getattr(import_module(f"tidemill.cli.{module}"), attribute)
        if isinstance(target, typer.Typer):
            group = typer.main.get_group(target)
            found += [f"tidemill {name} {one}" for one in group.commands]
        else:
            found.append(f"tidemill {name}")
    return found


def test_every_command_is_documented() -> None:
    text = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    assert [command for command in _commands() if command not in text] == []


def test_no_path_of_a_machine_is_written_down() -> None:
    path = re.compile(r"(?<![\w.~}])/(?:" + "|".join(("home", "root", "work")) + r")/")
    folders = ("src", "tests", "docs", "benchmarks", "examples", "deploy", "changelog.d")
    files = [file for folder in folders if (ROOT / folder).is_dir() for file in (ROOT / folder).rglob("*")]
    files += [file for file in ROOT.iterdir() if file.suffix in {".md", ".toml", ".txt"} or file.name == "Makefile"]
    found = []
    for file in files:
        if not file.is_file() or "__pycache__" in file.parts:
            continue
        text = file.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in path.finditer(text)]
    assert found == []


def test_tests_mirror_the_sources() -> None:
    packages = {file.parent.name for file in SOURCES.glob("*/*.py")}
    tested = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert tested - packages == TEST_FOLDERS
    assert packages - tested == set()


if __name__ == "__main__":
    EXPORTED_NAMES.write_text(_exported_names(), encoding="utf-8")
