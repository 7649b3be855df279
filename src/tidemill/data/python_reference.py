"""Python's own documentation as documents: the language reference's topics and the standard library's docstrings.

Every Python installation has both, so a first project needs no download. Sources are named
``python:topics/TOPIC``, ``python:builtins/NAME`` and ``python:MODULE[.NAME[.METHOD]]``.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any, Final

from tidemill.data.cleaning import clean
from tidemill.data.document import Document
from tidemill.kernel import Unavailable

# Importing one of these changes nothing in the process: no window, socket, thread or signal handler.
_MODULE_NAMES: Final = """
    abc argparse asyncio base64 bisect builtins calendar collections configparser contextlib copy csv dataclasses
    datetime decimal difflib enum fileinput fnmatch fractions functools glob graphlib gzip hashlib heapq hmac html
    importlib io ipaddress itertools json logging math operator os os.path pathlib pickle pprint queue random re
    sched secrets shlex shutil sqlite3 statistics string struct subprocess sys tarfile tempfile textwrap threading
    time timeit types typing unittest urllib.parse uuid warnings weakref xml.etree.ElementTree zipfile zoneinfo
"""
MODULES: Final = tuple(_MODULE_NAMES.split())
_MODULE_WORDS: Final = 20
_MEMBER_WORDS: Final = 30
_METHOD_WORDS: Final = 40
_UNDERLINE = re.compile(r"^\*{3,}$|^={3,}$|^-{3,}$")


def read_python_reference() -> list[Document]:
    """Read the language reference and the library docstrings of the Python that runs this.

    Functions, classes and methods whose docstring says enough become documents of their own; shorter ones are told
    in the document of their class or module, so that nothing documented is missing.

    Returns:
        Some nine hundred documents with distinct sources, in an order that does not change.

    Raises:
        Unavailable: this Python runs without docstrings (``-OO``) or was installed without ``pydoc_data``.
    """
    if sys.flags.optimize >= 2:
        raise Unavailable("Python runs with -OO, which discards docstrings.", hint="Run it without -OO.")
    documents = {document.source: document for document in _topics()}
    for name in MODULES:
        for document in _module_documents(name):
            documents.setdefault(document.source, document)
    return [document for document in documents.values() if document.text]


def _topics() -> Iterator[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise Unavailable(
            "This Python was installed without pydoc_data, which holds the language reference.",
            hint="Install the full standard library, or use a folder of documents.",
        ) from None
    for name in sorted(topics):
        text = clean(topics[name])
        yield Document(
            title=_topic_title(text, name), text=text, source=f"python:topics/{name}", media_type="text/x-rst"
        )


def _topic_title(text: str, name: str) -> str:
    lines = text.split("\n", 2)
    title = lines[0].strip() if len(lines) > 1 and _UNDERLINE.match(lines[1].strip()) else name
    return title.replace('"', "")


def _module_documents(name: str) -> Iterator[Document]:
    try:
        module = importlib.import_module(name)
    except ImportError:  # built without it (sqlite3, zlib): the rest of the reference still stands
        return
    prefix = "builtins/" if name == "builtins" else f"{name}."
    brief: list[str] = []
    for member_name, member in _public_members(module, name):
        title = member_name if name == "builtins" else f"{name}.{member_name}"
        source = f"python:{prefix}{member_name}"
        if inspect.isclass(member):
            functions = [getattr(function, "__func__", None) for function in vars(module).values()]
            yield from _class_documents(member, title, source, brief, functions)
        elif _words(member) >= _MEMBER_WORDS:
            yield _document(f"{title} (function)", source, _entry(title, member))
        elif _words(member):
            brief.append(_entry(title, member))
    if _words(module) >= _MODULE_WORDS or brief:
        yield _document(f"{name} (module)", f"python:{name}", "\n\n".join([_docstring(module), *brief]))


def _class_documents(
    member: type, title: str, source: str, brief: list[str], functions: Collection[object]
) -> Iterator[Document]:
    """The document of a class, then those of its long methods; a class that says too little goes to ``brief``.

    Methods among ``functions`` are left out: the module offers them as functions too (``random.choice``).
    """
    entries, long_methods = [_entry(title, member)], []
    for name, method in sorted(vars(member).items()):
        if name.startswith("_") or not _words(method) or _is_any_of(method, functions):
            continue
        entry = _entry(f"{title}.{name}", method)
        if _words(method) >= _METHOD_WORDS:
            long_methods.append(_document(f"{title}.{name} (method)", f"{source}.{name}", entry))
        else:
            entries.append(entry)
    text = "\n\n".join(entries)
    if _words(member) and len(text.split()) >= _MEMBER_WORDS:
        kind = "exception" if issubclass(member, BaseException) else "class"
        yield _document(f"{title} ({kind})", source, text)
    elif _words(member):
        brief.append(text)
    yield from long_methods


def _is_any_of(method: object, functions: Collection[object]) -> bool:
    # By identity: members of a module need not be hashable or comparable.
    return any(method is function for function in functions)


def _public_members(module: ModuleType, module_name: str) -> Iterator[tuple[str, Any]]:
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    # Several methods of str, bytes and bytearray say the same; whoever drops repetitions shall keep those of str.
    for name in sorted(set(names), key=lambda name: (name != "str", name != "bytes", name)):
        member = getattr(module, name, None)
        home = getattr(member, "__module__", None)
        is_builtin = getattr(builtins, name, None) is member
        from_elsewhere = is_builtin or (home != module_name and home in MODULES and module_name != "os.path")
        if callable(member) and (module is builtins or not from_elsewhere):
            yield name, member


def _docstring(member: Any) -> str:
    # inspect.getdoc would lend a class the docstring of its parent; a static method in C shows that of staticmethod.
    text = getattr(member.__func__ if isinstance(member, staticmethod) else member, "__doc__", None)
    return clean(inspect.cleandoc(text)) if isinstance(text, str) else ""


def _words(member: Any) -> int:
    is_documented = callable(member) or isinstance(member, property | classmethod | staticmethod | ModuleType)
    return len(_docstring(member).split()) if is_documented else 0


def _entry(title: str, member: Any) -> str:
    return f"{title}{_signature(member)}\n{_docstring(member)}"


def _signature(member: Any) -> str:
    try:
        text = str(inspect.signature(getattr(member, "__func__", member)))
    except (ValueError, TypeError):
        return ""
    # A default shown by its address would change from run to run.
    return text if " at 0x" not in text and len(text) <= 200 else "(...)"


def _document(title: str, source: str, text: str) -> Document:
    return Document(title=title, text=text.strip(), source=source, media_type="text/x-python-docstring")
