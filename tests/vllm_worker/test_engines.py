"""Real vLLM on the CPU: engines that share a pool answer as they do alone, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from demo.checkpoints import write_llama

_SCRIPT = Path(__file__).with_name("engines_run.py")


def _answers(kind: str, directory: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), kind, str(directory)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_tokens_and_log_probabilities_are_equal_bit_for_bit(tmp_path: Path) -> None:
    for index in range(2):
        write_llama(
            tmp_path / f"m{index}",
            seed=index + 1,
            hidden_size=64 + 32 * index,
            heads=2 + index,
            kv_heads=1,
        )
    alone = _answers("stock", tmp_path)
    pooled = _answers("pooled", tmp_path)
    assert pooled["swaps"] >= 40
    assert pooled["cached_tokens"] == alone["cached_tokens"] > 0  # prefix hits after a swap
    assert pooled["answers"] == alone["answers"]
    assert pooled["sums"] == alone["sums"]
    assert pooled["refused"]  # a callable that touches a model without asking for its memory
    assert len(alone["answers"]) == 12
