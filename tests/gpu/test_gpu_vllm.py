"""vLLM engines that share a pool which holds one of them answer as they do without it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import missing

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("vllm_swaps.py")
SWAPS = 60


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
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--device", device, "--together", "--eager"),
            *("--engines", "2", "--swaps", str(SWAPS), "--parameters", "3e6", "--kv-mib", "16"),
            *("--page-mib", "2"),  # of larger ones it would have too few
            *("--folder", str(tmp_path), "--json", "-"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280 if device == "host" else 180,  # of the part's, where that is limited
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and found["differing"] == 0
    assert found["requests"] >= 12 and found["tokens"] > 400
    assert found["swaps"] >= found["swaps_inside_answers"] >= SWAPS - 10
    # Room for all but a little of an engine: nearly all of its weights come each time.
    spare = found["budget_bytes"] - found["weights_bytes"] - found["kv_cache_bytes"]
    assert found["copied_bytes"] >= SWAPS * (found["weights_bytes"] - spare)
