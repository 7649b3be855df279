"""What the serving process must not load: it starts again with every rollout."""

import subprocess
import sys

HEAVY = ("bm25s", "duckdb", "onnxruntime", "openai", "pandas", "scipy", "sqlalchemy", "torch", "xllamacpp")


def test_starting_loads_no_heavy_library() -> None:
    code = f"import sys, tidemill.serving.__main__; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
