"""vLLM engines that share a pool which holds one of them answer as they do without it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import missing

SCRIPT = Path(__file__).with_name("vllm_pair.py")


@pytest.fixture(params=["host", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """That of vLLM's platform; the other is skipped, and on a machine with a GPU fails."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    platform = importlib.import_module("vllm.platforms").current_platform
    if request.param == "cuda" and not platform.is_cuda():
        missing(f"this vLLM runs on {platform.device_type or 'nothing here'}")
    if request.param == "host" and not platform.is_cpu():
        pytest.skip("this vLLM is not its CPU build")
    return str(request.param)


def answers(kind: str, device: str, directory: Path) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), kind, device, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_answers_over_swaps(device: str, tmp_path: Path) -> None:
    write_llama = importlib.import_module("demo.checkpoints").write_llama
    for index in range(2):
        write_llama(tmp_path / f"m{index}", seed=index + 1, hidden_size=256, layers=4)
    alone = answers("stock", device, tmp_path)
    pooled = answers("pooled", device, tmp_path)
    assert len(alone["answers"]) == 8
    assert pooled["answers"] == alone["answers"]
    assert pooled["swaps"] >= 40
