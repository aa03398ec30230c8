"""Real vLLM on the CPU: weights that are sent to a pooled engine stay, over every swap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from demo.checkpoints import write_llama

_SCRIPT = Path(__file__).with_name("updates_run.py")
SEED = 3
TIMEOUT_S = 600
PIECE_BYTES = 2 << 20  # of an image, which has a digest of its own


def _found(kind: str, directory: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), kind, str(directory), str(SEED)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S // 2,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(TIMEOUT_S)
def test_weights_that_are_sent_stay(tmp_path: Path) -> None:
    for index, name in enumerate(("m0", "other")):
        write_llama(tmp_path / name, seed=index + 1, hidden_size=128, heads=2, kv_heads=1)
    others = tmp_path / "other.safetensors"
    (tmp_path / "other" / "model.safetensors").replace(others)
    alone, pooled = _found("stock", tmp_path), _found("pooled", tmp_path)
    for name, found in pooled.items():
        assert found["answers"] == alone[name]["answers"]
        # The first answer, the last of other weights, and what the engine beside it says always.
        first, second, last = found["answers"][0], found["answers"][1], found["answers"][-1]
        assert first == second != last
        copied = found["copied"]
        # Whatever was sent, each swap-out copies the pieces that are not what they were.
        assert 0 < sum(map(bool, copied["all"])) < len(copied["all"])
        assert sum(copied["all"]) >= 0.9 * others.stat().st_size
        assert set(copied["the same again"]) == {0}
    assert set(pooled["patches"]["copied"]["one element"]) == {0, PIECE_BYTES}
    assert sum(pooled["patches"]["copied"]["one element"]) == PIECE_BYTES
    assert pooled["whole"]["answers"][-1] != pooled["patches"]["answers"][-1]
