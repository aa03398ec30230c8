"""vLLM engines that share a pool which holds one of them answer as they do without it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import missing

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("vllm_swaps.py")
SWAPS = 60
PARAMETERS = {"host": "6e6", "cuda": "1.2e7"}  # in float32 and bfloat16, of the same size


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


def test_answers_over_swaps(device: str, tmp_path: Path) -> None:
    into, said, so_far = tmp_path / "found.json", list[str](), list[dict[str, Any]]()
    process = subprocess.Popen(
        [
            *(sys.executable, str(SCRIPT), "--device", device, "--together", "--eager"),
            *("--engines", "2", "--swaps", str(SWAPS), "--kv-mib", "16"),
            *("--parameters", PARAMETERS[device]),
            *("--page-mib", "2"),  # of larger ones it would have too few
            *("--folder", str(tmp_path), "--json", str(into)),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Within the limit of the part, where that is limited.
    late = threading.Timer(280 if device == "host" else 180, process.kill)
    late.start()
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("turn ") and not line.startswith("turn 0 "):  # so many are done
                so_far.append(json.loads(into.read_text()))
    late.cancel()
    assert process.returncode == 0, "".join(said)[-3000:]
    assert len(so_far) >= 2
    for before in so_far:
        assert before["complete"] is False and before["swaps"] >= 10 and "wrong" not in before
    found = json.loads(into.read_text())
    assert found["complete"] is True
    assert found["wrong"] == [] and found["differing"] == 0
    assert found["requests"] >= 12 and found["tokens"] > 400
    assert found["swaps"] >= found["swaps_inside_answers"] >= SWAPS - 10
    # What has room beside an engine may stay; the rest of its weights comes each time.
    spare = found["budget_bytes"] - found["weights_bytes"] - found["kv_cache_bytes"]
    assert 2 * spare < found["weights_bytes"]
    assert found["copied_bytes"] >= SWAPS * (found["weights_bytes"] - spare)
