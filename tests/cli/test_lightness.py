"""What light processes must not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.shop import Shop

HEAVY = ("duckdb", "fastapi", "onnxruntime", "pandas", "pyarrow", "sqlalchemy", "torch", "xllamacpp")


def loaded_by(code: str) -> str:
    code += f"; import sys; print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_status_loads_no_database(bare_shop: Shop) -> None:
    code = f"from tidemill.cli.entry import run; assert run(['status', '--project', {str(bare_shop.folder)!r}]) == 0"
    assert loaded_by(code) == "loaded []"


@pytest.mark.parametrize("module", ["tidemill", "tidemill.cli", "tidemill.gateway.__main__", "tidemill.gateway.worker"])
def test_importing_loads_no_database(module: str) -> None:
    assert loaded_by(f"import {module}") == "loaded []"


def test_help_loads_no_database() -> None:
    assert loaded_by("from tidemill.cli.entry import run; assert run(['--help']) == 0") == "loaded []"
