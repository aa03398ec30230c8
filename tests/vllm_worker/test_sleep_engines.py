"""Real vLLM on the CPU: what an engine that slept answers is what it would have."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from adapter import write_adapter

from demo.checkpoints import write_llama

_SCRIPT = Path(__file__).with_name("sleep_run.py")
SEED, TURNS = 5, 60
TIMEOUT_S = 240


@pytest.mark.timeout(TIMEOUT_S)
def test_sleep_changes_no_answer(tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    for index, name in enumerate(("m0", "m1", "other")):
        write_llama(stock / name, seed=index + 1, hidden_size=64, heads=2, kv_heads=1)
    for number in range(2):
        write_adapter(stock / f"adapter{number}", stock / "m0", seed=number)
    (stock / "other" / "model.safetensors").replace(stock / "other.safetensors")
    shutil.copytree(stock, tmp_path / "pooled")
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), str(tmp_path), str(SEED), str(TURNS)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S - 10,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    alone, pooled = found["stock"], found["pooled"]
    assert [
        name for name, is_so in alone["answers"].items() if pooled["answers"][name] != is_so
    ] == []
    assert pooled == alone
    for what in (
        "slept at level 0",
        "slept at level 1",
        "running requests kept",
        "weights changed",
    ):
        assert pooled["counts"][what] > 0
