"""Other gateways, each installed in an environment of its own below ``.bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from gateway.rig import MODEL, PROXY_CORE, Rig, free_port

ROOT: Final = Path(__file__).resolve().parents[2] / ".bench"
TENSORZERO: Final = "tensorzero==2026.6.0"
LITELLM: Final = "litellm[proxy]==1.106.2"
LITELLM_KEY: Final = "sk-benchmark-4f1d"

_TENSORZERO_PROGRAM: Final = """\
import asyncio, os, sys
from tensorzero import _start_http_gateway

async def main():
    gateway = await _start_http_gateway(
        clickhouse_url=None, postgres_url=None, valkey_url=None, config_file=sys.argv[1], async_setup=True)
    with open(sys.argv[2] + ".draft", "w") as file:
        file.write(gateway.base_url)
    os.rename(sys.argv[2] + ".draft", sys.argv[2])
    await asyncio.Event().wait()

asyncio.run(main())
"""


def environment(name: str, requirement: str) -> Path:
    """The Python of an environment with one peer in it, made when missing."""
    folder = ROOT / f"peers-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {requirement} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement], check=True)
    return python


def start_tensorzero(rig: Rig, upstream: int) -> tuple[str, Path]:
    """The gateway inside TensorZero's wheel, with observability off. Returns (base URL, request body for it)."""
    python = environment("tensorzero", TENSORZERO)
    config, told = rig.folder / "tensorzero.toml", rig.folder / "tensorzero.url"
    config.write_text(
        f'[gateway]\nobservability.enabled = false\n[models."{MODEL}"]\nrouting = ["mock"]\n'
        f'[models."{MODEL}".providers.mock]\ntype = "openai"\nmodel_name = "{MODEL}"\n'
        f'api_base = "http://127.0.0.1:{upstream}/v1"\napi_key_location = "none"\n'
    )
    program = rig.folder / "run_tensorzero.py"
    program.write_text(_TENSORZERO_PROGRAM)
    rig.spawn([str(python), str(program), str(config), str(told)], PROXY_CORE, told)
    body = rig.folder / "body-tensorzero.json"
    body.write_text(rig.body.read_text().replace(f'"{MODEL}"', f'"tensorzero::model_name::{MODEL}"'))
    return told.read_text(), body


def start_litellm(rig: Rig, upstream: int) -> tuple[int, int]:
    """LiteLLM's proxy with one worker and a master key, without a database. Returns (port, pid)."""
    python = environment("litellm", LITELLM)
    config, port = rig.folder / "litellm.yaml", free_port()
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: sk-up\n"
        f"general_settings:\n  master_key: {LITELLM_KEY}\nlitellm_settings:\n  telemetry: false\n"
    )
    command = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    process = rig.spawn(
        [*command, "--num_workers", "1"],
        PROXY_CORE,
        port,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        LITELLM_MODE="PRODUCTION",
        LITELLM_LOG="ERROR",
    )
    return port, process.pid
