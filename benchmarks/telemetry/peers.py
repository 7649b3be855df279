"""Phoenix and MLflow, each installed in an environment of its own below ``.bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from telemetry.rig import Bench, Receiver, free_port, get, rows_in

ROOT: Final = Path(__file__).resolve().parents[2] / ".bench"
PHOENIX: Final = "arize-phoenix==20.26.1"
MLFLOW: Final = "mlflow==3.17.2"


def environment(name: str, requirement: str) -> Path:
    """The Python of an environment with one peer in it, made when missing."""
    folder = ROOT / f"peers-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {requirement} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement], check=True, stderr=subprocess.DEVNULL)
    return python


def start_phoenix(bench: Bench) -> Receiver:
    """Phoenix with SQLite, as ``phoenix serve`` starts it."""
    python = environment("phoenix", PHOENIX)
    folder, port = bench.folder / "phoenix", free_port()
    folder.mkdir()
    database = folder / "phoenix.db"
    process = bench.spawn(
        [str(python), "-m", "phoenix.server.main", "serve"],
        "phoenix",
        PHOENIX_PORT=str(port),
        PHOENIX_GRPC_PORT=str(free_port()),
        PHOENIX_HOST="127.0.0.1",
        PHOENIX_WORKING_DIR=str(folder),
        PHOENIX_SQL_DATABASE_URL=f"sqlite:///{database}",
        PHOENIX_TELEMETRY_ENABLED="false",
    )
    base = f"http://127.0.0.1:{port}"
    bench.wait_until(lambda: get(f"{base}/v1/projects", {}) is not None, process, "phoenix")
    return Receiver(
        "phoenix",
        f"{base}/v1/traces",
        process,
        lambda: rows_in(database, "SELECT count(*) FROM spans"),
        [database, database.with_name("phoenix.db-wal")],
    )


def start_mlflow(bench: Bench) -> Receiver:
    """MLflow's server with SQLite and one worker."""
    python = environment("mlflow", MLFLOW)
    folder, port = bench.folder / "mlflow", free_port()
    folder.mkdir()
    database = folder / "mlflow.db"
    process = bench.spawn(
        [
            str(python.with_name("mlflow")), "server", "--backend-store-uri", f"sqlite:///{database}",
            "--default-artifact-root", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1",
        ],
        "mlflow",
        MLFLOW_DISABLE_TELEMETRY="true",
        DO_NOT_TRACK="true",
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    bench.wait_until(lambda: get(url, {}) is not None, process, "mlflow")
    return Receiver(
        "mlflow",
        f"http://127.0.0.1:{port}/v1/traces",
        process,
        lambda: rows_in(database, "SELECT count(*) FROM spans"),
        [database],
        {"x-mlflow-experiment-id": "0"},
    )
