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
import asyncio, sys
from tensorzero import _start_http_gateway

async def main():
    gateway = await _start_http_gateway(
        clickhouse_url=None, postgres_url=None, valkey_url=None, config_file=sys.argv[1], async_setup=True)
    print(gateway.base_url, flush=True)
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


def start_tensorzero(rig: Rig, upstream: int) -> tuple[int, int]:
    """The gateway inside TensorZero's wheel, with observability off. Returns (port, pid)."""
    python = environment("tensorzero", TENSORZERO)
    config, port = rig.folder / "tensorzero.toml", free_port()
    config.write_text(
        f'[gateway]\nobservability.enabled = false\nbind_address = "127.0.0.1:{port}"\n'
        f'[models."{MODEL}"]\nrouting = ["mock"]\n[models."{MODEL}".providers.mock]\ntype = "openai"\n'
        f'model_name = "{MODEL}"\napi_base = "http://127.0.0.1:{upstream}/v1"\napi_key_location = "none"\n'
    )
    program = rig.folder / "run_tensorzero.py"
    program.write_text(_TENSORZERO_PROGRAM)
    process = rig.spawn([str(python), str(program), str(config)], PROXY_CORE, port)
    return port, process.pid


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
