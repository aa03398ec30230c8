"""Real vLLM on the CPU: tensor parallel engines whose ranks leave and come between tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from demo.checkpoints import write_llama

_SCRIPT = Path(__file__).with_name("gang_run.py")


@pytest.mark.timeout(900)
def test_two_engines_of_two_ranks_answer_as_undisturbed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for index in range(2):
        write_llama(tmp_path / f"m{index}", seed=index + 1, hidden_size=64, heads=2, kv_heads=2)
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=880,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    print(found)
    assert found["equal"]
    assert found["equal after a kill"]
    assert found["fenced"] == [0, 0]
    first, second = found["swap-ins"]
    assert first == second  # the ranks of an engine had the same turns
    assert min(first) > 10
